"""Both ends of a site's moves, and what is remembered about the far one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filmloop.adapters.globus.bounded import Bounds
from filmloop.adapters.globus.identity.auth import Role
from filmloop.adapters.globus.transfer.client import Transfer
from filmloop.adapters.globus.transfer.discards import Discards
from filmloop.adapters.globus.transfer.leftovers import Leftovers
from filmloop.adapters.globus.transfer.placed import Placed
from filmloop.adapters.globus.transfer.side import Side, incoming
from filmloop.config.globus import GlobusMover, GlobusSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What every move of a site shares.

    Attributes:
        section: `[mover]`.
        globus: `[globus]`.
        site: Its name, for labels.
        edge_root: The edge's folder on this machine.
        edge: The same folder in its collection.
        cluster: The cluster's folder in its collection.
        placed: Files that are known to be at the cluster.
        discards: Deletions that may be under way there.
        leftovers: What moves have left that nobody needs.
    """

    section: GlobusMover
    globus: GlobusSection
    site: str
    edge_root: Path
    edge: Side
    cluster: Side
    placed: Placed
    discards: Discards
    leftovers: Leftovers

    def open(self, role: Role, bounds: Bounds) -> Transfer:
        """Transfer for the calling thread, as the identity of that role."""
        return Transfer(self.globus, self.section, role, bounds)

    def sweep(self, places: Sequence[str] = (), *, key: str) -> None:
        """These places, and what moves that are over have left at the cluster, go with the next deletions that are sent."""
        swept = self.leftovers.at_cluster()
        self.discards.add([*places, *(incoming(one) for one in swept)], key=key)
        self.leftovers.swept(swept)
