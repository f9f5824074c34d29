"""One retraining cycle, top to bottom.

    seal      ask the edge to seal what it has
    select    choose fresh shards, and older ones against forgetting
    recall    look through the former versions: which one to start from; one that fits again needs no training
    move      ship shards and weights to the cluster, verified
    train     torchrun there; submit and poll
    fetch     bring the result bundle home, verified
    judge     the gate: is it better on the same held-out frames?
    register  a version with its lineage in the registry, as challenger
    promote   move the champion alias, if the gate says so
    live      wait until the edge serves it

Every step is journalled: intent, handle, result. Killed anywhere, the next call takes the cycle up where it was: a step
that is done is not done again, and a step that was cut off may be repeated without harm.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from filmloop.bundle import load_evaluation, verify_bundle
from filmloop.closing import close_failed, finish, resumable
from filmloop.core.clock import epoch_s
from filmloop.core.counted import counted
from filmloop.core.documents import CycleReport, FileDigest, Outcome, Verdict, WeightsRef
from filmloop.core.errors import AuthError, DataError, FilmloopError, TransientError
from filmloop.core.fsio import atomic_write_bytes, atomic_write_json
from filmloop.core.log import log_context
from filmloop.core.retry import wait_until
from filmloop.edge.control import request_look, request_seal
from filmloop.edge.status import is_alive, read_status
from filmloop.journal import Cycle, CycleParts, Tell
from filmloop.launching import chosen_model, launch, training_job
from filmloop.ledger import DAMAGED
from filmloop.ports.mover import Direction, MoveItem
from filmloop.ports.registry import CHAMPION
from filmloop.promotion.gate import judge
from filmloop.promotion.publish import promote, set_challenger, settle
from filmloop.promotion.report import describe
from filmloop.selection import frames_of, is_fresh, newest, usable_shards
from filmloop.shipping import (
    bundle_items,
    keep_bundle,
    local_bundle,
    move,
    shard_items,
    shard_paths,
    shard_ref,
    weights_folder,
)
from filmloop.staging.catalog import SealedShard, sealed_shards
from filmloop.staging.groupfiles import GroupFiles
from filmloop.training.choice import check_choice
from filmloop.zoo.index import DATA_TAG, RECALLED_TAG, ZOO_TAG
from filmloop.zoo.recall import Recall, look_back
from filmloop.zoo.scorer import Scorer

_log = logging.getLogger(__name__)

_OUTCOMES: dict[str, Outcome] = {"promote": "promoted", "refuse": "refused", "undecided": "undecided"}
_SEAL_DEADLINE_S = 10.0
_MAX_ATTEMPTS = 10  # of one step; at one cycle every ten minutes this is more than an hour
_LIVE_DEADLINE_S, _LIVE_LOOK_S = 60.0, 0.1


def run_cycle(parts: CycleParts, *, again: bool = False, scorer: Scorer | None = None, tell: Tell) -> CycleReport:
    """Run one cycle, or take up the one that was cut off. The caller holds `Ledger.cycle_lock`.

    Args:
        parts: All it works with.
        again: Shards count as fresh although they were trained on.
        scorer: Scores former versions; one that loads already, or one of the cycle's own.
        tell: Told what is being done.

    Raises:
        ConfigError: the model of the site file cannot be built as it says; nothing is begun.
        FilmloopError: a step failed. After a retryable error the cycle stays open and the next call goes on with it;
            after any other, or the tenth at the same step, it is closed as failed and the next call begins anew. For a
            login it stays open as long as it takes.
    """
    check_choice(chosen_model(parts.config, parts.frame_shape))
    cut_off = resumable(parts)
    cycle = Cycle(parts, cut_off or parts.ledger.start_cycle(), tell)
    if cut_off is not None:
        tell("cycle", f"going on with {cycle.id}, which was cut off")
    with log_context(cycle_id=cycle.id):
        try:
            return _steps(cycle, again, scorer or Scorer(parts.home.recall, deadline_s=parts.config.zoo.deadline_s))
        except FilmloopError as exc:
            exc.ids.setdefault("cycle_id", cycle.id)
            if isinstance(exc, AuthError):
                cycle.forgive()
            elif not exc.retryable or cycle.attempts() >= _MAX_ATTEMPTS:
                close_failed(cycle, exc)
            raise
        except Exception as exc:
            close_failed(cycle, FilmloopError(f"{type(exc).__name__}: {exc}"))
            raise


def _steps(cycle: Cycle, again: bool, scorer: Scorer) -> CycleReport:
    parts, step = cycle.parts, cycle.step
    atomic_write_json(cycle.folder / "config.json", parts.config.as_json())

    with scorer:
        if parts.config.zoo.recall != "off" and "recall" not in cycle.results():
            scorer.load()  # while the edge seals, if not sooner
        step("seal", "asking the edge for its open shard", _seal)
        chosen = step("select", "choosing shards", lambda c: _select(c, again))
        if chosen["too_few"]:
            return finish(cycle, "nothing_to_do", chosen["too_few"], chosen)
        found = step("recall", "looking through former versions", lambda c: _recall(c, chosen, scorer))

    recalled = Recall.model_validate(found)
    if recalled.fits and recalled.verdict is not None:
        return _bring_back(cycle, chosen, recalled, recalled.verdict)

    step("move", f"shipping {counted(chosen['frames'], 'frame')} to the cluster", lambda c: _move(c, chosen, recalled))
    trained = step("train", "starting the ranks", lambda c: _train(c, chosen, recalled))
    step("fetch", "bringing the bundle home", lambda c: _fetch(c, trained))
    verdict = Verdict.model_validate(step("judge", "comparing on held-out frames", lambda c: _judge(c, recalled)))
    registered = step("register", "registering the version", lambda c: _register(c, chosen, recalled, verdict))

    if verdict.decision != "promote":
        return finish(cycle, _OUTCOMES[verdict.decision], " ".join(verdict.reasons), chosen)
    version = registered["version"]
    promoted = step("promote", f"making version {version} champion", lambda c: _promote(c, recalled, version, verdict))
    if promoted["overtaken"]:
        return finish(cycle, "undecided", promoted["overtaken"], chosen)
    step("live", "waiting for the edge to swap", lambda c: _live(c, chosen, version))
    return finish(cycle, "promoted", " ".join(verdict.reasons), chosen)


def _bring_back(cycle: Cycle, chosen: dict[str, Any], recalled: Recall, verdict: Verdict) -> CycleReport:
    """A former version is champion again: nothing is shipped, nothing trained.

    The shards count as used all the same: they have judged, and the next cycle that trains mixes them in as older ones.
    Were they fresh still, the next cycle would train on frames that a version has just been found to fit.
    """
    step, version = cycle.step, recalled.fits
    moved = step("promote", f"making version {version} champion again", lambda c: _promote_again(c, recalled, verdict))
    if moved["overtaken"]:
        return finish(cycle, "undecided", moved["overtaken"], chosen)
    step("live", "waiting for the edge to swap", lambda c: _live(c, chosen, version))
    return finish(cycle, "promoted", recalled.message, chosen)


def _seal(cycle: Cycle) -> dict[str, Any]:
    """The edge seals its open shard; without a running edge there is none, and one that hangs is not waited for."""
    try:
        return {"sealed": request_seal(cycle.parts.home, cycle.id, _SEAL_DEADLINE_S)}
    except TransientError as exc:
        _log.warning("%s The cycle goes on with what is sealed.", exc.message)
        return {"sealed": False}


def _select(cycle: Cycle, again: bool) -> dict[str, Any]:
    """Fresh shards and older ones. From here on retention leaves the chosen ones alone. Asks the ledger and the disk alone."""
    parts, training = cycle.parts, cycle.parts.config.training
    states = parts.ledger.shard_states()
    shards = usable_shards(parts.home.stage, parts.stream, parts.config, states)
    new = [shard for shard in shards if again or is_fresh(shard, states)]
    older = newest([shard for shard in shards if shard not in new], training.replay_frames)
    # Held before they are read: reading takes seconds, in which retention would remove the oldest.
    parts.ledger.choose_shards(cycle.id, [shard.shard_id for shard in (*new, *older)])
    fresh, replay = _whole(cycle, newest(new, training.max_fresh_frames)), _whole(cycle, older)
    frames = frames_of(fresh)
    if frames < training.min_frames:
        fresh_ones = counted(frames, "fresh labelled frame" if training.hyper.labelled else "fresh frame")
        staged = frames_of(shards)
        reason = (
            f"Nothing to train on yet: {fresh_ones} in stream {parts.stream!r}, a cycle wants {training.min_frames:,}. "
            f"{counted(staged, 'frame')} {'is' if staged == 1 else 'are'} staged in all{_dark(parts)}."
        )
        return {"too_few": reason, "frames": frames}
    # Fresh shards beyond max_fresh_frames are passed over for good: with this cycle they count as used.
    states = parts.ledger.shard_states()
    used = [shard.shard_id for shard in new if states.get(shard.shard_id) != DAMAGED]
    return {
        "too_few": "",
        "frames": frames,
        "fresh": [shard.shard_id for shard in fresh],
        "replay": [shard.shard_id for shard in replay],
        "used": used,
        "newest_sealed_utc": max(shard.manifest.sealed_utc for shard in fresh),
    }


def _dark(parts: CycleParts) -> str:
    """How many frames are left alone because there was no beam."""
    dark = [shard for shard in sealed_shards(parts.home.stage, parts.stream) if shard.manifest.is_dark]
    return f", and {frames_of(dark):,} more from a time without beam" if dark else ""


def _whole(cycle: Cycle, shards: list[SealedShard]) -> list[SealedShard]:
    """The shards that are what their manifests say. A damaged one is set aside: it must not fail every cycle to come."""
    whole = []
    for shard in shards:
        try:
            GroupFiles(shard).check_all(hashed=True)
        except DataError as exc:
            if not shard.manifest_path.exists():
                continue  # retention was quicker than the hold
            _log.error("shard %s is damaged and set aside: %s", shard.shard_id, exc.message)
            cycle.tell("select", f"shard {shard.shard_id} is damaged and set aside")
            cycle.parts.ledger.set_aside(cycle.id, shard.shard_id)
        else:
            whole.append(shard)
    return whole


def _recall(cycle: Cycle, chosen: dict[str, Any], scorer: Scorer) -> dict[str, Any]:
    """The champion, and the ancestor to start from, on this side, before anything is shipped."""
    parts = cycle.parts
    found = look_back(
        parts,
        _shards(cycle, chosen["fresh"]),
        lambda: settle(parts.registry, parts.ledger),
        scorer=scorer,
        tell=lambda text: cycle.tell("recall", text),
    )
    if found.verdict is not None:
        found.verdict.write(cycle.folder / "verdict.json")
    return found.as_json()


def _move(cycle: Cycle, chosen: dict[str, Any], recalled: Recall) -> dict[str, Any]:
    """Shards, the champion's weights and those to start from to the cluster; what is there already and whole is not sent again."""
    parts = cycle.parts
    shards = _shards(cycle, chosen["fresh"] + chosen["replay"])
    items = [item for shard in shards for item in shard_items(parts.home, shard)]
    for version in sorted({recalled.champion, recalled.base} - {""}):
        bundle = local_bundle(parts.home, parts.registry, version)
        items += bundle_items(bundle, parts.home.root, weights_folder(parts.registry.model, version))
    return _ship(cycle, "move", "to_cluster", items)


def _train(cycle: Cycle, chosen: dict[str, Any], recalled: Recall) -> dict[str, Any]:
    """torchrun on the cluster, until it ends or its deadline passes."""
    parts = cycle.parts
    job = training_job(
        parts.config,
        job_id=cycle.id,
        frame_shape=parts.frame_shape,
        fresh=[shard_ref(parts.home, shard, parts.cluster_root) for shard in _shards(cycle, chosen["fresh"])],
        replay=[shard_ref(parts.home, shard, parts.cluster_root) for shard in _shards(cycle, chosen["replay"])],
        base=_weights(cycle, recalled.base),
        champion=_weights(cycle, recalled.champion),
        output_dir=parts.cluster_root / "runs" / cycle.id,
        code_commit=parts.code_commit,
    )
    job.write(cycle.folder / "job.json")
    try:
        files = launch(
            parts.launcher,
            job,
            poll_s=parts.poll_s,
            keep_handle=lambda handle: cycle.keep_handle("train", handle),
            tell=lambda text: cycle.tell("train", text),
        )
    except DataError:
        _discard_shipped(cycle, chosen, recalled)
        raise
    return {"files": [file.as_json() for file in files]}


def _discard_shipped(cycle: Cycle, chosen: dict[str, Any], recalled: Recall) -> None:
    """The trainer hashes all it reads and found something damaged: the next cycle sends everything anew."""
    parts = cycle.parts
    try:
        shards = _shards(cycle, chosen["fresh"] + chosen["replay"])
        paths = [path for shard in shards for path in shard_paths(parts.home, shard)]
        paths += [weights_folder(parts.registry.model, v) for v in sorted({recalled.champion, recalled.base} - {""})]
        parts.mover.discard(paths, key=f"{cycle.id}-damaged")
    except FilmloopError as exc:
        _log.warning("what the cluster holds of cycle %s was not discarded: %s", cycle.id, exc.message)


def _weights(cycle: Cycle, version: str) -> WeightsRef | None:
    parts = cycle.parts
    if not version:
        return None
    return WeightsRef(
        version=version,
        bundle_path=str(parts.cluster_root / weights_folder(parts.registry.model, version)),
        weights_sha256=verify_bundle(local_bundle(parts.home, parts.registry, version)).weights_sha256,
    )


def _fetch(cycle: Cycle, trained: dict[str, Any]) -> dict[str, Any]:
    """The bundle from the cluster's run folder into the cycle's folder, hashed on arrival, then checked as a whole."""
    target = (cycle.folder / "bundle").relative_to(cycle.parts.home.root).as_posix()
    files = [FileDigest.model_validate(file) for file in trained["files"]]
    moved = _ship(cycle, "fetch", "to_edge", [MoveItem.below(f"runs/{cycle.id}/bundle", f, target) for f in files])
    result = verify_bundle(cycle.folder / "bundle")
    if result.job_id != cycle.id:
        raise DataError(f"The bundle belongs to job {result.job_id}, not to {cycle.id}.")
    return {"bundle_digest": result.bundle_digest(), **moved}


def _judge(cycle: Cycle, recalled: Recall) -> dict[str, Any]:
    """Challenger against champion; the first version of all against the Gaussian baseline."""
    reports, champion = load_evaluation(cycle.folder / "bundle").reports, recalled.champion
    against = "champion" if champion else "gaussian"
    if not {"challenger", against} <= set(reports) or (champion and reports[against].version != champion):
        raise DataError(
            f"The bundle compares with {', '.join(sorted(reports))}; the cycle asked for {against} {champion}".rstrip()
            + ".",
            hint="Do both sides run the same version of filmloop?",
        )
    verdict = judge(reports["challenger"], reports[against], cycle.parts.config.gate, against=against)
    verdict.write(cycle.folder / "verdict.json")
    return verdict.as_json()


def _register(cycle: Cycle, chosen: dict[str, Any], recalled: Recall, verdict: Verdict) -> dict[str, Any]:
    """A version with metrics, plots, lineage, description and the bundle; winner or not, it is the challenger."""
    parts, folder = cycle.parts, cycle.folder / "bundle"
    result = verify_bundle(folder)
    text = describe(
        result,
        load_evaluation(folder).reports,
        verdict,
        cycle_id=cycle.id,
        created_utc=cycle.row.started_utc,
        site=parts.config.site,
        zoo=recalled.message if recalled.candidates else "",
    )
    atomic_write_bytes(cycle.folder / "report.md", text.encode())
    tags = {
        "filmloop.site": parts.config.site,
        "filmloop.stream": parts.stream,
        "filmloop.base_version": result.base_version,
        "filmloop.gate": verdict.decision,
        "filmloop.config": parts.config.model_dump_json(),
        ZOO_TAG: recalled.tag(),
    }
    if recalled.data is not None:
        tags[DATA_TAG] = recalled.data.model_dump_json()
    info = parts.registry.register(folder, key=cycle.id, description=text, tags=tags, metrics=result.metrics)
    with suppress(FilmloopError):  # the next cycle then downloads it
        keep_bundle(parts.home, parts.registry.model, info.version, folder)
    set_challenger(
        parts.registry, parts.ledger, version=info.version, who=_who(cycle), why="newest candidate", cycle_id=cycle.id
    )
    return {"version": info.version, "url": info.url}


def _promote(cycle: Cycle, recalled: Recall, version: str, verdict: Verdict) -> dict[str, Any]:
    """Move the champion alias, unless somebody moved it while this cycle was training."""
    registry, expected = cycle.parts.registry, recalled.champion
    now = registry.get(CHAMPION)
    done = any(move.cycle_id == cycle.id for move in cycle.parts.ledger.moves(registry.model, CHAMPION))
    if done and now is not None and now.version == version:
        return {"overtaken": ""}
    taken_away = now is None and expected
    if done or taken_away or (now is not None and now.version not in (expected, version)):
        what = f"version {now.version} was made champion meanwhile" if now else "the champion was taken away meanwhile"
        overtaken = (
            f"Version {version} won against {f'champion {expected}' if expected else 'the baseline'}, but {what}. "
            f"`filmloop models promote {version}` makes it champion all the same."
        )
        return {"overtaken": overtaken}
    why = " ".join(verdict.reasons)
    promote(
        registry, cycle.parts.ledger, version=version, expected=expected, who=_who(cycle), why=why, cycle_id=cycle.id
    )
    return {"overtaken": ""}


def _promote_again(cycle: Cycle, recalled: Recall, verdict: Verdict) -> dict[str, Any]:
    """As `_promote`, and the registry tells when and why; again the same words after a kill."""
    version, registry = recalled.fits, cycle.parts.registry
    why = verdict.model_copy(update={"reasons": (recalled.message,)})
    moved = _promote(cycle, recalled, version, why)
    if not moved["overtaken"]:
        registry.annotate(version, tags={RECALLED_TAG: f"{cycle.row.started_utc} {cycle.id}: {recalled.message}"})
    info = registry.get(version)
    return {**moved, "version": version, "url": "" if info is None else info.url}


def _live(cycle: Cycle, chosen: dict[str, Any], version: str) -> dict[str, Any]:
    """Wait until the edge serves the version; a site without a running edge has nothing to wait for."""

    def served() -> dict[str, Any] | None:
        if not is_alive(cycle.parts.home):
            return {"edge": False, "turnaround_s": None}
        status = read_status(cycle.parts.home)
        if status is None or status.version != version:
            return None
        since_s = epoch_s(status.version_since_utc)
        return {"edge": True, "turnaround_s": round(since_s - epoch_s(chosen["newest_sealed_utc"]), 3)}

    try:
        request_look(cycle.parts.home)
        what = f"The swap to version {version} at the edge"
        return wait_until(served, deadline_s=_LIVE_DEADLINE_S, what=what, cap_s=_LIVE_LOOK_S)
    except TransientError as exc:
        status = read_status(cycle.parts.home)
        problem = (
            f"{exc.message} It stays champion. Last problem of the edge: {(status and status.last_problem) or 'none'}"
        )
        _log.warning("%s", problem)
        return {"edge": True, "turnaround_s": None, "problem": problem}


def _ship(cycle: Cycle, step: str, direction: Direction, items: list[MoveItem]) -> dict[str, Any]:
    return move(
        cycle.parts.mover,
        direction,
        items,
        key=f"{cycle.id}-{step}",
        deadline_s=cycle.parts.config.mover.deadline_s,
        poll_s=cycle.parts.poll_s,
        keep_handle=lambda handle: cycle.keep_handle(step, handle),
        tell=lambda text: cycle.tell(step, text),
    )


def _shards(cycle: Cycle, shard_ids: list[str]) -> list[SealedShard]:
    by_id = {shard.shard_id: shard for shard in sealed_shards(cycle.parts.home.stage, cycle.parts.stream)}
    if gone := [shard_id for shard_id in shard_ids if shard_id not in by_id]:
        raise DataError(
            f"Shard {gone[0]} was chosen by this cycle and is gone or damaged.",
            hint="`filmloop shards verify` tells what happened; the next cycle chooses anew.",
            ids={"shard_id": gone[0]},
        )
    return [by_id[shard_id] for shard_id in shard_ids]


def _who(cycle: Cycle) -> str:
    return f"cycle at site {cycle.parts.config.site}"
