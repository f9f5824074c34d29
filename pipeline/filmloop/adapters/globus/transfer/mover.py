"""Globus Transfer behind `ports.mover`: files go from collection to collection, this machine only asks and watches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from filmloop.adapters.globus.bounded import Bounds
from filmloop.adapters.globus.transfer.attempts import Attempts
from filmloop.adapters.globus.transfer.discards import Discards
from filmloop.adapters.globus.transfer.ends import Ends
from filmloop.adapters.globus.transfer.leftovers import Leftovers
from filmloop.adapters.globus.transfer.movetask import GlobusMove
from filmloop.adapters.globus.transfer.placed import Placed
from filmloop.adapters.globus.transfer.side import Side, relative
from filmloop.adapters.moving.deliver import below, check_source
from filmloop.adapters.moving.journal import MoveRequest
from filmloop.adapters.moving.journalled import JournalledMover
from filmloop.config.globus import GlobusMover as MoverSection
from filmloop.config.globus import GlobusSection
from filmloop.core.errors import ConfigError, DataError

_WEDGED_S = 300.0
"""A name that is looked up, or a service with many addresses, may keep a worker from its deadline for so long."""


class GlobusMover(JournalledMover[GlobusMove]):
    """See `ports.mover.Mover`. Data go up as the role `data`, bundles come home as the role `weights`.

    Globus works on a few tasks of an identity at a time: with two of them, data that wait cannot hold weights up.

    Args:
        section: The site file's `[mover]`.
        globus: The site file's `[globus]`.
        edge_root: Paths of the edge's side are relative to this folder of this machine.
        journal: Requests, attempts, outcomes; survives restarts.
        site: The site's name, for the labels that people see at Globus.
    """

    def __init__(
        self, *, section: MoverSection, globus: GlobusSection, edge_root: Path, journal: Path, site: str = ""
    ) -> None:
        super().__init__(journal=journal, deadline_s=section.deadline_s, wedged_s=_WEDGED_S)
        cluster = Side(section.cluster)
        self._ends = Ends(
            section=section,
            globus=globus,
            site=site,
            edge_root=edge_root,
            edge=Side(section.edge),
            cluster=cluster,
            placed=Placed(journal),
            discards=Discards(
                journal,
                cluster,
                site=site,
                deadline_s=section.task_deadline_s,
                stall_s=section.stall_s,
                poll_s=section.poll_s,
            ),
            leftovers=Leftovers(journal, edge_root, task_deadline_s=section.task_deadline_s),
        )

    def check(self, request: MoveRequest) -> None:
        """See `JournalledMover.check`; of sources at the cluster only the names can be looked at."""
        self._check_edge()
        targets = [relative(item.target_path) for item in request.items]
        if len(set(targets)) != len(targets):
            raise DataError(f"Move {request.key!r} sends two files to one place.", ids={"key": request.key})
        for item in request.items:
            source = below(self._ends.edge_root, item.source_path)
            if request.direction == "to_cluster":
                check_source(item.as_item(), source)

    def worker(self, folder: Path, request: MoveRequest) -> GlobusMove:
        """See `JournalledMover.worker`."""
        return GlobusMove(folder, request, self._ends)

    def at_work(self, folder: Path) -> bool:
        """See `JournalledMover.at_work`: a task that was queued at the deadline, or could not be cancelled."""
        attempt = Attempts(folder).latest()
        return attempt is not None and attempt.state == "sent"

    def discard(self, paths: Sequence[str], *, key: str, over: Sequence[str] = ()) -> None:
        """See `Mover.discard`. It is written down, and Globus deletes it after this has returned; what failed is tried again.

        Raises:
            DataError: a path leads out of the cluster's root; nothing is deleted.
            TransientError: the service is away; asked for again with the next call.
            AuthError: a login or permission is missing; asked for again with the next call.
        """
        self.folder(key)
        places = [relative(path) for path in paths]
        self._ends.placed.forget(places)
        self._ends.leftovers.end(over)
        self._ends.sweep(places, key=key)
        if not self._ends.discards.pending():
            return
        end_s = time.monotonic() + self._ends.section.deadline_s
        transfer = self._ends.open("data", Bounds(left_s=lambda: end_s - time.monotonic()))
        try:
            self._ends.discards.send(transfer)
        finally:
            transfer.close()

    def placed(self, folder: str) -> list[str]:
        """See `Mover.placed`; what this site's moves have placed, of which the cluster may have lost some."""
        return self._ends.placed.below(relative(folder))

    def _check_edge(self) -> None:
        """Paths of the edge are relative to the state folder: another folder would get what nobody reads.

        Raises:
            ConfigError: `mover.edge.host_path` names another one.
        """
        named, root = self._ends.section.edge.host_path, self._ends.edge_root
        if named and Path(named).resolve() != root.resolve():
            raise ConfigError(
                f"mover.edge.host_path is {named}, but the state folder is {root}.",
                hint="Leave it empty, or point FILMLOOP_HOME at the folder that the edge's collection shows.",
            )
