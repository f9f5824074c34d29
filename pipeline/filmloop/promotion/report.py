"""What people read about a version in the MLflow UI, and about a cycle in its folder: Markdown, the answer first."""

from __future__ import annotations

from collections.abc import Mapping

from filmloop.core.counted import counted
from filmloop.core.documents import EvaluationReport, TrainResult, Verdict

_SHOWN_SHARDS = 6
"""MLflow keeps 5000 characters of a description; the whole lineage is in `result.json`."""

_HEADLINES = {
    "promote": "Passed the gate",
    "refuse": "Refused",
    "undecided": "Undecided",
}
_ENDINGS = {
    "completed": "all steps done",
    "early_stop": "stopped early, the hold-out no longer improved",
    "diverged": "stopped early, it diverged; these are the best weights before that",
    "time_limit": "stopped at the time limit",
    "terminated": "ended by a signal, from its last checkpoint",
}
_PREDICTORS = ("challenger", "champion", "gaussian", "zero")


def describe(
    result: TrainResult,
    reports: Mapping[str, EvaluationReport],
    verdict: Verdict | None,
    *,
    cycle_id: str,
    created_utc: str,
    site: str = "",
    zoo: str = "",
) -> str:
    """The description of one version.

    Args:
        result: Result document of its bundle.
        reports: Its evaluation, by predictor: challenger, champion, gaussian, zero.
        verdict: What the gate said, None before it was asked.
        cycle_id: Cycle that made it.
        created_utc: When.
        site: Name of the site, '' to leave it out.
        zoo: What the former versions had to say, '' if there were none.
    """
    parts = (
        _headline(result, verdict, cycle_id=cycle_id, created_utc=created_utc, site=site),
        _scores(reports),
        f"**Ancestor:** {zoo}" if zoo else "",
        _training(result),
        _lineage(result),
        "**Go back:** `filmloop models rollback` puts the champion before the present one back.",
    )
    return "\n\n".join(part for part in parts if part)


def _headline(result: TrainResult, verdict: Verdict | None, *, cycle_id: str, created_utc: str, site: str) -> str:
    channels, bins = result.model.frame_shape
    what = f"{result.model.name} {channels}×{bins}" + (f" of site {site}" if site else "")
    origin = f"continued from version {result.base_version}" if result.base_version else "trained from scratch"
    line = f"{what}, {origin}, cycle `{cycle_id}`, {created_utc}."
    if verdict is None:
        return f"**Not judged yet.** {line}"
    return f"**{_HEADLINES[verdict.decision]}.** {' '.join(verdict.reasons)}\n\n{line}"


def _scores(reports: Mapping[str, EvaluationReport]) -> str:
    """A table of the held-out scores; lower is better."""
    names = [name for name in _PREDICTORS if name in reports] + sorted(set(reports) - set(_PREDICTORS))
    if not names:
        return ""
    rows = [
        f"| {_title(name, reports[name])} | {reports[name].nll:.4g} | "
        f"{reports[name].nll_low:.4g} to {reports[name].nll_high:.4g} |"
        for name in names
    ]
    frames = reports[names[0]].frames
    return "\n".join(
        (
            f"Score on {counted(frames, 'held-out frame')} that no model trained on: nats a frame, lower is better.",
            "",
            "| predictor | nats a frame | 95 % interval |",
            "|---|---|---|",
            *rows,
        )
    )


def _title(name: str, report: EvaluationReport) -> str:
    if name == "challenger":
        return "**this version**"
    return f"{name}, version {report.version}" if report.version else name


def _training(result: TrainResult) -> str:
    lines = [
        f"**Training:** {counted(result.frames_trained, 'frame')}, {counted(result.steps, 'step')} ({result.epochs:.1f} epochs) in "
        f"{result.train_s:.1f} s on {result.world_size} × {result.device}; {_ENDINGS[result.status]}; "
        f"loss {result.loss_first:.4g} to {result.loss_last:.4g}."
    ]
    if result.resumed_from_step:
        lines.append(f"It was cut off once and continued from step {result.resumed_from_step}.")
    if result.steps_skipped:
        was = "was" if result.steps_skipped == 1 else "were"
        lines.append(f"{counted(result.steps_skipped, 'step')} had a gradient that was not finite and {was} left out.")
    return " ".join(lines)


def _lineage(result: TrainResult) -> str:
    """Where it came from: shards with the first 12 digits of their manifests' digests, code, config, weights."""
    shards = list(result.lineage.items())
    shown = [f"- `{shard_id}` {digest[:12]}" for shard_id, digest in shards[-_SHOWN_SHARDS:]]
    if more := len(shards) - len(shown):
        shown.append(f"- {more} older ones, listed in `result.json`")
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result.versions.items()))
    made_of = [f"weights {result.weights_sha256[:12]}", f"seed {result.seed}"]
    if result.config_digest:
        made_of.insert(0, f"config {result.config_digest[:12]}")
    if result.code_commit:
        made_of.insert(0, f"code {result.code_commit[:12]}")
    head = (
        f"**Made of** {counted(len(shards), 'shard')}; {', '.join(made_of)}; {versions}."
        if versions
        else (f"**Made of** {counted(len(shards), 'shard')}; {', '.join(made_of)}.")
    )
    return "\n".join((head, "", *shown)) if shown else head
