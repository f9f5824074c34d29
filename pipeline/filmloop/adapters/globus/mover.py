"""Globus Transfer behind `ports.mover`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from filmloop.config.globus import GlobusMover as MoverSection
from filmloop.config.globus import GlobusSection
from filmloop.ports.mover import Direction, MoveItem, MoveStatus


class GlobusMover:
    """See `ports.mover.Mover`."""

    def __init__(self, *, section: MoverSection, globus: GlobusSection, edge_root: Path, journal: Path) -> None:
        raise NotImplementedError

    def submit(self, direction: Direction, items: Sequence[MoveItem], *, key: str) -> str:
        """See `Mover.submit`."""
        raise NotImplementedError

    def poll(self, handle: str) -> MoveStatus:
        """See `Mover.poll`."""
        raise NotImplementedError

    def cancel(self, handle: str) -> None:
        """See `Mover.cancel`."""
        raise NotImplementedError

    def discard(self, paths: Sequence[str], *, key: str) -> None:
        """See `Mover.discard`."""
        raise NotImplementedError
