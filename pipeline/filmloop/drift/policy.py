"""Whether a cycle is worth its cluster time now."""

from __future__ import annotations

from filmloop.config.schema import DriftSection
from filmloop.core.counted import counted
from filmloop.drift.report import DriftReport


def why_not(section: DriftSection, report: DriftReport | None, *, trained_s_ago: float | None) -> str:
    """Why no cycle is needed, in words; '' if one is.

    Without a champion, or without an edge that looks at the frames, nobody can say that nothing drifted.

    Args:
        section: The policy.
        report: What the running edge says of the champion; None if none runs or it has not seen a frame.
        trained_s_ago: Seconds since the last cycle that trained; None if none did.
    """
    if section.policy == "always" or report is None or trained_s_ago is None:
        return ""
    if report.needs_training:
        return ""
    if section.policy == "on_drift_or_after" and trained_s_ago >= section.after_s:
        return ""
    after = f", and the last training was {trained_s_ago / 60:,.0f} min ago" if section.policy != "on_drift" else ""
    if report.beam_off:
        return f"Drift of {report.in_words()}{after}. `filmloop retrain --force` trains all the same."
    if report.alarm:
        return f"Drift {report.in_words()}{after}. `filmloop retrain --force` trains all the same."
    if report.reference_frames < report.reference_wanted or not report.windows:
        return f"Drift of {report.in_words()}{after}. `filmloop retrain --force` trains all the same."
    return f"No drift since version {report.version} went live ({counted(report.windows, 'window')} tested){after}. `filmloop retrain --force` trains all the same."
