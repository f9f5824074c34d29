"""The mover and the launcher of a site on one machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import uuid

from filmloop.bootstrap import Site
from filmloop.config.schema import LocalLauncher
from filmloop.config.schema import LocalMover as LocalMoverSection
from filmloop.core.counted import counted
from filmloop.core.finding import Finding
from filmloop.core.fsio import atomic_write_bytes, sha256_bytes
from filmloop.core.retry import wait_until
from filmloop.ports.mover import MoveItem


def mover(site: Site) -> Finding:
    """A tiny file goes to the cluster and is verified there; both sides are as before afterwards."""
    from filmloop.adapters.local.mover import LocalMover

    section = site.config.mover
    assert isinstance(section, LocalMoverSection)
    home, name, data = site.home, f".check-{uuid.uuid4().hex}", b"filmloop site check"
    edge, cluster = home.root / name, home.cluster / name
    new = [path for path in (home.cluster, home.root) if not path.exists()]
    mover = LocalMover(edge_root=edge, cluster_root=cluster, journal=edge / "moves", section=section)
    try:
        atomic_write_bytes(edge / "probe", data)
        item = MoveItem(
            source_path="probe", target_path="probe", size_bytes=len(data), sha256=sha256_bytes(data)
        )  # fmt: skip
        handle = mover.submit("to_cluster", [item], key="probe")
        wait_until(
            lambda: True if mover.poll(handle).state == "succeeded" else None, deadline_s=30, what="A test transfer"
        )
    finally:
        mover.close()
        for folder in (edge, cluster):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in new:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    return Finding(item="mover", state="ok", detail=f"a file reached {home.cluster} and was verified there")


def launcher(site: Site) -> Finding:
    """Are there cores for the ranks?"""
    section = site.config.launcher
    assert isinstance(section, LocalLauncher)
    if importlib.util.find_spec("torch") is None:
        return Finding(item="launcher", state="fail", detail="torch is not installed", hint="`make install`")
    cores = len(os.sched_getaffinity(0))
    wanted = section.processes * section.threads
    detail = (
        f"torchrun with {counted(section.processes, 'rank')} of {counted(section.threads, 'thread')} "
        f"on {counted(cores, 'core')}"
    )
    if wanted > cores:
        return Finding(
            item="launcher",
            state="warn",
            detail=detail,
            hint="Lower [launcher] processes or threads: ranks would wait.",
        )
    return Finding(item="launcher", state="ok", detail=detail)
