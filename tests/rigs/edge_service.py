"""The whole edge in one process: real shards, real networks, a registry in memory."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import numpy as np
import torch

from filmloop.edge.service import EdgeService
from filmloop.edge.status import read_status
from filmloop.ports.registry import CHAMPION
from filmloop.testing.edge import FRAME_SHAPE, pool, small_site
from filmloop.testing.fakes import MemoryRegistry
from filmloop.testing.models import make_model_bundle
from filmloop.training.load import load_module
from filmloop_models.catalog import get
from rigs.waiting import until


class Versions:
    """A registry with real bundles, and what each of its versions makes of the pool's frames."""

    def __init__(self, folder, seeds):
        self.registry = MemoryRegistry(folder / "registry")
        self.rate, self.phase = {}, {}
        for seed in seeds:
            bundle = make_model_bundle(folder / f"bundle{seed}", frame_shape=FRAME_SHAPE, seed=seed)
            version = self.registry.register(bundle, key=str(seed), description="", tags={}, metrics={}).version
            with torch.inference_mode():
                rate = load_module(bundle)(torch.from_numpy(pool().astype(np.float32))).numpy()
            self.rate[version], self.phase[version] = rate, get("mixer").sort_key(rate)

    def promote(self, version):
        self.registry.set_alias(CHAMPION, version)


@contextmanager
def running(service, **given):
    """The service in a thread; stops it at the end and raises what it raised."""
    stop, outcome = threading.Event(), []

    def work():
        try:
            outcome.append(service.run(stop, **given))
        except BaseException as exc:
            outcome.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield outcome
    finally:
        stop.set()
        begun_s = time.monotonic()
        thread.join(10)
    assert time.monotonic() - begun_s < 5, "a clean stop takes at most 5 s"
    if isinstance(outcome[0], BaseException):
        raise outcome[0]


def shows(home, wanted, deadline_s=20.0):
    """Wait until the status shows what is `wanted`; returns it."""
    until(lambda: (status := read_status(home)) is not None and wanted(status), deadline_s)
    return read_status(home)


def edge(home, frames, registry=None, *, on_result=None, stay=False, **sections):
    # Each seal waits for the disk: shards of 256 frames would make the disk's speed the speed of these tests.
    sections = {"staging": {"frames_per_shard": 8192}, **sections}
    return EdgeService(
        config=small_site(**sections),
        home=home,
        source=frames,
        registry=None if registry is None else lambda: registry,
        on_result=on_result,
        stay=stay,
    )


def exact(accounting):
    assert accounting.frames_in == accounting.frames_inferred + sum(accounting.frames_dropped.values())
    assert accounting.frames_in == accounting.frames_staged + sum(accounting.frames_unstaged.values())
    return accounting
