"""The drift monitor of the inference stage: scored frames in, windows tested, the memory of each version kept on disk.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from filmloop.config.schema import DriftSection
from filmloop.core.clock import utc_now
from filmloop.drift.beam import Sieve, least_hits
from filmloop.drift.detect import Detector, deviations, threshold
from filmloop.drift.explain import Channels, Finding, beam_off, explain, unsteady
from filmloop.drift.gain import Gain, gain_for
from filmloop.drift.moments import moments_of
from filmloop.drift.reference import Reference
from filmloop.drift.report import DriftMemory, DriftReport
from filmloop.drift.window import Window, merged
from filmloop.edge.memories import Keeper

_log = logging.getLogger(__name__)

_REFINED = 0.1
"""Gains that change by less, relative, are the same correction, better known."""
_CORRECTED = {"gain", "dead", "polarisation"}
_UNSTEADY = 2
"""References thrown away in a row that make it a drift in itself."""


class DriftMonitor:
    """Follows one live version after another. Used by the inference stage's thread alone.

    Args:
        section: Rates, tolerances, whether to correct gains.
        folder: Where the memory of each version lies; written by a thread of its own, read at a switch.

    Attributes:
        gain: The correction that the frames should have now; None for none.
    """

    def __init__(self, section: DriftSection, folder: Path) -> None:
        self._section, self._keeper = section, Keeper(folder)
        self._version, self._digest = "", ""
        self._forget()

    def _forget(self) -> None:
        self.gain: Gain | None = None
        self._sieve = Sieve(self._section)
        self._windows: list[Window] = []
        self._discarded = 0
        self._detector: Detector | None = None
        self._findings: tuple[Finding, ...] = ()
        self._alarm_since_utc, self._tested = "", 0
        self._newest: Window | None = None
        self._least = 0.0

    def switch(self, version: str, digest: str, *, relieves: bool = False) -> None:
        """From here on frames are scored by this version: what is normal for it is taken up again.

        An alarm and a correction are taken up by the first version of a process alone, which was live when the former
        process ended. Of one that comes back later they would be as old as its leaving; `relieves` says that another
        process served before this version did.
        """
        first = not self._version and not relieves
        self.leave()
        self._version, self._digest = version, digest
        memory = self._keeper.read(version, digest)
        if memory is None or not memory.windows:
            return
        self._windows = list(memory.windows)
        self._begin_if_complete()
        if not first:
            if memory.alarm_since_utc:
                self._remember()
            return
        if self._detector is None:
            self._discarded = max(self._discarded, memory.discarded)
            if self._discarded >= _UNSTEADY:
                self._alarm_since_utc = memory.alarm_since_utc or utc_now()
                self._findings = (unsteady(self._discarded),)
        elif memory.alarm_since_utc and not memory.discarded:
            self._detector.resume()
            self._alarm_since_utc, self._findings = memory.alarm_since_utc, memory.findings
            self.gain = memory.gain if self._section.correct_gain else None

    def leave(self) -> None:
        """The version is live no more: its alarm ends with it."""
        if self._alarm_since_utc:
            self._alarm_since_utc, self._findings, self.gain, self._discarded = "", (), None, 0
            self._remember()
        self._forget()

    def observe(self, counts_NCE: npt.NDArray[np.uint8], nll_N: npt.NDArray[np.float64]) -> None:
        """Take scored frames; tests a window when one is full. Without a beam nothing is. Some 30 us a frame."""
        if not self._version or not len(counts_NCE):
            return
        off, reference = self._sieve.off, None if self._detector is None else self._detector.reference
        self._least = least_hits(reference, counts_NCE.shape[1])
        window = self._sieve.take(moments_of(counts_NCE), np.asarray(nll_N, np.float64), self._least)
        if self._sieve.off != off:
            if self._sieve.off:
                _log.warning("%s; drift is not looked for meanwhile", beam_off(self._sieve.hits, self._least).text)
            else:
                _log.info("the beam is back")
        if window is None:
            return
        if self._detector is None:
            self._learn(window)
        else:
            self._test(self._detector, window)

    def report(self) -> DriftReport | None:
        """What to tell; None before the first version."""
        if not self._version:
            return None
        wanted = self._section.reference_windows * self._section.window_frames
        detector, off = self._detector, self._sieve.off
        findings = (beam_off(self._sieve.hits, self._least), *self._findings) if off else self._findings
        if detector is None:
            frames = sum(window.frames for window in self._windows) + self._sieve.frames
            return DriftReport(
                version=self._version,
                reference_frames=min(frames, wanted - 1),
                reference_wanted=wanted,
                alarm=self._discarded >= _UNSTEADY,
                alarm_since_utc=self._alarm_since_utc,
                needs_training=self._discarded >= _UNSTEADY and not off,
                findings=findings,
            )
        normal, newest = detector.reference.window, self._newest
        low, high = detector.reference.nll_interval()
        excess, excess_sd = (None, None) if newest is None else detector.reference.nll_excess(newest)
        return DriftReport(
            version=self._version,
            frames=self._tested * self._section.window_frames,
            windows=self._tested,
            window_frames=self._section.window_frames,
            window_filled=self._sieve.frames,
            reference_frames=normal.frames,
            reference_wanted=min(wanted, normal.frames),
            nll_reference=normal.nll,
            nll_reference_low=low,
            nll_reference_high=high,
            nll_reference_sd=normal.nll_sd,
            nll=None if newest is None else newest.nll,
            nll_excess=excess,
            nll_excess_sd=excess_sd,
            alarm=detector.alarm,
            alarm_since_utc=self._alarm_since_utc,
            needs_training=detector.alarm and not off and self._needs_training(detector),
            findings=findings,
            z=_by_group(detector),
            threshold=detector.limit,
            gain=self.gain,
        )

    def finish(self) -> None:
        """Wait, for a moment, until the memory is on the disk."""
        self._keeper.finish()

    def _learn(self, window: Window) -> None:
        self._windows.append(window)
        self._begin_if_complete()
        self._remember()

    def _begin_if_complete(self) -> None:
        """Enough windows are a reference, if both halves look alike; else something drifted meanwhile: the later half.

        A beam that never stands still for so long is a drift as well, though nothing can be tested.
        """
        if len(self._windows) < self._section.reference_windows:
            return
        half = len(self._windows) // 2
        first, second = Reference(self._windows[:half]), merged(self._windows[half:])
        if (np.abs(deviations(second, first, self._section)) > threshold(self._section, second.channels)).any():
            _log.warning("the beam drifted while the reference of version %s was taken: taking it anew", self._version)
            self._windows, self._discarded = self._windows[half:], self._discarded + 1
            if self._discarded >= _UNSTEADY:
                self._alarm_since_utc = self._alarm_since_utc or utc_now()
                self._findings = (unsteady(self._discarded),)
                _log.warning("drift: %s", self._findings[0].text)
            return
        if self._discarded >= _UNSTEADY:
            _log.info("drift: none any more, there is a reference")
        self._alarm_since_utc, self._findings, self._discarded = "", (), 0
        self._detector = Detector(self._section, Reference(self._windows))

    def _test(self, detector: Detector, window: Window) -> None:
        before, self._newest = detector.alarm, window
        self._tested += 1
        if detector.take(window):
            self._alarm_since_utc = self._alarm_since_utc or utc_now()
            # What no window shows any more is not corrected any longer, while the words stay as long as the alarm does.
            basis = detector.basis() if detector.fired else window
            if detector.fired:
                self._findings = explain(basis, detector, self._section)
            self._correct(gain_for(Channels(basis, detector.reference, self._section), self._section), detector)
        else:
            self._alarm_since_utc, self._findings = "", ()
            self._correct(None, detector)
        if detector.alarm != before:
            if detector.alarm:
                _log.warning("drift: %s", ", ".join(finding.text for finding in self._findings))
            else:
                _log.info("drift: none any more")
            self._remember()

    def _correct(self, gain: Gain | None, detector: Detector) -> None:
        if gain == self.gain or (gain is not None and gain.is_near(self.gain)):
            return
        if gain is None or not gain.is_near(self.gain, _REFINED):
            detector.served_anew()
        self.gain = gain
        if gain is None:
            _log.warning("gains are not corrected any more")
        else:
            _log.warning("counts are divided by these gains before the network: %s, dead: %s", gain.gain_C, gain.dead)
        self._remember()

    def _needs_training(self, detector: Detector) -> bool:
        """Channels are corrected at the input; all else, or an NLL that stays up in spite of it, needs other weights."""
        corrected = _CORRECTED if self.gain is not None else set()
        return detector.nll_fired or any(finding.kind not in corrected for finding in self._findings)

    def _remember(self) -> None:
        self._keeper.keep(
            DriftMemory(
                version=self._version,
                bundle_digest=self._digest,
                windows=tuple(self._windows),
                discarded=self._discarded,
                alarm_since_utc=self._alarm_since_utc,
                findings=self._findings,
                gain=self.gain,
            )
        )


def _by_group(detector: Detector) -> dict[str, float]:
    """The z of each group of statistics that is farthest from 0."""
    groups: dict[str, float] = {}
    for name, z in zip(detector.names, detector.z_K1.tolist(), strict=True):
        group = name.partition(" ")[0]
        if abs(z) >= abs(groups.get(group, 0.0)):
            groups[group] = round(z, 2)
    return groups
