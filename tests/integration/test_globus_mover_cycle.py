"""The cycle with its files moved by Globus: few requests, and what went bad at the cluster heals with the next call."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from filmloop.bundle import file_digests, verify_bundle
from filmloop.config.loader import parse_site
from filmloop.config.paths import Home
from filmloop.core.documents import CycleReport, EvaluationReport, FileDigest, TrainJob
from filmloop.core.errors import DataError, TransientError
from filmloop.core.retry import wait_until
from filmloop.cycle import run_cycle
from filmloop.journal import CycleParts
from filmloop.ledger import Ledger
from filmloop.ports.launcher import LaunchStatus
from filmloop.staging.reader import ShardReader
from filmloop.testing.bundles import make_bundle, small_report
from filmloop.testing.contracts.mover import files_below
from filmloop.testing.fakes import MemoryRegistry
from filmloop.testing.globus.transfer import rig as transfer
from filmloop.testing.shards import example_block, write_shard
from rigs.globus_mover import GlobusRig, GlobusSite, globus_rig, two_identities

FRAMES, FRAME_SHAPE = 32, (4, 8)


@dataclass
class HashingTrainer:
    """A launcher that reads all that its job names, as the trainer does, and always finds a better model."""

    disturb: Callable[[TrainJob], None] | None = None
    jobs: list[TrainJob] = field(default_factory=list)
    problem: str = ""

    def submit(self, job: TrainJob) -> str:
        self.jobs.append(job)
        if self.disturb is not None:
            disturb, self.disturb = self.disturb, None
            disturb(job)
        self.problem = ""
        try:
            for ref in job.fresh + job.replay:
                ShardReader(Path(ref.manifest_path), check="hashes")
            for weights in (job.base, job.champion):
                if weights is not None:
                    verify_bundle(Path(weights.bundle_path))
        except DataError as exc:
            self.problem = exc.message
            return job.output_dir
        scores = tuple(float(x) for x in np.random.default_rng(0).normal(60.0, 5.0, 400))
        reports: dict[str, EvaluationReport] = {
            "challenger": small_report("challenger", tuple(x - 1.0 for x in scores)),
            "gaussian": small_report("gaussian", scores),
        }
        if job.champion:
            reports["champion"] = small_report("champion", scores).model_copy(update={"version": job.champion.version})
        make_bundle(
            Path(job.output_dir) / "bundle",
            seed=len(self.jobs),
            job_id=job.job_id,
            base_version=job.base.version if job.base else "",
            reports=reports,
        )
        return job.output_dir

    def poll(self, handle: str) -> LaunchStatus:
        if self.problem:
            return LaunchStatus(state="failed", exit_code=5, error="DataError", detail=self.problem)
        bundle = Path(handle) / "bundle"
        files = (*file_digests(bundle), FileDigest.of(bundle / "result.json", bundle))
        return LaunchStatus(state="succeeded", exit_code=0, bundle_files=files)

    def cancel(self, handle: str) -> None:
        shutil.rmtree(handle, ignore_errors=True)


@dataclass
class World:
    """One site whose cluster is a collection."""

    rig: GlobusRig
    site: GlobusSite
    parts: CycleParts
    trainer: HashingTrainer
    shards: int = 0

    def stage(self, count: int) -> None:
        for _ in range(count):
            block = example_block(FRAMES, first_pulse_id=self.shards * FRAMES, frame_shape=FRAME_SHAPE)
            write_shard(self.parts.home.stage, block, stream="test", seq=self.shards)
            self.shards += 1

    def cycle(self) -> CycleReport:
        return run_cycle(self.parts, tell=lambda step, text: None)

    def sent(self) -> list[list[str]]:
        """The files of each task to the cluster, by task."""
        edge = self.site.section.edge.collection
        tasks = [task for task in self.site.tasks() if task["asked"]["source_endpoint"] == edge]
        return [[one["source_path"] for one in task["asked"]["DATA"]] for task in tasks]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlobusRig]:
    with globus_rig(tmp_path_factory.mktemp("globus")) as found:
        yield found


@pytest.fixture
def world(rig: GlobusRig, tmp_path: Path) -> Iterator[World]:
    with rig.site(tmp_path, globus=two_identities()) as site:
        home = Home(site.edge)
        config = parse_site(
            {
                "frame": {"channels": FRAME_SHAPE[0], "energy_bins": FRAME_SHAPE[1]},
                "training": {"min_frames": 50, "max_fresh_frames": 1000, "replay_frames": 64},
                "gate": {"min_frames": 100},
            }
        )
        trainer = HashingTrainer()
        with Ledger(home.ledger) as ledger:
            parts = CycleParts(
                config=config, home=home, ledger=ledger, mover=site.make(), launcher=trainer,
                registry=MemoryRegistry(tmp_path / "registry"), stream="test", frame_shape=FRAME_SHAPE,
                cluster_root=site.cluster, code_commit="abc", poll_s=0.02,
            )  # fmt: skip
            yield World(rig, site, parts, trainer)


def test_cycles_go_through_globus_and_send_nothing_twice(world: World) -> None:
    world.stage(10)
    assert world.cycle().outcome == "promoted"
    world.stage(10)
    world.rig.hosted.reset()
    assert world.cycle().outcome == "promoted"
    requests = {route: number for route, number in world.rig.hosted.counts().items() if "/v0.10/" in route}
    looks = requests.pop("GET /v0.10/task/<task_id>")
    # 20 renames of 10 shards and of the weights that are new there; the bundle home; one task that tidies.
    print(f"requests of a cycle of 10 shards: {sum(requests.values())} and {looks} looks at tasks")
    assert sum(requests.values()) <= 36, requests
    first, second = world.sent()
    assert not set(first) & set(second), "what is mixed in again is there"
    wait_until(
        lambda: not list((world.site.cluster / ".incoming").iterdir()) or None, deadline_s=10, what="the tidying"
    )
    left = files_below(world.site.cluster)
    assert {name.split("/")[0] for name in left} == {"data", "weights"}, "run folders go with the end of a cycle"


def test_bytes_that_went_bad_after_they_were_verified_are_sent_again_by_the_next_cycle(world: World) -> None:
    world.stage(2)
    assert world.cycle().outcome == "promoted"

    def rot(job: TrainJob) -> None:
        (chunk,) = Path(job.replay[0].manifest_path).parent.glob("00000001.zarr/counts/c/0/0/0")
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 1
        chunk.write_bytes(data)

    world.stage(2)
    world.trainer.disturb = rot
    with pytest.raises(DataError, match="another SHA-256"):
        world.cycle()
    assert world.trainer.disturb is None, "the damage was done"
    assert world.cycle().outcome == "promoted"
    job = world.trainer.jobs[-1]
    assert [ref.shard_id[-1] for ref in (*job.fresh, *job.replay)] == ["2", "3", "0", "1"]


def quota(world: World, bytes_: int | None) -> None:
    """Let the cluster have so much room."""
    collection = world.site.section.cluster.collection
    transfer.serve(world.rig.hosted, world.site.cluster.parents[1], collection=collection, quota_bytes=bytes_)


def incoming(world: World) -> list[str]:
    """Moves that have left something at the cluster, or their empty folders."""
    folder = world.site.cluster / ".incoming"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_cycle_that_failed_for_want_of_room_gives_the_room_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.stage(2)
    monkeypatch.setattr("filmloop.cycle._MAX_ATTEMPTS", 1)
    quota(world, 6000)
    with pytest.raises(TransientError, match="QUOTA_EXCEEDED"):
        world.cycle()
    assert world.parts.ledger.open_cycle() is None
    assert world.sent(), "something was on its way"
    wait_until(lambda: not incoming(world) or None, deadline_s=10, what="the tidying")
    quota(world, None)
    assert world.cycle().outcome == "promoted"


def test_a_cycle_that_is_abandoned_gives_the_room_back(world: World) -> None:
    world.stage(2)
    quota(world, 6000)
    with pytest.raises(TransientError, match="QUOTA_EXCEEDED"):
        world.cycle()
    left = world.parts.ledger.open_cycle()
    assert left is not None
    assert incoming(world) == [f"{left.cycle_id}-move"], "the next call would go on with it"
    quota(world, None)
    changed = world.parts.config.model_copy(update={"site": "renamed"})
    world.parts = replace(world.parts, config=changed)
    assert world.cycle().outcome == "promoted"
    wait_until(lambda: not incoming(world) or None, deadline_s=10, what="the tidying")
