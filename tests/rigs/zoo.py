"""A site whose versions are real networks that predict one rate everywhere: the zoo's scores of them are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from filmloop.adapters.local.mover import LocalMover
from filmloop.bundle import EVALUATION, ONNX, WEIGHTS, Evaluation
from filmloop.config.loader import parse_site
from filmloop.config.paths import Home
from filmloop.core.documents import HoldoutPolicy, ModelChoice, TrainJob
from filmloop.core.errors import TransientError
from filmloop.journal import CycleParts
from filmloop.ledger import Ledger
from filmloop.ports.registry import CHAMPION
from filmloop.promotion.publish import promote
from filmloop.staging.catalog import SealedShard, sealed_shards
from filmloop.testing.bundles import seal_bundle
from filmloop.testing.fakes import MemoryRegistry
from filmloop.testing.models import make_model_bundle
from filmloop.testing.shards import example_block, write_shard
from filmloop.training.export import export_onnx
from filmloop.training.load import build_module
from filmloop.zoo.frames import NewestFrames, newest_frames
from filmloop.zoo.index import DATA_TAG
from filmloop.zoo.recall import Recall, look_back
from filmloop.zoo.scorer import Scorer
from filmloop.zoo.scoring import Scores

SHAPE = (4, 16)
HYPER = {"features": 8, "angle_features": 8, "depth": 1}
POLICY = HoldoutPolicy(permille=500)


class NoTraining:
    """A launcher that must not be asked."""

    def submit(self, job: TrainJob) -> str:
        raise TransientError(f"asked to train from {job.base.version if job.base else 'scratch'}")

    def poll(self, handle: str) -> Any:
        raise AssertionError

    def cancel(self, handle: str) -> None:
        raise AssertionError


@dataclass
class Site:
    """A site with staged frames and versions whose networks are real. `rate` is what a version predicts everywhere."""

    parts: CycleParts
    registry: MemoryRegistry
    home: Home
    folder: Path
    shards: int = 0

    def stage(self, frames: int = 600, *, dead: int | None = None, surprising: float = 0.0) -> list[SealedShard]:
        """Seal a shard more.

        Args:
            frames: In it.
            dead: A channel without a hit.
            surprising: Mean count of a bin in every second frame, which stands for itself; each other stands for 100.
        """
        block = example_block(frames, first_pulse_id=self.shards * frames, frame_shape=SHAPE)
        weight_N = None
        if surprising:
            shape = block.counts_NCE[::2].shape
            block.counts_NCE[::2] = np.random.default_rng(self.shards).poisson(surprising, shape)
            weight_N = np.where(np.arange(frames) % 2 == 0, 1, 100).astype(np.float32)
        if dead is not None:
            block.counts_NCE[:, dead] = 0
        write_shard(self.home.stage, block, stream="test", seq=self.shards, weight_N=weight_N)
        self.shards += 1
        return sealed_shards(self.home.stage)

    def train_with(self, **changes: Any) -> None:
        """Change the site's training section."""
        config = self.parts.config
        training = config.training.model_copy(update=changes)
        self.parts = replace(self.parts, config=config.model_copy(update={"training": training}))

    def frames(self) -> NewestFrames:
        return newest_frames(self.manifests(), POLICY, most=1000)

    def manifests(self) -> list[Path]:
        return [shard.manifest_path for shard in sealed_shards(self.home.stage)]

    @contextmanager
    def scorer(
        self, *, deadline_s: float = 120.0, likely: dict[str, Path] | None = None, argv: tuple[str, ...] = ()
    ) -> Iterator[Scorer]:
        with Scorer(self.folder / "work", deadline_s=deadline_s, argv=argv) as scorer:
            scorer.begin(self.manifests(), POLICY, most=1000, likely=likely)
            yield scorer

    def score(self, bundles: dict[str, Path], *, deadline_s: float = 120.0, argv: tuple[str, ...] = ()) -> Scores:
        with self.scorer(deadline_s=deadline_s, argv=argv) as scorer:
            return scorer.score(bundles)

    def add(self, rate: float, *, ahead: float = 0.0, data: bool = True, **changes: Any) -> str:
        """Register a version that predicts `rate` in every bin; the frames have 0.3.

        Args:
            rate: Its output.
            ahead: By how many nats a frame it was better on its own frames than it is on these.
            data: Whether the registry knows what it was trained on: frames like these.
            changes: Other hyper-parameters.
        """
        frames, number = self.frames(), len(self.registry.versions()) + 1
        bundle = constant_bundle(self.folder / f"made{number}", rate, frames, seed=number, ahead=ahead, **changes)
        tags = {DATA_TAG: frames.seen.data.model_dump_json()} if data else {}
        return self.registry.register(bundle, key=f"made{number}", description="", tags=tags, metrics={}).version

    def make_champion(self, version: str) -> None:
        now = self.registry.get(CHAMPION)
        promote(
            self.registry, self.parts.ledger, version=version, expected=now.version if now else "", who="the loop",
            why="for the test", cycle_id="c0",
        )  # fmt: skip

    def look(self, **changes: Any) -> Recall:
        config = self.parts.config
        parts = replace(self.parts, config=config.model_copy(update={"zoo": config.zoo.model_copy(update=changes)}))
        champion = self.registry.get(CHAMPION)
        return self.look_back(parts, lambda: champion.version if champion else "")

    def look_back(self, parts: CycleParts, champion_of: Callable[[], str]) -> Recall:
        with Scorer(self.folder / "look", deadline_s=parts.config.zoo.deadline_s) as scorer:
            return look_back(parts, sealed_shards(self.home.stage), champion_of, scorer=scorer, tell=lambda text: None)


def constant_bundle(
    folder: Path, rate: float, frames: NewestFrames, *, seed: int, ahead: float = 0.0, hyper: dict[str, int] = HYPER
) -> Path:
    """A mixer whose every weight is 0 but the last bias, with its own evaluation on `frames`."""
    make_model_bundle(folder, frame_shape=SHAPE, seed=seed, hyper=hyper)
    choice = ModelChoice(name="mixer", frame_shape=SHAPE, hyper=hyper)
    module = build_module(choice)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.write.bias.fill_(float(np.log(np.expm1(rate))))
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, folder / WEIGHTS)
    export_onnx(module, SHAPE, folder / ONNX)
    own_N = frames.holdout.scores(lambda counts_NCE: np.full(counts_NCE.shape, rate, np.float32)) - ahead
    Evaluation(reports={"challenger": frames.holdout.report("challenger", own_N), "zero": frames.seen.zero}).write(
        folder / EVALUATION
    )
    seal_bundle(folder, choice, job_id=f"job-{seed}", seed=seed)
    return folder


@contextmanager
def zoo_site(tmp_path: Path) -> Iterator[Site]:
    home = Home(tmp_path / "home")
    config = parse_site(
        {
            "frame": {"channels": 4, "energy_bins": 16},
            "model": {"hyper": HYPER},
            "training": {"min_frames": 100, "replay_frames": 0, "holdout": {"permille": POLICY.permille}},
            "gate": {"min_frames": 50},
        }
    )
    registry = MemoryRegistry(tmp_path / "registry")
    mover = LocalMover(edge_root=home.root, cluster_root=home.cluster, journal=home.moves, section=config.mover)
    with Ledger(home.ledger) as ledger:
        parts = CycleParts(
            config=config, home=home, ledger=ledger, mover=mover, launcher=NoTraining(), registry=registry,
            stream="test", frame_shape=SHAPE, cluster_root=home.cluster, code_commit="abc", poll_s=0.02,
        )  # fmt: skip
        made = Site(parts, registry, home, tmp_path)
        made.stage()
        yield made
    mover.close()
