"""What a site has and lacks, item by item, each with what to do. Leaves nothing behind."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from filmloop.adapters.batch.launcher import BatchLauncher
from filmloop.bootstrap import Site, open_launcher, open_source
from filmloop.config.schema import LocalLauncher
from filmloop.config.schema import LocalMover as LocalMoverSection
from filmloop.core.errors import FilmloopError, TransientError
from filmloop.core.fsio import atomic_write_bytes, sha256_bytes
from filmloop.core.retry import wait_until
from filmloop.core.types import BAD, FrameBlock
from filmloop.ports.mover import MoveItem
from filmloop.ports.source import problems_of

_MIN_FREE_BYTES = 2_000_000_000  # a few hundred shards, the registry's bundles, the logs
_FRAME_DEADLINE_S = 5.0
_NEEDED = ("numpy", "pydantic", "torch", "zarr", "safetensors", "mlflow-skinny", "h5py", "onnx", "matplotlib")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One item of the check."""

    item: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    hint: str = ""


def check_site(site: Site) -> Iterator[Finding]:
    """Yield the findings one by one, cheap ones first."""
    yield Finding(item="site file", state="ok", detail=f"{site.file}: site {site.config.site!r}")
    for item, look in (
        ("python", _python),
        ("packages", _packages),
        ("state folder", _home),
        ("model", _model),
        ("source", _source),
        ("mover", _mover),
        ("launcher", _launcher),
        ("registry", _registry),
    ):
        if item == "launcher" and site.config.launcher.kind != "local":
            yield from _batch_launcher(site)
            continue
        yield _found(item, look, site)


def _found(item: str, look: Callable[[Site], Finding], site: Site) -> Finding:
    try:
        return look(site)
    except FilmloopError as exc:
        return Finding(item=item, state="fail", detail=exc.message, hint=exc.hint)


def _python(_site: Site) -> Finding:
    text = f"{sys.version.split()[0]} at {sys.executable}"
    return Finding(item="python", state="ok", detail=text)


def _packages(_site: Site) -> Finding:
    found, missing = [], []
    for name in _NEEDED:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding(
            item="packages", state="fail", detail=f"not installed: {', '.join(missing)}",
            hint="pip install -c constraints.txt -e '.[local]', or `make install`",
        )  # fmt: skip
    return Finding(item="packages", state="ok", detail=", ".join(found))


def _home(site: Site) -> Finding:
    root = site.home.root
    existing = next(path for path in (root, *root.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return Finding(
            item="state folder", state="fail", detail=f"{existing} is not writable",
            hint="Set FILMLOOP_HOME to a folder on a local disk that you may write.",
        )  # fmt: skip
    free = shutil.disk_usage(existing).free
    if free < _MIN_FREE_BYTES:
        return Finding(
            item="state folder", state="warn", detail=f"{root}: only {free / 1e9:.1f} GB free",
            hint="Lower [staging] keep_shards, or move the state with FILMLOOP_HOME.",
        )  # fmt: skip
    return Finding(item="state folder", state="ok", detail=f"{root}: {free / 1e9:.0f} GB free")


def _model(site: Site) -> Finding:
    from filmloop_models.catalog import get

    name = site.config.model.name
    try:
        module = get(name).module(site.config.frame_shape, site.config.model.hyper)
    except ValueError as exc:
        return Finding(item="model", state="fail", detail=str(exc), hint="Mend [model] or [frame] in the site file.")
    parameters = sum(p.numel() for p in module.parameters())
    return Finding(
        item="model", state="ok", detail=f"{name}: {parameters:,} parameters, frames {site.config.frame_shape}"
    )


def _source(site: Site) -> Finding:
    source = open_source(site)
    try:
        source.open(after=None)

        def first() -> tuple[FrameBlock | None] | None:
            block = source.read(16)
            return (block,) if block is None or len(block) else None

        hint = "Is the detector sending, and does [source] name the right address?"
        (block,) = wait_until(first, deadline_s=_FRAME_DEADLINE_S, what="A frame from the source", hint=hint)
        problem = problems_of(source).last_problem
    except TransientError as exc:
        if problem := problems_of(source).last_problem:
            raise TransientError(f"{exc.message} {problem}.", hint=exc.hint, ids=exc.ids) from exc
        raise
    finally:
        source.close()
    if block is None:
        return Finding(item="source", state="fail", detail="the source has no frames")
    if (block.flags_N & BAD).all():
        return Finding(
            item="source", state="fail", detail=f"its frames are damaged: {problem or 'no counts'}",
            hint="Mend [frame], or where [source] says that counts lie.",
        )  # fmt: skip
    return Finding(
        item="source", state="ok", detail=f"stream {source.stream!r} delivers frames of {source.frame_shape}"
    )


def _mover(site: Site) -> Finding:
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


def _batch_launcher(site: Site) -> Iterator[Finding]:
    from filmloop.adapters.batch.check import check_batch

    launcher = open_launcher(site)
    assert isinstance(launcher, BatchLauncher)
    checks = check_batch(
        launcher.dialect, launcher.section, runs=site.home.cluster / "runs", deadline_s=site.config.training.deadline_s
    )
    for check in checks:
        state: Literal["ok", "warn", "fail"] = "ok" if not check.hint else "fail" if check.fatal else "warn"
        yield Finding(item=check.item, state=state, detail=check.detail, hint=check.hint)


def _launcher(site: Site) -> Finding:
    section = site.config.launcher
    assert isinstance(section, LocalLauncher)
    if importlib.util.find_spec("torch") is None:
        return Finding(item="launcher", state="fail", detail="torch is not installed", hint="`make install`")
    cores = len(os.sched_getaffinity(0))
    wanted = section.processes * section.threads
    detail = f"torchrun with {section.processes} ranks of {section.threads} threads on {cores} cores"
    if wanted > cores:
        return Finding(
            item="launcher",
            state="warn",
            detail=detail,
            hint="Lower [launcher] processes or threads: ranks would wait.",
        )
    return Finding(item="launcher", state="ok", detail=detail)


def _registry(site: Site) -> Finding:
    from filmloop.bootstrap import open_registry

    section = site.config.registry
    try:
        registry = open_registry(site, start=False)
        versions = registry.versions()
    except TransientError as exc:
        if section.uri:
            return Finding(item="registry", state="fail", detail=exc.message, hint=exc.hint)
        return _own_server(section.host, section.port)
    return Finding(item="registry", state="ok", detail=f"{registry.url}: {len(versions)} versions")


def _own_server(host: str, port: int) -> Finding:
    """Our own server is not running; could it be started?"""
    if importlib.util.find_spec("mlflow") is None or importlib.util.find_spec("mlflow.server") is None:
        return Finding(
            item="registry", state="fail", detail="the MLflow server is not installed here",
            hint="pip install -c constraints.txt -e '.[registry]', or name a server with [registry] uri.",
        )  # fmt: skip
    from filmloop.adapters.mlflow.processes import port_holder, port_is_free

    if port and not port_is_free(host, port):
        return Finding(
            item="registry", state="fail", detail=f"port {port} is in use by {port_holder(port) or 'another process'}",
            hint="Set [registry] port to a free one, or to 0.",
        )  # fmt: skip
    return Finding(item="registry", state="ok", detail="not running; `filmloop retrain` starts it")
