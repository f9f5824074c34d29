"""Conditions at every frame: the schedule of `DriftStep`s evaluated for whole blocks at once.

Shape suffixes: N frames, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop_models.cookiebox.conditions import Conditions, DriftStep

NUMBERS = tuple(name for name in Conditions.model_fields if name != "dead_channels")


class DriftSchedule:
    """`Conditions` as a function of the frame number.

    A step moves its keys linearly between `from_frame` (still the former value) and `to_frame` (the new one); without
    `to_frame` it is sudden, and `from_frame` is the first frame with the new value. `bin_offset` is rounded to whole
    bins on its way and `dead_channels` changes at `from_frame`. Where steps overlap, the later one starts from where
    the earlier one is at that frame.

    Attributes:
        corners: The conditions at the beginning and after each step.

    Raises:
        ValueError: a step leads to conditions that are not allowed (pydantic's `ValidationError` is one).
    """

    def __init__(self, conditions: Conditions, drift: Sequence[DriftStep] = ()) -> None:
        self.conditions = conditions
        self.steps = tuple(sorted(drift, key=lambda step: step.from_frame))
        values = conditions.model_dump()
        self.corners = [conditions]
        for step in self.steps:
            values |= step.set
            self.corners.append(Conditions.model_validate(values))

    @property
    def dead_sets(self) -> list[tuple[int, ...]]:
        """Every set of dead channels that the schedule ever has, in order."""
        later = [step.set["dead_channels"] for step in self.steps if "dead_channels" in step.set]
        return [
            Conditions.model_validate({"dead_channels": dead}).dead_channels
            for dead in (self.conditions.dead_channels, *later)
        ]

    def at(self, frame: int) -> Conditions:
        """The conditions of one frame."""
        frame_1 = np.array([frame])
        values: dict[str, Any] = {name: array[0].item() for name, array in self.numbers(frame_1).items()}
        (_, dead), *_ = self.dead_channels(frame_1)
        return Conditions(**values, dead_channels=dead)

    def numbers(self, frame_N: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
        """Every numeric condition, float64 (N,), by name; `bin_offset` int64 (N,)."""
        values = {name: np.full(len(frame_N), getattr(self.conditions, name), np.float64) for name in NUMBERS}
        for step in self.steps:
            share_N = _share(step, frame_N)
            for name, target in step.set.items():
                if name in values:
                    former_N = values[name]
                    # Exactly the target at the end: former + 1 * (target - former) may round to its neighbour.
                    values[name] = np.where(share_N == 1, target, former_N + share_N * (target - former_N))
        values["bin_offset"] = np.rint(values["bin_offset"]).astype(np.int64)
        return values

    def dead_channels(self, frame_N: npt.NDArray[np.int64]) -> list[tuple[npt.NDArray[np.bool_], tuple[int, ...]]]:
        """The sets of dead channels that occur among `frame_N`, each with its frames, bool (N,)."""
        sets = self.dead_sets
        starts = [step.from_frame for step in self.steps if "dead_channels" in step.set]
        which_N = np.searchsorted(starts, frame_N, side="right")
        return [(which_N == number, sets[number]) for number in np.unique(which_N)]


def _share(step: DriftStep, frame_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """How much of the step is done at each frame, 0 to 1, float64 (N,)."""
    if step.to_frame is None or step.to_frame == step.from_frame:
        return (frame_N >= step.from_frame).astype(np.float64)
    done_N: npt.NDArray[np.float64] = (frame_N - step.from_frame) / (step.to_frame - step.from_frame)
    return np.clip(done_N, 0.0, 1.0)
