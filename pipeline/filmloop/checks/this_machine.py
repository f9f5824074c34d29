"""What a site needs of the machine that it runs on."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

from filmloop.bootstrap import Site
from filmloop.bundle import ONNX
from filmloop.core.counted import counted
from filmloop.core.finding import Finding
from filmloop.core.memory import memory
from filmloop.launching import chosen_model

_MIN_FREE_BYTES = 2_000_000_000  # a few hundred shards, the registry's bundles, the logs
_NEEDED = ("numpy", "pydantic", "torch", "zarr", "safetensors", "mlflow-skinny", "h5py", "onnx", "matplotlib")


def python(_site: Site) -> Finding:
    """Which interpreter this is."""
    text = f"{sys.version.split()[0]} at {sys.executable}"
    return Finding(item="python", state="ok", detail=text)


def packages(_site: Site) -> Finding:
    """What is installed, what is not."""
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


def home(site: Site) -> Finding:
    """The state folder can be written, and has room."""
    root = site.home.root
    existing = next(path for path in (root, *root.parents) if os.path.exists(path))
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


def model(site: Site) -> Finding:
    """The catalog has the model, it takes frames of the site's shape, and is what the loop asks of a network.

    Raises:
        ConfigError: it is not.
    """
    from filmloop.training.export import export_onnx
    from filmloop.training.load import build_module
    from filmloop.training.trial import try_network

    choice = chosen_model(site.config, site.config.frame_shape)
    module = build_module(choice)
    try_network(module, choice)
    with TemporaryDirectory(prefix="filmloop-") as folder:
        export_onnx(module, choice.frame_shape, Path(folder) / ONNX)
    parameters = sum(p.numel() for p in module.parameters())
    return Finding(
        item="model", state="ok", detail=f"{choice.name}: {parameters:,} parameters, frames {choice.frame_shape}"
    )


def ring(site: Site) -> Finding:
    """There is memory for the ring between the edge's stages."""
    from filmloop.edge.ring import RingLayout

    layout = RingLayout.of(site.config, labelled=False)
    wanted, found = max(site.config.edge.ring_mb * 1e6, layout.size_bytes), memory()
    shape = "x".join(map(str, site.config.frame_shape))
    detail = f"{counted(layout.frames, 'frame')} of {shape} in {layout.size_bytes / 1e6:,.0f} MB of memory"
    if wanted <= found.free_bytes:
        return Finding(item="ring", state="ok", detail=detail)
    here = f"this machine has {found.total_bytes / 1e6:,.0f} MB of memory, {found.free_bytes / 1e6:,.0f} MB of it free"
    return Finding(
        item="ring", state="fail" if wanted > found.total_bytes else "warn",
        detail=f"{wanted / 1e6:,.0f} MB wanted for {counted(layout.frames, 'frame')} of {shape}; {here}",
        hint=f"Lower [edge] ring_mb, {site.config.edge.ring_mb:g} MB: it is for the time that staging may lag behind.",
    )  # fmt: skip


def runtime(site: Site) -> Finding:
    """What runs the network at the edge is there.

    Raises:
        ConfigError: it is not.
    """
    from filmloop.edge.runtimes.make import require

    name = site.config.edge.runtime
    if name == "auto":
        return Finding(item="runtime", state="ok", detail="auto: the edge measures what is here at its first start")
    require(name)
    return Finding(item="runtime", state="ok", detail=name)
