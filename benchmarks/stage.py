"""What staging costs: sealing shards beside the plainest writers of the same frames, in CPU time of the process.

- `filmloop`: ShardWriter fed with batches, then seal: Zarr write, fsync of every file and folder, SHA-256, manifest.
- `zarr`: zarr-python writes the same arrays, whole, with the same chunks and codecs; no hash, no fsync, no manifest.
- `h5py`: the same arrays in one HDF5 file, same chunks, shuffle and gzip (level 4, h5py's default).

CPU time, because that is what staging takes from inference; fsync waits, which cost none, are in the wall rate. The
three take turns, the order changes from round to round.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import zarr
from _common import median, options, report, say, scratch, spread
from _stream import STREAM, draw_pool, site
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore

from filmloop.core.documents import Accounting
from filmloop.core.types import FrameBlock
from filmloop.staging.writer import ShardWriter

CONFIG = site()
BATCH_FRAMES, SHARD_FRAMES = CONFIG.edge.batch_frames, CONFIG.staging.frames_per_shard
CHUNK_FRAMES = CONFIG.staging.frames_per_chunk
Columns = dict[str, np.ndarray]


def make_columns(frames: int) -> Columns:
    """The five arrays of a shard, as the edge would hand them over."""
    rng = np.random.default_rng(1)
    return {
        "counts": draw_pool(CONFIG, frames),
        "pulse_id": np.arange(frames, dtype=np.uint64),
        "flags": np.zeros(frames, np.uint8),
        "version": np.full(frames, 3, np.uint32),
        "phase": rng.uniform(-np.pi, np.pi, frames).astype(np.float32),
    }


def write_filmloop(folder: Path, columns: Columns) -> None:
    """Batches into a writer, then seal."""
    writer = ShardWriter(
        folder, site="bench", stream=STREAM, run_number=1, seq=0, frame_shape=CONFIG.frame_shape, labelled=False,
        section=CONFIG.staging,
    )  # fmt: skip
    for start in range(0, len(columns["counts"]), BATCH_FRAMES):
        part = slice(start, start + BATCH_FRAMES)
        block = FrameBlock(
            run_number=1,
            pulse_id_N=columns["pulse_id"][part],
            counts_NCE=columns["counts"][part],
            flags_N=columns["flags"][part],
        )
        writer.append(block, version_N=columns["version"][part], phase_N=columns["phase"][part])
    writer.seal(accounting=Accounting())


def write_zarr(folder: Path, columns: Columns) -> None:
    """The same arrays and codecs by zarr-python alone; the codecs are written out, to be no echo of ours."""
    group = zarr.create_group(store=LocalStore(folder), zarr_format=3)
    packers = {"counts": ("lz4", "bitshuffle"), "pulse_id": ("zstd", "shuffle")}
    packers |= {"flags": ("lz4", "bitshuffle"), "version": ("lz4", "shuffle")}
    for name, values in columns.items():
        image = values.ndim == 3
        blosc = []
        if name in packers:
            cname, shuffle = packers[name]
            blosc = [BloscCodec(cname=cname, clevel=1, shuffle=shuffle, typesize=values.itemsize)]
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(CHUNK_FRAMES, *values.shape[1:]) if image else values.shape,
            shards=values.shape if image else None,
            filters=None,
            compressors=[*blosc, Crc32cCodec()],
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        array[:] = values


def write_h5py(folder: Path, columns: Columns) -> None:
    """One file, gzip."""
    folder.mkdir()
    with h5py.File(folder / "shard.h5", "w") as file:
        for name, values in columns.items():
            chunks = (CHUNK_FRAMES, *values.shape[1:]) if values.ndim == 3 else values.shape
            file.create_dataset(name, data=values, chunks=chunks, compression="gzip", shuffle=True)


WRITERS: dict[str, Callable[[Path, Columns], None]] = {
    "filmloop": write_filmloop,
    "zarr": write_zarr,
    "h5py": write_h5py,
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    rounds, frames = (2, 2 * CHUNK_FRAMES) if args.quick else (args.rounds, SHARD_FRAMES)
    columns = make_columns(frames)
    cpu_rate: dict[str, list[float]] = {name: [] for name in WRITERS}
    wall_rate: dict[str, list[float]] = {name: [] for name in WRITERS}
    bytes_per_frame: dict[str, float] = {}
    with scratch(args.folder) as folder:
        # Round -1 warms up: imports inside the libraries, first pages, codec set-up.
        for number in range(-1, rounds):
            names = list(WRITERS)
            for name in names[number % 3 :] + names[: number % 3]:
                target = folder / name
                begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
                WRITERS[name](target, columns)
                cpu_s, wall_s = time.process_time() - begun_cpu_s, time.perf_counter() - begun_s
                size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
                shutil.rmtree(target)
                bytes_per_frame[name] = round(size / frames, 1)
                if number >= 0:
                    cpu_rate[name].append(frames / cpu_s)
                    wall_rate[name].append(frames / wall_s)
    for name, rates in cpu_rate.items():
        say(f"{name}: {median(rates, 0):,.0f} frames per CPU-second, {bytes_per_frame[name]} bytes a frame")
    values = {
        "frames_per_cpu_s": median(cpu_rate["filmloop"], 0),
        "frames_per_cpu_s_range": spread(cpu_rate["filmloop"], 0),
        "ratio_to_zarr_python": _ratio(cpu_rate, "zarr"),
        "ratio_to_h5py": _ratio(cpu_rate, "h5py"),
        "bytes_per_frame": bytes_per_frame["filmloop"],
        "bytes_per_frame_zarr": bytes_per_frame["zarr"],
        "bytes_per_frame_h5py": bytes_per_frame["h5py"],
        "frames_per_s": {name: median(rates, 0) for name, rates in wall_rate.items()},
        "frames_per_shard": frames,
        "frame_shape": list(CONFIG.frame_shape),
        "rounds": rounds,
    }
    report("stage", values, packages=("zarr", "numcodecs", "h5py", "numpy"), quick=args.quick)


def _ratio(rates: dict[str, list[float]], peer: str) -> float:
    """The median over rounds: within one round the machine is the same to both."""
    return median([ours / theirs for ours, theirs in zip(rates["filmloop"], rates[peer], strict=True)])


if __name__ == "__main__":
    main()
