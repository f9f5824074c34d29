"""Recall on real bundles and real frames: the right ancestor is found, and comes back only where it is as good as it was."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from filmloop.adapters.local.mover import LocalMover
from filmloop.adapters.mlflow.processes import start_ticks
from filmloop.bundle import EVALUATION, JOB, ONNX, WEIGHTS, Evaluation, verify_bundle
from filmloop.config.loader import parse_site
from filmloop.config.paths import Home
from filmloop.core.documents import EvaluationReport, HoldoutPolicy, ModelChoice, TrainJob, Verdict
from filmloop.core.errors import TransientError
from filmloop.core.holdout import held_out
from filmloop.core.poisson import poisson_nll
from filmloop.cycle import run_cycle
from filmloop.journal import CycleParts
from filmloop.ledger import TRAINED, Ledger
from filmloop.ports.registry import CHAMPION
from filmloop.promotion.publish import promote, rollback
from filmloop.staging.catalog import SealedShard, sealed_shards
from filmloop.staging.reader import ShardReader
from filmloop.testing.bundles import seal_bundle
from filmloop.testing.fakes import MemoryRegistry
from filmloop.testing.models import make_model_bundle
from filmloop.testing.shards import example_block, write_shard
from filmloop.testing.training import small_job
from filmloop.training.data import load_data
from filmloop.training.evaluate import constant_rate, evaluate, rate_function
from filmloop.training.export import export_onnx
from filmloop.training.load import build_module, load_module
from filmloop.zoo.embedding import embed
from filmloop.zoo.frames import NewestFrames, newest_frames
from filmloop.zoo.index import DATA_TAG, RECALLED_TAG, data_tag
from filmloop.zoo.recall import Animal, Recall, decide, look_back
from filmloop.zoo.scoring import Scorer, Scores

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

    def score(self, bundles: dict[str, Path], *, deadline_s: float = 120.0, argv: tuple[str, ...] = ()) -> Scores:
        with Scorer(
            self.manifests(), POLICY, most=1000, folder=self.folder / "work", deadline_s=deadline_s, argv=argv
        ) as scorer:
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
        return look_back(
            parts, sealed_shards(self.home.stage), lambda: champion.version if champion else "",
            folder=self.folder / "look", tell=lambda text: None,
        )  # fmt: skip


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


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
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


def test_the_version_that_fits_the_frames_again_is_found_and_fits(site: Site) -> None:
    right, _worse, champion = site.add(0.3), site.add(0.8), site.add(0.5)
    site.make_champion(champion)
    found = site.look()
    assert (found.base, found.fits, [each.version for each in found.candidates]) == (right, right, ["1", "3", "2"])
    assert found.verdict is not None
    assert found.verdict.decision == "promote"
    assert found.message.startswith("Version 1 fits again: no training. It was trained on frames with ")
    assert found.frames == len(site.frames())
    assert not (site.folder / "look").exists()


def test_it_is_an_ancestor_at_most_where_the_policy_says_so_and_nothing_is_asked_when_it_is_off(site: Site) -> None:
    site.add(0.3)
    site.make_champion(site.add(0.5))
    found = site.look(recall="warm_start")
    assert (found.base, found.fits) == ("1", "")
    assert "Training starts from version 1" in found.message
    off = site.look(recall="off")
    assert (off.base, off.fits, off.candidates, off.data) == ("2", "", (), None)


def test_a_version_whose_own_frames_looked_different_is_an_ancestor_and_never_promoted(site: Site) -> None:
    site.add(0.3)
    site.registry.annotate("1", tags={DATA_TAG: embed(np.full((900, *SHAPE), 3, np.uint8)).model_dump_json()})
    site.make_champion(site.add(0.5))
    found = site.look()
    assert (found.base, found.fits) == ("1", "")
    assert "hits a frame, energy 7.5, line" in found.message
    assert "These differ, most in " in found.message


def test_a_version_that_was_further_ahead_on_its_own_frames_is_an_ancestor_and_never_promoted(site: Site) -> None:
    site.add(0.3, ahead=2.0)
    site.make_champion(site.add(0.5))
    found = site.look()
    assert (found.base, found.fits) == ("1", "")
    assert "ahead of a constant rate, and was" in found.message


def test_a_version_whose_frames_are_hardly_known_gets_an_embedding_and_is_an_ancestor_at_most(site: Site) -> None:
    site.add(0.3, data=False)
    site.make_champion(site.add(0.5))
    found = site.look()
    assert (found.base, found.fits) == ("1", "")
    assert "known from 8 only" in found.message, "its eight golden frames: the job names no shards"
    info = site.registry.get("1")
    assert info is not None
    assert data_tag(info) is not None


def test_a_champion_that_is_as_good_stays_the_ancestor(site: Site) -> None:
    for rate in (0.3, 0.8, 0.3001):
        site.add(rate)
    site.make_champion("3")
    found = site.look()
    assert (found.base, found.fits) == ("3", "")
    assert found.message == "No former version is surely better than the champion."


def test_without_a_champion_the_best_version_is_the_ancestor_and_none_is_promoted(site: Site) -> None:
    site.add(0.8)
    assert site.look().base == "", "it is worse than a constant rate"
    # A constant is never better than the mean, so let the frames' mean be wrong: one bright frame that is not held out.
    seen = site.frames().seen
    better = seen.model_copy(update={"zero": shifted(seen.zero, 1.0)})
    animals = [animal(site, "1", 0.3), animal(site, "2", 0.5)]
    reports = {"1": shifted(seen.zero, 0.0), "2": shifted(seen.zero, 0.5)}
    found = decide(animals, reports, better, "", **policies(site))
    assert (found.base, found.fits) == ("1", "")


def policies(site: Site) -> dict[str, Any]:
    config = site.parts.config
    return {"zoo": config.zoo, "gate": config.gate, "training": config.training}


def shifted(report: EvaluationReport, nats: float, spread: float = 0.01) -> EvaluationReport:
    nll_N = np.asarray(report.nll_frames) + np.random.default_rng(5).normal(nats, spread, report.frames)
    return report.model_copy(update={"nll": float(nll_N.mean()), "nll_frames": tuple(nll_N.tolist())})


def animal(site: Site, version: str, rate: float) -> Animal:
    seen = site.frames().seen
    return Animal(version=version, folder=site.folder, data=seen.data, own=seen.zero, own_zero=seen.zero)


def test_among_many_candidates_one_that_is_better_by_chance_is_not_promoted(site: Site) -> None:
    """One candidate alone would pass with 95 %; among forty the interval is wider."""
    seen, gate = site.frames().seen, site.parts.config.gate.model_copy(update={"min_gain": 0.0})
    champion = shifted(seen.zero, 0.0)
    lucky = shifted(champion, -0.06, spread=0.5)
    many = [animal(site, str(number), 0.3) for number in range(42)]
    reports = {each.version: shifted(champion, 0.5) for each in many} | {"41": champion, "7": lucky}
    alone = [each for each in many if each.version in ("7", "41")]
    assert decide(alone, reports, seen, "41", **policies(site) | {"gate": gate}).fits == "7"
    found = decide(many, reports, seen, "41", **policies(site) | {"gate": gate})
    assert (found.fits, found.base) == ("", "41")


def test_a_version_of_another_form_is_no_candidate(site: Site) -> None:
    site.add(0.3, hyper={**HYPER, "depth": 2})
    site.make_champion(site.add(0.5))
    found = site.look()
    assert (found.base, found.candidates, found.left_out) == ("2", (), {})


def test_what_is_damaged_or_gone_is_left_out_and_named(site: Site) -> None:
    for rate in (0.3, 0.3, 0.31, 0.5):
        site.add(rate)
    site.make_champion("4")
    damage = site.folder / "registry" / "1" / WEIGHTS
    damage.write_bytes(damage.read_bytes()[:-1])
    shutil.rmtree(site.folder / "registry" / "2")
    found = site.look()
    assert set(found.left_out) == {"1", "2"}
    assert (found.fits, found.base) == ("3", "3")


def test_what_a_person_rolled_back_is_neither_promoted_nor_an_ancestor(site: Site) -> None:
    site.make_champion(site.add(0.5))
    site.make_champion(site.add(0.3))
    rollback(site.registry, site.parts.ledger, who="a person", why="odd pictures")
    found = site.look()
    assert (found.base, found.fits, found.candidates) == ("1", "", ())


def test_a_damaged_champion_leaves_everything_as_it_was(site: Site) -> None:
    site.add(0.3)
    site.make_champion(site.add(0.5))
    shutil.rmtree(site.folder / "registry" / "2")
    found = site.look()
    assert (found.base, found.fits) == ("2", "")
    assert "2" in found.left_out


def test_a_registry_that_is_away_leaves_everything_as_it_was(site: Site) -> None:
    site.add(0.3)
    site.make_champion(site.add(0.5))
    parts, shards = site.parts, sealed_shards(site.home.stage)
    site.registry.away = True
    found = look_back(parts, shards, lambda: "2", folder=site.folder / "look", tell=lambda text: None)
    assert (found.base, found.fits) == ("2", "")
    assert "could not be used" in found.message
    assert found.data is not None, "the next version is told what it was trained on all the same"


def test_frames_that_cannot_be_read_leave_everything_as_it_was(site: Site) -> None:
    """The deep check of all bytes is the trainer's; here the codec's checksum finds it."""
    site.add(0.3)
    site.make_champion(site.add(0.5))
    (counts,) = site.home.stage.rglob("counts/c/0/0/0")
    counts.write_bytes(bytes([255]) * counts.stat().st_size)
    found = site.look()
    assert (found.base, found.fits, found.data) == ("2", "", None)
    assert "The newest frames cannot be read: Shard test/run000001/00000000 is damaged" in found.message


ORPHAN = """
import os, signal, sys
from pathlib import Path
from filmloop.core.documents import HoldoutPolicy
from filmloop.zoo.scoring import Scorer
scorer = Scorer([Path(sys.argv[1])], HoldoutPolicy(permille=500), most=100, folder=Path(sys.argv[2]), deadline_s=60)
scorer.seen()
print(scorer._child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_scorer_of_a_killed_cycle_ends_too(site: Site) -> None:
    (manifest,) = site.manifests()
    argv = [sys.executable, "-c", ORPHAN, str(manifest), str(site.folder / "work")]
    killed = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    end_s = time.monotonic() + 30
    while start_ticks(int(killed.stdout)) is not None:
        assert time.monotonic() < end_s, "it waits for ever to be told what to score"
        time.sleep(0.05)


SCORER = """
import os, sys, time
from pathlib import Path
from filmloop.zoo import scoring
real = scoring.rate_of
def rate_of(bundle):
    if bundle.name == "b2":
        {act}
    return real(bundle)
scoring.rate_of = rate_of
sys.exit(scoring.main(Path(sys.argv[1])))
"""


@pytest.mark.parametrize(
    ("act", "deadline_s", "scored", "why"),
    [
        ("os.kill(os.getpid(), 11)", 60.0, {"1", "3"}, {"2": "ended with -11"}),
        ("time.sleep(600)", 4.0, {"1"}, {"2": "not scored within", "3": "not scored within"}),
    ],
    ids=["crash", "hang"],
)
def test_a_network_that_crashes_or_hangs_its_runtime_is_left_out(
    site: Site, act: str, deadline_s: float, scored: set[str], why: dict[str, str]
) -> None:
    frames = site.frames()
    bundles = {str(n): constant_bundle(site.folder / f"b{n}", 0.3, frames, seed=n) for n in (1, 2, 3)}
    found = site.score(bundles, deadline_s=deadline_s, argv=(sys.executable, "-c", SCORER.format(act=act)))
    assert set(found.reports) <= scored, "on a very slow machine not even the first is done by the deadline"
    assert set(found.failed) >= set(why)
    assert len(found.reports) + len(found.failed) == 3
    assert all(text in found.failed[version] for version, text in why.items())


def test_with_and_without_an_onnx_file_the_scores_are_those_of_the_network(site: Site) -> None:
    frames = site.frames()
    with_onnx = constant_bundle(site.folder / "with", 0.4, frames, seed=1)
    without = constant_bundle(site.folder / "without", 0.4, frames, seed=1)
    (without / ONNX).unlink()
    found = site.score({"1": with_onnx, "2": without})
    rest_NCE = frames.holdout.scored_part()
    wanted_N = poisson_nll(np.full(rest_NCE.shape, 0.4 * (1 - POLICY.keep)), rest_NCE)
    for version in ("1", "2"):
        assert np.allclose(found.reports[version].nll_frames, wanted_N, rtol=1e-5)


def test_the_newest_held_out_frames_are_taken_in_order_and_no_others(site: Site) -> None:
    site.stage()
    shards = site.manifests()
    all_of_them, few = newest_frames(shards, POLICY, most=10_000), newest_frames(shards, POLICY, most=50)
    blocks = [ShardReader(manifest).block(0, 600) for manifest in shards]
    pulse_id_N = np.concatenate([block.pulse_id_N for block in blocks])
    is_held_N = held_out(pulse_id_N, POLICY.permille)
    held_NCE = np.concatenate([block.counts_NCE for block in blocks])[is_held_N]
    assert np.array_equal(all_of_them.holdout.counts_NCE, held_NCE)
    assert np.array_equal(few.holdout.counts_NCE, held_NCE[-50:])
    assert (all_of_them.seen.data.frames, few.seen.data.frames) == (1200, 600), "older shards are not read for fewer"


def test_its_digest_and_its_scores_are_those_of_the_trainers_evaluation(site: Site) -> None:
    job = small_job(
        site.folder, *(shard.ref() for shard in sealed_shards(site.home.stage)), frame_shape=SHAPE,
        holdout={"permille": POLICY.permille},
    )  # fmt: skip
    data, frames = load_data(job), site.frames()
    report = evaluate(constant_rate(data.sample_NCE), data.holdout, "zero")
    assert report.frames_digest == frames.seen.zero.frames_digest
    assert np.allclose(report.nll_frames, frames.seen.zero.nll_frames, rtol=1e-6)


def test_sampling_weights_and_dead_channels_count_as_in_the_trainers_evaluation(site: Site) -> None:
    site.stage(dead=2, surprising=0.8)
    job = small_job(
        site.folder, *(shard.ref() for shard in sealed_shards(site.home.stage)), frame_shape=SHAPE,
        holdout={"permille": POLICY.permille},
    )  # fmt: skip
    data, frames = load_data(job), site.frames()
    assert data.holdout.weight_N is not None
    assert data.holdout.alive_NC is not None
    bundle = constant_bundle(site.folder / "made", 0.4, frames, seed=1)
    scored = site.score({"1": bundle}).reports["1"]
    network = evaluate(rate_function(load_module(bundle)), data.holdout, "challenger", "1")
    constant = evaluate(constant_rate(data.sample_NCE), data.holdout, "zero")
    for ours, trainers in ((scored, network), (frames.seen.zero, constant)):
        assert ours.frames_digest == trainers.frames_digest
        assert np.allclose(ours.nll_frames, trainers.nll_frames, rtol=1e-5, atol=1e-5)


def test_frames_staged_because_they_surprised_the_champion_do_not_decide_against_it(site: Site) -> None:
    """Half of what is staged is what the champion explains worst, and that is one frame in a hundred of the beam."""
    shutil.rmtree(site.home.stage)
    site.stage(1200, surprising=0.8)
    other = site.add(0.5)
    site.make_champion(site.add(0.3))
    found = site.look()
    assert (found.base, found.fits, [each.version for each in found.candidates]) == ("2", "", ["2", other])
    assert found.candidates[1].gain_high < 0


def test_where_training_corrects_gains_nothing_returns_without_training(site: Site) -> None:
    site.add(0.3)
    site.make_champion(site.add(0.5))
    site.train_with(hyper=site.parts.config.training.hyper.model_copy(update={"normalise_gain": True}))
    found = site.look()
    assert (found.base, found.fits) == ("1", "")
    assert found.message.startswith("Training starts from version 1")
    assert "None returns without training: training.hyper.normalise_gain" in found.message
    assert "normalise_gain" not in site.look(recall="warm_start").message, "nothing would return anyway"


def test_a_version_whose_own_scores_are_gain_corrected_is_an_ancestor_at_most(site: Site) -> None:
    bundle = constant_bundle(site.folder / "made", 0.3, site.frames(), seed=1)
    job = TrainJob.read(bundle / JOB)
    hyper = job.hyper.model_copy(update={"normalise_gain": True})
    job.model_copy(update={"hyper": hyper}).write(bundle / JOB)
    seal_bundle(bundle, job.model, job_id=job.job_id, seed=1)
    tags = {DATA_TAG: site.frames().seen.data.model_dump_json()}
    site.registry.register(bundle, key="made", description="", tags=tags, metrics={})
    site.make_champion(site.add(0.5))
    found = site.look()
    assert (found.base, found.fits) == ("1", "")
    assert "corrected gains" in found.message


@pytest.mark.parametrize("recall", ["promote", "warm_start", "off"])
def test_a_site_that_trains_from_scratch_is_told_of_no_ancestor(site: Site, recall: str) -> None:
    site.add(0.3, ahead=2.0)
    site.make_champion(site.add(0.5))
    site.train_with(warm_start=False)
    found = site.look(recall=recall)
    assert (found.base, found.fits) == ("", "")
    assert found.message.endswith("Training starts from scratch: training.warm_start is false.")
    assert "Training starts from version" not in found.message
    assert ("The best former version is 1" in found.message) == (recall != "off")
    assert '"base": ""' in found.tag()


def test_a_version_returns_to_a_site_that_trains_from_scratch_too(site: Site) -> None:
    site.add(0.3)
    site.make_champion(site.add(0.5))
    site.train_with(warm_start=False)
    found = site.look()
    assert found.fits == "1"
    assert "scratch" not in found.message


def test_a_cycle_promotes_a_version_that_fits_again_without_training(site: Site) -> None:
    site.add(0.3)
    site.make_champion(site.add(0.5))
    report = run_cycle(site.parts, tell=lambda step, text: None)
    assert (report.outcome, report.version, report.recalled) == ("promoted", "1", True), report.message
    assert report.message.startswith("Version 1 fits again: no training.")
    assert list(report.steps) == ["seal", "select", "recall", "promote", "live"]
    assert (report.train_s, report.base_version) == (0.0, "")
    assert report.gate is not None
    champion = site.registry.get(CHAMPION)
    assert champion is not None
    assert champion.version == "1"
    assert report.cycle_id in champion.tags[RECALLED_TAG]
    move = site.parts.ledger.moves(site.registry.model, CHAMPION)[0]
    assert (move.from_version, move.to_version, move.cycle_id) == ("2", "1", report.cycle_id)
    assert "fits again" in move.why
    folder = site.home.cycles / report.cycle_id
    assert Verdict.read(folder / "verdict.json") == report.gate
    assert not (folder / "recall").exists()
    assert set(site.parts.ledger.shard_states().values()) == {TRAINED}
    assert run_cycle(site.parts, tell=lambda step, text: None).outcome == "nothing_to_do"


def test_a_person_who_moves_the_champion_meanwhile_is_not_overrun(site: Site) -> None:
    site.add(0.3)
    site.add(0.6)
    site.make_champion(site.add(0.5))

    def meanwhile(step: str, text: str) -> None:
        if step == "promote":
            promote(site.registry, site.parts.ledger, version="2", expected="3", who="a person", why="knows better")

    report = run_cycle(site.parts, tell=meanwhile)
    champion = site.registry.get(CHAMPION)
    assert champion is not None
    assert (report.outcome, report.recalled, champion.version) == ("undecided", False, "2")


def test_a_cycle_trains_from_the_best_former_version_and_compares_with_the_champion(site: Site) -> None:
    site.add(0.3, ahead=2.0)
    site.make_champion(site.add(0.5))
    job = submitted(site)
    assert job.base is not None
    assert job.champion is not None
    assert (job.base.version, job.champion.version) == ("1", "2")
    for reference in (job.base, job.champion):
        assert verify_bundle(Path(reference.bundle_path)).weights_sha256 == reference.weights_sha256


def test_a_cycle_that_trains_from_scratch_ships_the_champion_to_compare_with_and_no_ancestor(site: Site) -> None:
    site.add(0.3, ahead=2.0)
    site.make_champion(site.add(0.5))
    site.train_with(warm_start=False)
    job = submitted(site)
    assert job.base is None
    assert job.champion is not None
    champion = Path(job.champion.bundle_path)
    assert [path.name for path in champion.parent.iterdir()] == [champion.name] == ["2"]


def submitted(site: Site) -> TrainJob:
    """What a cycle would train."""
    jobs: list[TrainJob] = []

    def submit(job: TrainJob) -> str:
        jobs.append(job)
        raise TransientError("enough seen")

    site.parts.launcher.submit = submit  # type: ignore[method-assign]
    with pytest.raises(TransientError, match="enough seen"):
        run_cycle(site.parts, tell=lambda step, text: None)
    (job,) = jobs
    return job
