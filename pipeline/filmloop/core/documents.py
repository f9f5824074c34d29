"""The documents that cross a wire or outlive a process: versioned, frozen, strict JSON.

ShardManifest   beside every sealed shard; its presence is the commit
TrainJob        edge -> cluster
TrainResult     cluster -> edge, inside the bundle
EvaluationReport  one model's score on the held-out frames; the gate compares two of them
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from filmloop.core.errors import DataError
from filmloop.core.fsio import atomic_write_json, canonical_json, read_json, sha256_bytes, sha256_file
from filmloop.core.wording import first_of

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Seed = Annotated[int, Field(ge=0, le=10**18)]
"""Below 2^63: every generator takes it, and TOML can say it."""
FrameShape = Annotated[tuple[int, int], Field(description="(channels, energy bins)")]


class Document(BaseModel):
    """Base: unknown keys are refused, values never change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """SHA-256 over the canonical JSON form."""
        return sha256_bytes(canonical_json(self.as_json()))

    def write(self, path: Path) -> None:
        """Write durably; a reader sees all of it or nothing."""
        atomic_write_json(path, self.as_json())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and validate.

        Raises:
            DataError: absent, not JSON, or not such a document.
            TransientError: the disk refuses.
        """
        value = read_json(path)
        try:
            return cls.model_validate(value)
        except ValidationError as exc:
            raise DataError(
                f"{path} is not a valid {cls.__name__}: {first_of(exc)}.",
                hint="Was it written by another version of filmloop? See schema_version in the file.",
                ids={"path": str(path)},
            ) from exc


class FileDigest(Document):
    """One file: its path relative to the document's folder, its size and its hash."""

    path: str
    size_bytes: int = Field(ge=0)
    sha256: Sha256

    @classmethod
    def of(cls, path: Path, root: Path) -> FileDigest:
        """Hash `path` and name it relative to `root`."""
        return cls(path=path.relative_to(root).as_posix(), size_bytes=path.stat().st_size, sha256=sha256_file(path))


class PulseRange(Document):
    """Frames that are not in a shard, and why: inclusive range of pulse ids."""

    first_pulse_id: int = Field(ge=0)
    last_pulse_id: int = Field(ge=0)
    frames: int = Field(ge=1)
    reason: str
    run_number: int | None = Field(default=None, description="run of the pulse ids; not set: the run of the shard")


class Accounting(Document):
    """What became of every frame of a stream since its beginning, across restarts.

    `frames_in == frames_inferred + sum(frames_dropped)`, and
    `frames_in == frames_staged + sum(frames_unstaged)` whenever no shard is open.
    """

    frames_in: int = 0
    frames_inferred: int = 0
    frames_staged: int = 0
    frames_dropped: dict[str, int] = Field(default_factory=dict, description="not inferred, by reason")
    frames_unstaged: dict[str, int] = Field(default_factory=dict, description="not staged, by reason")
    frames_missing: int = Field(default=0, description="pulse ids that the source never delivered")
    frames_out_of_order: int = Field(default=0, description="delivered after a later one, and taken all the same")


_MOST_DARK = 0.1
"""Share of a shard's frames. A beam that trips for a second must not cost the frames around it."""


class ShardManifest(Document):
    """Beside every sealed shard. Manifest present = shard committed."""

    schema_version: Literal[1] = 1
    shard_id: str
    site: str
    stream: str
    run_number: int = Field(ge=0)
    seq: int = Field(ge=0)
    group: str = Field(description="name of the Zarr group's folder, beside the manifest")
    frames: int = Field(ge=1)
    frame_shape: FrameShape
    labelled: bool = False
    layout: Literal["dense", "events"] = Field("dense", description="counts of every bin, or a list of hits")
    first_pulse_id: int = Field(ge=0)
    last_pulse_id: int = Field(ge=0)
    dropped: tuple[PulseRange, ...] = ()
    opened_utc: str
    sealed_utc: str
    model_versions: dict[str, int] = Field(
        default_factory=dict, description="frames by the version that inferred them; '0' is none"
    )
    accounting: Accounting = Accounting()
    input_gain: tuple[float, ...] = Field(
        (),
        description="gain of each channel, 0 for a dead one, that was corrected before the network when the shard was "
        "closed; the counts in here are raw. Empty: none",
    )
    frames_dark: int = Field(
        0, ge=0, description="frames that were staged while the edge saw no beam; training leaves such shards alone"
    )
    files: tuple[FileDigest, ...]

    @model_serializer(mode="wrap")
    def _without_what_is_not_so(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Shards of the time before gains were corrected, and dark frames counted, keep their digests."""
        values: dict[str, Any] = serialize(self)
        for name in ("input_gain", "frames_dark"):
            if not values.get(name):
                values.pop(name, None)
        return values

    @property
    def is_dark(self) -> bool:
        """Whether the beam was away for more than a tenth of its frames."""
        return self.frames_dark > _MOST_DARK * self.frames

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)


class ShardRef(Document):
    """A shard as a job names it: where its group lies on that machine, and the digest of its manifest."""

    shard_id: str
    manifest_path: str
    manifest_digest: Sha256
    frames: int = Field(ge=1)


class ModelChoice(Document):
    """Which network, at which frame shape, with which hyper-parameters."""

    name: str
    frame_shape: FrameShape
    hyper: dict[str, int | float | str | bool] = Field(default_factory=dict)


class WeightsRef(Document):
    """Weights to start from or to compare with: a bundle folder on that machine."""

    version: str
    bundle_path: str
    weights_sha256: Sha256


class TrainHyper(Document):
    """How to train; what was tried is in docs/explanation/training.md."""

    mode: Literal["thinning", "labelled"] = Field("thinning", description="thinning needs no labels")
    batch_frames: int = Field(default=256, ge=1, le=1_000_000, description="frames a step, over all ranks")
    learning_rate: float = Field(default=6e-3, gt=0, description="of Adam, at its peak; a cosine takes it to 0")
    warmup_steps: int = Field(default=100, ge=0, description="steps over which the learning rate rises")
    max_steps: int = Field(default=3000, ge=1, description="stop after this many steps")
    max_epochs: int = Field(default=100, ge=1, le=1_000_000, description="stop after this many passes over the frames")
    train_s: float = Field(default=60.0, gt=0, description="stop after this many seconds of training")
    keep_low: float = Field(default=0.5, gt=0, lt=1, description="thinning keeps a share p ~ U(keep_low, keep_high)")
    keep_high: float = Field(default=0.95, gt=0, lt=1, description="see keep_low")
    gradient_clip: float = Field(default=1.0, gt=0, description="largest norm of a gradient")
    evaluate_every_steps: int = Field(default=250, ge=1, description="steps between two looks at the hold-out")
    patience_evaluations: int = Field(default=4, ge=1, description="stop early after so many without a better hold-out")
    checkpoint_every_s: float = Field(default=15.0, gt=0, description="seconds between two checkpoints")
    replay_share: float = Field(
        default=0.25, ge=0, lt=1, description="share of each batch that older frames make up, where there are any"
    )
    normalise_gain: bool = Field(
        default=False, description="take differences between the channels' gains out of every shard; thinning only"
    )
    loader_mb: float = Field(
        default=2048.0, gt=0, description="memory of each rank for decoded frames, in MB; more are streamed every epoch"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the matrix products; auto is bfloat16 on GPUs and float32 on CPUs"
    )
    compile: bool = Field(
        default=False, description="have torch.compile fuse the network, before the first step: for long jobs"
    )

    @property
    def labelled(self) -> bool:
        """Whether only frames with labels can be trained on."""
        return self.mode == "labelled"

    @model_validator(mode="after")
    def _keep_range_is_not_empty(self) -> Self:
        if not self.keep_low < self.keep_high:
            raise ValueError(f"keep_low ({self.keep_low}) must be less than keep_high ({self.keep_high})")
        return self

    @model_validator(mode="after")
    def _gains_are_of_counts(self) -> Self:
        if self.normalise_gain and self.mode == "labelled":
            raise ValueError("normalise_gain goes with mode 'thinning': labels have gains of their own")
        return self


class HoldoutPolicy(Document):
    """Which frames are held out, and how they are thinned for the score."""

    permille: int = Field(default=100, ge=1, le=500, description="of 1000 frames, how many are held out")
    max_frames: int = Field(default=4000, ge=10, description="the newest of them")
    keep: float = Field(default=0.75, gt=0, lt=1, description="share of the counts that the model sees")
    seed: Seed = Field(default=20240901, description="of the thinning of held-out frames")


class TrainJob(Document):
    """All that a cluster needs to train; paths are of the machine where it runs."""

    schema_version: Literal[1] = 1
    job_id: str
    model: ModelChoice
    fresh: tuple[ShardRef, ...]
    replay: tuple[ShardRef, ...] = ()
    base: WeightsRef | None = Field(default=None, description="warm start; None trains from scratch")
    champion: WeightsRef | None = Field(default=None, description="judged beside the challenger")
    output_dir: str = Field(description="run folder: checkpoints, log, status, and bundle/ when finished")
    deadline_s: float = Field(default=900.0, gt=0, description="wall time after which the launcher ends the job")
    seed: Seed = 0
    hyper: TrainHyper = TrainHyper()
    holdout: HoldoutPolicy = HoldoutPolicy()
    config_digest: str = ""
    code_commit: str = ""


class EvaluationReport(Document):
    """One predictor's score on held-out frames. Two reports compare only if their `frames_digest` is equal."""

    schema_version: Literal[1] = 1
    name: str = Field(description="challenger, champion, gaussian or zero")
    version: str = ""
    frames: int = Field(ge=0)
    frames_digest: Sha256
    nll: float = Field(description="mean held-out thinned Poisson NLL, nats a frame, without the log b! term")
    nll_low: float = Field(description="2.5 % bootstrap bound")
    nll_high: float = Field(description="97.5 % bootstrap bound")
    nll_frames: tuple[float, ...] = Field(
        default=(),
        description="per frame, in order of (run, pulse id), each times its sampling weight over the mean one",
    )
    extra: dict[str, float] = Field(default_factory=dict)


class TrainResult(Document):
    """What training made; the last file written into a bundle."""

    schema_version: Literal[1] = 1
    job_id: str
    status: Literal["completed", "early_stop", "time_limit", "diverged", "terminated"]
    model: ModelChoice
    base_version: str = ""
    steps: int = Field(ge=0)
    epochs: float = Field(ge=0)
    frames_trained: int = Field(ge=0, description="distinct frames in the training set")
    frames_held_out: int = Field(ge=0)
    steps_skipped: int = Field(default=0, description="steps with a non-finite gradient")
    resumed_from_step: int = 0
    train_s: float = Field(ge=0, description="the training loop alone")
    wall_s: float = Field(ge=0, description="the whole entry, imports and evaluation included")
    loss_first: float
    loss_last: float
    world_size: int = Field(ge=1)
    device: str
    seed: int
    metrics: dict[str, float] = Field(default_factory=dict, description="nll, nll_low, nll_high, nll_gaussian, ...")
    channel_hits: tuple[float, ...] = Field(
        default=(), description="mean hits a frame of each channel in the shards: what relative gains are relative to"
    )
    lineage: dict[str, str] = Field(description="shard_id -> manifest digest, all that was read")
    versions: dict[str, str] = Field(description="python, torch, zarr, filmloop, ...")
    config_digest: str = ""
    code_commit: str = ""
    weights_sha256: Sha256
    files: tuple[FileDigest, ...] = Field(description="all files of the bundle but result.json")

    def bundle_digest(self) -> str:
        """One digest for the whole bundle: it covers this document, and through `files` all the others."""
        return self.digest()


class VersionInfo(Document):
    """A registered version as the registry tells it."""

    name: str
    version: str
    created_utc: str
    aliases: tuple[str, ...] = ()
    description: str = ""
    tags: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    url: str = ""

    @property
    def bundle_digest(self) -> str:
        """Digest of the bundle's result document, or '' for a version that filmloop did not make."""
        return self.tags.get("filmloop.bundle_digest", "")


class Verdict(Document):
    """What the gate says, in words and numbers."""

    decision: Literal["promote", "refuse", "undecided"]
    reasons: tuple[str, ...]
    against: str = Field(description="what the challenger was compared with: champion or gaussian")
    gain: float = Field(description="relative NLL improvement over it; positive is better")
    gain_low: float
    gain_high: float
    frames: int


Outcome = Literal["promoted", "refused", "undecided", "nothing_to_do", "busy", "failed"]


class CycleReport(Document):
    """What a cycle came to; `filmloop retrain --json` prints it. Times in seconds."""

    cycle_id: str = ""
    outcome: Outcome
    message: str
    version: str = ""
    base_version: str = ""
    recalled: bool = Field(default=False, description="a former version was made champion again, without training")
    turnaround_s: float | None = Field(default=None, description="newest sealed shard to live at the edge")
    overhead_s: float | None = Field(default=None, description="all steps, without the training loop itself")
    train_s: float | None = None
    steps: dict[str, float] = Field(default_factory=dict)
    gate: Verdict | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    frames: int = 0
    url: str = ""


class AliasMove(Document):
    """One line of the audit trail."""

    utc: str
    model: str
    alias: str
    from_version: str
    to_version: str
    who: str
    why: str
    cycle_id: str = ""
