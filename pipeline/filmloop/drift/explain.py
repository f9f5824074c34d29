"""What drifted, in words, each with its magnitude and a 95 % interval.

Channels are compared with the median of all: what all of them did together is intensity, what one did for itself is its
gain. Shape suffixes: C channels, K statistics.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from filmloop.config.schema import DriftSection
from filmloop.core.counted import counted
from filmloop.core.documents import Document
from filmloop.drift.detect import NLL, Detector
from filmloop.drift.moments import width_of
from filmloop.drift.reference import Reference
from filmloop.drift.window import Window

Floats = npt.NDArray[np.float64]

Kind = Literal[
    "gain",
    "dead",
    "polarisation",
    "alive",
    "intensity",
    "energy",
    "channel_energy",
    "streaking",
    "spread",
    "pulses",
    "width",
    "unknown",
    "unsteady",
    "beam_off",
]

_SURE = 4.0
"""Standard deviations beyond which a magnitude is spoken of; that something drifted is known by then."""
_DEAD = 0.05
"""Share of its former counts below which a channel is called dead."""
_WORDS = 4
"""So many channels are named one by one."""


class Finding(Document):
    """One thing that changed since the reference."""

    kind: Kind
    channels: tuple[int, ...] = ()
    value: float
    """A factor, or a shift in bins; of several channels the one that changed most; of `unknown` the rise of the NLL, of `unsteady`
    the references thrown away, of `beam_off` the counts a frame."""
    low: float
    high: float
    """95 % interval."""
    text: str


def unsteady(discarded: int) -> Finding:
    """There is no reference to test against: so many in a row had halves that differ."""
    text = f"the beam drifts faster than a reference can be taken: {discarded} in a row were thrown away"
    return Finding(kind="unsteady", value=discarded, low=discarded, high=discarded, text=text)


def beam_off(hits: float, least: float) -> Finding:
    """There is no light to test: `hits` counts a frame, where a beam makes at least `least`."""
    text = f"beam off: {hits:.2f} counts a frame, less than {least:.2f}"
    return Finding(kind="beam_off", value=hits, low=0.0, high=least, text=text)


class Channels:
    """Every channel's counts against the reference.

    Attributes:
        gain_C: Counts relative to what the intensity explains; 1 where the channel had none before.
        sd_C: Its standard deviation, relative.
        dead_C: Channels that have next to no counts any more.
        changed_C: Channels, dead ones not among them, whose gain is surely another.
        level: Counts of the others relative to the reference: the intensity.
    """

    def __init__(self, window: Window, reference: Reference, section: DriftSection) -> None:
        channels, then = window.channels, reference.window
        had_C = then.hits_C > 0
        ratio_C = np.divide(window.hits_C, then.hits_C, out=np.ones(channels), where=had_C)
        alive_C = had_C & (ratio_C > 0)
        level = float(np.median(ratio_C[alive_C])) if alive_C.any() else 0.0
        self.dead_C = had_C & (ratio_C < _DEAD * max(level, 1e-9)) if level > 0 else np.zeros(channels, bool)
        if (~self.dead_C & had_C).any():
            level = float(np.median(ratio_C[~self.dead_C & had_C]))
        sd_C = _relative_sd(window, reference)[1 : 1 + channels]
        self.sd_C = np.where(np.isfinite(sd_C), sd_C, np.inf)
        self.gain_C = np.where(had_C & (level > 0), ratio_C / max(level, 1e-9), 1.0)
        sure_C = section.least_gain + _SURE * self.sd_C * np.maximum(self.gain_C, 1.0)
        self.changed_C = had_C & ~self.dead_C & (np.abs(self.gain_C - 1) > sure_C)
        same_C = had_C & ~self.dead_C & ~self.changed_C
        if same_C.sum() >= channels / 4:
            level = float(window.hits_C[same_C].sum() / then.hits_C[same_C].sum())
            self.gain_C = np.where(had_C, ratio_C / max(level, 1e-9), 1.0)
        self.level = level
        # Counts where there were none: a channel that was dead when the reference was taken.
        self.alive_again_C = ~had_C | (then.hits_C < _DEAD * np.median(then.hits_C))
        self.alive_again_C &= window.hits_C > 2 * _DEAD * np.median(window.hits_C)
        self.changed_C &= ~self.alive_again_C


def explain(window: Window, detector: Detector, section: DriftSection) -> tuple[Finding, ...]:
    """Findings about `window`, the largest first within each kind; at least one."""
    reference = detector.reference
    channels = Channels(window, reference, section)
    found = [
        *_channels(channels),
        *_intensity(channels, window, reference, section),
        *_energy(channels, window, reference, section),
        *_shape(window, reference, section),
    ]
    if not found:
        found = [_unknown(window, detector)]
    return tuple(found)


def _channels(channels: Channels) -> list[Finding]:
    found = [
        Finding(
            kind="dead", channels=(c,), value=float(channels.gain_C[c]), low=0.0, high=_DEAD, text=f"channel {c} dead"
        )
        for c in np.flatnonzero(channels.dead_C).tolist()
    ]
    for c in np.flatnonzero(channels.alive_again_C).tolist():
        text = f"channel {c}, which had no counts, has some again"
        found.append(Finding(kind="alive", channels=(c,), value=1.0, low=1.0, high=1.0, text=text))
    changed = sorted(np.flatnonzero(channels.changed_C).tolist(), key=lambda c: -abs(np.log(channels.gain_C[c])))
    if not changed:
        return found
    if polarisation := _polarisation(channels):
        return [*found, polarisation]
    interval = {c: _interval(float(channels.gain_C[c]), float(channels.sd_C[c] * channels.gain_C[c])) for c in changed}
    if len(changed) <= _WORDS:
        for c in changed:
            value, least, most = interval[c]
            text = f"gain of channel {c} is {value:.2f}x ({least:.2f} to {most:.2f})"
            found.append(Finding(kind="gain", channels=(c,), value=value, low=least, high=most, text=text))
        return found
    lowest, highest = (pick(changed, key=lambda c: channels.gain_C[c]) for pick in (min, max))
    value, least, most = interval[changed[0]]
    text = (
        f"gain of {counted(len(changed), 'channel')} changed, from {channels.gain_C[lowest]:.2f}x (channel {lowest}) "
        f"to {channels.gain_C[highest]:.2f}x (channel {highest})"
    )
    found.append(Finding(kind="gain", channels=tuple(sorted(changed)), value=value, low=least, high=most, text=text))
    return found


def _polarisation(channels: Channels) -> Finding | None:
    """Gains that follow cos 2(θ - angle) over the angles, which no detector does by chance; None if they do not."""
    known_C = ~channels.dead_C & ~channels.alive_again_C
    if known_C.sum() < 8:
        return None
    theta_C = 2 * np.pi * np.arange(len(known_C)) / len(known_C)
    wave_C3 = np.stack([np.ones_like(theta_C), np.cos(2 * theta_C), np.sin(2 * theta_C)], axis=1)
    fit, *_ = np.linalg.lstsq(wave_C3[known_C], channels.gain_C[known_C], rcond=None)
    rest_C = channels.gain_C - wave_C3 @ fit
    if fit[0] <= 0 or (np.abs(rest_C) > _SURE * channels.sd_C * np.maximum(channels.gain_C, 1.0) + 0.02)[known_C].any():
        return None
    size = float(np.hypot(fit[1], fit[2]) / fit[0])
    sd = float(np.mean(channels.sd_C[known_C]) * np.sqrt(2 / known_C.sum()))
    angle = float(np.degrees(np.arctan2(fit[2], fit[1])) / 2)
    value, low, high = _interval(size, sd)
    text = f"counts turn with the angle as cos 2θ, by {value:.2f} ({low:.2f} to {high:.2f}) towards {angle:.0f}°: polarisation"
    changed = tuple(np.flatnonzero(channels.changed_C).tolist())
    return Finding(kind="polarisation", channels=changed, value=value, low=low, high=high, text=text)


def _intensity(channels: Channels, window: Window, reference: Reference, section: DriftSection) -> list[Finding]:
    sd = float(_relative_sd(window, reference)[0]) * max(channels.level, 1e-9)
    if not abs(channels.level - 1) > section.least_intensity + _SURE * sd:
        return []
    value, low, high = _interval(channels.level, sd)
    text = f"intensity {value:.2f}x ({low:.2f} to {high:.2f})"
    return [Finding(kind="intensity", value=value, low=low, high=high, text=text)]


def _energy(channels: Channels, window: Window, reference: Reference, section: DriftSection) -> list[Finding]:
    """A shift of all channels is the photon energy; of one channel for itself, its energy scale."""
    (now_K, _), (then_K, _), sd_K = window.ratios(), reference.ratios, _sd(window, reference)
    found, number = [], window.channels
    common, sd = float(now_K[-4] - then_K[-4]), float(sd_K[-4])
    if abs(common) > section.least_energy_bins + _SURE * sd:
        # Flat background stays where it is and holds the mean back, by some 2 %.
        value, low, high = _interval(common, sd + 0.015 * abs(common))
        text = f"photon energy {value:+.1f} bins ({low:+.1f} to {high:+.1f})"
        found.append(Finding(kind="energy", value=value, low=low, high=high, text=text))
    place = slice(1 + number, 1 + 2 * number)
    own_C, sd_C = now_K[place] - then_K[place] - common, sd_K[place]
    with np.errstate(invalid="ignore"):
        sure_C = (np.abs(own_C) > section.least_energy_bins + _SURE * sd_C) & ~channels.dead_C & ~channels.alive_again_C
    for c in np.flatnonzero(sure_C).tolist():
        value, low, high = _interval(float(own_C[c]), float(sd_C[c]))
        text = f"energies of channel {c} alone {value:+.1f} bins ({low:+.1f} to {high:+.1f})"
        found.append(Finding(kind="channel_energy", channels=(c,), value=value, low=low, high=high, text=text))
    return found


def _shape(window: Window, reference: Reference, section: DriftSection) -> list[Finding]:
    """Streaking turns with the angle, and so do the changes it makes; a jitter of the photon energy does not."""
    (now_K, _), (then_K, _), sd_K = window.ratios(), reference.ratios, _sd(window, reference)
    spread, streak, width = ((float(now_K[i]), float(then_K[i]), float(sd_K[i])) for i in (-3, -2, -1))
    width_then, width_now = width_of(width[1]), width_of(width[0])
    found: list[Finding] = []
    # Known within bounds only: the line's own width at least, at most what pairs of hits leave (other lines are among them).
    factors = [_factor(spread[0], spread[1], still) for still in (width_then**2, spread[1] - _streaked(reference))]
    factor, sd_factor = sum(factors) / 2, spread[2] / max(2 * spread[1] * factors[0], 1e-9)
    sd_factor += abs(factors[1] - factors[0]) / 4
    spread_moved = abs(factor - 1) > section.least_streaking + _SURE * sd_factor
    # In a window without two hits in any frame no hits share a phase, and none do not.
    known = bool(np.isfinite(streak).all())
    streak_apart = (streak[0] - streak[1]) / max(streak[2], 1e-12) if known else 0.0
    if spread_moved:
        value, low, high = _interval(float(factor), float(sd_factor))
        turned = abs(streak_apart) > 0.5 * _SURE and (streak_apart > 0) == (factor > 1)
        name = "streaking amplitude" if turned else "spread of the energies in every channel"
        text = f"{name} {value:.2f}x ({low:.2f} to {high:.2f})"
        found.append(Finding(kind="streaking" if turned else "spread", value=value, low=low, high=high, text=text))
    elif (
        abs(streak_apart) > _SURE
        # Where no hits shared a phase before, there is nothing that it could be a multiple of.
        and streak[1] > 1e-9
        and abs(streak[0] - streak[1]) > 2 * section.least_streaking * streak[1]
    ):
        value, low, high = _interval(streak[0] / streak[1], streak[2] / streak[1])
        how = "more" if value < 1 else "fewer"
        text = f"{how} sub-pulses a shot: hits share a phase {value:.2f}x as often ({low:.2f} to {high:.2f})"
        found.append(Finding(kind="pulses", value=value, low=low, high=high, text=text))
    if np.isfinite(width[2]) and width[1] > 0:
        value = width_now / width_then
        # Lines that cross hide a tenth of the change.
        hidden = 0.12 * abs(value - 1)
        low, high = (width_of(width[0] + sign * 2 * width[2]) / width_then - sign * hidden for sign in (1, -1))
        clear = width_of(width[0] + _SURE * width[2]), width_of(width[0] - _SURE * width[2])
        if clear[0] / width_then > 1 + section.least_width or clear[1] / width_then < 1 - section.least_width:
            text = f"width of the lines {value:.2f}x ({low:.2f} to {high:.2f})"
            found.append(Finding(kind="width", value=value, low=low, high=high, text=text))
    return found


def _factor(now: float, then: float, still: float) -> float:
    """By how much an amplitude grew whose square makes all of a spread but `still`."""
    still = still if 0 < still < min(now, then) else 0.0
    # All hits in one place have a spread of 0, which rounding may put below.
    return float(np.sqrt(max(now - still, 0.0) / max(then - still, 1e-9)))


def _streaked(reference: Reference) -> float:
    """The part of the spread of energies that the streaking makes, half its squared amplitude, bins².

    |harmonic|² is amplitude² / 4 for every pair of hits of one sub-pulse, and there are C times as many of these as pairs
    in the line of one channel. The rest is jitter, line width and background.
    """
    streak, width = reference.window.sums[-2], reference.window.sums[-1]
    return 2 * streak[0] / (reference.window.channels * width[1]) if width[1] > 0 else 0.0


def _unknown(window: Window, detector: Detector) -> Finding:
    excess, sd = detector.reference.nll_excess(window)
    value, low, high = _interval(excess, sd)
    strongest = int(np.abs(detector.z_K1).argmax())
    if detector.names[strongest] == NLL:
        text = f"unknown: the NLL alone, {value:+.2f} nats a frame ({low:+.2f} to {high:+.2f})"
    else:
        text = f"unknown: {detector.names[strongest]} is {detector.z_K1[strongest]:+.1f} standard deviations off"
    return Finding(kind="unknown", value=value, low=low, high=high, text=text)


def _sd(window: Window, reference: Reference) -> Floats:
    """Standard deviation of window - reference, (K,)."""
    (_, now_K), (_, then_K) = window.ratios(), reference.ratios
    return np.asarray(np.sqrt(np.fmax(now_K, then_K) / window.frames + then_K / reference.window.frames))


def _relative_sd(window: Window, reference: Reference) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(_sd(window, reference) / np.abs(reference.ratios[0]))


def _interval(value: float, sd: float) -> tuple[float, float, float]:
    sd = sd if np.isfinite(sd) else 0.0
    return value, value - 2 * sd, value + 2 * sd
