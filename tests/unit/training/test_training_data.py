from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from filmloop.core.documents import ShardRef, TrainHyper
from filmloop.core.errors import DataError, FilmloopError, TrainingError, VerificationError
from filmloop.core.holdout import held_out
from filmloop.core.poisson import thin_by_hash
from filmloop.testing.training import simulated_counts, small_job, staged_frames
from filmloop.training.data import TrainingData, load_data
from filmloop.training.plan import BatchPlan


def _numbered(frames: int, first: int = 0) -> np.ndarray:
    """Frames that carry their own number: pulse id in two bytes of channel 0."""
    counts = np.zeros((frames, 2, 8), np.uint8)
    numbers = np.arange(first, first + frames)
    counts[:, 0, 0], counts[:, 0, 1], counts[:, 1, 0] = numbers % 256, numbers // 256, 1
    return counts


def _ids(counts: np.ndarray) -> list[int]:
    return (counts[:, 0, 0].astype(int) + 256 * counts[:, 0, 1].astype(int)).tolist()


def _trained_on(data: TrainingData) -> tuple[np.ndarray, np.ndarray | None]:
    """Counts and labels of all frames to train on, each once, in the order in which an epoch of one batch has them."""
    hyper = TrainHyper(batch_frames=data.frames, replay_share=0.0)
    plan = BatchPlan(data.pool.orders, hyper, 0)
    data.pool.start(plan, 0)
    frames = data.pool.take(plan, 0, slice(0, data.frames))
    data.pool.close()
    return frames.counts_NCE.numpy(), None if frames.label_NCE is None else frames.label_NCE.numpy()


def _job(folder: Path, *fresh: ShardRef, **changes: object):
    return small_job(folder, *fresh, frame_shape=(2, 8), **changes)


def test_held_out_frames_are_never_trained_on(tmp_path: Path) -> None:
    data = load_data(_job(tmp_path, staged_frames(tmp_path, _numbered(500))))
    is_held = held_out(np.arange(500, dtype=np.uint64), 200)
    assert sorted(_ids(_trained_on(data)[0])) == np.flatnonzero(~is_held).tolist()
    assert _ids(data.holdout.counts_NCE) == np.flatnonzero(is_held).tolist()
    assert data.holdout.pulse_id_N.tolist() == np.flatnonzero(is_held).tolist()


def test_the_newest_held_out_frames_are_scored_in_order_of_run_and_pulse(tmp_path: Path) -> None:
    late = staged_frames(tmp_path, _numbered(300), run_number=2, seq=0)
    early = staged_frames(tmp_path, _numbered(300, 1000), run_number=1, seq=0, first_pulse_id=1000)
    data = load_data(_job(tmp_path, late, early, holdout={"max_frames": 80}))
    held = data.holdout
    assert len(held) == 80
    order = list(zip(held.run_N.tolist(), held.pulse_id_N.tolist(), strict=True))
    assert order == sorted(order)
    last_of_run_2 = np.flatnonzero(held_out(np.arange(300, dtype=np.uint64), 200))[-50:].tolist()
    assert [pulse for run, pulse in order if run == 2][-50:] == last_of_run_2
    assert _ids(held.counts_NCE) == held.pulse_id_N.tolist()


def test_replayed_frames_are_scored_only_where_fresh_ones_are_few(tmp_path: Path) -> None:
    old = staged_frames(tmp_path, _numbered(1200), seq=0)
    few = staged_frames(tmp_path, _numbered(400, 2000), seq=1, first_pulse_id=2000)
    many = staged_frames(tmp_path, _numbered(1400, 3000), seq=2, first_pulse_id=3000)
    assert load_data(_job(tmp_path, few, replay=(old,))).holdout.pulse_id_N.min() < 1200
    plenty = load_data(_job(tmp_path, many, replay=(old,)))
    assert plenty.holdout.pulse_id_N.min() >= 3000
    assert plenty.frames > 1800  # replayed frames are trained on all the same
    assert set(plenty.lineage) == {old.shard_id, many.shard_id}


def test_the_split_of_the_hold_out_is_that_of_the_core(tmp_path: Path) -> None:
    held = load_data(_job(tmp_path, staged_frames(tmp_path, _numbered(500)))).holdout
    kept = thin_by_hash(held.counts_NCE, held.pulse_id_N, keep=held.policy.keep, seed=held.policy.seed)
    assert np.array_equal(held.kept_NCE, kept)
    assert np.array_equal(held.scored_part() + held.kept_NCE, held.counts_NCE)


def test_equal_digests_mean_equal_frames_and_split(tmp_path: Path) -> None:
    shard = staged_frames(tmp_path, _numbered(500))
    digest = load_data(_job(tmp_path, shard)).holdout.digest()
    assert load_data(_job(tmp_path, shard, job_id="other", seed=9)).holdout.digest() == digest
    for changed in ({"keep": 0.6}, {"seed": 1}, {"max_frames": 20}, {"permille": 150}):
        assert load_data(_job(tmp_path, shard, holdout=changed)).holdout.digest() != digest


def test_labels_are_brought_to_counts(tmp_path: Path) -> None:
    counts = simulated_counts(400)
    shard = staged_frames(tmp_path, counts, label_NCE=counts.astype(np.float32) / 5)
    data = load_data(small_job(tmp_path, shard, hyper={"mode": "labelled"}))
    assert data.label_gain == pytest.approx(5.0, rel=1e-3)
    assert data.holdout.label_NCE is not None
    counts, labels = _trained_on(data)
    np.testing.assert_allclose(labels, counts, rtol=2e-3)  # float16
    np.testing.assert_allclose(data.holdout.label_NCE, data.holdout.counts_NCE, rtol=2e-3)


def test_thinning_does_not_read_labels(tmp_path: Path) -> None:
    counts = simulated_counts(100)
    data = load_data(small_job(tmp_path, staged_frames(tmp_path, counts, label_NCE=counts.astype(np.float32))))
    assert _trained_on(data)[1] is None


def _with_another_digest(shard: ShardRef) -> ShardRef:
    return shard.model_copy(update={"manifest_digest": "0" * 64})


@pytest.mark.parametrize(
    ("counts", "changes", "spoil", "error", "says"),
    [
        (_numbered(300), {}, _with_another_digest, VerificationError, "not the one that the job means"),
        (_numbered(300), {"frame_shape": (2, 16)}, None, DataError, r"\(2, 8\).*\(2, 16\)"),
        (_numbered(300), {"hyper": {"mode": "labelled"}}, None, DataError, "no labels"),
        (np.zeros((300, 2, 8), np.uint8), {}, None, TrainingError, "has a count"),
        (_numbered(30), {}, None, DataError, "at least 32"),
        (_numbered(300), {"holdout": {"permille": 1}}, None, DataError, "held-out"),
    ],
)
def test_unusable_data_are_refused_with_a_hint(
    tmp_path: Path, counts: np.ndarray, changes: dict, spoil: object, error: type[FilmloopError], says: str
) -> None:
    shard = staged_frames(tmp_path, counts)
    job = small_job(tmp_path, spoil(shard) if callable(spoil) else shard, **({"frame_shape": (2, 8)} | changes))
    with pytest.raises(error, match=says) as caught:
        load_data(job)
    assert caught.value.hint


def test_labels_that_are_no_rates_are_refused(tmp_path: Path) -> None:
    counts = simulated_counts(100)
    shard = staged_frames(tmp_path, counts, label_NCE=np.zeros(counts.shape, np.float32))
    with pytest.raises(TrainingError, match="add up to 0"):
        load_data(small_job(tmp_path, shard, hyper={"mode": "labelled"}))


def test_a_flipped_bit_stops_the_job(tmp_path: Path) -> None:
    shard = staged_frames(tmp_path, _numbered(300))
    chunk = max(tmp_path.rglob("*.zarr/counts/c/**/*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(DataError, match="counts"):
        load_data(_job(tmp_path, shard))
