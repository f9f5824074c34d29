"""Training as a job of PBS Professional, with the promises of `ports.launcher`."""

from __future__ import annotations

from collections.abc import Sequence

from filmloop.adapters.batch.launcher import BatchLauncher
from filmloop.adapters.pbs.dialect import PbsDialect
from filmloop.config.launchers import PbsLauncher as LauncherSection


class PbsLauncher(BatchLauncher):
    """`mpiexec torchrun` on the nodes of a PBS job; see `BatchLauncher`."""

    def __init__(
        self, *, section: LauncherSection, command: Sequence[str] | None = None, grace_s: float = 20.0
    ) -> None:
        super().__init__(section=section, dialect=PbsDialect(section), command=command, grace_s=grace_s)
