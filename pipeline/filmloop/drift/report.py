"""What the edge says of drift, and what it remembers of it over a restart."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from filmloop.core.counted import counted
from filmloop.core.documents import Document
from filmloop.drift.explain import Finding
from filmloop.drift.gain import Gain
from filmloop.drift.window import Window


class DriftReport(Document):
    """As of the newest window of the live version."""

    version: str
    frames: int = 0
    """Sampled frames tested against the reference since the version is live in this life of the edge."""
    windows: int = 0
    window_frames: int = 0
    """Sampled frames of each window."""
    window_filled: int = 0
    """Sampled frames of the window that is tested next."""
    reference_frames: int
    """Sampled frames that say what is normal; nothing is tested before there are `reference_wanted`."""
    reference_wanted: int
    nll_reference: float | None = None
    """Mean NLL of this version when it went live, nats a frame."""
    nll_reference_low: float | None = None
    nll_reference_high: float | None = None
    """Its 95 % interval."""
    nll_reference_sd: float | None = None
    """Standard deviation of a single frame's."""
    nll: float | None = None
    """Of the newest window."""
    nll_excess: float | None = None
    """Of the newest window, above what this version scored on frames with as many hits."""
    nll_excess_sd: float | None = None
    alarm: bool = False
    alarm_since_utc: str = ""
    needs_training: bool = False
    """Whether there is a drift that a correction of the gain does not undo. Not while the beam is off."""
    findings: tuple[Finding, ...] = ()
    z: dict[str, float] = Field(default_factory=dict)
    """Of the newest windows: the largest |z| of each group of statistics, with its sign."""
    threshold: float = 0.0
    """|z| that raises an alarm."""
    gain: Gain | None = None
    """The correction that is active."""

    @property
    def beam_off(self) -> bool:
        """Whether there is no light to test; all else is then as it was before."""
        return any(finding.kind == "beam_off" for finding in self.findings)

    @property
    def _missing(self) -> int:
        return max(self.window_frames - self.window_filled, 1)

    def in_words(self) -> str:
        """One line."""
        found = ", ".join(finding.text for finding in self.findings)
        if self.beam_off:
            return f"version {self.version} cannot be tested: {found}"
        if self.alarm:
            todo = "" if self.needs_training else "; corrected at the input, no training needed"
            return f"since {self.alarm_since_utc}: {found}{todo}"
        if self.reference_frames < self.reference_wanted:
            return (
                f"version {self.version}: what is normal is still being measured, "
                f"{self.reference_frames:,} of {self.reference_wanted:,} sampled frames"
            )
        if not self.windows:
            wanted = f"; {self._missing:,} more sampled frames make the first" if self.window_frames else ""
            return f"version {self.version}: nothing can be said yet, no window was tested{wanted}"
        return f"none since version {self.version} went live: {counted(self.windows, 'window')} tested"


class DriftMemory(Document):
    """Kept by the edge for each version, in `edge/drift/`."""

    schema_version: Literal[1] = 1
    version: str
    bundle_digest: str
    windows: tuple[Window, ...]
    """The reference, so far as it was taken."""
    discarded: int = 0
    """References in a row whose halves differed, before this one."""
    alarm_since_utc: str = ""
    findings: tuple[Finding, ...] = ()
    gain: Gain | None = None
