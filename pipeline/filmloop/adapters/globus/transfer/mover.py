"""Globus Transfer behind `ports.mover`: files go from collection to collection, this machine only asks and watches."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filmloop.adapters.globus.transfer.attempts import SWEPT, Attempts
from filmloop.adapters.globus.transfer.discards import Discards
from filmloop.adapters.globus.transfer.ends import Ends
from filmloop.adapters.globus.transfer.movetask import GlobusMove
from filmloop.adapters.globus.transfer.placed import Placed
from filmloop.adapters.globus.transfer.side import Side, incoming, relative
from filmloop.adapters.local.deliver import below, check_source
from filmloop.adapters.local.journalled import JournalledMover
from filmloop.adapters.local.movejournal import OUTCOME, REQUEST, MoveOutcome, MoveRequest
from filmloop.config.globus import GlobusMover as MoverSection
from filmloop.config.globus import GlobusSection
from filmloop.core.clock import epoch_s
from filmloop.core.errors import ConfigError, DataError

_WEDGED_S = 300.0
"""The SDK repeats a request that meets no answer a few times: so long a worker may need to notice its deadline."""
_KEEP_FAILED_S = 86400.0
"""What a failed move has brought is of use to the next attempt, for a day."""
_log = logging.getLogger(__name__)


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
            discards=Discards(journal, cluster, deadline_s=section.task_deadline_s, poll_s=section.poll_s),
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

    def discard(self, paths: Sequence[str], *, key: str) -> None:
        """See `Mover.discard`. One task of Globus deletes everything, after this has returned.

        Raises:
            DataError: a path leads out of the cluster's root; nothing is deleted.
            TransientError: the service is away; asked for again with the next call.
            AuthError: a login or permission is missing.
        """
        self.folder(key)
        places = [relative(path) for path in paths]
        self._ends.placed.forget(places)
        swept = list(self._leftovers())
        if not places and not swept:
            return
        transfer = self._ends.open("data")
        try:
            self._ends.discards.submit(
                transfer, [*places, *(incoming(one.name) for one in swept)], site=self._ends.site, key=key
            )
        finally:
            transfer.close()
        for folder in swept:
            (folder / SWEPT).touch()
        _log.info("asked Globus to discard %d paths (%s)", len(places), key)

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

    def _leftovers(self) -> Iterator[Path]:
        """Journals of moves to the cluster that are over and have left at least empty folders there; cleans up here."""
        for request in self.journal.glob(f"*/{REQUEST}"):
            folder = request.parent
            if (folder / SWEPT).exists() or not self._is_over(folder):
                continue
            if MoveRequest.read(request).direction == "to_cluster":
                yield folder
            else:
                shutil.rmtree(self._ends.edge_root / incoming(folder.name), ignore_errors=True)
                (folder / SWEPT).touch()

    def _is_over(self, folder: Path) -> bool:
        """Whether nobody needs what the move has left below `.incoming`: it is done, or was left alone for long."""
        if (folder / OUTCOME).exists():
            outcome = MoveOutcome.read(folder / OUTCOME)
            return outcome.state == "succeeded" or time.time() - epoch_s(outcome.ended_utc) > _KEEP_FAILED_S
        age_s = time.time() - epoch_s(MoveRequest.read(folder / REQUEST).submitted_utc)
        return age_s > _KEEP_FAILED_S + self._ends.section.task_deadline_s
