"""What a cycle asks of Globus Transfer: our mover, one task for a bundle of shards, beside one task for each file.

The peer is the plain SDK as a short script uses it: for each file `submit_transfer`, then `get_task` until it has ended; the
oldest task first, so that few are asked for twice. It neither audits nor hides files until they are whole. Both move the
same files in the same run through the same emulated service, which counts. Seconds of an emulator mean nothing: none are told.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import globus_sdk

from filmloop.adapters.globus.transfer.mover import GlobusMover
from filmloop.config.globus import Collection, GlobusSection
from filmloop.config.globus import GlobusMover as MoverSection
from filmloop.config.paths import Home
from filmloop.core.errors import DataError, TransientError
from filmloop.core.fsio import sha256_file
from filmloop.ports.mover import Direction, MoveItem
from filmloop.shipping import bundle_items, move, shard_items, weights_folder
from filmloop.testing.bundles import make_bundle
from filmloop.testing.globus.hosted import Hosted, hosted
from filmloop.testing.globus.transfer import rig
from filmloop.testing.shards import example_block, write_shard

PACKAGES = ("globus-sdk", "zarr")
REQUESTS_HZ = 20.0
"""What Globus takes from one user; see docs/reference/globus-emulator.md for what is known of that."""
FRAMES = 256
FILE_S = 0.02
"""What every file costs in the emulated service, so that there is something to poll for."""
_PENDING = 90
_DEADLINE_S = 600.0
_SECRETS = {"FILMLOOP_GLOBUS_SECRET": "of nobody"}
_PREFIX = "/v0.10/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one cycle moves: shards and the weights to start from up, a bundle home."""

    number: int
    up: Sequence[MoveItem]
    home: Sequence[MoveItem]

    @property
    def ways(self) -> tuple[tuple[Direction, Sequence[MoveItem]], ...]:
        """Both directions, in the order of a cycle."""
        return ("to_cluster", self.up), ("to_edge", self.home)


class Site:
    """An edge and a cluster with collections and an identity of their own, and loads to move between them."""

    def __init__(self, services: Hosted, folder: Path, poll_s: float) -> None:
        self.services, self.poll_s = services, poll_s
        self.roots = {"to_cluster": folder / "edge", "to_edge": folder / "cluster"}
        self.collections = {direction: rig.serve(services, root) for direction, root in self.roots.items()}
        self.client_id = str(uuid.uuid4())
        self.requests: Counter[str] = Counter()
        self.post_bytes = self.tasks = 0

    def load(self, number: int, shards: int) -> Load:
        """New files for a cycle."""
        home, cluster = Home(self.roots["to_cluster"]), self.roots["to_edge"]
        sealed = [
            write_shard(home.stage, example_block(FRAMES, first_pulse_id=FRAMES * seq, seed=seq), seq=seq)
            for seq in range(number * shards, (number + 1) * shards)
        ]
        champion, trained = home.weights / "mixer" / str(number), cluster / "runs" / str(number) / "bundle"
        for seed, bundle in enumerate((champion, trained)):
            make_bundle(bundle, seed=2 * number + seed)
        up = [item for shard in sealed for item in shard_items(home, shard)]
        up += bundle_items(champion, home.root, weights_folder("mixer", str(number)))
        return Load(number=number, up=up, home=bundle_items(trained, cluster, f"cycles/{number}/bundle"))

    def settle(self, load: Load, begun: int) -> None:
        """Add what was asked since the log had `begun` lines, and see that the files are there.

        Raises:
            DataError: a file is not what it should be.
        """
        asked = [line for line in self.services.log()[begun:] if _PREFIX in line["route"]]
        self.requests.update(line["route"].replace(_PREFIX, "") for line in asked)
        self.post_bytes += sum(line["bytes"] for line in asked if line["route"].startswith("POST"))
        self.tasks += sum(line["route"] == f"POST {_PREFIX}transfer" for line in asked)
        for direction, items in load.ways:
            there = self.roots["to_edge" if direction == "to_cluster" else "to_cluster"]
            for item in items:
                if sha256_file(there / item.target_path) != item.sha256:
                    raise DataError(f"{item.target_path} did not arrive as it was sent.")

    def report(self, cycles: int) -> dict[str, Any]:
        """Of one cycle, on average."""
        return {
            "requests": round(self.requests.total() / cycles, 1),
            "post_bytes": round(self.post_bytes / cycles),
            "tasks": round(self.tasks / cycles, 1),
            "by_route": {route: round(count / cycles, 1) for route, count in self.requests.most_common()},
        }


def measure(folder: Path, *, shards: int, cycles: int, poll_s: float) -> dict[str, Any]:
    """Move the files of `cycles` cycles in both ways.

    Returns:
        For `mover` and `one_task_per_file`: requests, bytes of POST bodies and tasks of a cycle, and requests by route;
        `ratios` of the second to the first; `api_s`, the seconds that the requests take at the least at 20 a second.
    """
    with hosted(folder / "services") as services, _environment(services):
        rig.behave(services, file_s=FILE_S)
        ours, theirs = (Site(services, folder / name, poll_s) for name in ("mover", "files"))
        files = 0
        for number in range(cycles):
            for site, way in ((ours, by_mover), (theirs, by_file)):
                load = site.load(number, shards)
                begun = len(services.log())
                way(site, load)
                site.settle(load, begun)
                files = len(load.up) + len(load.home)
    mover, single = ours.report(cycles), theirs.report(cycles)
    return {
        "shards": shards,
        "cycles": cycles,
        "files": files,
        "poll_s": poll_s,
        "mover": mover,
        "one_task_per_file": single,
        "ratios": {name: round(single[name] / mover[name], 2) for name in ("requests", "post_bytes", "tasks")},
        "api_s": {
            "mover": round(mover["requests"] / REQUESTS_HZ, 1),
            "one_task_per_file": round(single["requests"] / REQUESTS_HZ, 1),
        },
        "emulated": True,
    }


def by_mover(site: Site, load: Load) -> None:
    """As a cycle does it."""
    edge, cluster = site.collections["to_cluster"], site.collections["to_edge"]
    mover = GlobusMover(
        section=MoverSection(
            edge=Collection(collection=edge, path="/"),
            cluster=Collection(collection=cluster, path="/", host_path=str(site.roots["to_edge"])),
            poll_s=site.poll_s,
        ),
        globus=GlobusSection(client_id=site.client_id),
        edge_root=site.roots["to_cluster"],
        journal=site.roots["to_cluster"] / "moves",
        site="bench",
    )
    try:
        for direction, items in load.ways:
            move(
                mover, direction, items, key=f"c{load.number}-{direction}", deadline_s=_DEADLINE_S, poll_s=0.2,
                keep_handle=lambda _: None, tell=lambda _: None,
            )  # fmt: skip
    finally:
        mover.close()


def by_file(site: Site, load: Load) -> None:
    """One task for each file, with the plain SDK.

    Raises:
        TransientError: a task failed.
    """
    config = globus_sdk.GlobusAppConfig(token_storage="memory")
    app = globus_sdk.ClientApp("bench", client_id=site.client_id, client_secret="of nobody", config=config)
    client = globus_sdk.TransferClient(app=app)
    pending: deque[str] = deque()
    try:
        for direction, items in load.ways:
            source = site.collections[direction]
            target = site.collections["to_edge" if direction == "to_cluster" else "to_cluster"]
            for item in items:
                if len(pending) >= _PENDING:
                    _wait(client, pending.popleft(), site.poll_s)
                data = globus_sdk.TransferData(source, target, verify_checksum=True)
                data.add_item(
                    f"/{item.source_path}",
                    f"/{item.target_path}",
                    external_checksum=item.sha256,
                    checksum_algorithm="sha256",
                )
                pending.append(str(client.submit_transfer(data)["task_id"]))
            while pending:
                _wait(client, pending.popleft(), site.poll_s)
    finally:
        client.close()


def _wait(client: globus_sdk.TransferClient, task_id: str, poll_s: float) -> None:
    while (status := client.get_task(task_id)["status"]) != "SUCCEEDED":
        if status == "FAILED":
            raise TransientError(f"Task {task_id} failed.")
        time.sleep(poll_s)


@contextmanager
def _environment(services: Hosted) -> Iterator[None]:
    """Point the SDK of this process at the services for a while."""
    changed = services.environ | _SECRETS
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
