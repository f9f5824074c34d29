"""What a site that works through Globus says: who it is there, where files lie on both sides, and which endpoint trains.

Secrets are not among it: they come from the environment or the SDK's own token store.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from filmloop.config.forms import COLLECTION_PATH, HOST_PATH, UUID
from filmloop.config.launchers import Word
from filmloop.config.section import Section

Uuid = Annotated[str, Field(pattern=UUID), AfterValidator(str.lower)]
"""An identifier of Globus, which writes it in small letters and shows it in large ones, too; '' is one that the site's
people still have to fill in."""
CollectionPath = Annotated[str, Field(pattern=COLLECTION_PATH)]
"""A folder as the collection shows it, which is not the host's path; '' is one that a person still has to fill in."""
HostPath = Annotated[str, Field(pattern=HOST_PATH)]


_WALLTIME = re.compile(r"\d{1,3}:[0-5]\d:[0-5]\d")
_RESERVED = {"parent_config", "user_runtime", "mapped_identity", "_GC"}


class GlobusIdentity(Section):
    """Who asks. A secret is in the environment: `FILMLOOP_GLOBUS_SECRET`, for weights `FILMLOOP_GLOBUS_WEIGHTS_SECRET`."""

    client_id: Uuid = Field("", description="of the application that is registered with Globus for this site")
    login: Literal["client", "user"] = Field(
        "client", description="client: the application itself, for guest collections, unattended; user: a person who "
        "ran `filmloop login`, for mapped collections"
    )  # fmt: skip


class GlobusSection(GlobusIdentity):
    """The site at Globus; used where the mover or the launcher is of the kind `globus`."""

    weights: GlobusIdentity = Field(
        GlobusIdentity(),
        description="who brings the weights home; with a client_id of its own, data that wait cannot hold weights up: "
        "Globus works on a few tasks of each identity at a time",
    )
    policies: tuple[Uuid, ...] = Field((), description="session policies that the facilities ask a person's login for")
    domains: tuple[Word, ...] = Field((), description='identity providers that they ask for, as "alcf.anl.gov"')


class Collection(Section):
    """A folder on one side, under both its names."""

    collection: Uuid = Field("", description="collection that the folder is in")
    path: CollectionPath = Field("/", description="the folder as the collection shows it")
    host_path: HostPath = Field("", description="the same folder on the host; on the edge '' is the state folder")
    mapped: bool = Field(
        False, description="a mapped collection, which asks for the consent `data_access`; a guest collection does not"
    )


class GlobusMover(Section):
    """Globus Transfer between a collection at the edge and one at the cluster."""

    kind: Literal["globus"] = Field("globus", description="Globus Transfer")
    edge: Collection = Field(Collection(), description="the state folder, as a collection shows it")
    cluster: Collection = Field(Collection(), description="the folder on the cluster for data, weights and runs")
    deadline_s: float = Field(
        1800.0, gt=0, description="a move that takes longer is given up; the next call goes on with it"
    )
    stall_s: float = Field(
        300.0, gt=0, description="a task that has made no progress for so long, or is paused, is given up for this call"
    )
    poll_s: float = Field(5.0, gt=0, description="Transfer is asked at most so often where a task stands")
    task_deadline_s: float = Field(
        86400.0, gt=0, description="when Globus itself gives a task up; it must not outlive the data it copies"
    )
    request_timeout_s: float = Field(30.0, gt=0, description="of one request")
    item_checksums: bool = Field(
        True, description="have Globus compare each file with the SHA-256 that it must have; false where a collection's "
        "storage cannot. Both ends are compared all the same, and the trainer hashes what it reads"
    )  # fmt: skip

    @property
    def missing(self) -> tuple[str, ...]:
        """The keys without which nothing can be moved, and that are empty."""
        sides = (("edge", self.edge), ("cluster", self.cluster))
        empty = [f"{name}.{key}" for name, side in sides for key in ("collection", "path") if not getattr(side, key)]
        return tuple(empty + ([] if self.cluster.host_path else ["cluster.host_path"]))

    @model_validator(mode="after")
    def _two_folders(self) -> Self:
        edge, cluster = self.edge, self.cluster
        if edge.collection and (edge.collection, edge.path.rstrip("/")) == (
            cluster.collection,
            cluster.path.rstrip("/"),
        ):
            raise ValueError("edge and cluster are the same folder of the same collection")
        return self


class GlobusLauncher(Section):
    """Globus Compute: a function at the cluster's endpoint starts torchrun there."""

    kind: Literal["globus"] = Field("globus", description="Globus Compute")
    endpoint: Uuid = Field("", description="the cluster's endpoint")
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="what the endpoint's template asks for, for training: account, queue, walltime; the SDK's "
        "user_endpoint_config",
    )
    control: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="the same for short functions that look and cancel; a template that can run them beside the queue "
        "makes progress visible. Empty: training is watched by its result alone",
    )
    nodes: int = Field(1, ge=1, description="nodes of a job; more than one needs an endpoint with GlobusMPIEngine")
    processes_per_node: int = Field(1, ge=1, description="ranks on each node: as many as it has GPUs")
    threads: int = Field(1, ge=1, description="CPU threads of each rank")
    python: Word = Field("", description="interpreter on the cluster that has filmloop[hpc]; '' is the endpoint's own")
    save_before_s: float = Field(
        60.0,
        ge=1,
        description="so long before its batch job ends the trainer is told to write its checkpoint and end, where Slurm or "
        "options.walltime tell when that is",
    )
    queue_wait_s: float = Field(
        3600.0, gt=0, description="a job that waits longer for the endpoint or its queue is withdrawn"
    )
    silent_s: float = Field(
        120.0, gt=0, description="an endpoint that is offline for so long has lost the job: it is submitted again"
    )
    poll_s: float = Field(5.0, gt=0, description="the endpoint is asked at most so often where a job stands")
    request_timeout_s: float = Field(30.0, gt=0, description="of one request")

    needs: tuple[str, ...] = Field(
        (), description="of these, keys of `options` or of this section, none may be empty here; `filmloop site check` "
        "names those that are"
    )  # fmt: skip

    @property
    def missing(self) -> tuple[str, ...]:
        """The keys of `needs` that are empty, and `endpoint` if it is."""
        empty = [key for key in self.needs if not self.options.get(key, getattr(self, key, ""))]
        return tuple(([] if self.endpoint else ["endpoint"]) + empty)

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        return self.nodes * self.processes_per_node

    @property
    def walltime_s(self) -> float | None:
        """What `options` say that the queue grants a job; None if they do not say."""
        given = self.options.get("walltime")
        if not isinstance(given, str) or not _WALLTIME.fullmatch(given):
            return None
        hours, minutes, seconds = map(int, given.split(":"))
        return 3600.0 * hours + 60.0 * minutes + seconds

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        for name in ("options", "control"):
            given: dict[str, str | int | float | bool] = getattr(self, name)
            if len(str(given)) > 4096:
                raise ValueError(f"{name} is above 4 kB; it is sent with every job")
            if taken := sorted(_RESERVED & given.keys()):
                raise ValueError(f"{name}: {taken[0]} is a name of the endpoint's own")
        walltime = self.options.get("walltime")
        if isinstance(walltime, str) and self.walltime_s is None:
            raise ValueError(f"options: walltime = {walltime!r} is not HH:MM:SS")
        if self.options.get("nodes_per_block", self.nodes) != self.nodes:
            raise ValueError(f"nodes = {self.nodes} and options.nodes_per_block differ: a job has its block for itself")
        return self
