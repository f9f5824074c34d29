"""Globus Compute behind `ports.launcher`."""

from __future__ import annotations

from pathlib import Path

from filmloop.config.globus import GlobusLauncher as LauncherSection
from filmloop.config.globus import GlobusSection
from filmloop.core.documents import TrainJob
from filmloop.ports.launcher import LaunchStatus


class GlobusLauncher:
    """See `ports.launcher.Launcher`."""

    def __init__(self, *, section: LauncherSection, globus: GlobusSection, journal: Path) -> None:
        raise NotImplementedError

    def submit(self, job: TrainJob) -> str:
        """See `Launcher.submit`."""
        raise NotImplementedError

    def poll(self, handle: str) -> LaunchStatus:
        """See `Launcher.poll`."""
        raise NotImplementedError

    def cancel(self, handle: str) -> None:
        """See `Launcher.cancel`."""
        raise NotImplementedError
