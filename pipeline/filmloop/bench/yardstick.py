"""What this machine can do at all: the least program that goes from frames to Zarr shards, as a peer for the edge.

Three processes and a ring of shared memory: a pool is copied into it, OpenVINO runs `model.onnx` as it was exported on all
cores, tensorstore writes whole shards. No accounting, no check, no swap, no manifest, no fsync of ours.

It runs in float32 or bfloat16, whichever a short trial finds faster: OpenVINO takes bfloat16 on a CPU without it, too, and
emulates it at a thirtieth of the rate, a peer that is easily beaten.

    python -m filmloop.bench.yardstick MODEL.onnx POOL.npy SECONDS staged|bare
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.edge.runtimes.machine import cores

BLOCK_FRAMES, BLOCKS, SHARD_FRAMES, CHUNK_FRAMES = 256, 256, 32768, 1024
_HEAD, _INFERRED, _STAGED, _STOP = range(4)
_NOTHING_S = 0.0003
_PRECISIONS, _TRIAL_S = ("f32", "bf16"), 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What the least program does here.

    Attributes:
        frames_per_s: Frames a second.
        precision: In which the network ran, `f32` or `bf16`.
    """

    frames_per_s: float
    precision: str


def yardstick(onnx: Path, pool: Path, seconds: float, *, staged: bool) -> Pace:
    """How fast it is, by a process of its own.

    Args:
        onnx: The network, float32 (N, C, E) in and out.
        pool: `.npy` with uint8 frames (N, C, E), whole blocks of them.
        seconds: How long to measure.
        staged: Whether to write shards, or only infer.
    """
    words = [sys.executable, "-m", __name__, str(onnx), str(pool), str(seconds), "staged" if staged else "bare"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return Pace(**json.loads(done.stdout.splitlines()[-1]))


def _views(memory: SharedMemory, shape: tuple[int, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    cursors: npt.NDArray[np.int64] = np.ndarray(8, np.int64, memory.buf)
    return cursors, np.ndarray((BLOCKS, BLOCK_FRAMES, *shape), np.uint8, memory.buf, offset=4096)


def _fill(name: str, pool: str) -> None:
    frames_NCE = np.load(pool)
    memory = SharedMemory(name)
    cursor, ring = _views(memory, frames_NCE.shape[1:])
    blocks = frames_NCE.reshape(-1, BLOCK_FRAMES, *frames_NCE.shape[1:])
    block = 0
    while not cursor[_STOP]:
        if block - min(cursor[_INFERRED], cursor[_STAGED]) >= BLOCKS:
            time.sleep(_NOTHING_S)
            continue
        ring[block % BLOCKS] = blocks[block % len(blocks)]
        block += 1
        cursor[_HEAD] = block


def _write(name: str, shape: tuple[int, int], folder: str) -> None:
    import tensorstore as ts

    memory = SharedMemory(name)
    cursor, ring = _views(memory, shape)
    shard = np.empty((SHARD_FRAMES, *shape), np.uint8)
    inner = [
        {"name": "bytes"},
        {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 1, "shuffle": "bitshuffle", "typesize": 1}},
        {"name": "crc32c"},
    ]
    grid = {"name": "regular", "configuration": {"chunk_shape": [SHARD_FRAMES, *shape]}}
    sharding = {"chunk_shape": [CHUNK_FRAMES, *shape], "codecs": inner}
    metadata = {
        "shape": [SHARD_FRAMES, *shape], "data_type": "uint8", "chunk_grid": grid,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }  # fmt: skip
    blocks_per_shard = SHARD_FRAMES // BLOCK_FRAMES
    block = 0
    while not cursor[_STOP]:
        if block >= cursor[_HEAD]:
            time.sleep(_NOTHING_S)
            continue
        place = block % blocks_per_shard * BLOCK_FRAMES
        shard[place : place + BLOCK_FRAMES] = ring[block % BLOCKS]
        block += 1
        cursor[_STAGED] = block
        if block % blocks_per_shard == 0:
            number = block // blocks_per_shard
            spec = {
                "driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/{number}.zarr"},
                "metadata": metadata, "create": True, "delete_existing": True,
                "context": {"data_copy_concurrency": {"limit": 1}},
            }  # fmt: skip
            ts.open(spec).result()[...].write(shard).result()
            shutil.rmtree(f"{folder}/{number - 6}.zarr", ignore_errors=True)


def _compiled(onnx: str, shape: tuple[int, int], precision: str) -> Any:
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    core = ov.Core()
    model = core.read_model(onnx)
    model.reshape([BLOCK_FRAMES, *shape])
    pre = PrePostProcessor(model)
    pre.input().tensor().set_element_type(ov.Type.u8)
    pre.input().preprocess().convert_element_type(ov.Type.f32)
    options = {
        "INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": str(cores()), "INFERENCE_NUM_THREADS": str(cores()),
        "PERFORMANCE_HINT": "THROUGHPUT",
    }  # fmt: skip
    return core.compile_model(pre.build(), "CPU", options)


def _fastest(onnx: str, pool: str) -> tuple[str, Any]:
    """The precision that is faster on this machine, and the network in it."""
    frames_NCE = np.load(pool)
    blocks = frames_NCE.reshape(-1, BLOCK_FRAMES, *frames_NCE.shape[1:])
    compiled = {precision: _compiled(onnx, blocks.shape[2:], precision) for precision in _PRECISIONS}
    rates = {precision: _trial(network, blocks) for precision, network in compiled.items()}
    best = max(rates, key=lambda precision: rates[precision])
    return best, compiled[best]


def _trial(network: Any, blocks: npt.NDArray[np.uint8]) -> float:
    """Blocks a second, with every stream at work."""
    import openvino as ov

    queue, done = ov.AsyncInferQueue(network, 2 * cores()), 0
    for block in blocks[: 2 * cores()]:
        queue.start_async({0: block}, share_inputs=True)
    queue.wait_all()
    begun_s = time.perf_counter()
    while time.perf_counter() - begun_s < _TRIAL_S:
        queue.start_async({0: blocks[done % len(blocks)]}, share_inputs=True)
        done += 1
    queue.wait_all()
    return done / (time.perf_counter() - begun_s)


def _measure(onnx: str, pool: str, seconds: float, *, staged: bool) -> Pace:
    import openvino as ov

    _, channels, bins = np.load(pool, mmap_mode="r").shape
    shape = (channels, bins)
    memory = SharedMemory(create=True, size=4096 + BLOCKS * BLOCK_FRAMES * channels * bins)
    cursor, ring = _views(memory, shape)
    cursor[_STAGED] = 0 if staged else 1 << 60
    folder = tempfile.mkdtemp(prefix="filmloop-yardstick-")
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=_fill, args=(memory.name, pool), daemon=True)]
    jobs += [context.Process(target=_write, args=(memory.name, shape, folder), daemon=True)] if staged else []
    for job in jobs:
        job.start()  # before OpenVINO has threads, which a fork would lose
    precision, network = _fastest(onnx, pool)
    queue, done = ov.AsyncInferQueue(network, 2 * cores()), set()

    def finished(_request: object, block: int) -> None:
        done.add(block)
        while int(cursor[_INFERRED]) in done:
            done.discard(int(cursor[_INFERRED]))
            cursor[_INFERRED] += 1

    queue.set_callback(finished)
    while cursor[_HEAD] < BLOCKS:
        time.sleep(0.05)
    block, begun_s = 0, time.perf_counter()
    while time.perf_counter() - begun_s < seconds:
        if block >= cursor[_HEAD]:
            time.sleep(_NOTHING_S)
            continue
        queue.start_async({0: ring[block % BLOCKS]}, userdata=block, share_inputs=True)
        block += 1
    queue.wait_all()
    rate = block * BLOCK_FRAMES / (time.perf_counter() - begun_s)
    cursor[_STOP] = 1
    for job in jobs:
        job.join(10)
    memory.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    return Pace(frames_per_s=rate, precision=precision)


if __name__ == "__main__":
    _onnx, _pool, _seconds, _how = sys.argv[1:5]
    print(json.dumps(asdict(_measure(_onnx, _pool, float(_seconds), staged=_how == "staged"))))
