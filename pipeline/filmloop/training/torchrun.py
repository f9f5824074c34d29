"""torchrun whose exit code is that of the rank that failed first: `python -m filmloop.training.torchrun` and its options.

torchrun itself exits with 1 whatever its ranks did. A rank that the kernel killed for want of memory could then not be
told from one with a bug, and only the former is worth starting again. The same holds for nodes that did not find each
other, and for a torchrun that was told to stop.

With `--max-restarts` torchrun itself starts the ranks again. They then meet in the store of the first start (torch 2.13 shares the
rendezvous' TCPStore and puts no prefix before an attempt's keys), where a rank that is quick enough finds the address of a
dead one: "Gloo connectFullMesh failed ... Connection refused". A store for every attempt has no such past.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import main as torchrun

from filmloop.core.errors import TransientError

SIGNAL_BASE = 128
"""A rank killed by signal n gives 128 + n, as in a shell."""


def main(options: Sequence[str]) -> int:
    """Run torchrun with `options`; returns 0, or the exit code of the first rank that failed.

    A rank's own error is in `error.json`: who started this reads it there, whatever comes back here.
    """
    if any(option.startswith(("--max-restarts", "--max_restarts")) for option in options):
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    try:
        torchrun(list(options))
    except ChildFailedError as exc:
        print(exc, file=sys.stderr, flush=True)
        _, failure = exc.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else SIGNAL_BASE - failure.exitcode
    except SignalException as exc:
        print(f"torchrun: ended by {exc.sigval.name}", file=sys.stderr, flush=True)
        return SIGNAL_BASE + exc.sigval.value
    except RendezvousError as exc:
        print(f"torchrun: the nodes did not find each other: {exc}", file=sys.stderr, flush=True)
        return TransientError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
