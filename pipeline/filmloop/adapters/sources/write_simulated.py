"""Simulated frames with their truth as an HDF5 file, in the stacked form that the replay source reads.

Shape suffixes: N frames, C channels, E energy bins, P sub-pulses of a frame (padded with NaN).
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import h5py
import numpy as np

from filmloop.adapters.sources.simulator import set_up
from filmloop.config.schema import SimulatorSource
from filmloop.core.errors import ConfigError
from filmloop.core.fsio import PART_SUFFIX, disk_errors, translate_os_error

_BLOCK_FRAMES = 2048


def write_simulated(
    target: Path, section: SimulatorSource, frame_shape: tuple[int, int], *, first: int, frames: int
) -> dict[str, float | int | str]:
    """Write frames `first` to `first + frames - 1`: `Ximg` uint8 counts, `Ypdf` float32 true photo lines (N, C, E),
    `rate` float32 true means of the counts, `npulses`, and `centre`, `amplitude`, `phase` (rad), `delay_fs` (N, P).

    Returns:
        What was written: path, frames, hits_per_frame.

    Raises:
        ConfigError: the file is there already or cannot be made there, or the conditions do not fit.
        TransientError: the disk refuses; no file is left.
    """
    _require_place(target)
    simulator = set_up(section, frame_shape)
    part = target.with_name(f"{target.name}.part")
    hits = 0
    try:
        with disk_errors(target), h5py.File(part, "w") as out:
            out.attrs["source"] = f"filmloop simulator, seed {section.seed}, frames {first} to {first + frames - 1}"
            out.attrs["conditions"] = section.conditions.model_dump_json()
            for start in range(0, frames, _BLOCK_FRAMES):
                count = min(_BLOCK_FRAMES, frames - start)
                made = simulator.frames(first + start, count, truth=True)
                hits += int(made.counts_NCE.sum())
                columns = {
                    "Ximg": made.counts_NCE, "Ypdf": made.signal_NCE, "rate": made.rate_NCE, "npulses": made.npulses_N,
                    "centre": made.centre_NP, "amplitude": made.amplitude_NP, "phase": made.phase_NP,
                    "delay_fs": made.delay_fs_NP,
                }  # fmt: skip
                for name, values in columns.items():
                    assert values is not None
                    _append(out, name, values, start)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return {"path": str(target), "frames": frames, "hits_per_frame": hits / frames}


def _require_place(target: Path) -> None:
    """See that a new file can be made there, before frames are drawn for it.

    Raises:
        ConfigError: it cannot.
    """
    folder, ids = target.absolute().parent, {"path": str(target)}
    try:
        if target.is_dir():
            raise ConfigError(f"{target} is a folder.", hint=f"Name a file, as {target / 'frames.h5'}.", ids=ids)
        if os.path.lexists(target):
            raise ConfigError(f"{target} is there already.", hint="Name another file, or delete it first.", ids=ids)
        if not folder.is_dir():
            raise ConfigError(
                f"There is no folder {folder} to write {target.name} to.", hint=f"Make it: mkdir -p {folder}", ids=ids
            )
        descriptor, probe = tempfile.mkstemp(prefix=target.name, suffix=PART_SUFFIX, dir=folder)
        os.close(descriptor)
        os.unlink(probe)
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise translate_os_error(exc, target) from exc
        why = os.strerror(exc.errno or 0).lower()
        raise ConfigError(
            f"{target} cannot be written: {why}.", hint="Name a file in a folder that you may write.", ids=ids
        ) from exc


def _append(out: h5py.File, name: str, values: np.ndarray, start: int) -> None:
    """Add rows; a column of sub-pulses widens when a block has a frame with more of them than any before."""
    padded = values.ndim == 2
    if name not in out:
        shape = (0, *values.shape[1:])
        out.create_dataset(
            name, shape, values.dtype, maxshape=(None, None) if padded else (None, *values.shape[1:]),
            chunks=(512, *values.shape[1:]) if values.ndim == 3 else True, compression="gzip", compression_opts=1,
            fillvalue=np.nan if values.dtype.kind == "f" else 0,
        )  # fmt: skip
    data = out[name]
    size = (start + len(values), *values.shape[1:])
    data.resize((size[0], max(size[1], data.shape[1])) if padded else size)
    if padded:
        data[start:, : values.shape[1]] = values
    else:
        data[start:] = values
