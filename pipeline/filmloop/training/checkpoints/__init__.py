"""The trainer's state on disk: every rank writes its part while training goes on; whole or not at all, and the one before it too.

    run folder/checkpoints/000007/
        part-0.safetensors    tensors that rank 0 wrote
        part-1.safetensors    the others
        state.json            whose state it is, all that is no tensor, and in which part each tensor is
        SHA256SUMS            written last: without it there is no checkpoint (`sha256sum -c SHA256SUMS` tells the same)

`torch.distributed.checkpoint` shares the tensors out and has the ranks agree; what it would pickle is JSON here, so that
reading a checkpoint runs no code from it. Why so: docs/decisions/0023-checkpoints-in-parts.md.
"""
