"""The `[launcher]` section of a site whose jobs wait in the queue of a batch system. The `kind` decides which one."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from filmloop.config.forms import LINE, WORD
from filmloop.config.section import Section

Word = Annotated[str, Field(pattern=WORD)]
"""One word of a batch script's directive: no space, no quote, nothing that a shell would look at twice."""
Line = Annotated[str, Field(pattern=LINE)]


class BatchLauncher(Section):
    """What Slurm and PBS have in common."""

    account: Word = Field("", description="project that pays; '' leaves it to the batch system")
    nodes: int = Field(1, ge=1, description="nodes of a job")
    processes_per_node: int = Field(1, ge=1, description="ranks on each node: as many as it has GPUs")
    threads: int = Field(1, ge=1, description="CPU threads of each rank")
    modules: tuple[Word, ...] = Field((), description="environment modules that the job loads, in this order")
    setup: tuple[Line, ...] = Field((), description="shell lines before the training starts, after the modules")
    env: dict[str, Line] = Field(default_factory=dict, description="environment variables of the job")
    python: Word = Field(
        "", description="interpreter on the cluster that has filmloop[hpc], seen from every node; '' is this one"
    )
    options: tuple[Line, ...] = Field(
        (), description='more directives of the batch script, as "--exclusive" or "-l place=excl"'
    )
    time_limit_s: float = Field(
        0.0, ge=0, description="time limit that the batch system is told; 0: training.deadline_s, save_before_s and "
        "a minute to start"
    )  # fmt: skip
    save_before_s: float = Field(
        60.0, ge=1, description="so long before the time limit the trainer is told to write its checkpoint and end"
    )
    queue_wait_s: float = Field(
        3600.0, gt=0, description="a job that waits longer in the queue is withdrawn; a batch system "
        "that does not answer then is waited for no more: the cycle stays open for the next call"
    )  # fmt: skip
    settle_s: float = Field(
        60.0, ge=0, description="so long after its end in the queue a job's files may take to show: NFS's `acdirmax`"
    )
    poll_s: float = Field(5.0, gt=0, description="the batch system is asked at most so often where a job stands")
    command_timeout_s: float = Field(60.0, gt=0, description="longest that one of its commands may take")
    needs: tuple[str, ...] = Field(
        (), description="keys that this site's queues refuse to do without; `filmloop site check` names empty ones"
    )

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        return self.nodes * self.processes_per_node

    @model_validator(mode="after")
    def _leaves_time_to_train(self) -> Self:
        if 0 < self.time_limit_s <= self.save_before_s:
            raise ValueError(
                f"time_limit_s = {self.time_limit_s:g} is over before training begins: save_before_s = "
                f"{self.save_before_s:g} before it the trainer is told to end"
            )
        return self


class SlurmLauncher(BatchLauncher):
    """torchrun on the nodes of a Slurm cluster, started by srun."""

    kind: Literal["slurm"] = Field("slurm", description="a job of Slurm")
    qos: Word = Field("", description="quality of service, where the site calls its queues so")
    partition: Word = Field("", description="partition; '' is the default one")
    constraint: Word = Field("", description='features that the nodes must have, as "gpu"')
    licenses: Word = Field("", description='licenses, which some sites ask for file systems: "scratch,cfs"')
    gpus_per_node: int = Field(0, ge=0, description="GPUs to ask for on each node; 0 asks for none")
    cpus_per_node: int = Field(0, ge=0, description="CPUs of the one task on each node; 0 leaves it to Slurm")


class PbsLauncher(BatchLauncher):
    """torchrun on the nodes of a PBS Professional cluster, started by mpiexec."""

    kind: Literal["pbs"] = Field("pbs", description="a job of PBS Professional")
    queue: Word = Field("", description="queue; '' is the default one")
    select: Word = Field("", description='what each node must be, after `select=<nodes>:`, as "system=polaris"')
    place: Word = Field("scatter", description="how nodes are chosen; scatter: each chunk on a node of its own")
    filesystems: Word = Field("", description='file systems that the job needs, as "home:eagle"')
    mpiexec: tuple[Line, ...] = Field(
        ("mpiexec", "-n", "{nodes}", "--ppn", "1"), description="starts one torchrun on each node"
    )
