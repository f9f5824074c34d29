"""Where everything lies below the state folder: the one list of paths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

UNSWEPT = "unswept"
"""A move's journal with this file in it is still needed: something of the move may be left on a disk."""


@dataclass(frozen=True, slots=True)
class Home:
    """The state folder of one site on one machine (`FILMLOOP_HOME`)."""

    root: Path

    @property
    def ledger(self) -> Path:
        """SQLite journal of cycles, shards and alias moves."""
        return self.root / "ledger.sqlite"

    @property
    def stage(self) -> Path:
        """Sealed shards: `<stream>/run<run>/<seq>.zarr` with `<seq>.manifest.json` beside it."""
        return self.root / "stage"

    @property
    def cluster(self) -> Path:
        """The local site's stand-in for the cluster's file system: `data/`, `runs/`, `weights/`."""
        return self.root / "cluster"

    @property
    def worker(self) -> Path:
        """The warm worker's socket, lock and log, for its user alone."""
        return self.cluster / "worker"

    @property
    def weights(self) -> Path:
        """Verified bundles that cycles start from: `<registered model>/<version>/`."""
        return self.root / "weights"

    @property
    def cycles(self) -> Path:
        """One folder a cycle: resolved config, job, bundle, verdict, report."""
        return self.root / "cycles"

    @property
    def zoo(self) -> Path:
        """What is known of the registry's versions, a file for each registered model; it may be deleted."""
        return self.root / "zoo"

    @property
    def recall(self) -> Path:
        """Where a cycle's look through former versions has its scores; gone afterwards."""
        return self.root / "recall"

    @property
    def edge(self) -> Path:
        """The edge service's status, control files, lock, log and verified models."""
        return self.root / "edge"

    @property
    def edge_status(self) -> Path:
        """Written by the edge about twice a second."""
        return self.edge / "status.json"

    @property
    def edge_metrics(self) -> Path:
        """The same numbers for Prometheus' textfile collector."""
        return self.edge / "metrics.prom"

    @property
    def edge_models(self) -> Path:
        """Verified bundles by version; the edge starts from these when the registry is away."""
        return self.edge / "models"

    @property
    def edge_drift(self) -> Path:
        """What is normal for each version, as the edge measured it, and whether it still is."""
        return self.edge / "drift"

    @property
    def edge_control(self) -> Path:
        """Requests to the edge, gone when done: `seal-<key>-<call>` to seal the open shard, `look` to look at the champion alias."""
        return self.edge / "control"

    @property
    def registry(self) -> Path:
        """Our own MLflow server: database, artifacts, server.json, log."""
        return self.root / "registry"

    @property
    def moves(self) -> Path:
        """The mover's journal."""
        return self.root / "moves"

    @property
    def launches(self) -> Path:
        """The journal of a launcher whose jobs run where this machine cannot look."""
        return self.root / "launches"

    @property
    def demo(self) -> Path:
        """One folder a demo run."""
        return self.root / "demo"
