"""Training as a job of Slurm, with the promises of `ports.launcher`."""

from __future__ import annotations

from collections.abc import Sequence

from filmloop.adapters.batch.launcher import BatchLauncher
from filmloop.adapters.slurm.dialect import SlurmDialect
from filmloop.config.launchers import SlurmLauncher as LauncherSection


class SlurmLauncher(BatchLauncher):
    """`srun torchrun` on the nodes of a Slurm job; see `BatchLauncher`."""

    def __init__(
        self, *, section: LauncherSection, command: Sequence[str] | None = None, grace_s: float = 20.0
    ) -> None:
        super().__init__(section=section, dialect=SlurmDialect(section), command=command, grace_s=grace_s)
