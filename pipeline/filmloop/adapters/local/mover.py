"""Moves files between two folders of one machine as if they lay on two, with the promises of `ports.mover`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filmloop.adapters.local.moveworker import MoveWorker
from filmloop.adapters.moving.deliver import below, check_source
from filmloop.adapters.moving.journal import MoveRequest
from filmloop.adapters.moving.journalled import JournalledMover
from filmloop.config.schema import LocalMover as MoverSection
from filmloop.core.errors import DataError
from filmloop.core.fsio import disk_errors
from filmloop.ports.mover import MoveStatus

_WEDGED_S = 30.0
"""A worker looks at its deadline between blocks of 8 MiB; this much later it is stuck in the kernel."""
_log = logging.getLogger(__name__)


class LocalMover(JournalledMover[MoveWorker]):
    """Verified copies between `edge_root` and `cluster_root`; see `ports.mover.Mover`.

    Args:
        edge_root: Paths of the edge's side are relative to this folder.
        cluster_root: Paths of the cluster's side are relative to this folder.
        journal: Requests and outcomes; survives restarts.
        section: The site file's `[mover]`. `deadline_s` counts from the start of each attempt.
    """

    def __init__(self, *, edge_root: Path, cluster_root: Path, journal: Path, section: MoverSection) -> None:
        super().__init__(journal=journal, deadline_s=section.deadline_s, wedged_s=_WEDGED_S)
        self._roots = {"to_cluster": (edge_root, cluster_root), "to_edge": (cluster_root, edge_root)}
        self._section = section

    def discard(self, paths: Sequence[str], *, key: str, over: Sequence[str] = ()) -> None:
        """See `Mover.discard`. A move that ended has left nothing but what it placed.

        Raises:
            DataError: a path leads out of the cluster's root; nothing was deleted.
        """
        _, cluster_root = self._roots["to_cluster"]
        places = [below(cluster_root, path) for path in paths]
        for place in places:
            with disk_errors(place), suppress(FileNotFoundError):
                if place.is_dir() and not place.is_symlink():
                    shutil.rmtree(place)
                else:
                    place.unlink()
        _log.info("discarded %d paths below %s (%s)", len(places), cluster_root, key)

    def placed(self, folder: str) -> list[str]:
        """See `Mover.placed`."""
        _, cluster_root = self._roots["to_cluster"]
        files = (path for path in below(cluster_root, folder).rglob("*") if path.is_file())
        return sorted(path.relative_to(cluster_root).as_posix() for path in files)

    def check(self, request: MoveRequest) -> None:
        """See `JournalledMover.check`."""
        source_root, target_root = self._roots[request.direction]
        targets = [below(target_root, item.target_path) for item in request.items]
        if len(set(targets)) != len(targets):
            raise DataError(f"Move {request.key!r} sends two files to one place.", ids={"key": request.key})
        for item in request.items:
            check_source(item.as_item(), below(source_root, item.source_path))

    def worker(self, folder: Path, request: MoveRequest) -> MoveWorker:
        """See `JournalledMover.worker`."""
        return MoveWorker(folder, request, self._roots[request.direction], self._section.deadline_s)

    def seen_from_outside(self, request: MoveRequest) -> MoveStatus:
        """Progress of a move that another process works on, told by the files that are in place."""
        _, target_root = self._roots[request.direction]
        done = [item for item in request.items if below(target_root, item.target_path).is_file()]
        return MoveStatus(state="active", files_done=len(done), bytes_done=sum(item.size_bytes for item in done))
