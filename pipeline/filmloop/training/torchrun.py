"""torchrun whose exit code is that of the rank that failed first: `python -m filmloop.training.torchrun` and its options.

torchrun itself exits with 1 whatever its ranks did. A rank that the kernel killed for want of memory could then not be
told from one with a bug, and only the former is worth starting again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

SIGNAL_BASE = 128
"""A rank killed by signal n gives 128 + n, as in a shell."""


def main(options: Sequence[str]) -> int:
    """Run torchrun with `options`; returns 0, or the exit code of the first rank that failed."""
    try:
        torchrun(list(options))
    except ChildFailedError as exc:
        print(exc, file=sys.stderr, flush=True)
        _, failure = exc.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else SIGNAL_BASE - failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
