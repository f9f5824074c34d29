"""What every source gives, and what its peer gives on the same frames in the same run.

A peer is the least that any reader must do: bare pyzmq, h5py, or p4p, without a check, a conversion or a block.

    python -m filmloop.bench.sources 3
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from filmloop.adapters.sources.build import build_source
from filmloop.adapters.sources.zmq_send import CODECS
from filmloop.config.sources import AnySource, PvAccessSource, ReplaySource, SimulatorSource, ZeroMqSource
from filmloop.ports.source import problems_of

SHAPE = (16, 128)
_MAX_FRAMES = 4096
_BATCH = 512
_PVA_STACK = 64


def measure(seconds: float) -> dict[str, Any]:
    """Frames a second and frames per CPU-second of every source; `ratio` is the source's rate over its peer's.

    Args:
        seconds: How long each is read.
    """
    with tempfile.TemporaryDirectory() as folder:
        return {
            "pool": _source(SimulatorSource(rate_hz=0, pool_frames=16384), seconds),
            "pool_300k": _source(SimulatorSource(rate_hz=300_000, pool_frames=16384), seconds),
            "simulator": _source(SimulatorSource(rate_hz=0), seconds),
            "replay": _replay(Path(folder), seconds),
            "zeromq_raw_ipc": _zeromq(f"ipc://{folder}/raw", seconds, "raw", "none"),
            "zeromq_raw_tcp": _zeromq(f"tcp://127.0.0.1:{_free_port()}", seconds, "raw", "none"),
            **{
                f"zeromq_lclstreamer_{codec}": _zeromq(f"ipc://{folder}/{codec}", seconds, "lclstreamer", codec)
                for codec in CODECS
            },
            "pvaccess": _pvaccess(seconds),
        }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rates(read: Callable[[], int], seconds: float) -> dict[str, float]:
    """Call `read`, which says how many frames it got, again and again."""
    while not read():
        pass  # the sender starts
    frames = reads = 0
    begin_s, cpu_s = time.monotonic(), time.process_time()
    while (elapsed_s := time.monotonic() - begin_s) < seconds:
        frames, reads = frames + read(), reads + 1
    cpu_s = time.process_time() - cpu_s
    return {
        "frames_per_s": round(frames / elapsed_s),
        "frames_per_cpu_s": round(frames / max(cpu_s, 1e-3)),
        "frames_per_read": round(frames / max(reads, 1), 1),
    }


def _source(section: AnySource, seconds: float) -> dict[str, Any]:
    source = build_source(section, SHAPE)
    source.open(after=None)
    try:
        rates = _rates(lambda: len(source.read(_MAX_FRAMES) or ()), seconds)
        problems = problems_of(source)
        return {**rates, **({"problem": problems.last_problem} if problems.last_problem else {})}
    finally:
        source.close()


def _against(source: dict[str, Any], peer: dict[str, float], name: str) -> dict[str, Any]:
    return {
        **source,
        "peer": {"name": name, **peer},
        "ratio": round(source["frames_per_s"] / peer["frames_per_s"], 3),
        "cpu_ratio": round(source["frames_per_cpu_s"] / peer["frames_per_cpu_s"], 3),
    }


@contextmanager
def _sender(module: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", f"filmloop.adapters.sources.{module}", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _replay(folder: Path, seconds: float) -> dict[str, Any]:
    path = folder / "frames.h5"
    with h5py.File(path, "w") as file:
        file["Ximg"] = np.random.default_rng(1).poisson(0.3, (16384, *SHAPE)).astype(np.uint8)
    with h5py.File(path) as file:
        data, start = file["Ximg"], cycle(range(0, len(file["Ximg"]), 1024))
        peer = _rates(lambda: len(data[(first := next(start)) : first + 1024]), seconds)
    return _against(_source(ReplaySource(path=str(path), loop=True), seconds), peer, "h5py alone, 1024 frames a read")


def _zeromq(endpoint: str, seconds: float, dialect: Any, codec: str) -> dict[str, Any]:
    import zmq

    arguments = (endpoint, "--dialect", dialect, "--codec", codec, "--resend", "--batch", _BATCH, "--shape", *SHAPE)
    section = ZeroMqSource(endpoints=(endpoint,), dialect=dialect)
    with _sender("zmq_send", *arguments):
        source = _source(section, seconds)
    with _sender("zmq_send", *arguments), zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.setsockopt(zmq.RCVHWM, section.queue_messages)
        socket.connect(endpoint)

        def bare() -> int:
            parts = socket.recv_multipart(copy=False)
            if dialect == "raw":
                return len(parts[-1]) // (SHAPE[0] * SHAPE[1])
            with h5py.File(BytesIO(parts[0].buffer)) as file:
                return len(file["/counts"][()]) and len(file["/timestamp"][()])

        peer = _rates(bare, seconds)
        socket.close(linger=0)
    unpacks = "" if dialect == "raw" else " and h5py on BytesIO, as lclstreamer's example"
    return _against(source, peer, f"pyzmq recv_multipart{unpacks}")


def _pvaccess(seconds: float) -> dict[str, Any]:
    from p4p.client.thread import Context

    arguments = ("BENCH:Image", "--rate", 1e6, "--stack", _PVA_STACK, "--shape", *SHAPE)
    with _sender("pva_serve", *arguments) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        source = _source(PvAccessSource(channel="BENCH:Image", addresses=(address,)), seconds)
    with _sender("pva_serve", *arguments) as server:
        assert server.stdout is not None
        conf = {"EPICS_PVA_ADDR_LIST": server.stdout.readline().strip(), "EPICS_PVA_AUTO_ADDR_LIST": "NO"}
        got = [0]

        def count(update: Any) -> None:
            got[0] += len(update) if update.ndim == 3 else 0

        with Context("pva", conf=conf, useenv=False) as context:
            monitor = context.monitor("BENCH:Image", count)

            def waited() -> int:
                before = got[0]
                time.sleep(0.01)
                return got[0] - before

            peer = _rates(waited, seconds)
            monitor.close()
    return _against(source, peer, "p4p.client.thread monitor with a callback")


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0)))
