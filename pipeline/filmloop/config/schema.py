"""The site file's schema. Every key has a default that works on one machine, and a description that the docs print."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from filmloop.core.documents import HoldoutPolicy, TrainHyper
from filmloop.core.fsio import canonical_json, sha256_bytes
from filmloop_models.cookiebox.conditions import Conditions, DriftStep


class Section(BaseModel):
    """Base of all sections: frozen, and a key that nobody knows is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SimulatorSource(Section):
    """The CookieBox simulator: real Poisson counts, no truth in the stream."""

    kind: Literal["simulator"] = Field("simulator", description="frames from the simulated CookieBox")
    stream: str = Field("simulator", description="name of the stream; shards lie in a folder of this name")
    seed: int = Field(1, ge=0, description="the same seed makes the same frames on any machine")
    run_number: int = Field(1, ge=0, description="run that the frames belong to")
    rate_hz: float = Field(2000.0, ge=0, description="frames a second; 0 is as fast as it can")
    frames: int | None = Field(None, ge=1, description="end after this many frames; not set: never")
    labelled: bool = Field(False, description="put the true rates beside the counts, for labelled training")
    conditions: Conditions = Field(Conditions(), description="beam and detector at frame 0")
    drift: tuple[DriftStep, ...] = Field((), description="how the conditions change with the frame number")


class ReplaySource(Section):
    """Recorded frames: published CookieNetAE or CookieSimSlim HDF5, or our own shards."""

    kind: Literal["replay"] = Field("replay", description="recorded frames")
    path: str = Field(description="an HDF5 file or a folder with sealed shards, relative to this file")
    stream: str = Field("", description="'' is replay-<file name>-<6 hex digits of its content>")
    run_number: int = Field(1, ge=0, description="run of the first pass; later passes count up")
    rate_hz: float = Field(0.0, ge=0, description="frames a second; 0 is as fast as they are taken")
    loop: bool = Field(False, description="begin again at the end, as the next run")
    use_labels: bool = Field(False, description="deliver Y beside X, for labelled training")


Source = Annotated[SimulatorSource | ReplaySource, Field(discriminator="kind")]


class FrameSection(Section):
    """Shape of a frame."""

    channels: int = Field(16, ge=1, description="angles; first axis of a frame")
    energy_bins: int = Field(128, ge=1, description="energies; second axis of a frame")


class ModelSection(Section):
    """Which network the loop keeps fresh."""

    name: str = Field("mixer", description="a catalog name, or package.module:SPEC")
    registered_as: str = Field("", description="name in the registry; '' is <site>-<name>-<channels>x<energy_bins>")
    hyper: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="hyper-parameters of the network, over its defaults"
    )


class EdgeSection(Section):
    """The service at the instrument."""

    runtime: Literal["torch"] = Field("torch", description="what runs the network")
    threads: int = Field(1, ge=1, description="CPU threads of the inference runtime")
    batch_frames: int = Field(256, ge=1, description="frames that are inferred together, at most")
    queue_blocks: int = Field(256, ge=2, description="blocks that may wait for staging before staging sheds")
    quality_every: int = Field(32, ge=1, description="every n-th frame gets a held-out thinned NLL")
    quality_window_frames: int = Field(512, ge=8, description="the reported quality is over this many sampled frames")
    watch_every_s: float = Field(1.0, gt=0, description="how often the champion alias is looked up")
    status_every_s: float = Field(0.5, gt=0, description="how often the edge writes its status file")
    golden_tolerance: float = Field(1e-3, gt=0, description="relative RMS between served and golden output")


class StagingSection(Section):
    """How shards are cut, packed and kept."""

    frames_per_shard: int = Field(8192, ge=1, description="a shard with this many frames is sealed")
    frames_per_chunk: int = Field(1024, ge=1, description="frames that are compressed together: the unit of a read")
    seal_after_s: float = Field(15.0, gt=0, description="an open shard is sealed after this time, full or not")
    keep_shards: int = Field(
        200, ge=1, description="sealed shards kept per stream; older ones go once they were trained on"
    )
    max_shards: int = Field(
        3000,
        ge=1,
        description="sealed shards of a stream kept at most, trained on or not; beyond it the oldest go, "
        "and the log says so",
    )

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


class MlflowRegistry(Section):
    """An MLflow tracking server with its model registry."""

    kind: Literal["mlflow"] = Field("mlflow", description="an MLflow server")
    uri: str = Field("", description="'' starts and finds a server of our own on this machine")
    host: str = Field("127.0.0.1", description="where our own server listens")
    port: int = Field(0, ge=0, le=65535, description="0: the first free port from 5050 up, kept across restarts")
    experiment: str = Field("filmloop", description="experiment that holds the training runs")
    timeout_s: float = Field(10.0, gt=0, description="of one request")
    start_deadline_s: float = Field(120.0, gt=0, description="how long our own server may take to start")


class TrainingSection(Section):
    """What goes into a cycle's training job."""

    min_frames: int = Field(6000, ge=1, description="fewer fresh frames than this: nothing to do")
    max_fresh_frames: int = Field(60000, ge=1, description="the newest ones")
    replay_frames: int = Field(20000, ge=0, description="older, already trained frames mixed in against forgetting")
    warm_start: bool = Field(True, description="start from the champion's weights; false starts from scratch")
    deadline_s: float = Field(900.0, gt=0, description="a job that takes longer is ended")
    seed: int = Field(0, ge=0, description="of weights, batches and thinning")
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


class SiteConfig(Section):
    """A whole site: one edge and cluster pair."""

    schema_version: Literal[1] = Field(1, description="version of this schema")
    site: str = Field("local", pattern=r"^[a-z0-9][a-z0-9-]*$", description="name of the site")
    home: str = Field("../.filmloop", description="state folder, relative to this file; FILMLOOP_HOME overrides it")
    frame: FrameSection = FrameSection()
    source: Source = SimulatorSource()
    model: ModelSection = ModelSection()
    edge: EdgeSection = EdgeSection()
    staging: StagingSection = StagingSection()
    mover: LocalMover = LocalMover()
    launcher: LocalLauncher = LocalLauncher()
    registry: MlflowRegistry = MlflowRegistry()
    training: TrainingSection = TrainingSection()
    gate: GatePolicy = GatePolicy()

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
