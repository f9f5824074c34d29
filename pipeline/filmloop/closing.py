"""How a cycle ends, well or badly, and when one that was cut off is given up."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from filmloop.core.documents import CycleReport, Outcome, TrainResult, Verdict
from filmloop.core.errors import FilmloopError
from filmloop.core.fsio import read_json
from filmloop.housekeeping import remove_old
from filmloop.journal import Cycle, CycleParts
from filmloop.ledger import CycleRow
from filmloop.selection import newest
from filmloop.shipping import shard_paths, weights_folder
from filmloop.staging.catalog import sealed_shards

_log = logging.getLogger(__name__)

_KEEP_CYCLES = 50  # whose bundle and moves stay on this side; the registry has every bundle
_KEEP_WEIGHTS = 5  # at least: the zoo keeps what it scores in a cycle
_KEEP_FAILED = 3  # failed runs whose folder stays on the cluster, for a person to look at
_FORMER_FAILED = 10  # before those: one goes with each failure, and ten tidyings may fail in a row
_SHARD_DEPTH = 4  # parts of data/<stream>/<run>/<shard's group or manifest>


def resumable(parts: CycleParts) -> CycleRow | None:
    """The open cycle, if it was begun under this very configuration; under another one it is closed as failed."""
    row = parts.ledger.open_cycle()
    if row is None:
        return None
    begun_under = parts.home.cycles / row.cycle_id / "config.json"
    if begun_under.exists() and read_json(begun_under) != parts.config.as_json():
        _cancel_training(parts, row.cycle_id)
        _cancel_moves(parts, row.cycle_id)
        _give_up_moves(parts, row.cycle_id)
        message = "Abandoned: it was cut off, and the site's configuration has changed since."
        _log.warning("cycle %s: %s", row.cycle_id, message)
        report = CycleReport(cycle_id=row.cycle_id, outcome="failed", message=message)
        parts.ledger.finish_cycle(row.cycle_id, "failed", report.as_json())
        return None
    return row


def finish(cycle: Cycle, outcome: Outcome, message: str, chosen: dict[str, Any]) -> CycleReport:
    """Close the cycle: its shards become trained, its report is kept, the cluster is tidied."""
    parts, done = cycle.parts, cycle.results()
    result = TrainResult.read(cycle.folder / "bundle" / "result.json") if "fetch" in done else None
    seconds, live = cycle.seconds(), done.get("live", {})
    train_s = 0.0 if result is None else result.train_s
    # A version that came back: nothing was trained, fetched, judged by the cluster's reports or registered.
    recalled = done.get("promote", {}) if result is None else {}
    version = recalled or done.get("register", {})
    judged = done.get("judge") or (done.get("recall", {}).get("verdict") if recalled else None)
    report = CycleReport(
        cycle_id=cycle.id,
        outcome=outcome,
        message=f"{message} {live.get('problem', '')}".rstrip(),
        version=version.get("version", ""),
        base_version="" if result is None else result.base_version,
        recalled=bool(recalled) and not recalled["overtaken"],
        turnaround_s=live.get("turnaround_s"),
        overhead_s=round(_overhead_s(seconds, train_s), 3) if result or recalled else None,
        train_s=round(train_s, 3) if result or recalled else None,
        steps=seconds,
        gate=None if judged is None else Verdict.model_validate(judged),
        metrics={} if result is None else result.metrics,
        frames=chosen["frames"],
        url=version.get("url", ""),
    )
    report.write(cycle.folder / "summary.json")
    if result is not None:
        _tidy(cycle)
    parts.ledger.finish_cycle(cycle.id, outcome, report.as_json(), trained=chosen.get("used", ()))
    return report


def close_failed(cycle: Cycle, exc: FilmloopError) -> None:
    """Close a cycle that cannot go on; its shards are fresh again."""
    _cancel_training(cycle.parts, cycle.id)
    _cancel_moves(cycle.parts, cycle.id)
    report = CycleReport(cycle_id=cycle.id, outcome="failed", message=exc.message, steps=cycle.seconds())
    report.write(cycle.folder / "summary.json")
    _tidy(cycle)
    cycle.parts.ledger.finish_cycle(cycle.id, "failed", {**report.as_json(), "error": exc.as_dict()})


def _cancel_training(parts: CycleParts, cycle_id: str) -> None:
    """Nobody waits for the job of a cycle that nobody goes on with; one that has ended stays as it is."""
    for step in parts.ledger.steps(cycle_id):
        if step.name == "train" and step.handle and step.result is None:
            with suppress(FilmloopError):
                parts.launcher.cancel(step.handle)


def _cancel_moves(parts: CycleParts, cycle_id: str) -> None:
    """Nothing of a cycle that nobody goes on with may write later; a move that has ended stays as it is."""
    for step in parts.ledger.steps(cycle_id):
        if step.name in ("move", "fetch") and step.handle and step.result is None:
            with suppress(FilmloopError):
                parts.mover.cancel(step.handle)


def _moves(parts: CycleParts, cycle_id: str) -> list[str]:
    """Handles of the cycle's moves."""
    return [step.handle for step in parts.ledger.steps(cycle_id) if step.name in ("move", "fetch") and step.handle]


def _give_up_moves(parts: CycleParts, cycle_id: str) -> None:
    """Nobody goes on with the cycle's moves: what they have brought so far makes room."""
    try:
        parts.mover.discard([], key=f"{cycle_id}-closed", over=_moves(parts, cycle_id))
    except FilmloopError as exc:
        _log.warning("what the moves of cycle %s have left was not discarded: %s", cycle_id, exc.message)
    except Exception:
        _log.exception("what the moves of cycle %s have left was not discarded", cycle_id)


def _overhead_s(seconds: dict[str, float], train_s: float) -> float:
    """All steps but the training loop. A step that was killed has lost its seconds, so the difference may not be < 0."""
    return sum(s for name, s in seconds.items() if name != "train") + max(0.0, seconds.get("train", 0.0) - train_s)


def _tidy(cycle: Cycle) -> None:
    """Free what neither side needs any more, after a cycle that trained or failed; how it ended stays as it is."""
    try:
        _free_cluster(cycle)
        parts = cycle.parts
        parts.ledger.forget_shards(keep={shard.shard_id for shard in sealed_shards(parts.home.stage)})
        keep_weights = max(_KEEP_WEIGHTS, parts.config.zoo.candidates + 2)
        # By the ledger's order: were a clock set back, this cycle's own name might come before that of fifty older ones.
        newest_ids = {cycle.id, *(row.cycle_id for row in parts.ledger.history(_KEEP_CYCLES))}
        remove_old(parts.home, keep_cycles=newest_ids, keep_weights=keep_weights)
    except FilmloopError as exc:
        _log.warning("cycle %s was not tidied: %s", cycle.id, exc.message)
    except Exception:
        _log.exception("cycle %s was not tidied", cycle.id)


def _free_cluster(cycle: Cycle) -> None:
    """Run folders, shards too old to be mixed in, weights of old champions, what failed moves have left."""
    parts, done = cycle.parts, cycle.results()
    chosen, recalled, trained = done.get("select", {}), done.get("recall", {}), "fetch" in done
    shards = sealed_shards(parts.home.stage, parts.stream)
    kept = newest(shards, max(parts.config.training.replay_frames, 1))
    if not trained:
        # The next cycle is likely to choose them again.
        kept += [s for s in shards if s.shard_id in {*chosen.get("fresh", ()), *chosen.get("replay", ())}]
    needed = {path for shard in kept for path in shard_paths(parts.home, shard)}
    # Shards that a failed cycle had shipped are in no other cycle's books.
    there = {"/".join(path.split("/")[:_SHARD_DEPTH]) for path in parts.mover.placed(f"data/{parts.stream}")}
    paths = sorted(there - needed)
    model, failed = parts.registry.model, parts.ledger.history(_KEEP_FAILED + _FORMER_FAILED, outcome="failed")
    paths += [f"runs/{row.cycle_id}" for row in failed[_KEEP_FAILED:]]
    if trained:
        paths.append(f"runs/{cycle.id}")
        if (weights := parts.home.weights / model).is_dir():
            paths += [
                weights_folder(model, path.name) for path in weights.iterdir() if path.name != recalled["champion"]
            ]
    try:
        parts.mover.discard(paths, key=f"{cycle.id}-tidy", over=_moves(parts, cycle.id))
    except FilmloopError as exc:
        _log.warning("the cluster was not tidied: %s", exc.message)
