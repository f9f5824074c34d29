"""How soon a drift is seen, whether it gets its right name, how often there is an alarm without one, and what correcting
gains at the input brings back.

A small `mixer`, trained without labels on quiet frames of the simulator, is watched as the edge does: its thinned NLL and
the moments of every frame, window by window. Frames are sampled ones; at the detector they are `edge.quality_every` times
as many, or as many as pass in the time that `edge.quality_hz` leaves.

- `frames_median`, `frames_worst`: sampled frames from the first drifted one to the alarm, over the seeds. The drift begins
  anywhere in a window. A ramp is counted from its beginning. There is no worst where a seed did not find it.
- `right_kind`: share of the seeds in which what is said five windows after the alarm has the right kind, and channel.
- `inside`: share in which the true magnitude lies in the stated interval.
- `false_alarms`: quiet windows that raised one, of `quiet_windows`; `..._without_tolerance`: with `least_...` all at 0,
  which tests the statistics alone. `stated_rate` is per 1,000.
- `gain_correction`: excess of the NLL over that of the true rates, nats a frame, and mean squared error to the
  undisturbed photo lines, in a quiet beam, after the drift, and with the gains that the monitor found.
  `recovered_nll`, `recovered_mse`: share of the damage that is undone.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from filmloop.config.schema import DriftSection
from filmloop.core.poisson import poisson_nll, thin_by_hash
from filmloop.drift.detect import Detector
from filmloop.drift.explain import Channels, Finding, Kind, explain
from filmloop.drift.gain import Gain, gain_for
from filmloop.drift.moments import moments_of
from filmloop.drift.reference import Reference
from filmloop.drift.window import Window, window_of
from filmloop_models.catalog import get
from filmloop_models.cookiebox.conditions import Conditions, DriftStep
from filmloop_models.cookiebox.simulator import CookieBoxSimulator, SimulatedFrames

Counts = npt.NDArray[np.uint8]
Rates = npt.NDArray[np.float32]
Predict = Callable[[npt.NDArray[np.float32]], Rates]

FRAME_SHAPE = (16, 128)
_KEEP, _SEED = 0.75, 20240901
_MOST_WINDOWS, _AFTER = 40, 5
_TRAIN_FRAMES, _BATCH = 16384, 256
_JUDGED_FRAMES = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One drift.

    Attributes:
        kind: What it should be called.
        set: Conditions of the simulator that change.
        gain: Channel and gain: its counts are thinned, which makes a Poisson frame of a lower rate.
        value: The true magnitude, as a finding of that kind has it; None where it is not one number.
        ramp_windows: Over so many windows; 0: at once.
    """

    kind: Kind
    set: Mapping[str, float | list[int]] = field(default_factory=dict)
    gain: Mapping[int, float] = field(default_factory=dict)
    value: float | None = None
    ramp_windows: int = 0


CASES: dict[str, Case] = {
    "gain of channel 3 to 0.7": Case(kind="gain", gain={3: 0.7}, value=0.7),
    "gain of channel 3 to 0.9": Case(kind="gain", gain={3: 0.9}, value=0.9),
    "gains of all channels by 20 %": Case(kind="gain", set={"gain_spread": 0.2}),
    "channel 5 dead": Case(kind="dead", set={"dead_channels": [5]}),
    "photon energy +4 bins": Case(kind="energy", set={"photon_energy_bin": 68.0}, value=4.0),
    "photon energy +1 bin": Case(kind="energy", set={"photon_energy_bin": 65.0}, value=1.0),
    "streaking 1.3": Case(kind="streaking", set={"kick_bin": 41.6}, value=1.3),
    "streaking 1.1": Case(kind="streaking", set={"kick_bin": 35.2}, value=1.1),
    "streaking 1.3 over 40 windows": Case(kind="streaking", set={"kick_bin": 41.6}, ramp_windows=40),
    "intensity 0.6": Case(kind="intensity", set={"intensity": 0.6}, value=0.6),
    "intensity 0.8": Case(kind="intensity", set={"intensity": 0.8}, value=0.8),
    "width 1.5": Case(kind="width", set={"line_width_bin": 3.0}, value=1.5),
    "width 1.2": Case(kind="width", set={"line_width_bin": 2.4}, value=1.2),
    "polarisation 0.3": Case(kind="polarisation", set={"polarisation": 0.3}, value=0.3),
}
CORRECTED: dict[str, Case] = {
    "channel 3 to 0.7": Case(kind="gain", gain={3: 0.7}),
    "three channels to 0.4": Case(kind="gain", gain={1: 0.4, 6: 0.4, 11: 0.4}),
    "all channels by 30 %": Case(kind="gain", set={"gain_spread": 0.3}),
    "channel 5 dead": Case(kind="dead", set={"dead_channels": [5]}),
}


def measure(*, seeds: int, quiet_windows: int, steps: int, section: DriftSection | None = None) -> dict[str, Any]:
    """All of it.

    Args:
        seeds: Of the simulator; each has its own reference.
        quiet_windows: Over all seeds.
        steps: Training steps of the network.
        section: The site's section; its defaults if not given.
    """
    section = section or DriftSection()
    predict = trained(steps)
    watched = [Watched(seed, predict, section) for seed in range(1, seeds + 1)]
    quiet = [each.false_alarms(-(-quiet_windows // seeds)) for each in watched]
    detected = {name: _detection(case, watched) for name, case in CASES.items()}
    return {
        "seeds": seeds,
        "steps": steps,
        "window_frames": section.window_frames,
        "reference_windows": section.reference_windows,
        "stated_rate": section.false_alarms_per_1000,
        "threshold": round(Detector(section, watched[0].reference).limit, 2),
        "quiet_windows": sum(windows for windows, _, _ in quiet),
        "false_alarms": sum(alarms for _, alarms, _ in quiet),
        "false_alarms_without_tolerance": sum(alarms for _, _, alarms in quiet),
        "found": round(float(np.mean([each["found"] for each in detected.values()])), 3),
        "frames_worst": worst(detected.values()),
        "right_kind": round(float(np.mean([each["right_kind"] for each in detected.values()])), 3),
        "drifts": detected,
        "gain_correction": {name: _correction(case, watched[0]) for name, case in CORRECTED.items()},
    }


def worst(detected: Iterable[Mapping[str, Any]]) -> int | None:
    """Most frames that any drift took; None if one of them was not found by every seed."""
    took = [each["frames_worst"] for each in detected]
    return None if None in took else max(took)


def trained(steps: int) -> Predict:
    """A small network that has learned quiet frames by thinning."""
    counts_NCE = torch.from_numpy(_simulator(0).frames(0, _TRAIN_FRAMES).counts_NCE).float()
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = get("mixer").module(FRAME_SHAPE)
    adam = torch.optim.Adam(module.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 4e-3, total_steps=max(steps, 2))
    for _ in range(steps):
        batch_NCE = counts_NCE[torch.randint(len(counts_NCE), (_BATCH,), generator=generator)]
        keep_N11 = torch.rand(_BATCH, 1, 1, generator=generator) * 0.45 + 0.5
        kept_NCE = torch.binomial(batch_NCE, keep_N11.expand_as(batch_NCE).contiguous(), generator=generator)
        rate_NCE = module(kept_NCE / keep_N11) * (1 - keep_N11)
        loss = torch.nn.functional.poisson_nll_loss(rate_NCE, batch_NCE - kept_NCE, log_input=False)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
    module.eval()

    def predict(counts_NCE: npt.NDArray[np.float32]) -> Rates:
        with torch.inference_mode():
            rate_NCE: Rates = module(torch.from_numpy(np.ascontiguousarray(counts_NCE, np.float32))).numpy()
        return rate_NCE

    return predict


class Watched:
    """One seed of the simulator, with the reference of its first windows.

    Args:
        seed: Of the frames.
        predict: The live weights.
        section: How they are watched.
    """

    def __init__(self, seed: int, predict: Predict, section: DriftSection) -> None:
        self.seed, self.predict, self.section = seed, predict, section
        source = _simulator(seed)
        self.first = section.reference_windows * section.window_frames
        self.reference = Reference(
            [self.window(source, i * section.window_frames) for i in range(section.reference_windows)]
        )

    def window(self, source: CookieBoxSimulator, first: int, case: Case | None = None, begins: int = 0) -> Window:
        """The window from frame `first` on."""
        counts_NCE = _counts(source.frames(first, self.section.window_frames), case, begins)
        return window_of(moments_of(counts_NCE), self.nll(counts_NCE, first))

    def nll(self, counts_NCE: Counts, first: int, gain: Gain | None = None) -> npt.NDArray[np.float64]:
        """Thinned, as the edge does it."""
        ids_N = np.arange(first, first + len(counts_NCE), dtype=np.uint64)
        seen_NCE = thin_by_hash(counts_NCE, ids_N, keep=_KEEP, seed=_SEED)
        rate_NCE = _corrected(self.predict, seen_NCE.astype(np.float32) / np.float32(_KEEP), gain)
        return poisson_nll(rate_NCE * np.float32(1 - _KEEP), counts_NCE - seen_NCE)

    def false_alarms(self, windows: int) -> tuple[int, int, int]:
        """Quiet windows, those that raised an alarm, and those that would without tolerances."""
        source = _simulator(self.seed)
        none = {name: 0.0 for name in DriftSection.model_fields if name.startswith("least_")}
        detectors = [Detector(s, self.reference) for s in (self.section, self.section.model_copy(update=none))]
        alarms = [0, 0]
        for number in range(windows):
            window = self.window(source, self.first + number * self.section.window_frames)
            for which, detector in enumerate(detectors):
                detector.take(window)
                alarms[which] += detector.fired
        return windows, alarms[0], alarms[1]

    def detect(self, case: Case) -> tuple[int | None, tuple[Finding, ...], Window, int]:
        """Sampled frames to the alarm, what is said a little later and of which window, and where the drift began."""
        size = self.section.window_frames
        begins = self.first + int(np.random.default_rng(self.seed).integers(size))
        steps = []
        if case.set:
            until = begins + case.ramp_windows * size if case.ramp_windows else None
            steps = [DriftStep(from_frame=begins, to_frame=until, set=dict(case.set))]
        source, detector = _simulator(self.seed, steps), Detector(self.section, self.reference)
        found, first = None, self.first
        for _ in range(_MOST_WINDOWS):
            window = self.window(source, first, case, begins)
            first += size
            if detector.take(window):
                found = found or first - begins
                if first - begins >= found + _AFTER * size:
                    break
        basis = detector.basis()
        return found, explain(basis, detector, self.section) if detector.alarm else (), basis, begins


def _detection(case: Case, watched: list[Watched]) -> dict[str, Any]:
    found: list[int] = []
    right, inside, words = 0, 0, ""
    for each in watched:
        frames, findings, _, _ = each.detect(case)
        found += [] if frames is None else [frames]
        channels = tuple(case.gain) or tuple(case.set.get("dead_channels", ()))  # type: ignore[arg-type]
        named = [f for f in findings if f.kind == case.kind and (not channels or f.channels == channels)]
        right += bool(named)
        inside += any(case.value is not None and f.low <= case.value <= f.high for f in named)
        words = words or ", ".join(f.text for f in findings)
    value: dict[str, Any] = {
        "kind": case.kind,
        "found": len(found) / len(watched),
        "frames_median": int(np.median(found)) if found else None,
        "frames_worst": max(found, default=None) if len(found) == len(watched) else None,
        "right_kind": right / len(watched),
        "words": words,
    }
    if case.value is not None:
        value["inside"] = inside / len(watched)
    return value


def _correction(case: Case, watched: Watched) -> dict[str, Any]:
    """With the gains that the monitor finds, on frames behind those by which it found them."""
    _, _, basis, begins = watched.detect(case)
    gain = gain_for(Channels(basis, watched.reference, watched.section), watched.section)
    first = begins + 64 * watched.section.window_frames
    steps = [DriftStep(from_frame=begins, set=dict(case.set))] if case.set else []
    quiet = _simulator(watched.seed).frames(first, _JUDGED_FRAMES, truth=True)
    drifted = _simulator(watched.seed, steps).frames(first, _JUDGED_FRAMES, truth=True)
    counts_NCE = _counts(drifted, case, 0)
    factor_C1 = np.ones((FRAME_SHAPE[0], 1), np.float32)
    for channel, factor in case.gain.items():
        factor_C1[channel] = factor
    assert drifted.rate_NCE is not None
    assert quiet.rate_NCE is not None
    excess = {
        "quiet": _excess(watched, quiet.counts_NCE, quiet.rate_NCE, first, None),
        "drifted": _excess(watched, counts_NCE, drifted.rate_NCE * factor_C1, first, None),
        "corrected": _excess(watched, counts_NCE, drifted.rate_NCE * factor_C1, first, gain),
    }
    mse = {
        "quiet": _mse(watched.predict, quiet.counts_NCE, quiet, None),
        "drifted": _mse(watched.predict, counts_NCE, drifted, None),
        "corrected": _mse(watched.predict, counts_NCE, drifted, gain),
    }
    return {
        "nll_excess": excess,
        "mse": mse,
        "recovered_nll": _recovered(excess),
        "recovered_mse": _recovered(mse),
        "gain": None if gain is None else gain.as_json(),
    }


def _excess(watched: Watched, counts_NCE: Counts, rate_NCE: Rates, first: int, gain: Gain | None) -> float:
    ids_N = np.arange(first, first + len(counts_NCE), dtype=np.uint64)
    hidden_NCE = counts_NCE - thin_by_hash(counts_NCE, ids_N, keep=_KEEP, seed=_SEED)
    least = poisson_nll(rate_NCE * np.float32(1 - _KEEP), hidden_NCE).mean()
    return round(float(watched.nll(counts_NCE, first, gain).mean() - least), 3)


def _mse(predict: Predict, counts_NCE: Counts, truth: SimulatedFrames, gain: Gain | None) -> float:
    """Of the rates before they are scaled back, to the lines of an ideal detector."""
    assert truth.signal_NCE is not None
    given_NCE = counts_NCE.astype(np.float32)
    if gain is not None:
        given_NCE *= gain.before_C[:, None]
    return round(float(np.mean(np.square(predict(given_NCE) - truth.signal_NCE, dtype=np.float64))), 5)


def _recovered(by_state: Mapping[str, float]) -> float | None:
    damage = by_state["drifted"] - by_state["quiet"]
    return round((by_state["drifted"] - by_state["corrected"]) / damage, 3) if damage > 0 else None


def _corrected(predict: Predict, counts_NCE: npt.NDArray[np.float32], gain: Gain | None) -> Rates:
    if gain is None:
        return predict(counts_NCE)
    return predict(counts_NCE * gain.before_C[:, None]) * gain.after_C[:, None]


def _counts(frames: SimulatedFrames, case: Case | None, begins: int) -> Counts:
    """The counts, with the gains of a case from frame `begins` on."""
    counts_NCE = frames.counts_NCE
    if case is None or not case.gain:
        return counts_NCE
    counts_NCE = counts_NCE.copy()
    late_N = frames.pulse_id_N >= begins
    rng = np.random.default_rng(int(frames.pulse_id_N[0]))
    for channel, gain in case.gain.items():
        counts_NCE[late_N, channel] = rng.binomial(counts_NCE[late_N, channel], gain)
    return counts_NCE


def _simulator(seed: int, drift: list[DriftStep] | None = None) -> CookieBoxSimulator:
    return CookieBoxSimulator(Conditions(), seed=1000 + seed, drift=drift or [], frame_shape=FRAME_SHAPE)
