"""The newest frames and the scores on them are the trainer's own; a network that breaks its runtime harms no other."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from filmloop.adapters.mlflow.processes import start_ticks
from filmloop.bundle import ONNX
from filmloop.core.holdout import held_out
from filmloop.core.poisson import poisson_nll
from filmloop.staging.catalog import sealed_shards
from filmloop.staging.reader import ShardReader
from filmloop.testing.training import small_job
from filmloop.training.data import load_data
from filmloop.training.evaluate import constant_rate, evaluate, rate_function
from filmloop.training.load import load_module
from filmloop.zoo import scorer as scorer_module
from filmloop.zoo.frames import newest_frames
from rigs.zoo import POLICY, SHAPE, Site, constant_bundle

ORPHAN = """
import os, signal, sys
from pathlib import Path
from filmloop.core.documents import HoldoutPolicy
from filmloop.zoo.scorer import Scorer
scorer = Scorer(Path(sys.argv[2]), deadline_s=60)
scorer.load()
if sys.argv[3] == "reads":
    scorer.begin([Path(sys.argv[1])], HoldoutPolicy(permille=500), most=100)
    scorer.seen()
print(scorer._child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["loads", "reads"])
def test_the_scorer_of_a_killed_cycle_ends_too(site: Site, when: str) -> None:
    (manifest,) = site.manifests()
    argv = [sys.executable, "-c", ORPHAN, str(manifest), str(site.folder / "work"), when]
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


EARLY = """
import os, sys, time
from pathlib import Path
from filmloop.zoo import scoring
real = scoring.rate_of
def rate_of(bundle, *, threads=None):
    with open({told!r}, "a") as told:
        told.write(f"{{bundle.name}} {{threads}}\\n")
    if bundle.name == "b2":
        {act}
    return real(bundle, threads=threads)
scoring.rate_of = rate_of
sys.exit(scoring.main(Path(sys.argv[1])))
"""


def _early(site: Site, act: str = "pass") -> tuple[dict[str, Path], Path, tuple[str, ...]]:
    """Three bundles, the file that tells which were scored with how many threads, and the scorer that writes it."""
    frames = site.frames()
    bundles = {str(n): constant_bundle(site.folder / f"b{n}", 0.3, frames, seed=n) for n in (1, 2, 3)}
    told = site.folder / "told.txt"
    return bundles, told, (sys.executable, "-c", EARLY.format(told=str(told), act=act))


def _wait_for(told: Path, lines: int) -> None:
    end_s = time.monotonic() + 60
    while not told.exists() or len(told.read_text().splitlines()) < lines:
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_bundles_that_lie_here_are_scored_before_anybody_asks_and_not_again(site: Site) -> None:
    bundles, told, argv = _early(site)
    with site.scorer(likely={"1": bundles["1"], "2": bundles["2"]}, argv=argv) as scorer:
        _wait_for(told, 2)
        found = scorer.score({"2": bundles["2"], "3": bundles["3"]})
    *unasked, asked = told.read_text().splitlines()
    assert sorted(unasked) == ["b1 1", "b2 1"], "beside each other, so in any order"
    assert asked == "b3 None"
    assert set(found.reports) == {"2", "3"}
    assert found == site.score({"2": bundles["2"], "3": bundles["3"]})


def test_a_bundle_that_was_replaced_after_it_was_scored_is_scored_anew(site: Site) -> None:
    bundles, told, argv = _early(site)
    other = constant_bundle(site.folder / "other", 0.6, site.frames(), seed=9)
    with site.scorer(likely=bundles, argv=argv) as scorer:
        _wait_for(told, 3)
        bundles["1"].rename(site.folder / "former")
        other.rename(bundles["1"])
        found = scorer.score({"1": bundles["1"]})
    assert told.read_text().splitlines()[3:] == ["b1 None"]
    assert found == site.score({"1": bundles["1"]})


@pytest.mark.parametrize("act", ["os.kill(os.getpid(), 11)", "time.sleep(600)"], ids=["crash", "hang"])
def test_a_bundle_that_nobody_asked_for_takes_no_other_with_it(
    site: Site, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer_module, "_UNASKED_S", 0.5)
    bundles, told, argv = _early(site, act)
    with site.scorer(likely={"2": bundles["2"]}, argv=argv) as scorer:
        scorer.seen()
        _wait_for(told, 1)
        found = scorer.score({"1": bundles["1"], "3": bundles["3"]})
    assert (set(found.reports), found.failed) == ({"1", "3"}, {})


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
