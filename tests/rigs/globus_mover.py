"""A site whose edge and cluster are two collections of the emulated Transfer."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filmloop.adapters.globus.transfer.mover import GlobusMover
from filmloop.config.globus import Collection, GlobusIdentity, GlobusSection
from filmloop.config.globus import GlobusMover as MoverSection
from filmloop.testing.globus.hosted import Hosted, hosted
from filmloop.testing.globus.transfer import rig as transfer

CLUSTER_ROOT = "/projects/loop"
"""Where the cluster's folder lies in its collection: not at its top, as at a facility."""
QUICK = {"poll_s": 0.02, "stall_s": 20.0, "deadline_s": 60.0, "request_timeout_s": 10.0}
"""Limits for a service that answers in milliseconds."""


@dataclass(kw_only=True)
class GlobusSite:
    """One site: two folders, their collections, and movers over the same state."""

    hosted: Hosted
    edge: Path
    cluster: Path
    journal: Path
    section: MoverSection
    globus: GlobusSection
    made: list[GlobusMover] = field(default_factory=list)

    def make(self, **limits: Any) -> GlobusMover:
        """A new mover, as after a restart; `limits` change its section."""
        section = self.section.model_copy(update=limits)
        mover = GlobusMover(
            section=section, globus=self.globus, edge_root=self.edge, journal=self.journal, site="emulated"
        )
        self.made.append(mover)
        return mover

    def tasks(self, kind: str = "TRANSFER") -> list[dict[str, Any]]:
        """This site's tasks, in the order of submission."""
        ours = {self.section.edge.collection, self.section.cluster.collection}
        return [
            task
            for task in transfer.tasks(self.hosted)
            if task["type"] == kind and ours & {task["asked"].get("source_endpoint"), task["asked"].get("endpoint")}
        ]


@dataclass(frozen=True, slots=True)
class GlobusRig:
    """The services that all sites of a test module share."""

    hosted: Hosted

    @contextmanager
    def site(self, folder: Path, *, globus: GlobusSection | None = None, **limits: Any) -> Iterator[GlobusSite]:
        """A site below `folder`, with collections and identities of its own; its movers are closed at the end."""
        edge, storage = folder / "edge", folder / "storage"
        cluster = storage / CLUSTER_ROOT.lstrip("/")
        for path in (edge, cluster):
            path.mkdir(parents=True, exist_ok=True)
        site = GlobusSite(
            hosted=self.hosted,
            edge=edge,
            cluster=cluster,
            journal=folder / "moves",
            section=MoverSection(
                edge=Collection(collection=transfer.serve(self.hosted, edge), path="/"),
                cluster=Collection(
                    collection=transfer.serve(self.hosted, storage), path=CLUSTER_ROOT, host_path=str(cluster)
                ),
                **QUICK | limits,
            ),
            globus=globus or GlobusSection(client_id=str(uuid.uuid4())),
        )
        try:
            yield site
        finally:
            for mover in site.made:
                mover.close()


def two_identities() -> GlobusSection:
    """A site whose weights travel under another identity than its data."""
    return GlobusSection(client_id=str(uuid.uuid4()), weights=GlobusIdentity(client_id=str(uuid.uuid4())))


@contextmanager
def globus_rig(state: Path) -> Iterator[GlobusRig]:
    """The emulated services, and an environment that points this process at them."""
    with hosted(state) as services:
        secrets = {"FILMLOOP_GLOBUS_SECRET": "data-secret", "FILMLOOP_GLOBUS_WEIGHTS_SECRET": "weights-secret"}
        changed = services.environ | secrets
        before = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        try:
            yield GlobusRig(services)
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
