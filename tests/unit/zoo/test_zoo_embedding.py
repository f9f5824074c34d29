"""The embedding says what drifted, and hardly moves between shots of the same conditions."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest

from filmloop.testing.training import simulated_counts
from filmloop.zoo.embedding import DataEmbedding, difference, distance, embed

FRAMES = 2048


@cache
def frames(seed: int = 3, count: int = FRAMES, **conditions: Any) -> DataEmbedding:
    return embed(simulated_counts(count, seed=seed, **conditions))


# Few frames hide a drift: their noise is allowed for, up to 1 for each of six numbers.
@pytest.mark.parametrize(("count", "most"), [(64, 3.0), (512, 1.5), (FRAMES, 0.9)])
def test_other_shots_of_the_same_conditions_are_near_however_few_they_are(count: int, most: float) -> None:
    assert distance(frames(), frames(seed=4, count=count)) < most
    assert distance(frames(), frames()) == 0


@pytest.mark.parametrize(
    ("name", "conditions"),
    [
        ("intensity", {"gain": 0.7}),
        ("line width", {"line_width_bin": 4.0}),
        ("energy", {"photon_energy_bin": 56.0}),
        ("streaking", {"kick_bin": 24.0}),
        ("channels", {"dead_channels": (3,)}),
    ],
)
def test_a_drift_is_far_away_and_called_by_its_name(name: str, conditions: dict[str, Any]) -> None:
    apart = difference(frames(), frames(seed=4, **conditions))
    assert max(apart, key=lambda key: apart[key]) == name
    assert apart[name] > 2
    assert distance(frames(), frames(seed=4, **conditions)) >= apart[name]


def test_conditions_in_words_tell_hits_energy_line_and_dead_channels() -> None:
    words = frames(dead_channels=(3, 7)).in_words()
    assert words.endswith("channel 3, 7 dead")
    assert "hits a frame, energy 64." in words


def test_empty_frames_and_a_single_frame_have_finite_numbers_and_are_compared() -> None:
    empty, one = embed(np.zeros((1, 4, 16), np.uint8)), embed(np.ones((1, 4, 16), np.uint8))
    assert math.isfinite(distance(empty, one))
    with pytest.raises(ValueError, match="no frame"):
        embed(np.zeros((0, 4, 16), np.uint8))


def test_frames_of_another_shape_are_infinitely_far() -> None:
    small = embed(np.ones((8, 4, 16), np.uint8))
    assert distance(frames(), small) == math.inf


def test_it_fits_into_a_tag_of_the_registry() -> None:
    wide = embed(np.random.default_rng(1).poisson(1.0, (4, 128, 128)).astype(np.uint8))
    assert len(wide.model_dump_json()) < 5000
