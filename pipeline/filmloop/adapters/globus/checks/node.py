"""A compute node, by functions that go through the queue: what a training would find there."""

from __future__ import annotations

import errno
import posixpath
import time
from collections.abc import Iterator, Mapping
from typing import Any

from filmloop.adapters.globus.checks import over_there
from filmloop.adapters.globus.checks.calling import Caller, answer_of, beside_the_queue, on_a_node, telling, why
from filmloop.adapters.globus.checks.side import Sample, folder_finding, question, versions_finding
from filmloop.adapters.globus.compute import versions
from filmloop.config.globus import GlobusLauncher
from filmloop.config.schema import SiteConfig
from filmloop.core.errors import TransientError
from filmloop.core.finding import Finding

PROBE = f"""{versions.PROBE}
try:
    import torch
    found["gpus"] = torch.cuda.device_count()
except Exception:
    pass
print(json.dumps(found))
"""
_HELD_S = 150.0
"""NFS shows another host's new file after a minute."""
_TRY_S = 60.0
_SCRIPTS = "Its scripts and logs are in ~/.globus_compute/uep.*/submit_scripts."
_MOUNT = (
    "Lustre has to be mounted with the option `flock`, not `localflock` or `noflock`; NFS without `nolock` and "
    "`local_lock`. Ask the facility, or set host_path to another file system."
)


def check_node(config: SiteConfig, section: GlobusLauncher, caller: Caller, sample: Sample | None) -> Iterator[Finding]:
    """Look at a node as a training would come there: its Python, its GPUs, the folder, the folder's locks."""
    place = on_a_node(section)
    try:
        told = caller.call(place, PROBE, section.python)
        host = (told.result or {}).get("worker", {}).get("host", "")
        if not host:
            yield Finding("job", "fail", why(told), _SCRIPTS)
            return
        yield Finding("job", "ok", f"a short function went through the queue and ran on {host}")
        yield versions_finding("node versions", section, told)
        seen = (answer_of(told) or {}).get("gpus")
        if isinstance(seen, int):
            yield gpus_finding(seen, section.processes_per_node)
        yield from _folder(config, section, caller, sample)
    except TransientError as exc:
        yield Finding("job", "fail", exc.message, exc.hint)


def gpus_finding(seen: int, wanted: int) -> Finding:
    """The GPUs that PyTorch sees, against processes_per_node."""
    item = "node GPUs"
    if seen == wanted:
        return Finding(item, "ok", f"PyTorch sees {seen}, one for each of processes_per_node")
    detail = f"PyTorch sees {seen}, processes_per_node is {wanted}"
    if seen == 0:
        return Finding(
            item, "warn", f"{detail}: a training would run on CPUs",
            "Ask for GPUs in [launcher.options], and name a python with a PyTorch for them.",
        )  # fmt: skip
    hint = f"Set processes_per_node = {seen}, or ask for {wanted} GPUs of each node in [launcher.options]."
    if seen < wanted:
        return Finding(item, "fail", f"{detail}: ranks cannot share a GPU", hint)
    return Finding(item, "warn", f"{detail}: {seen - wanted} would be idle", hint)


def locks_finding(held: Mapping[str, Any], tried: Mapping[str, Any]) -> Finding:
    """What a node that held a lock and a login node that tried it say, as `over_there` answers.

    The lock of a run folder keeps two trainers from writing one checkpoint.
    """
    item = "node locks"
    if held["wrong"]:
        has_none = held["errno"] in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
        return Finding(item, "fail" if has_none else "warn", f"no lock on {held['host']}: {held['wrong']}", _MOUNT)
    if tried.get("locked"):
        return Finding(item, "ok", f"a lock that {held['host']} holds is seen on {tried['host']}")
    if not (tried.get("found") and held["tried"]) or tried["wrong"]:
        return Finding(
            item, "warn", f"not tested: {tried.get('wrong') or 'the two did not meet in time'}",
            "Try again; both have to see the folder within a minute.",
        )  # fmt: skip
    return Finding(
        item, "warn",
        f"a lock that {held['host']} holds is not seen on {tried['host']}: two trainers could write in one run folder",
        _MOUNT,
    )  # fmt: skip


def _folder(config: SiteConfig, section: GlobusLauncher, caller: Caller, sample: Sample | None) -> Iterator[Finding]:
    request, place = question(config, sample), on_a_node(section)
    if not request["folder"]:
        return
    path = ""
    if sample and section.control:
        path = posixpath.join(request["folder"], posixpath.dirname(sample.path), "lock")
    request["lock"] = {"do": "hold", "path": path, "wait_s": _HELD_S}
    task_id = caller.send(place, over_there.program(request))
    with telling(place):
        tried = _tried(config, section, caller, task_id, path) if path else {}
    told = caller.wait(place, task_id)
    said = answer_of(told)
    if said is None:
        yield Finding("node folder", "fail", why(told), _SCRIPTS)
        return
    yield folder_finding(said["folder"], said["file"], item="node folder")
    if path:
        yield locks_finding(said["lock"], tried)


def _tried(config: SiteConfig, section: GlobusLauncher, caller: Caller, holder: str, path: str) -> dict[str, Any]:
    """Try the lock on the login node once the node holds it."""
    request, place = question(config, None), beside_the_queue(section)
    program = over_there.program({**request, "lock": {"do": "try", "path": path, "wait_s": _TRY_S}})
    end = time.monotonic() + section.queue_wait_s
    while True:
        said = answer_of(told := caller.call(place, program))
        if said is None:
            return {"wrong": why(told)}
        if said["lock"]["found"] or not caller.is_pending(holder) or time.monotonic() > end:
            return dict(said["lock"])
