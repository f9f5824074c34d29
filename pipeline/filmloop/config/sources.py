"""The `[source]` section: where frames come from. The `kind` decides which of these a site has."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from filmloop.config.forms import SOCKET_ADDRESS
from filmloop.config.section import Section
from filmloop.core.documents import Seed
from filmloop.core.types import MAX_RUN
from filmloop_models.cookiebox.conditions import Conditions, DriftStep

_MOST_PORT = 65535


def _with_a_port_that_exists(address: str) -> str:
    """ZeroMQ takes a port beyond the last one, without a word, for another."""
    port = address.rpartition(":")[2]
    if address.startswith("tcp://") and port.isdecimal() and int(port[:9]) > _MOST_PORT:
        raise ValueError(f"{address} names a port above {_MOST_PORT}")
    return address


Endpoint = Annotated[str, Field(pattern=SOCKET_ADDRESS), AfterValidator(_with_a_port_that_exists)]


class SimulatorSource(Section):
    """The CookieBox simulator: real Poisson counts, no truth in the stream."""

    kind: Literal["simulator"] = Field("simulator", description="frames from the simulated CookieBox")
    stream: str = Field("simulator", description="name of the stream; shards lie in a folder of this name")
    seed: Seed = Field(1, description="the same seed makes the same frames on any machine")
    run_number: int = Field(1, ge=0, le=MAX_RUN, description="run that the frames belong to")
    rate_hz: float = Field(2000.0, ge=0, description="frames a second; 0 is as fast as it can")
    frames: int | None = Field(None, ge=1, description="end after this many frames; not set: never")
    pool_frames: int = Field(
        0, ge=0, description="draw so many frames once and show them again and again under new pulse ids, for rates "
        "beyond what can be drawn; 0 draws every frame anew. The drift goes as far as the pool"
    )  # fmt: skip
    labelled: bool = Field(False, description="put the true rates beside the counts, for labelled training")
    conditions: Conditions = Field(Conditions(), description="beam and detector at frame 0")
    drift: tuple[DriftStep, ...] = Field((), description="how the conditions change with the frame number")

    @property
    def live(self) -> bool:
        """Whether frames come at a rate of their own, whoever takes them."""
        return self.rate_hz > 0


class ReplaySource(Section):
    """Recorded frames: published CookieNetAE or CookieSimSlim HDF5, hit lists in HDF5, or our own shards."""

    kind: Literal["replay"] = Field("replay", description="recorded frames")
    path: str = Field(description="an HDF5 file or a folder with sealed shards, relative to this file")
    stream: str = Field("", description="'' is replay-<file name>-<6 hex digits of its content>")
    run_number: int = Field(
        1, ge=0, le=MAX_RUN, description="run of the first pass; later passes count up, after 999999 from here again"
    )  # fmt: skip
    rate_hz: float = Field(0.0, ge=0, description="frames a second; 0 is as fast as they are taken")
    loop: bool = Field(False, description="begin again at the end, as the next run")
    use_labels: bool = Field(False, description="deliver Y beside X, for labelled training")

    @property
    def live(self) -> bool:
        """Whether frames come at a rate of their own, whoever takes them."""
        return self.rate_hz > 0


class EventFields(Section):
    """Where the arrays of an event lie in a message of the dialect `lclstreamer`; one row an event."""

    pulse_id: str = Field("/timestamp", description="pulse ids, integers or whole floats (N,)")
    counts: str = Field("/counts", description="dense counts (N, C, E), for form = counts")
    hits: str = Field(
        "/hits", description="for form = hits: flat bins (N, M), or (channel, energy) pairs (N, M, 2), padded with "
        "negative numbers; with hit_offsets (K,) or (K, 2)"
    )  # fmt: skip
    hit_counts: str = Field("", description="number of hits of each event (N,); '': up to the padding")
    hit_offsets: str = Field("", description="first hit of each event and the end (N + 1,), for flat hits; '': padded")
    run_number: str = Field("", description="run of each event (N,); '': the site's run_number")


class ZeroMqSource(Section):
    """Frames pushed over ZeroMQ (PUSH to PULL) by one sender or several."""

    kind: Literal["zeromq"] = Field("zeromq", description="frames pushed over ZeroMQ")
    endpoints: tuple[Endpoint, ...] = Field(
        min_length=1, description="addresses, e.g. tcp://127.0.0.1:5555 (the sender's) or tcp://*:5555 (our own)"
    )
    role: Literal["connect", "bind"] = Field("connect", description="connect to senders that listen, or listen")
    dialect: Literal["raw", "lclstreamer"] = Field(
        "raw", description="raw: filmloop's lean multipart message; lclstreamer: every message is an HDF5 file"
    )
    stream: str = Field("zeromq", min_length=1, description="name of the stream")
    run_number: int = Field(1, ge=0, le=MAX_RUN, description="run of the frames where a message names none")
    form: Literal["counts", "hits"] = Field("counts", description="what an lclstreamer message holds; raw ones say so")
    fields: EventFields = Field(EventFields(), description="where an lclstreamer message holds what")
    pulse_id_scale: float = Field(
        1.0, gt=0, description="a pulse id given as a float is multiplied by this and rounded; 1e9 turns s into ns"
    )
    queue_messages: int = Field(64, ge=1, description="messages that may wait here for each sender; then it waits")
    max_message_mb: float = Field(
        256.0,
        gt=0,
        description="a message that is larger, or would be once decompressed or its hits counted, is refused unread",
    )
    alarm_after_s: float = Field(5.0, gt=0, description="no frame for so long is an alarm")

    @property
    def live(self) -> bool:
        """Whether frames come at a rate of their own, whoever takes them."""
        return True

    @property
    def sender(self) -> str:
        """Who has to send, in words."""
        does = "listens at" if self.role == "connect" else "connects to"
        return f"a {self.dialect} ZeroMQ sender that {does} {' or '.join(self.endpoints)}"


class PvAccessSource(Section):
    """An EPICS pvAccess channel with NTNDArray: a frame or a stack of frames an update."""

    kind: Literal["pvaccess"] = Field("pvaccess", description="an EPICS pvAccess channel")
    channel: str = Field(min_length=1, description="name of the channel, e.g. MRCO:Pva1:Image")
    addresses: tuple[str, ...] = Field(
        (), description="hosts to ask for the channel (EPICS_PVA_ADDR_LIST) instead of the environment's"
    )
    stream: str = Field("pvaccess", min_length=1, description="name of the stream")
    run_number: int = Field(1, ge=0, le=MAX_RUN, description="run of the frames")
    pulse_id: Literal["uniqueId", "timeStamp", "attribute"] = Field(
        "uniqueId",
        description="what numbers the frames: uniqueId, dataTimeStamp in ns, or an attribute; of a stack it is the "
        "first frame's, and the others follow",
    )  # fmt: skip
    pulse_id_step: int = Field(
        1, ge=1, description="what that number is multiplied by: frames of a stack, where it counts the stacks"
    )
    pulse_id_attribute: str = Field("", description="name of that attribute; it may hold an array, one id a frame")
    queue_updates: int = Field(256, ge=1, description="updates that may wait here; the newest replaces one beyond")
    max_update_mb: float = Field(256.0, gt=0, description="an update that would be larger once decompressed is refused")
    alarm_after_s: float = Field(5.0, gt=0, description="no frame for so long is an alarm")

    @property
    def live(self) -> bool:
        """Whether frames come at a rate of their own, whoever takes them."""
        return True

    @property
    def sender(self) -> str:
        """Who has to send, in words."""
        return f"the pvAccess channel {self.channel}"

    @model_validator(mode="after")
    def _names_its_attribute(self) -> Self:
        if (self.pulse_id == "attribute") != bool(self.pulse_id_attribute):
            raise ValueError("pulse_id = 'attribute' and pulse_id_attribute belong together")
        return self


AnySource = SimulatorSource | ReplaySource | ZeroMqSource | PvAccessSource
Source = Annotated[AnySource, Field(discriminator="kind")]
