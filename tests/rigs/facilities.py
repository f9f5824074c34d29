"""Two facilities on one machine: an edge and a cluster that meet only through the emulated services of Globus.

The cluster has its folder in a collection of its own, and the endpoint that trains sees that folder and nothing of the edge.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from filmloop.config.paths import Home
from filmloop.testing.globus.transfer import rig as transfer
from filmloop.testing.mlflow_server import shared_server
from rigs.endpoint import CLIENT_ID, ENGINES, SECRET
from rigs.globus import Compute

WEIGHTS_CLIENT_ID = "c0ffee00-0000-4000-8000-000000000002"
SECRETS = {"FILMLOOP_GLOBUS_SECRET": SECRET, "FILMLOOP_GLOBUS_WEIGHTS_SECRET": "a-weights-secret"}
# 600 frames and ten steps: this is about the way of the data, not about learning.
_SMALL = """
[source]
kind = "simulator"
rate_hz = 2000.0
[staging]
frames_per_shard = 300
[training]
min_frames = 500
max_fresh_frames = 1200
deadline_s = 300.0
[training.hyper]
max_steps = 10
warmup_steps = 1
[model.hyper]
features = 8
[gate]
min_frames = 10
min_gain = 0
[zoo]
alike = 3
"""


class Facilities:
    """A site file for them, and the command line on it.

    Args:
        make: The fixture `filmloop`.
        compute: Services, broker, endpoint.
        folder: Everything lies below it: `edge` (the state folder), `storage` (the cluster's file system), the site file.
        engine: What trains: a name of `rigs.endpoint.ENGINES`.
        nodes: Of a job.
    """

    def __init__(self, make: Any, compute: Compute, folder: Path, *, engine: str, nodes: int = 1) -> None:
        self.compute, self.model = compute, f"two-{uuid.uuid4().hex[:8]}"
        self.home, storage = Home(folder / "edge"), folder / "storage"
        self.cluster = storage / "projects/loop"
        for path in (self.home.root, self.cluster):
            path.mkdir(parents=True)
        self.collections = [transfer.serve(compute.hosted, path) for path in (self.home.root, storage)]
        site = folder / "emulated.toml"
        site.write_text(self._site_file(engine, nodes))
        self.command = make(self.home.root)
        self.command.sets = ()  # what those of other tests ask of the launcher is of the local one
        self._site = ("--site", str(site))

    def run(self, *words: str, **options: Any) -> Any:
        """The command on the site file, to its end."""
        return self.command.run(*words, *self._site, **options)

    def json(self, *words: str, **options: Any) -> dict[str, Any]:
        """The same with `--json`."""
        return self.command.json(*words, *self._site, **options)  # type: ignore[no-any-return]

    def argv(self, *words: str) -> list[str]:
        """Words for a process of one's own."""
        return self.command.argv(*words, *self._site)  # type: ignore[no-any-return]

    def prepare(self) -> None:
        """A champion that has hardly learnt anything, and fresh frames: whatever trains a little longer is better."""
        self.stage()
        first = self.json("retrain", "--no-edge", "--set", "training.hyper.max_steps=1")
        self.run("models", "promote", first["version"])
        self.stage()

    def stage(self) -> None:
        """600 fresh frames in sealed shards."""
        self.run("edge", "run", "--no-registry", "--frames", "600")

    def tasks(self, kind: str = "TRANSFER") -> list[dict[str, Any]]:
        """Transfer's tasks between the two, in the order of submission."""
        ours = set(self.collections)
        return [
            task
            for task in transfer.tasks(self.compute.hosted)
            if task["type"] == kind and ours & {task["asked"].get("source_endpoint"), task["asked"].get("endpoint")}
        ]

    def _site_file(self, engine: str, nodes: int) -> str:
        edge, cluster = self.collections
        options, control = (_toml(ENGINES[name]) for name in (engine, "control"))
        return f"""\
schema_version = 1
site = "emulated"
home = "{self.home.root}"
[globus]
client_id = "{CLIENT_ID}"
weights = {{ client_id = "{WEIGHTS_CLIENT_ID}" }}
[mover]
kind = "globus"
poll_s = 0.05
edge = {{ collection = "{edge}", path = "/" }}
cluster = {{ collection = "{cluster}", path = "/projects/loop", host_path = "{self.cluster}" }}
[launcher]
kind = "globus"
endpoint = "{self.compute.endpoint.id}"
options = {options}
control = {control}
nodes = {nodes}
processes_per_node = {2 // nodes}
poll_s = 0.2
[registry]
uri = "{shared_server()}"
[model]
name = "mixer"
registered_as = "{self.model}"
{_SMALL}"""


def _toml(values: dict[str, Any]) -> str:
    return "{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items()) + " }"
