"""A small file that Globus brings to the cluster and home again, and of which nothing stays."""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filmloop.bootstrap import Site, open_mover
from filmloop.config.globus import Collection
from filmloop.config.globus import GlobusMover as MoverSection
from filmloop.config.paths import Home
from filmloop.core.errors import FilmloopError
from filmloop.core.finding import Finding
from filmloop.core.fsio import atomic_write_bytes, sha256_bytes
from filmloop.core.retry import wait_until
from filmloop.ports.mover import Direction, MoveItem

if TYPE_CHECKING:
    from filmloop.adapters.globus.checks.side import Sample

PREFIX = ".check-"
_DATA = b"filmloop site check\n"
_MOVE_S = 300.0
_LIMITS = {"deadline_s": _MOVE_S, "stall_s": 120.0, "task_deadline_s": 900.0}
_OLD_S = 3600.0
"""A folder of a check that was killed; no check takes so long."""
_log = logging.getLogger(__name__)


class Probe:
    """The site's own mover, below a folder of its own on both sides, which is gone when the block ends.

    Attributes:
        sample: What is at the cluster now; None while nothing is.
        left: Why something is still there after the block, if it is.
    """

    def __init__(self, site: Site, section: MoverSection) -> None:
        self._site, self._section = site, section
        self._name = f"{PREFIX}{uuid.uuid4().hex}"
        self._home = Home(site.home.root / self._name)
        self._made_root = not site.home.root.exists()
        self.sample: Sample | None = None
        self.left: FilmloopError | None = None

    def __enter__(self) -> Probe:
        """Begin; nothing is sent yet."""
        from filmloop.adapters.globus.transfer.mover import GlobusMover

        self._remove_old()
        section = self._section
        limits = {name: min(value, getattr(section, name)) for name, value in _LIMITS.items()}
        sides = {"edge": _below(section.edge, self._name), "cluster": _below(section.cluster, self._name)}
        config = self._site.config.model_copy(update={"mover": section.model_copy(update={**sides, **limits})})
        mover = open_mover(replace(self._site, config=config, home=self._home))
        assert isinstance(mover, GlobusMover)
        self._mover = mover
        self._home.root.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Take everything back, whatever happened."""
        swept = False
        try:
            self._mover.close()
            swept = self._sweep(self._name)
        finally:
            root = self._site.home.root
            shutil.rmtree(self._home.root, ignore_errors=True)
            if not swept:
                _mark(self._home.root)
            if self._made_root and not any(root.iterdir()):
                root.rmdir()

    def there_and_back(self) -> Iterator[Finding]:
        """Move the file both ways; one finding each."""
        from filmloop.adapters.globus.checks.side import Sample

        atomic_write_bytes(self._home.root / "probe", _DATA)
        there = self._move("to_cluster", "probe", "probe", "transfer there")
        yield there
        if there.state != "ok":
            return
        self.sample = Sample(path=f"{self._name}/probe", sha256=sha256_bytes(_DATA))
        yield self._move("to_edge", "probe", "back", "transfer home")

    def _move(self, direction: Direction, source: str, target: str, item: str) -> Finding:
        moved = MoveItem(source_path=source, target_path=target, size_bytes=len(_DATA), sha256=sha256_bytes(_DATA))
        begin = time.monotonic()
        try:
            handle = self._mover.submit(direction, [moved], key=direction)
            try:
                status = wait_until(
                    lambda: None if (found := self._mover.poll(handle)).state == "active" else found,
                    deadline_s=_MOVE_S + self._section.poll_s,
                    what="A test transfer",
                    hint="https://app.globus.org/activity shows the task and what it waits for.",
                    cap_s=2.0,
                )
            except BaseException:
                self._mover.cancel(handle)
                raise
        except FilmloopError as exc:
            return Finding(item=item, state="fail", detail=exc.message, hint=exc.hint)
        if status.state != "succeeded":
            return Finding(item=item, state="fail", detail=status.detail, hint=_hint(status.detail))
        took_s = time.monotonic() - begin
        return Finding(item=item, state="ok", detail=f"a file arrived, its bytes are right; {took_s:.1f} s")

    def _sweep(self, name: str) -> bool:
        from filmloop.adapters.globus.checks.sweep import sweep

        try:
            sweep(self._site.config, name)
        except FilmloopError as exc:
            self.left = exc
            _log.error("%s %s", exc.message, exc.hint)
            return False
        return True

    def _remove_old(self) -> None:
        """What a check has left that was killed, or that could not delete it."""
        for old in self._site.home.root.glob(f"{PREFIX}*"):
            if time.time() - old.stat().st_mtime > _OLD_S and self._sweep(old.name):
                shutil.rmtree(old, ignore_errors=True)


def _mark(folder: Path) -> None:
    """An empty folder, old already: the next check tries again to delete the one of its name at the cluster."""
    folder.mkdir(exist_ok=True)
    os.utime(folder, (0, 0))


def _below(side: Collection, name: str) -> Collection:
    host_path = f"{side.host_path.rstrip('/')}/{name}" if side.host_path else ""
    return side.model_copy(update={"path": f"{side.path.rstrip('/')}/{name}", "host_path": host_path})


def _hint(detail: str) -> str:
    """What a person can do about a task that did not end well."""
    for words, hint in (
        (("PERMISSION_DENIED", "denied"), "Give the identity read and write on the sharing page of the collection."),
        (("FILE_NOT_FOUND", "not found"), "path in [mover.edge] has to show the state folder, home in the site file."),
        (("QUOTA", "NO_SPACE"), "Make room on the side that receives."),
        (("paused",), "Ask whoever runs the collection; the detail is in their words."),
    ):
        if any(word in detail for word in words):
            return hint
    return "https://app.globus.org/activity shows the task and its events."
