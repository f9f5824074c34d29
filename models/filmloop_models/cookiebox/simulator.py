"""The simulated detector: frames by number, with the truth beside them.

One block of `BLOCK_FRAMES` frames is always drawn as a whole from its own random streams, so a frame depends on the
seed and its number alone. Every quantity has a stream of its own and is drawn in order of frames: a drift that begins
at frame n changes no frame before n.

Shape suffixes: N frames, C channels, E energy bins, P sub-pulses of a frame (padded), S sub-pulses of all frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop_models.cookiebox.conditions import Conditions, DriftStep
from filmloop_models.cookiebox.drift import DriftSchedule
from filmloop_models.cookiebox.forward import Shots, draw_counts, expected_lines, place_shots

BLOCK_FRAMES = 256
"""Frames of a random block: part of what a seed means, so it never changes."""

MOST_BINS = 2**21
"""Of a frame: the counts of a block of such frames are 4 GB."""

MOST_HITS = 1_000_000
"""Of a frame, on average: each is drawn, and held for a whole block. 16x128 bins that all saturate have 522,240."""

SASE_MODES = 10.0
"""Shape of the gamma law of a sub-pulse's energy: M modes spread it by 1/sqrt(M) = 0.32, relative (Saldin,
Schneidmiller, Yurkov, The Physics of Free Electron Lasers, 2000, chapter 6). The public simulated set has 0.31."""

# The random streams of a block; their numbers are part of what a seed means.
_NUMBER, _CENTRE, _PHASE, _AMPLITUDE, _HITS, _PLACE, _NOISE, _NOISE_PLACE, _GAIN = range(9)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedFrames:
    """Frames in order; the truth fields are None unless asked for. NaN pads the sub-pulses that a frame lacks.

    Attributes:
        pulse_id_N: uint64 (N,), the frame number.
        counts_NCE: uint8 (N, C, E), clipped at 255.
        saturated_N: bool (N,), whether a count of the frame was above 255 before clipping.
        rate_NCE: float32 (N, C, E), mean of the Poisson draws before clipping: gain, dead channels, offset, dark and all.
        signal_NCE: float32 (N, C, E), the photo lines alone as an ideal detector has them, before `bin_offset`.
        npulses_N: int64 (N,), number of sub-pulses.
        centre_NP: float32, energy before streaking, bins.
        amplitude_NP: float32, pulse energy relative to the mean.
        phase_NP: float32, streaking phase, rad in [0, 2π).
        delay_fs_NP: float32, arrival after the frame's first sub-pulse, fs. A phase tells it modulo one period of the
            streaking laser only; it is given between minus and plus half a period.
    """

    pulse_id_N: npt.NDArray[np.uint64]
    counts_NCE: npt.NDArray[np.uint8]
    saturated_N: npt.NDArray[np.bool_]
    rate_NCE: npt.NDArray[np.float32] | None = None
    signal_NCE: npt.NDArray[np.float32] | None = None
    npulses_N: npt.NDArray[np.int64] | None = None
    centre_NP: npt.NDArray[np.float32] | None = None
    amplitude_NP: npt.NDArray[np.float32] | None = None
    phase_NP: npt.NDArray[np.float32] | None = None
    delay_fs_NP: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Number of frames, N."""
        return len(self.pulse_id_N)


class CookieBoxSimulator:
    """The same seed gives the same frames on any host, in any order, however ranges are cut. Not thread safe.

    Args:
        conditions: Beam and detector at frame 0.
        seed: 0 to 2**64 - 1.
        drift: How the conditions change with the frame number.
        frame_shape: (C, E).

    Raises:
        ValueError: a drift step leads to conditions that are not allowed, a dead channel does not exist, or a frame has
            more bins or hits than can be drawn.
    """

    def __init__(
        self,
        conditions: Conditions,
        *,
        seed: int,
        drift: Sequence[DriftStep] = (),
        frame_shape: tuple[int, int] = (16, 128),
    ) -> None:
        self.frame_shape = frame_shape
        self._schedule = DriftSchedule(conditions, drift)
        for dead in self._schedule.dead_sets:
            if wrong := [channel for channel in dead if not 0 <= channel < frame_shape[0]]:
                raise ValueError(f"dead_channels names {wrong}, but channels are 0 to {frame_shape[0] - 1}")
        if (bins := frame_shape[0] * frame_shape[1]) > MOST_BINS:
            raise ValueError(
                f"a frame of {frame_shape} has {bins:,} bins, more than the {MOST_BINS:,} that can be drawn"
            )
        for now in self._schedule.corners:
            if (hits := _hits_of(now, frame_shape)) > MOST_HITS:
                raise ValueError(
                    f"conditions and drift come to {hits:.3g} hits a frame, more than {MOST_HITS:,}: lower pulses_mean, "
                    "hits_per_pulse, intensity, gain or dark_per_bin"
                )
        self._seed = seed
        self._spread_C = self._stream(_GAIN, 0).standard_normal(frame_shape[0])
        self._kept: tuple[int, bool, SimulatedFrames] | None = None

    def conditions_at(self, frame: int) -> Conditions:
        """The conditions that frame number `frame` meets."""
        return self._schedule.at(frame)

    def frames(self, first: int, count: int, *, truth: bool = False) -> SimulatedFrames:
        """Frames `first` to `first + count - 1`. Whole blocks are drawn; the last one is kept for the next call."""
        if first < 0 or count < 0:
            raise ValueError(f"frames({first}, {count}): frame numbers and counts start at 0")
        parts = []
        for block in range(first // BLOCK_FRAMES, max(first // BLOCK_FRAMES, (first + count - 1) // BLOCK_FRAMES) + 1):
            start = first - block * BLOCK_FRAMES
            parts.append(_cut(self._block(block, truth), slice(max(start, 0), max(start + count, 0))))
        return parts[0] if len(parts) == 1 else _join(parts)

    def _block(self, block: int, truth: bool) -> SimulatedFrames:
        if self._kept is None or self._kept[:2] != (block, truth):
            self._kept = block, truth, self._draw_block(block, truth)
        return self._kept[2]

    def _stream(self, purpose: int, block: int) -> np.random.Generator:
        # Philox counts: the key names the stream, the counter's high word the block, 2**194 numbers from the next.
        key = np.array([self._seed, purpose], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, block], np.uint64)))

    def _draw_block(self, block: int, truth: bool) -> SimulatedFrames:
        frame_N = block * BLOCK_FRAMES + np.arange(BLOCK_FRAMES)
        now = self._schedule.numbers(frame_N)
        shots = self._draw_shots(block, frame_N, now)
        counts_NCE = draw_counts(
            shots,
            number=self._stream(_HITS, block),
            place=self._stream(_PLACE, block),
            background_number=self._stream(_NOISE, block),
            background_place=self._stream(_NOISE_PLACE, block),
        )
        saturated_N = np.zeros(BLOCK_FRAMES, np.bool_)
        if counts_NCE.max() > 255:
            saturated_N[:] = (counts_NCE > 255).any(axis=(1, 2))
            np.minimum(counts_NCE, 255, out=counts_NCE)
        return SimulatedFrames(
            pulse_id_N=frame_N.astype(np.uint64),
            counts_NCE=counts_NCE.astype(np.uint8),
            saturated_N=saturated_N,
            **(_truth(shots, now["streaking_period_fs"]) if truth else {}),
        )

    def _draw_shots(self, block: int, frame_N: npt.NDArray[np.int64], now: dict[str, npt.NDArray[np.float64]]) -> Shots:
        npulses_N = self._stream(_NUMBER, block).poisson(now["pulses_mean"])
        frame_S = np.repeat(np.arange(BLOCK_FRAMES), npulses_N)
        size = len(frame_S)
        jitter_S = self._stream(_CENTRE, block).standard_normal(size) * now["photon_jitter_bin"][frame_S]
        alive_NC = np.ones((BLOCK_FRAMES, self.frame_shape[0]), np.bool_)
        for which_N, dead in self._schedule.dead_channels(frame_N):
            alive_NC[np.ix_(np.flatnonzero(which_N), np.array(dead, np.int64))] = False
        return place_shots(
            now,
            frame_shape=self.frame_shape,
            frame_S=frame_S,
            rank_S=np.arange(size) - np.repeat(np.cumsum(npulses_N) - npulses_N, npulses_N),
            centre_S=now["photon_energy_bin"][frame_S] + jitter_S,
            phase_S=self._stream(_PHASE, block).random(size) * (2 * np.pi),
            amplitude_S=self._stream(_AMPLITUDE, block).standard_gamma(SASE_MODES, size) / SASE_MODES,
            channel_gain_NC=np.maximum(1 + now["gain_spread"][:, None] * self._spread_C, 0),
            alive_NC=alive_NC,
        )


def _truth(shots: Shots, period_fs_N: npt.NDArray[np.float64]) -> dict[str, Any]:
    rate_NCE, signal_NCE = expected_lines(shots)
    pulses = int(shots.rank_S.max(initial=-1)) + 1

    def padded(value_S: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        value_NP = np.full((len(rate_NCE), pulses), np.nan, np.float32)
        value_NP[shots.frame_S, shots.rank_S] = value_S
        return value_NP

    phase_NP = padded(shots.phase_S)
    turns_NP = (phase_NP - phase_NP[:, :1]) / np.float32(2 * np.pi)
    return {
        "rate_NCE": rate_NCE,
        "signal_NCE": signal_NCE,
        "npulses_N": np.bincount(shots.frame_S, minlength=len(rate_NCE)),
        "centre_NP": padded(shots.centre_S),
        "amplitude_NP": padded(shots.amplitude_S),
        "phase_NP": phase_NP,
        "delay_fs_NP": ((turns_NP - np.rint(turns_NP)) * period_fs_N[:, None]).astype(np.float32),
    }


def _cut(frames: SimulatedFrames, part: slice) -> SimulatedFrames:
    values: dict[str, Any] = {field.name: getattr(frames, field.name) for field in fields(frames)}
    cut: dict[str, Any] = {name: None if value is None else value[part] for name, value in values.items()}
    return SimulatedFrames(**cut)


def _hits_of(now: Conditions, frame_shape: tuple[int, int]) -> float:
    """What a frame costs to draw: its mean number of hits, generously, and of sub-pulses in all channels."""
    channels, bins = frame_shape
    gain = now.gain * (1 + 4 * now.gain_spread) * (1 + now.secondary_fraction)
    return now.pulses_mean * (now.hits_per_pulse * now.intensity * gain + channels) + now.dark_per_bin * channels * bins


def _join(parts: Sequence[SimulatedFrames]) -> SimulatedFrames:
    """Blocks one after another; the padding grows to the largest number of sub-pulses."""
    joined: dict[str, Any] = {}
    for field in fields(SimulatedFrames):
        values = [getattr(part, field.name) for part in parts]
        if values[0] is None:
            continue
        if field.name.endswith("_NP"):
            widest = max(value.shape[1] for value in values)
            values = [np.pad(v, ((0, 0), (0, widest - v.shape[1])), constant_values=np.nan) for v in values]
        joined[field.name] = np.concatenate(values)
    return SimulatedFrames(**joined)
