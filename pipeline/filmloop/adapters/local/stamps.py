"""Whether a file that this process has loaded is still what it was."""

from __future__ import annotations

import os
import sys

from filmloop.core.fsio import canonical_json, sha256_bytes

_WRITTEN_AT_IMPORT = {"_remote_module_non_scriptable"}
"""torch.distributed writes it into a temporary folder whenever it is imported."""


class Stamps:
    """The files that this process has loaded, as they were. A file that was changed while it was loaded counts as changed.

    Whether it was is read from the clock, and the clock may have been set back since the files were written: then they look
    as if they were changed after any beginning. So what a process before this one has found once it had loaded says more:
    what is still the same was not changed since then, whatever the time.

    Args:
        began_ns: Before any of them was loaded, in nanoseconds since 1970.
        known: `digest` of the process before this one, '' if there was none.

    Attributes:
        digest: Of all files and how they were.
    """

    def __init__(self, began_ns: int, *, known: str = "") -> None:
        stamps = ((path, _stamp(path)) for path in sorted(_loaded_files()))
        self._files = {path: stamp for path, stamp in stamps if stamp is not None}  # torch names files that are none
        self.digest = sha256_bytes(canonical_json(self._files))
        in_doubt = [] if self.digest == known else self._files.items()
        self._changed = next((path for path, stamp in in_doubt if stamp[0] > began_ns), "")

    def changed(self) -> str:
        """A file that is not what it was; empty if there is none."""
        return self._changed or next((path for path, stamp in self._files.items() if _stamp(path) != stamp), "")


def _loaded_files() -> set[str]:
    modules = {name: module for name, module in sys.modules.items() if name not in _WRITTEN_AT_IMPORT}
    files = {getattr(module, "__file__", None) for module in modules.values()}
    return {path for path in files if isinstance(path, str)}


def _stamp(path: str) -> tuple[int, int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino
