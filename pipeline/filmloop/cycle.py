"""One retraining cycle, top to bottom.

    seal      ask the edge to seal what it has
    select    choose fresh shards, older ones against forgetting, and the champion to start from
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
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filmloop.bundle import load_evaluation, verify_bundle
from filmloop.config.paths import Home
from filmloop.config.schema import SiteConfig
from filmloop.core.clock import epoch_s
from filmloop.core.documents import CycleReport, FileDigest, Outcome, TrainResult, Verdict, WeightsRef
from filmloop.core.errors import DataError, FilmloopError, TransientError
from filmloop.core.fsio import atomic_write_bytes, atomic_write_json, read_json
from filmloop.core.log import log_context
from filmloop.core.retry import wait_until
from filmloop.edge.control import request_seal
from filmloop.edge.status import is_alive, read_status
from filmloop.housekeeping import remove_old
from filmloop.launching import launch, training_job
from filmloop.ledger import DAMAGED, TRAINED, CycleRow, Ledger
from filmloop.ports.launcher import Launcher
from filmloop.ports.mover import Direction, MoveItem, Mover
from filmloop.ports.registry import CHAMPION, Registry
from filmloop.promotion.gate import judge
from filmloop.promotion.publish import promote, set_challenger, settle
from filmloop.promotion.report import describe
from filmloop.shipping import bundle_items, local_bundle, move, shard_items, shard_paths, shard_ref, weights_folder
from filmloop.staging.catalog import SealedShard, sealed_shards
from filmloop.staging.verify import verify_shard

_log = logging.getLogger(__name__)

_OUTCOMES: dict[str, Outcome] = {"promote": "promoted", "refuse": "refused", "undecided": "undecided"}
_SEAL_DEADLINE_S = 10.0
_LIVE_DEADLINE_S = 30.0
_KEEP_CYCLES = 50  # whose bundle and moves stay on this side; the registry has every bundle
_KEEP_WEIGHTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleParts:
    """Everything a cycle works with; `filmloop.bootstrap` puts it together.

    Attributes:
        stream: The stream of frames to train on.
        frame_shape: (C, E) of its frames.
        cluster_root: The cluster's folder as a path of the cluster's own file system.
        code_commit: Version of this code, for the lineage.
        poll_s: Longest pause between two looks at a move or a job.
    """

    config: SiteConfig
    home: Home
    ledger: Ledger
    mover: Mover
    launcher: Launcher
    registry: Registry
    stream: str
    frame_shape: tuple[int, int]
    cluster_root: Path
    code_commit: str
    poll_s: float = 0.2


Tell = Callable[[str, str], None]
"""Called with (step, text) as things happen."""


def run_cycle(parts: CycleParts, *, again: bool = False, tell: Tell) -> CycleReport:
    """Run one cycle, or take up the one that was cut off. `again`: shards count as fresh although they were trained on.

    Raises:
        FilmloopError: a step failed. After a retryable error the cycle stays open and the next call goes on with it;
            after any other it is closed as failed and the next call begins anew.
    """
    with parts.ledger.cycle_lock() as free:
        if not free:
            return CycleReport(outcome="busy", message="Another cycle is running; this one did nothing.")
        settle(parts.registry, parts.ledger)
        cycle = _Cycle(parts, _resumable(parts) or parts.ledger.start_cycle(), tell)
        with log_context(cycle_id=cycle.id):
            try:
                return _steps(cycle, again)
            except FilmloopError as exc:
                exc.ids.setdefault("cycle_id", cycle.id)
                if not exc.retryable:
                    _close_failed(cycle, exc)
                raise


def _steps(cycle: _Cycle, again: bool) -> CycleReport:
    parts, step = cycle.parts, cycle.step
    atomic_write_json(cycle.folder / "config.json", parts.config.as_json())

    step("seal", "asking the edge for its open shard", _seal)
    chosen = step("select", "choosing shards", lambda c: _select(c, again))
    if chosen["too_few"]:
        return _finish(cycle, "nothing_to_do", chosen["too_few"], chosen)

    step("move", f"shipping {chosen['frames']:,} frames to the cluster", lambda c: _move(c, chosen))
    trained = step("train", "starting the ranks", lambda c: _train(c, chosen))
    step("fetch", "bringing the bundle home", lambda c: _fetch(c, trained))
    verdict = Verdict.model_validate(step("judge", "comparing on held-out frames", _judge))
    registered = step("register", "registering the version", lambda c: _register(c, chosen, verdict))

    if verdict.decision != "promote":
        return _finish(cycle, _OUTCOMES[verdict.decision], " ".join(verdict.reasons), chosen)
    version = registered["version"]
    promoted = step("promote", f"making version {version} champion", lambda c: _promote(c, chosen, version, verdict))
    if promoted["overtaken"]:
        return _finish(cycle, "undecided", promoted["overtaken"], chosen)
    step("live", "waiting for the edge to swap", lambda c: _live(c, chosen, version))
    return _finish(cycle, "promoted", " ".join(verdict.reasons), chosen)


def _seal(cycle: _Cycle) -> dict[str, Any]:
    """The edge seals its open shard; without a running edge there is none."""
    return {"sealed": request_seal(cycle.parts.home, cycle.id, _SEAL_DEADLINE_S)}


def _select(cycle: _Cycle, again: bool) -> dict[str, Any]:
    """Fresh shards, older ones, the champion. From here on retention leaves the chosen shards alone."""
    parts, training = cycle.parts, cycle.parts.config.training
    states = parts.ledger.shard_states()
    shards = [
        shard
        for shard in sealed_shards(parts.home.stage, parts.stream)
        if shard.manifest.frame_shape == parts.frame_shape and states.get(shard.shard_id) != DAMAGED
    ]
    new = [shard for shard in shards if again or states.get(shard.shard_id) != TRAINED]
    fresh = _whole(cycle, _newest(new, training.max_fresh_frames))
    replay = _whole(cycle, _newest([shard for shard in shards if shard not in new], training.replay_frames))
    frames = sum(shard.manifest.frames for shard in fresh)
    if frames < training.min_frames:
        reason = (
            f"Nothing to train on yet: {frames:,} fresh frames in stream {parts.stream!r}, a cycle wants "
            f"{training.min_frames:,}. {sum(s.manifest.frames for s in shards):,} frames are staged in all."
        )
        return {"too_few": reason, "frames": frames}
    # Fresh shards beyond max_fresh_frames are passed over for good: with this cycle they count as used.
    states = parts.ledger.shard_states()
    used = [shard.shard_id for shard in new if states.get(shard.shard_id) != DAMAGED]
    old = [shard.shard_id for shard in replay]
    parts.ledger.choose_shards(cycle.id, [*used, *old])
    champion = parts.registry.get(CHAMPION)
    return {
        "too_few": "",
        "frames": frames,
        "fresh": [shard.shard_id for shard in fresh],
        "replay": old,
        "used": used,
        "champion": "" if champion is None else champion.version,
        "newest_sealed_utc": max(shard.manifest.sealed_utc for shard in fresh),
    }


def _whole(cycle: _Cycle, shards: list[SealedShard]) -> list[SealedShard]:
    """The shards that are what their manifests say. A damaged one is set aside: it must not fail every cycle to come."""
    whole = []
    for shard in shards:
        try:
            verify_shard(shard.manifest_path)
        except DataError as exc:
            _log.error("shard %s is damaged and set aside: %s", shard.shard_id, exc.message)
            cycle.tell("select", f"shard {shard.shard_id} is damaged and set aside")
            cycle.parts.ledger.set_aside(cycle.id, shard.shard_id)
        else:
            whole.append(shard)
    return whole


def _newest(shards: list[SealedShard], max_frames: int) -> list[SealedShard]:
    """The newest shards of together at most `max_frames` frames (but one, if it alone is larger), oldest first."""
    taken: list[SealedShard] = []
    room = max_frames
    for shard in reversed(shards):
        if room <= 0 or (taken and shard.manifest.frames > room):
            break
        taken.append(shard)
        room -= shard.manifest.frames
    return taken[::-1]


def _move(cycle: _Cycle, chosen: dict[str, Any]) -> dict[str, Any]:
    """Shards and base weights to the cluster; what is there already and whole is not sent again."""
    parts = cycle.parts
    shards = _shards(cycle, chosen["fresh"] + chosen["replay"])
    items = [item for shard in shards for item in shard_items(parts.home, shard)]
    if version := chosen["champion"]:
        bundle = local_bundle(parts.home, parts.registry, version)
        items += bundle_items(bundle, parts.home.root, weights_folder(parts.registry.model, version))
    return _ship(cycle, "move", "to_cluster", items)


def _train(cycle: _Cycle, chosen: dict[str, Any]) -> dict[str, Any]:
    """torchrun on the cluster, until it ends or its deadline passes."""
    parts = cycle.parts
    job = training_job(
        parts.config,
        job_id=cycle.id,
        frame_shape=parts.frame_shape,
        fresh=[shard_ref(parts.home, shard, parts.cluster_root) for shard in _shards(cycle, chosen["fresh"])],
        replay=[shard_ref(parts.home, shard, parts.cluster_root) for shard in _shards(cycle, chosen["replay"])],
        champion=_champion_weights(cycle, chosen["champion"]),
        output_dir=parts.cluster_root / "runs" / cycle.id,
        code_commit=parts.code_commit,
    )
    job.write(cycle.folder / "job.json")
    files = launch(
        parts.launcher,
        job,
        poll_s=parts.poll_s,
        keep_handle=lambda handle: cycle.keep_handle("train", handle),
        tell=lambda text: cycle.tell("train", text),
    )
    return {"files": [file.as_json() for file in files]}


def _champion_weights(cycle: _Cycle, version: str) -> WeightsRef | None:
    parts = cycle.parts
    if not version:
        return None
    return WeightsRef(
        version=version,
        bundle_path=str(parts.cluster_root / weights_folder(parts.registry.model, version)),
        weights_sha256=verify_bundle(local_bundle(parts.home, parts.registry, version)).weights_sha256,
    )


def _fetch(cycle: _Cycle, trained: dict[str, Any]) -> dict[str, Any]:
    """The bundle from the cluster's run folder into the cycle's folder, hashed on arrival, then checked as a whole."""
    target = (cycle.folder / "bundle").relative_to(cycle.parts.home.root).as_posix()
    files = [FileDigest.model_validate(file) for file in trained["files"]]
    moved = _ship(cycle, "fetch", "to_edge", [MoveItem.below(f"runs/{cycle.id}/bundle", f, target) for f in files])
    result = verify_bundle(cycle.folder / "bundle")
    if result.job_id != cycle.id:
        raise DataError(f"The bundle belongs to job {result.job_id}, not to {cycle.id}.")
    return {"bundle_digest": result.bundle_digest(), **moved}


def _judge(cycle: _Cycle) -> dict[str, Any]:
    """Challenger against champion; the first version of all against the Gaussian baseline."""
    reports = load_evaluation(cycle.folder / "bundle").reports
    against = "champion" if "champion" in reports else "gaussian"
    verdict = judge(reports["challenger"], reports[against], cycle.parts.config.gate, against=against)
    verdict.write(cycle.folder / "verdict.json")
    return verdict.as_json()


def _register(cycle: _Cycle, chosen: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
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
    )
    atomic_write_bytes(cycle.folder / "report.md", text.encode())
    tags = {
        "filmloop.site": parts.config.site,
        "filmloop.stream": parts.stream,
        "filmloop.base_version": chosen["champion"],
        "filmloop.gate": verdict.decision,
        "filmloop.config": parts.config.model_dump_json(),
    }
    info = parts.registry.register(folder, key=cycle.id, description=text, tags=tags, metrics=result.metrics)
    set_challenger(
        parts.registry, parts.ledger, version=info.version, who=_who(cycle), why="newest candidate", cycle_id=cycle.id
    )
    return {"version": info.version, "url": info.url}


def _promote(cycle: _Cycle, chosen: dict[str, Any], version: str, verdict: Verdict) -> dict[str, Any]:
    """Move the champion alias, unless somebody moved it while this cycle was training."""
    registry, expected = cycle.parts.registry, chosen["champion"]
    now = registry.get(CHAMPION)
    if now is not None and now.version not in (expected, version):
        overtaken = (
            f"Version {version} won against {f'champion {expected}' if expected else 'the baseline'}, but version "
            f"{now.version} was made champion meanwhile. `filmloop models promote {version}` makes it champion all the same."
        )
        return {"overtaken": overtaken}
    why = " ".join(verdict.reasons)
    promote(
        registry, cycle.parts.ledger, version=version, expected=expected, who=_who(cycle), why=why, cycle_id=cycle.id
    )
    return {"overtaken": ""}


def _live(cycle: _Cycle, chosen: dict[str, Any], version: str) -> dict[str, Any]:
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
        return wait_until(served, deadline_s=_LIVE_DEADLINE_S, what=f"The swap to version {version} at the edge")
    except TransientError as exc:
        _log.warning("%s It stays champion, and the edge takes it as soon as it can.", exc.message)
        return {"edge": True, "turnaround_s": None}


def _finish(cycle: _Cycle, outcome: Outcome, message: str, chosen: dict[str, Any]) -> CycleReport:
    """Close the cycle: its shards become trained, its report is kept, the cluster is tidied."""
    parts, done = cycle.parts, cycle.results()
    result = TrainResult.read(cycle.folder / "bundle" / "result.json") if "fetch" in done else None
    seconds = cycle.seconds()
    report = CycleReport(
        cycle_id=cycle.id,
        outcome=outcome,
        message=message,
        version=done.get("register", {}).get("version", ""),
        base_version="" if result is None else result.base_version,
        turnaround_s=done.get("live", {}).get("turnaround_s"),
        overhead_s=None if result is None else round(sum(seconds.values()) - result.train_s, 3),
        train_s=None if result is None else round(result.train_s, 3),
        steps=seconds,
        gate=Verdict.model_validate(done["judge"]) if "judge" in done else None,
        metrics={} if result is None else result.metrics,
        frames=chosen["frames"],
        url=done.get("register", {}).get("url", ""),
    )
    report.write(cycle.folder / "summary.json")
    if result is not None:
        _tidy(cycle)
    parts.ledger.finish_cycle(cycle.id, outcome, report.as_json(), trained=chosen.get("used", ()))
    return report


def _tidy(cycle: _Cycle) -> None:
    """Free what neither side needs any more: this run's folder, shards too old to be mixed in, old bundles."""
    parts = cycle.parts
    shards = sealed_shards(parts.home.stage, parts.stream)
    kept = _newest(shards, max(parts.config.training.replay_frames, 1))
    old = [path for shard in shards if shard not in kept for path in shard_paths(parts.home, shard)]
    try:
        parts.mover.discard([f"runs/{cycle.id}", *old], key=f"{cycle.id}-tidy")
    except FilmloopError as exc:
        _log.warning("the cluster was not tidied: %s", exc.message)
    remove_old(parts.home, keep_cycles=_KEEP_CYCLES, keep_weights=_KEEP_WEIGHTS)


def _resumable(parts: CycleParts) -> CycleRow | None:
    """The open cycle, if it was begun under this very configuration; under another one it is closed as failed."""
    row = parts.ledger.open_cycle()
    if row is None:
        return None
    begun_under = parts.home.cycles / row.cycle_id / "config.json"
    if begun_under.exists() and read_json(begun_under) != parts.config.as_json():
        for step in parts.ledger.steps(row.cycle_id):
            if step.name == "train" and step.handle and step.result is None:
                parts.launcher.cancel(step.handle)
        message = "Abandoned: it was cut off, and the site's configuration has changed since."
        _log.warning("cycle %s: %s", row.cycle_id, message)
        report = CycleReport(cycle_id=row.cycle_id, outcome="failed", message=message)
        parts.ledger.finish_cycle(row.cycle_id, "failed", report.as_json())
        return None
    return row


def _close_failed(cycle: _Cycle, exc: FilmloopError) -> None:
    report = CycleReport(cycle_id=cycle.id, outcome="failed", message=exc.message, steps=cycle.seconds())
    report.write(cycle.folder / "summary.json")
    cycle.parts.ledger.finish_cycle(cycle.id, "failed", {**report.as_json(), "error": exc.as_dict()})


def _ship(cycle: _Cycle, step: str, direction: Direction, items: list[MoveItem]) -> dict[str, Any]:
    return move(
        cycle.parts.mover,
        direction,
        items,
        key=f"{cycle.id}-{step}",
        deadline_s=cycle.parts.config.mover.deadline_s,
        poll_s=cycle.parts.poll_s,
        keep_handle=lambda handle: cycle.keep_handle(step, handle),
    )


def _shards(cycle: _Cycle, shard_ids: list[str]) -> list[SealedShard]:
    by_id = {shard.shard_id: shard for shard in sealed_shards(cycle.parts.home.stage, cycle.parts.stream)}
    if gone := [shard_id for shard_id in shard_ids if shard_id not in by_id]:
        raise DataError(
            f"Shard {gone[0]} was chosen by this cycle and is gone or damaged.",
            hint="`filmloop shards verify` tells what happened; the next cycle chooses anew.",
            ids={"shard_id": gone[0]},
        )
    return [by_id[shard_id] for shard_id in shard_ids]


def _who(cycle: _Cycle) -> str:
    return f"cycle at site {cycle.parts.config.site}"


@dataclass(frozen=True, slots=True)
class _Cycle:
    """The cycle under way: its parts, its row in the journal, and whom to tell."""

    parts: CycleParts
    row: CycleRow
    tell: Tell

    @property
    def id(self) -> str:
        return self.row.cycle_id

    @property
    def folder(self) -> Path:
        return self.parts.home.cycles / self.id

    def step(self, name: str, text: str, do: Callable[[_Cycle], dict[str, Any]]) -> dict[str, Any]:
        """Do a step, unless the journal has its result already."""
        found = self.parts.ledger.begin_step(self.id, name)
        if found.result is not None:
            return found.result
        self.tell(name, text)
        begun_s = time.monotonic()
        try:
            result = do(self)
        except BaseException:
            self.parts.ledger.add_step_time(self.id, name, time.monotonic() - begun_s)
            raise
        self.parts.ledger.end_step(self.id, name, result, time.monotonic() - begun_s)
        return result

    def keep_handle(self, name: str, handle: str) -> None:
        self.parts.ledger.keep_handle(self.id, name, handle)

    def results(self) -> dict[str, dict[str, Any]]:
        return {step.name: step.result for step in self.parts.ledger.steps(self.id) if step.result is not None}

    def seconds(self) -> dict[str, float]:
        return {step.name: round(step.seconds, 3) for step in self.parts.ledger.steps(self.id)}
