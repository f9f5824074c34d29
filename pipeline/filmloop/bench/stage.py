"""What staging costs: sealing a shard beside other writers of the same arrays, in CPU time and in memory.

- `filmloop`: batches into a ShardWriter, then seal: fsync of every file and folder, SHA-256, manifest.
- `zarr_python`, `tensorstore`: the same arrays, whole, with the same chunks and codecs; no hash and no manifest.
- `h5py`: the same arrays in one HDF5 file by the filter of hdf5plugin, same chunks, same blosc; no checksum at all.

CPU time of all threads, because that is what staging takes from inference. The writers take turns, the order changes
from round to round.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.config.schema import StagingSection
from filmloop.core.documents import Accounting
from filmloop.core.types import FrameBlock
from filmloop.staging.events import pack_events
from filmloop.staging.schema import Layout
from filmloop.staging.writer import ShardWriter
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.simulator import CookieBoxSimulator

FRAME_SHAPE = (16, 128)
BATCH_FRAMES, CHUNK_FRAMES, CHUNK_HITS = 1024, 1024, 262144
POOL_FRAMES = 32768
"""Drawn once and shown again and again: 64 MB, more than the caches hold, so frames come from memory as they would."""

LAYOUTS: tuple[Layout, ...] = ("dense", "events")
Columns = dict[str, npt.NDArray[Any]]

# Blosc of each array: compressor, shuffle; and its inner block. Written out, to be no echo of ours.
_PACKERS = {
    "counts": ("lz4", "bitshuffle"),
    "hits": ("lz4", "bitshuffle"),
    "offsets": ("zstd", "shuffle"),
    "pulse_id": ("zstd", "shuffle"),
    "flags": ("lz4", "bitshuffle"),
    "version": ("lz4", "shuffle"),
    "weight": ("lz4", "shuffle"),
}
_BLOCK_BYTES = 131072


def measure(rounds: int, frames: int, folder: Path) -> dict[str, Any]:
    """Write one shard of `frames` frames `rounds` times by every writer, below `folder`.

    Returns:
        Of each layout: frames per CPU-second of every writer, our ratio to each (the median over rounds: within a
        round the machine is the same to both), how much more memory each takes than the columns in MB, and bytes a
        frame on disk. The dense layout is at the top, the other under its name.
    """
    results = {layout: _measure_layout(layout, rounds, frames, folder / layout) for layout in LAYOUTS}
    return {**results["dense"], "events": results["events"], "frames_per_shard": frames, "rounds": rounds}


def _measure_layout(layout: Layout, rounds: int, frames: int, folder: Path) -> dict[str, Any]:
    columns = make_columns(layout, frames)
    rates: dict[str, list[float]] = {name: [] for name in WRITERS}
    bytes_per_frame: dict[str, float] = {}
    folder.mkdir(parents=True)
    # Round -1 warms up: imports inside the libraries, first pages, codec set-up.
    for number in range(-1, rounds):
        names = list(WRITERS)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            target = folder / name
            begun_s = time.process_time()
            WRITERS[name](target, columns)
            cpu_s = time.process_time() - begun_s
            size_bytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
            bytes_per_frame[name] = round(size_bytes / frames, 1)
            shutil.rmtree(target)
            if number >= 0:
                rates[name].append(frames / cpu_s)
    return {
        "frames_per_cpu_s": round(statistics.median(rates["filmloop"])),
        "frames_per_cpu_s_range": [round(min(rates["filmloop"])), round(max(rates["filmloop"]))],
        "frames_per_cpu_s_peers": {name: round(statistics.median(rates[name])) for name in PEERS},
        **{f"ratio_to_{name}": _ratio(rates["filmloop"], rates[name]) for name in PEERS},
        "peak_mb": peak_growth_mb(columns, folder),
        "bytes_per_frame": bytes_per_frame,
    }


def make_columns(layout: Layout, frames: int) -> Columns:
    """The arrays of a shard, as the edge would hand them over: counts as they lie, or hits as a source brings them."""
    pool_NCE = CookieBoxSimulator(Conditions(), seed=1, frame_shape=FRAME_SHAPE)
    counts_NCE = np.resize(pool_NCE.frames(0, min(frames, POOL_FRAMES)).counts_NCE, (frames, *FRAME_SHAPE))
    columns: Columns = {
        "pulse_id": np.arange(frames, dtype=np.uint64),
        "flags": np.zeros(frames, np.uint8),
        "version": np.full(frames, 3, np.uint32),
        "phase": np.random.default_rng(1).uniform(-np.pi, np.pi, frames).astype(np.float32),
        "weight": np.ones(frames, np.float32),
    }
    if layout == "dense":
        return columns | {"counts": counts_NCE}
    hits, offsets = pack_events(counts_NCE)
    return columns | {"hits": hits, "offsets": offsets}


def write_filmloop(folder: Path, columns: Columns) -> None:
    """Batches into a writer, then seal."""
    frames = len(columns["pulse_id"])
    layout: Layout = "events" if "hits" in columns else "dense"
    # With hits the writer looks at the shape of the counts alone.
    counts_NCE = columns.get("counts", np.broadcast_to(np.uint8(0), (frames, *FRAME_SHAPE)))
    writer = ShardWriter(
        folder,
        site="bench",
        stream="bench",
        run_number=1,
        seq=0,
        frame_shape=FRAME_SHAPE,
        labelled=False,
        section=StagingSection(frames_per_shard=frames, frames_per_chunk=CHUNK_FRAMES, layout=layout),
    )
    for start in range(0, frames, BATCH_FRAMES):
        part = slice(start, start + BATCH_FRAMES)
        block = FrameBlock(
            run_number=1,
            pulse_id_N=columns["pulse_id"][part],
            counts_NCE=counts_NCE[part],
            flags_N=columns["flags"][part],
        )
        writer.append(
            block,
            version_N=columns["version"][part],
            phase_N=columns["phase"][part],
            weight_N=columns["weight"][part],
            events=(columns["hits"], columns["offsets"][start : part.stop + 1]) if layout == "events" else None,
        )
    writer.seal(accounting=Accounting())


def write_zarr_python(folder: Path, columns: Columns) -> None:
    """The same arrays and codecs by zarr-python alone."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec
    from zarr.storage import LocalStore

    group = zarr.create_group(store=LocalStore(folder), zarr_format=3)
    for name, values in columns.items():
        blosc = []
        if name in _PACKERS:
            packer: Any = dict(zip(("cname", "shuffle"), _PACKERS[name], strict=True))
            blosc = [BloscCodec(**packer, clevel=1, typesize=values.itemsize, blocksize=_BLOCK_BYTES)]
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=_chunk(name, values),
            shards=_whole_chunks(name, values) if name in ("counts", "hits") else None,
            filters=None,
            compressors=[*blosc, Crc32cCodec()],
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        array[:] = values


def write_tensorstore(folder: Path, columns: Columns) -> None:
    """The same arrays and codecs by tensorstore."""
    import tensorstore

    crc = {"name": "crc32c"}
    for name, values in columns.items():
        order: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
        codecs: list[dict[str, Any]] = [order]
        if name in _PACKERS:
            configuration: dict[str, Any] = dict(zip(("cname", "shuffle"), _PACKERS[name], strict=True))
            configuration |= {"blocksize": _BLOCK_BYTES, "clevel": 1, "typesize": values.itemsize}
            codecs.append({"name": "blosc", "configuration": configuration})
        codecs.append(crc)
        chunk_shape = _chunk(name, values)
        if name in ("counts", "hits"):
            inner = {"chunk_shape": chunk_shape, "codecs": codecs, "index_codecs": [order, crc]}
            codecs = [{"name": "sharding_indexed", "configuration": inner}]
            chunk_shape = _whole_chunks(name, values)
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{folder}/{name}/"},
            "metadata": {
                "shape": values.shape,
                "data_type": values.dtype.name,
                "fill_value": 0,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
                "codecs": codecs,
            },
            "store_data_equal_to_fill_value": True,
        }
        tensorstore.open(spec, create=True).result().write(values).result()


def write_h5py(folder: Path, columns: Columns) -> None:
    """One file; blosc inside, in the same chunks."""
    import h5py
    import hdf5plugin

    folder.mkdir()
    shuffles = {"shuffle": hdf5plugin.Blosc.SHUFFLE, "bitshuffle": hdf5plugin.Blosc.BITSHUFFLE}
    with h5py.File(folder / "shard.h5", "w") as file:
        for name, values in columns.items():
            packer: Any = {}
            if name in _PACKERS:
                cname, shuffle = _PACKERS[name]
                packer = hdf5plugin.Blosc(cname=cname, clevel=1, shuffle=shuffles[shuffle])
            file.create_dataset(name, data=values, chunks=_chunk(name, values), **packer)


WRITERS: dict[str, Callable[[Path, Columns], None]] = {
    "filmloop": write_filmloop,
    "zarr_python": write_zarr_python,
    "tensorstore": write_tensorstore,
    "h5py": write_h5py,
}
PEERS = tuple(name for name in WRITERS if name != "filmloop")


def peak_growth_mb(columns: Columns, folder: Path) -> dict[str, float]:
    """By how much a process that holds the columns grows at most while a writer writes them, in MB of 10**6 bytes.

    Each writer has a process of its own, which has written one small shard before: imports are no growth.
    """
    source = folder / "columns"
    source.mkdir()
    for name, values in columns.items():
        np.save(source / f"{name}.npy", values)
    growth_mb = {}
    for name in WRITERS:
        command = [sys.executable, "-m", "filmloop.bench.stage", name, str(source), str(folder / "peak")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        growth_mb[name] = round(json.loads(done.stdout) / 1e6, 1)
        shutil.rmtree(folder / "peak")
    shutil.rmtree(source)
    return growth_mb


def _grow(name: str, source: Path, folder: Path) -> int:
    """Write the columns in `source` and say by how many bytes the process grew at most."""
    columns = {path.stem: np.load(path) for path in source.iterdir()}
    folder.mkdir()
    small = {key: values[:BATCH_FRAMES] for key, values in columns.items()}
    if "offsets" in small:
        small |= {"offsets": columns["offsets"][: BATCH_FRAMES + 1]}
        small |= {"hits": columns["hits"][: int(small["offsets"][-1])]}
    WRITERS[name](folder / "small", small)
    # ru_maxrss counts the process that started this one, and everything before: set the high-water mark to now.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before_bytes = _status_bytes("VmRSS")
    WRITERS[name](folder / "all", columns)
    return _status_bytes("VmHWM") - before_bytes


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _chunk(name: str, values: npt.NDArray[Any]) -> tuple[int, ...]:
    rows = {"counts": CHUNK_FRAMES, "hits": CHUNK_HITS}.get(name, len(values))
    return (min(rows, len(values)), *values.shape[1:])


def _whole_chunks(name: str, values: npt.NDArray[Any]) -> tuple[int, ...]:
    rows = _chunk(name, values)[0]
    return (-(-len(values) // rows) * rows, *values.shape[1:])


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


if __name__ == "__main__":
    print(_grow(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
