"""The site file's schema. Every key has a default that works on one machine, and a description that the docs print."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from filmloop.config.forms import MODEL_NAME, SITE_NAME, WEB_ADDRESS
from filmloop.config.globus import GlobusLauncher, GlobusMover, GlobusSection
from filmloop.config.launchers import PbsLauncher, SlurmLauncher
from filmloop.config.section import Section
from filmloop.config.sources import PvAccessSource, ReplaySource, SimulatorSource, Source, ZeroMqSource
from filmloop.core.documents import HoldoutPolicy, Seed, TrainHyper
from filmloop.core.fsio import canonical_json, sha256_bytes

__all__ = [
    "GlobusLauncher",
    "GlobusMover",
    "GlobusSection",
    "PbsLauncher",
    "PvAccessSource",
    "ReplaySource",
    "Section",
    "SimulatorSource",
    "SiteConfig",
    "SlurmLauncher",
    "ZeroMqSource",
]


_MOST_BINS = 2**26
"""Of a frame. A batch of the smallest kind, 256 such frames of uint8, is 17 GB."""


class FrameSection(Section):
    """Shape of a frame."""

    channels: int = Field(16, ge=1, description="angles; first axis of a frame")
    energy_bins: int = Field(128, ge=1, description="energies; second axis of a frame")

    @model_validator(mode="after")
    def _can_be_held(self) -> Self:
        if (bins := self.channels * self.energy_bins) > _MOST_BINS:
            raise ValueError(f"a frame of {self.channels} x {self.energy_bins} has {bins:,} bins, above {_MOST_BINS:,}")
        return self


class ModelSection(Section):
    """Which network the loop keeps fresh."""

    name: str = Field("mixer", description="a catalog name, or package.module:SPEC")
    registered_as: str = Field(
        "", pattern=MODEL_NAME, description="name in the registry; '' is <site>-<name>-<channels>x<energy_bins>"
    )
    hyper: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="hyper-parameters of the network, over its defaults"
    )


RuntimeName = Literal["auto", "torch", "onnxruntime", "openvino-f32", "openvino-bf16", "openvino-int8", "cuda"]


class EdgeSection(Section):
    """The service at the instrument."""

    runtime: RuntimeName = Field(
        "auto", description="what runs the network; auto measures what this machine has and takes the fastest that "
        "stays within the model's tolerance"
    )  # fmt: skip
    threads: int = Field(0, ge=0, description="CPU threads of inference; 0: one for every core this process may use")
    latency_budget_ms: float = Field(
        20.0, gt=0, description="from arrival to result: frames wait at most half of it for others to be inferred with"
    )
    batch_frames: int = Field(
        0,
        ge=0,
        description="frames that are inferred together, at most; 0: what suits, 256 on a CPU and 4096 on a GPU. "
        "A backlog is taken in larger pieces, 256 frames at least on a CPU",
    )
    tune: bool = Field(
        False, description="on a GPU, compile the network: three times as fast for one of convolutions, for half a minute "
        "when it first loads; needs a C compiler"
    )  # fmt: skip
    isolation: Literal["processes", "threads"] = Field(
        "processes", description="what source, inference and staging run in; a stage in a process of its own can be "
        "restarted, threads share one interpreter"
    )  # fmt: skip
    standby: bool = Field(
        True, description="prepare new weights in a second process of inference, at a low priority, that then relieves the "
        "first; off: beside the frames, in the one there is, for 300 MB less. Stages in processes on CPUs only"
    )  # fmt: skip
    ring_mb: float = Field(
        128.0,
        gt=0,
        description="memory of the ring of frames between the stages, in MB; at 16x128 one holds 500 frames",
    )
    shed_at: float = Field(
        0.5, gt=0, lt=1, description="share of the ring that may wait for staging before a live source's frames are "
        "inferred and not staged"
    )  # fmt: skip
    stall_after_s: float = Field(10.0, gt=0, description="a stage that shows no life for so long is restarted")
    quality_every: int = Field(32, ge=1, description="every n-th frame gets a held-out thinned NLL")
    quality_hz: float = Field(250.0, gt=0, description="at most so many frames a second get one")
    quality_window_frames: int = Field(512, ge=8, description="the reported quality is over this many sampled frames")
    watch_every_s: float = Field(1.0, gt=0, description="how often the champion alias is looked up")
    status_every_s: float = Field(0.5, gt=0, description="how often the edge writes its status file")
    golden_tolerance: float = Field(
        1e-3, gt=0, description="relative RMS between served and golden output of a runtime with full precision; "
        "one with less has the tolerance of the model"
    )  # fmt: skip


class StagingSection(Section):
    """How shards are cut, packed and kept."""

    layout: Literal["dense", "events"] = Field(
        "dense", description="dense: counts of every bin; events: a list of hits, for sources that bring hits"
    )
    frames_per_shard: int = Field(131072, ge=1, description="a shard with this many frames is sealed")
    frames_per_chunk: int = Field(1024, ge=1, description="frames that are compressed together: the unit of a read")
    threads: int = Field(
        0,
        ge=0,
        le=64,
        description="threads that compress; 0: one for every two cores that this process may use, 8 at most",
    )
    seal_after_s: float = Field(15.0, gt=0, description="an open shard is sealed after this time, full or not")
    keep_every: int = Field(
        1, ge=1, description="stage one of so many frames, picked by a hash of the pulse id; 1: all"
    )
    keep_surprising: float = Field(
        0.0, ge=0, lt=1, description="beside them, about this share of the frames: those that the live weights explain "
        "worst; only with keep_every above 1"
    )  # fmt: skip
    keep_shards: int = Field(
        100, ge=1, description="sealed shards kept per stream; older ones go once they were trained on"
    )
    max_shards: int = Field(
        1000,
        ge=1,
        description="sealed shards of a stream kept at most, trained on or not; beyond it the oldest go, "
        "and the log says so",
    )

    @property
    def stages_surprising(self) -> bool:
        """Whether frames are kept for being surprising: then inference has to say how surprising each is."""
        return self.keep_every > 1 and self.keep_surprising > 0

    @model_validator(mode="after")
    def _keeps_what_it_may(self) -> Self:
        if self.keep_shards > self.max_shards:
            raise ValueError(f"keep_shards = {self.keep_shards} is above max_shards = {self.max_shards}")
        return self


class LocalMover(Section):
    """Copies within one machine, as if to another: verified at the receiver."""

    kind: Literal["local"] = Field("local", description="a verified copy on this machine")
    deadline_s: float = Field(
        300.0, gt=0, description="a move that takes longer is given up; the next call goes on with it"
    )


class LocalLauncher(Section):
    """torchrun as a subprocess group on this machine."""

    kind: Literal["local"] = Field("local", description="torchrun on this machine")
    processes: int = Field(2, ge=1, description="ranks")
    threads: int = Field(1, ge=1, description="CPU threads of each rank")
    warm: bool = Field(
        True, description="fork the ranks from a worker that has torch loaded, and keep it for the next cycle; false, or "
        "where no worker can be had, starts torchrun cold"
    )  # fmt: skip
    warm_idle_s: float = Field(
        1200.0,
        gt=0,
        description="the worker ends after this time without a job; until then it holds some 260 MB of its own",
    )

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        return self.processes


def _local_by_default(section: Any) -> Any:
    """A section that names no kind is of the local one, as every key has a default."""
    return {"kind": "local"} | section if isinstance(section, dict) else section


Mover = Annotated[LocalMover | GlobusMover, Field(discriminator="kind"), BeforeValidator(_local_by_default)]
Launcher = Annotated[
    LocalLauncher | SlurmLauncher | PbsLauncher | GlobusLauncher,
    Field(discriminator="kind"),
    BeforeValidator(_local_by_default),
]


class MlflowRegistry(Section):
    """An MLflow tracking server with its model registry."""

    kind: Literal["mlflow"] = Field("mlflow", description="an MLflow server")
    uri: str = Field("", pattern=WEB_ADDRESS, description="'' starts and finds a server of our own on this machine")
    host: str = Field("127.0.0.1", description="where our own server listens")
    port: int = Field(0, ge=0, le=65535, description="0: the first free port from 5050 up, kept across restarts")
    experiment: str = Field("filmloop", min_length=1, description="experiment that holds the training runs")
    timeout_s: float = Field(10.0, gt=0, description="of one request")
    start_deadline_s: float = Field(120.0, gt=0, description="how long our own server may take to start")

    @field_validator("uri")
    @classmethod
    def _no_secret(cls, uri: str) -> str:
        if "@" in uri.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "a name or a password in it would be read in messages, logs and every version's tags; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment instead"
            )
        return uri


class TrainingSection(Section):
    """What goes into a cycle's training job."""

    min_frames: int = Field(6000, ge=1, description="fewer fresh frames than this: nothing to do")
    max_fresh_frames: int = Field(60000, ge=1, description="the newest ones")
    replay_frames: int = Field(20000, ge=0, description="older, already trained frames mixed in against forgetting")
    warm_start: bool = Field(True, description="start from the champion's weights; false starts from scratch")
    deadline_s: float = Field(900.0, gt=0, description="a job that takes longer is ended")
    seed: Seed = Field(0, description="of weights, batches and thinning")
    hyper: TrainHyper = Field(TrainHyper(), description="how to train")
    holdout: HoldoutPolicy = Field(HoldoutPolicy(), description="which frames are kept back for the score")


class GatePolicy(Section):
    """When a challenger replaces the champion."""

    min_gain: float = Field(
        0.0005,
        ge=0,
        description="smallest gain worth a swap: fewer nats a frame, as a share of the reference's mean |NLL|",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="two-sided, of the paired bootstrap")
    resamples: int = Field(2000, ge=100, description="bootstrap resamples")
    min_frames: int = Field(200, ge=1, description="fewer held-out frames decide nothing")
    seed: int = Field(7, ge=0, description="of the bootstrap: the same reports give the same verdict")


class ZooSection(Section):
    """Former versions as ancestors, and their return."""

    recall: Literal["promote", "warm_start", "off"] = Field(
        "promote", description="promote: a former version that fits the newest frames again becomes champion without "
        "training; warm_start: training starts from the best one at most; off: always from the champion"
    )  # fmt: skip
    candidates: int = Field(8, ge=1, description="former versions that are scored in a cycle, at most")
    frames: int = Field(1000, ge=10, description="held-out fresh frames that they are scored on, at most")
    alike: float = Field(
        1.0, gt=0, description="farthest that the newest frames may be from those that a version was trained on, for it "
        "to come back without training; 1 is a noticeable drift"
    )  # fmt: skip
    deadline_s: float = Field(30.0, gt=0, description="what is not scored by then is left out of the cycle")


class DriftSection(Section):
    """What counts as drift, and what to do about it; docs/explanation/drift.md."""

    policy: Literal["always", "on_drift", "on_drift_or_after"] = Field(
        "always", description="when `filmloop retrain` runs a cycle: whenever it is called; only while there is a drift "
        "that needs training; or also when `after_s` have passed since the last cycle that trained"
    )  # fmt: skip
    after_s: float = Field(14400.0, gt=0, description="of the policy on_drift_or_after")
    rest_s: float = Field(
        600.0, gt=0, description="`filmloop drift watch` begins a cycle at most so often while the same drift lasts"
    )
    false_alarms_per_1000: float = Field(
        1.0, gt=0, le=100, description="quiet windows in 1,000 that may raise an alarm, over all statistics together"
    )
    window_frames: int = Field(512, ge=32, description="sampled frames of a window; each is tested when it is full")
    reference_windows: int = Field(
        8, ge=2, description="the first windows of a version say what is normal for it; an even number"
    )
    correct_gain: bool = Field(
        True, description="channels whose gain drifted are corrected before the network, dead ones are masked"
    )
    largest_gain: float = Field(4.0, gt=1, description="gains beyond 1/4 to 4 are corrected to there only")
    least_gain: float = Field(0.02, ge=0, description="relative; a smaller change of a channel is no drift")
    least_intensity: float = Field(0.05, ge=0, description="relative; a smaller change of the counts is none")
    least_energy_bins: float = Field(0.25, ge=0, description="a smaller shift of energies is none")
    least_streaking: float = Field(0.03, ge=0, description="relative; a smaller change of the streaking is none")
    least_width: float = Field(0.05, ge=0, description="relative; a smaller change of the width of lines is none")
    least_nll: float = Field(0.002, ge=0, description="a smaller rise of the NLL, as a share of it, is none")

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.reference_windows % 2:
            raise ValueError(f"reference_windows = {self.reference_windows} is not even")
        return self


class SiteConfig(Section):
    """A whole site: one edge and cluster pair."""

    schema_version: Literal[1] = Field(1, description="version of this schema")
    site: str = Field("local", pattern=SITE_NAME, description="name of the site")
    home: str = Field("../.filmloop", description="state folder, relative to this file; FILMLOOP_HOME overrides it")
    frame: FrameSection = FrameSection()
    source: Source = SimulatorSource()
    model: ModelSection = ModelSection()
    edge: EdgeSection = EdgeSection()
    staging: StagingSection = StagingSection()
    globus: GlobusSection = GlobusSection()
    mover: Mover = LocalMover()
    launcher: Launcher = LocalLauncher()
    registry: MlflowRegistry = MlflowRegistry()
    training: TrainingSection = TrainingSection()
    gate: GatePolicy = GatePolicy()
    zoo: ZooSection = ZooSection()
    drift: DriftSection = DriftSection()

    @model_validator(mode="after")
    def _queue_grants_the_training(self) -> Self:
        if not isinstance(self.launcher, GlobusLauncher) or self.launcher.walltime_s is None:
            return self
        wanted_s = self.training.deadline_s + self.launcher.save_before_s
        if self.launcher.walltime_s < wanted_s:
            raise ValueError(
                f"launcher.options.walltime is below training.deadline_s and launcher.save_before_s, {wanted_s:.0f} s: "
                "the queue would end the job first"
            )
        return self

    @model_validator(mode="after")
    def _every_rank_has_a_frame(self) -> Self:
        if self.training.hyper.batch_frames < self.launcher.ranks:
            raise ValueError(
                f"training.hyper.batch_frames = {self.training.hyper.batch_frames} is below the {self.launcher.ranks} "
                "ranks of [launcher]: a batch is shared by all of them"
            )
        return self

    @property
    def empty_keys(self) -> tuple[str, ...]:
        """What nobody has filled in yet and a site that works through Globus cannot do without; () for all others."""
        if "globus" not in (self.mover.kind, self.launcher.kind):
            return ()
        empty = [] if self.globus.client_id else ["[globus] client_id"]
        if isinstance(self.mover, GlobusMover):
            empty += [f"[mover] {key}" for key in self.mover.missing]
        if isinstance(self.launcher, GlobusLauncher):
            options = self.launcher.options
            empty += [f"[launcher{'.options' * (key in options)}] {key}" for key in self.launcher.missing]
        return tuple(empty)

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(C, E)."""
        return self.frame.channels, self.frame.energy_bins

    @property
    def registered_model(self) -> str:
        """Name of the registered model."""
        return self.model.registered_as or (
            f"{self.site}-{self.model.name.replace(':', '.')}-{self.frame.channels}x{self.frame.energy_bins}"
        )

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, as written beside every cycle."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """SHA-256 over the canonical JSON form; part of a version's lineage."""
        return sha256_bytes(canonical_json(self.as_json()))
