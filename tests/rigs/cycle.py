"""One site whose cycles have everything real but the trainer and the registry server."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from filmloop.bundle import file_digests
from filmloop.config.loader import parse_site
from filmloop.config.paths import Home
from filmloop.core.documents import EvaluationReport, FileDigest, TrainJob
from filmloop.core.errors import AuthError, TransientError
from filmloop.cycle import run_cycle
from filmloop.journal import CycleParts
from filmloop.ledger import Ledger
from filmloop.ports.launcher import LaunchStatus
from filmloop.ports.registry import CHAMPION
from filmloop.testing.bundles import make_bundle, small_report
from filmloop.testing.fakes import MemoryRegistry
from filmloop.testing.shards import example_block, write_shard

FRAME_SHAPE = (4, 8)
Act = Literal["win", "lose", "tie", "fail", "find_damage", "lose_job", "hang_up", "lock_out"]


@dataclass
class ScriptedTrainer:
    """A launcher whose jobs end at once, as told: one act a submit, the last one for ever."""

    acts: list[Act]
    submitted: list[str] = field(default_factory=list)
    jobs: list[TrainJob] = field(default_factory=list)

    def submit(self, job: TrainJob) -> str:
        self.jobs.append(job)
        act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
        self.submitted.append(act)
        if act == "hang_up":
            raise TransientError("The service is away.")
        if act == "lock_out":
            raise AuthError("The login has ended.")
        for ref in job.fresh + job.replay:
            assert Path(ref.manifest_path).is_file(), "the job names shards where they lie on the cluster"
        if act in ("win", "lose", "tie"):
            shutil.rmtree(job.output_dir, ignore_errors=True)
            make_bundle(
                Path(job.output_dir) / "bundle",
                seed=len(self.jobs),
                job_id=job.job_id,
                base_version=job.base.version if job.base else "",
                reports=_reports(act, champion=job.champion.version if job.champion else ""),
            )
        return f"{act} {job.output_dir}"

    def poll(self, handle: str) -> LaunchStatus:
        act, folder = handle.split(" ", 1)
        if act == "lose_job":
            return LaunchStatus(state="lost", detail="the node went away")
        if act == "fail":
            return LaunchStatus(state="failed", exit_code=6, detail="loss is nan", log_tail="step 12 loss nan")
        if act == "find_damage":
            return LaunchStatus(state="failed", exit_code=5, error="DataError", detail="counts has another SHA-256")
        bundle = Path(folder) / "bundle"
        files = (*file_digests(bundle), FileDigest.of(bundle / "result.json", bundle))
        return LaunchStatus(state="succeeded", exit_code=0, bundle_files=files)

    def cancel(self, handle: str) -> None:
        self.submitted.append(f"cancelled {handle.split(' ')[0]}")


def _reports(act: str, *, champion: str) -> dict[str, EvaluationReport]:
    # 400 frames, spread 5 nats: a shift of 1 nat is 4 standard errors of the unpaired mean and exact when paired.
    base = tuple(float(x) for x in np.random.default_rng(0).normal(60.0, 5.0, 400))
    shift = {"win": -1.0, "lose": 1.0, "tie": 0.0}[act]
    reports = {
        "challenger": small_report("challenger", tuple(x + shift for x in base)),
        "gaussian": small_report("gaussian", base),
    }
    if champion:
        reports["champion"] = small_report("champion", base).model_copy(update={"version": champion})
    return reports


@dataclass
class World:
    """One site on one machine."""

    parts: CycleParts
    trainer: ScriptedTrainer
    registry: MemoryRegistry
    ledger: Ledger
    home: Home
    shards: int = 0

    def stage(self, count: int = 2, frames: int = 32, *, labelled: bool = False, dark: int = 0) -> None:
        for _ in range(count):
            first = self.shards * frames
            block = example_block(frames, first_pulse_id=first, frame_shape=FRAME_SHAPE, labelled=labelled)
            write_shard(self.home.stage, block, stream="test", seq=self.shards, frames_dark=dark)
            self.shards += 1

    def change(self, **training: Any) -> None:
        config = self.parts.config.as_json()
        config["training"] |= training
        self.parts = replace(self.parts, config=parse_site(config))

    def cycle(self, *acts: Act, again: bool = False):  # type: ignore[no-untyped-def]
        if acts:
            self.trainer.acts[:] = acts
        return run_cycle(self.parts, again=again, tell=lambda step, text: None)

    def champion(self) -> str:
        found = self.registry.get(CHAMPION)
        return found.version if found else ""
