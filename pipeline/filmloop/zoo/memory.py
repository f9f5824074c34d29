"""What this machine knows of a registry's versions, so that a cycle asks for those alone that are new.

To list thousands of versions takes a registry seconds, and what the zoo has to know of one never changes. So each is
kept as a line of JSON. The registry is the index all the same: the newest version that is known is looked at again, and
where it is gone or another one, as in a registry that was begun anew at the same address, nothing else that is known
counts. So it is with a file of another registry or a damaged one; it may be deleted at any time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from filmloop.core.documents import Document
from filmloop.ports.registry import Registry
from filmloop.zoo.index import Entry

_log = logging.getLogger(__name__)


class _Head(Document):
    """The first line: what the others are of."""

    registry: str
    model: str


class Memory:
    """The versions of one registered model.

    Args:
        path: The file; its folder is made.
        registry: Has the versions.
        keep: Write what is new; whoever does holds the lock of the cycle.
    """

    def __init__(self, path: Path, registry: Registry, *, keep: bool = True) -> None:
        self._path, self._registry, self._keep = path, registry, keep
        self._forgotten = False

    def entries(self) -> list[Entry]:
        """All versions, newest first.

        Raises:
            TransientError: the registry is away.
        """
        known = self._read()
        newest = max(known, default=0)
        new = self._after(max(newest - 1, 0))
        if newest and not (new and new[-1].is_same(known[newest])):
            _log.info("version %d is gone or another one: the registry is asked for all of them", newest)
            known, new = {}, self._after(0)
        new = [entry for entry in new if int(entry.version) not in known]
        if new:
            self._append(new[::-1], anew=not known)
        self._forgotten = False
        known |= {int(entry.version): entry for entry in new}
        return [known[number] for number in sorted(known, reverse=True)]

    def learn(self, entry: Entry) -> None:
        """Keep what was found out about a version that was known already."""
        self._append([entry], anew=False)

    def forget(self) -> None:
        """Ask the registry for all of them again."""
        self._forgotten = True

    def _after(self, number: int) -> list[Entry]:
        return [Entry.of(info) for info in self._registry.versions(after=number)]

    def _head(self) -> _Head:
        return _Head(registry=self._registry.url, model=self._registry.model)

    def _read(self) -> dict[int, Entry]:
        """By number. A last line that is cut off is none yet; a file that cannot be read tells nothing."""
        if self._forgotten:
            return {}
        try:
            head, *lines = self._path.read_bytes().split(b"\n")[:-1] or [b""]
            if _Head.model_validate_json(head) != self._head():
                return {}
            entries = [Entry.model_validate_json(line) for line in lines]
            return {int(entry.version): entry for entry in entries}
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError, ValueError) as exc:
            _log.info("what was known of the versions is asked for again: %s", exc)
            return {}

    def _append(self, entries: Sequence[Entry], *, anew: bool) -> None:
        if not self._keep:
            return
        lines = [entry.model_dump_json() for entry in entries]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("w+b" if anew else "r+b") as file:
                if anew:
                    lines.insert(0, self._head().model_dump_json())
                else:
                    file.seek(_whole_bytes(self._path))
                    file.truncate()
                file.write("".join(f"{line}\n" for line in lines).encode())
        except OSError as exc:
            _log.warning("versions are not remembered, the next cycle asks for them again: %s", exc)


def _whole_bytes(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    size = os.path.getsize(path)
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 16)))
        tail = file.read()
    return size - len(tail) + tail.rfind(b"\n") + 1
