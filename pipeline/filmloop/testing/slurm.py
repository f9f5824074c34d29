"""A real Slurm with two nodes on one machine: munged, slurmctld and one slurmd a node, in a private folder.

Ports, key and socket are its own, so several rigs and a Slurm of the machine's owner do not meet. The daemons are
children of this process, in the foreground, and the kernel ends them when it dies; a rig whose owner was killed is swept
away by the next one. Needs Debian's packages slurmctld, slurmd, slurm-client and munge, no root and no systemd.

Not as on a cluster: no cgroups, so Slurm follows processes by their parents and limits no memory; no accounting, so
`sacct` refuses and any account is accepted; the "GPUs" are four terminals of this machine.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filmloop.adapters.local.held import hold
from filmloop.core.retry import wait_until
from filmloop.testing import processes
from filmloop.testing.mlflow_server import free_port

PREFIX = "filmloop-slurm-"
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmstepd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sacct")
START_S = 90.0
"""The daemons are there after 0.2 s on an idle machine."""
NODE_TIMEOUT_S = 10
"""A node that is silent for so long is down."""
ON_ONE_MACHINE = {"GLOO_SOCKET_IFNAME": "lo"}
"""Environment of a job whose nodes are one machine: ranks talk over loopback."""
_SBIN = ("/usr/sbin", "/sbin", "/usr/lib/slurm-wlm", "/usr/lib/x86_64-linux-gnu/slurm-wlm")

_CONF = """\
ClusterName=filmloop
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# cred_expire is also how long a requeued job is held back.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0,bf_interval=2,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
KillWait=3
MinJobAge=300
SlurmctldTimeout=30
SlurmdTimeout={node_timeout_s}
MessageTimeout=10
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
PlugStackConfig=/dev/null
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
PartitionName=debug Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=10 PreemptMode=off OverSubscribe=NO
PartitionName=preempt Nodes=ALL MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 Boards=1 SocketsPerBoard=1 "
    "CoresPerSocket=4 ThreadsPerCore=1 RealMemory=4000 Gres=gpu:a100:4 Feature=gpu,a100 State=UNKNOWN\n"
)
_GPUS = "NodeName={name} Name=gpu Type=a100 Count=4 File=/dev/tty[0-3]\n"


def missing_programs() -> list[str]:
    """What the rig needs and this machine does not have."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


class SlurmRig:
    """A running rig; see `slurm_rig`.

    Attributes:
        folder: Configuration, state, spool and logs.
        nodes: Names of the nodes.
        environ: What a process needs to speak to it, beside its own environment.
    """

    def __init__(self, folder: Path, nodes: Sequence[str]) -> None:
        self.folder, self.nodes = folder, tuple(nodes)
        self.environ = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Write the configuration, start the daemons and wait until both nodes are idle."""
        _configure(self.folder, self.nodes)
        munge = self.folder / "munge"
        self._run(
            "munged", "--foreground", f"--key-file={munge}/key", f"--socket={munge}/socket", f"--pid-file={munge}/pid",
            f"--seed-file={munge}/seed", "--num-threads=2", "--force",
        )  # fmt: skip
        self._wait(lambda: (munge / "socket").exists(), "munged")
        self._run("slurmctld", "-D", "-c")
        for node in self.nodes:
            self._run(node, "-D", "-N", node, program="slurmd")
        self._wait(lambda: self.states() == dict.fromkeys(self.nodes, "idle"), "an idle Slurm")

    def stop(self) -> None:
        """End the jobs and the daemons, by id, and remove the folder."""
        for node in self.nodes:
            self.kill_node(node)
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()
        kill_all(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str, check: bool = True) -> str:
        """Output of one of Slurm's commands."""
        done = subprocess.run(
            command, env={**os.environ, **self.environ}, capture_output=True, text=True, timeout=60, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def states(self) -> dict[str, str]:
        """State of each node; empty while nobody answers."""
        rows = self.run("sinfo", "-N", "-h", "-o", "%N %t", check=False).split("\n")
        return dict(row.split() for row in rows if row)

    def kill_node(self, node: str) -> None:
        """SIGKILL the node's slurmd and every process of every job on it, as a power cut does."""
        daemon = self._daemons[node]
        daemon.kill()
        daemon.wait()
        processes.kill(lambda: node_processes(self.folder, node))

    def start_node(self, node: str) -> None:
        """Start the node's slurmd again and wait until it may get jobs."""
        self._run(node, "-D", "-N", node, program="slurmd")
        self._wait(lambda: self.states().get(node, "") in ("idle", "mix", "alloc"), f"node {node}")

    def drain(self, drained: bool = True) -> None:
        """Keep new jobs off the nodes, or let them on again."""
        for node in self.nodes:
            state = ("State=DRAIN", "Reason=test") if drained else ("State=RESUME",)
            # Slurm refuses to resume what is not drained.
            self.run("scontrol", "update", f"NodeName={node}", *state, check=drained)

    def clear(self) -> None:
        """End whatever is in the queue, take back what was drained, and wait until the nodes are idle."""
        self.drain(False)
        self.run("scancel", f"--user={getpass.getuser()}", check=False)
        self._wait(lambda: self.states() == dict.fromkeys(self.nodes, "idle"), "idle nodes")

    def _run(self, name: str, *options: str, program: str = "") -> None:
        self._daemons[name] = processes.start(
            [str(shutil.which(program or name, path=_path())), *options],
            environ={**os.environ, **self.environ},
            log=self.folder / f"{name}.log",
        )

    def _wait(self, ready: object, what: str) -> None:
        def look() -> bool | None:
            for name, daemon in self._daemons.items():
                if daemon.poll() is not None and name not in self.nodes:
                    tail = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{name} ended with {daemon.returncode}:\n{tail}")
            return True if ready() else None  # type: ignore[operator]

        wait_until(look, deadline_s=START_S, what=what, hint=f"Logs are in {self.folder}.", cap_s=0.2)


@contextmanager
def slurm_rig(nodes: Sequence[str] = ("n1", "n2")) -> Iterator[SlurmRig]:
    """Start a rig for the block.

    Raises:
        TransientError: it did not come up.
    """
    processes.sweep(PREFIX, kill_all)
    # A short path: the name of munge's socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    folder.chmod(0o755)
    with hold(folder / processes.OWNER):
        rig = SlurmRig(folder, nodes)
        try:
            rig.start()
            yield rig
        finally:
            rig.stop()


def node_processes(folder: Path, node: str) -> list[int]:
    """Ids of the processes of all jobs on `node`: tasks carry the node's name, and their keeper is their parent."""
    found = set()
    for pid, environ in processes.marked(_mark(folder)):
        if f"SLURMD_NODENAME={node}".encode() in environ:
            found.add(pid)
            keeper = processes.parent(pid)
            if processes.name(keeper) == "slurmstepd":
                found.add(keeper)
    return sorted(found)


def _configure(folder: Path, nodes: Sequence[str]) -> None:
    host = socket.gethostname().partition(".")[0]
    for name in ("munge", "state", "spool", *(f"spool/{node}" for node in nodes)):
        (folder / name).mkdir(mode=0o755, exist_ok=True)
    key = folder / "munge/key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    conf = _CONF.format(
        host=host, port=free_port(), user=getpass.getuser(), folder=folder, node_timeout_s=NODE_TIMEOUT_S
    )
    conf += "".join(_NODE.format(name=node, host=host, port=free_port()) for node in nodes)
    (folder / "slurm.conf").write_text(conf)
    (folder / "gres.conf").write_text("".join(_GPUS.format(name=node) for node in nodes))


def kill_all(folder: Path) -> None:
    """SIGKILL every process of the rig in `folder`."""
    processes.kill_marked(_mark(folder))


def _mark(folder: Path) -> str:
    return f"SLURM_CONF={folder}/slurm.conf"


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), *_SBIN])
