"""Replays recorded frames as if they came from the detector.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from filmloop.adapters.sources.hdf5 import open_hdf5
from filmloop.adapters.sources.paced import PacedSource
from filmloop.adapters.sources.recording import Recording
from filmloop.adapters.sources.shards import ShardRecording
from filmloop.config.schema import ReplaySource
from filmloop.core.errors import ConfigError, DataError
from filmloop.core.fsio import canonical_json, sha256_bytes
from filmloop.core.types import BAD, MAX_RUN, FrameBlock
from filmloop.staging.layout import MANIFEST_SUFFIX

_log = logging.getLogger(__name__)

_DIGEST_BYTES = 1 << 20


def open_recording(path: Path) -> Recording:
    """The recording at `path`: a folder with sealed shards, or an HDF5 file of a known schema.

    Raises:
        DataError: absent, of an unknown form, or without a frame.
    """
    if not os.path.exists(path):  # says no, too, of a name that no file can have
        raise DataError(
            f"No recording at {path}.",
            hint="Check the path: [source] path in the site file, or --source replay:FILE.",
            ids={"path": str(path)},
        )
    recording: Recording = ShardRecording(path) if path.is_dir() else open_hdf5(path)
    if not sum(recording.run_frames):
        recording.close()
        raise DataError(f"{path} has no frames.", ids={"path": str(path)})
    return recording


def default_stream(path: str) -> str:
    """`replay-<stem>-<digest>`, with nothing in it that a folder name cannot have.

    The digest, 6 hexadecimal digits of the recording's content, makes two recordings of one name two streams, and one
    that was replaced a new stream: pulse ids of the one say nothing about the other. Without a recording there is none.
    """
    stem = re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-")
    try:
        digest = _content_digest(Path(path).expanduser())
    except OSError:
        # `open` says what is wrong with it.
        return f"replay-{stem or 'recording'}"
    return f"replay-{stem or 'recording'}-{digest[:6]}"


def _content_digest(path: Path) -> str:
    """SHA-256 over a file's size, first and last MiB, or over the names and digests of a folder's manifests.

    Raises:
        OSError: the file cannot be read, or the folder has no manifest.
    """
    if path.is_dir():
        manifests = sorted(path.rglob(f"*{MANIFEST_SUFFIX}"))
        if not manifests:
            raise FileNotFoundError(f"no manifest below {path}")
        return sha256_bytes(
            canonical_json([[str(found.relative_to(path)), sha256_bytes(found.read_bytes())] for found in manifests])
        )
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        first = file.read(_DIGEST_BYTES)
        file.seek(max(size_bytes - _DIGEST_BYTES, 0))
        return sha256_bytes(b"%d:" % size_bytes + first + file.read(_DIGEST_BYTES))


class ReplayFrameSource(PacedSource):
    """Recorded frames in their order, once or for ever.

    Every pass over the recording is a run of its own, numbered from the site's `run_number` up (a pass over shards of
    several runs takes as many numbers); pulse ids are the same in every pass. The pass after the last whole one up to
    `MAX_RUN` is the first again.

    Args:
        section: The site's `[source]`.
        frame_shape: (C, E) that the site expects; None takes what the recording has.
    """

    def __init__(self, section: ReplaySource, frame_shape: tuple[int, int] | None = None) -> None:
        super().__init__(
            stream=section.stream or default_stream(section.path),
            frame_shape=frame_shape or (0, 0),
            labelled=section.use_labels,
            rate_hz=section.rate_hz,
        )
        self._section, self._expected = section, frame_shape
        self._path = Path(section.path).expanduser()
        self._recording: Recording | None = None
        self._run, self._position = 0, 0

    def open(self, *, after: tuple[int, int] | None) -> None:
        """Open the recording and go to its begin, or right behind a frame.

        Raises:
            DataError: the recording is absent, of an unknown form, or has no labels though they are asked for.
            ConfigError: its frames are not of the site's shape, or too few run numbers are left for its passes.
        """
        self.close()
        recording = open_recording(self._path)
        try:
            self._check(recording)
        except BaseException:
            recording.close()
            raise
        self._recording, self.frame_shape = recording, recording.frame_shape
        self._run, self._position = 0, 0
        if after is not None and after[0] >= self._section.run_number:
            self._run = after[0] - self._section.run_number
            self._position = recording.position_after(self._run % len(recording.run_frames), after[1])
        self._start()

    def close(self) -> None:
        """Close the recording; may be called twice."""
        super().close()
        if self._recording is not None:
            self._recording.close()
            self._recording = None

    def _more(self, wanted: int) -> FrameBlock | None:
        recording = self._recording
        if recording is None:
            return None
        runs = len(recording.run_frames)
        if self._position >= recording.run_frames[self._run % runs]:
            self._run, self._position = self._run + 1, 0
        if self._section.loop and self._run >= (MAX_RUN + 1 - self._section.run_number) // runs * runs:
            self._run, self._position = 0, 0
        if self._run >= runs and not self._section.loop:
            # Stay at the end: the next call must not begin another run.
            self._run, self._position = runs - 1, recording.run_frames[-1]
            return None
        stop = min(self._position + max(wanted, recording.block_frames), recording.run_frames[self._run % runs])
        block = recording.read(self._run % runs, self._position, stop, labels=self.labelled)
        self._position += len(block)
        return replace(block, run_number=self._section.run_number + self._run)

    def _check(self, recording: Recording) -> None:
        if self._expected is not None and recording.frame_shape != self._expected:
            channels, energy_bins = recording.frame_shape
            raise ConfigError(
                f"Frames of {self._path} are {recording.frame_shape}, the site file says {self._expected}.",
                hint=f"Set [frame] channels = {channels} and energy_bins = {energy_bins} in the site file.",
                ids={"path": str(self._path)},
            )
        # A loop needs two numbers at least: a run that followed itself would be all duplicates.
        needed = max(len(recording.run_frames), 2 if self._section.loop else 1)
        if self._section.run_number + needed > MAX_RUN + 1:
            raise ConfigError(
                f"A replay of {self._path} takes {needed} run numbers from {self._section.run_number} up, "
                f"the highest is {MAX_RUN}.",
                hint=f"Set [source] run_number to {MAX_RUN + 1 - needed} or less.",
                ids={"path": str(self._path)},
            )
        if self.labelled and not recording.has_labels:
            raise DataError(
                f"{self._path} has no label for every frame.",
                hint="Set [source] use_labels = false, or name a recording with labels (Y_*, Ypdf).",
                ids={"path": str(self._path)},
            )


def read_labelled(
    path: Path, limit: int | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32] | None, npt.NDArray[np.uint64]]:
    """The first `limit` frames of a recording (all for None), for evaluation; damaged ones are left out, and the log says so.

    Returns:
        counts_NCE uint8 (N, C, E); label_NCE float32 (N, C, E), None for a recording without labels; pulse_id_N
        uint64 (N,).

    Raises:
        DataError: the recording is absent, of an unknown form, cannot be read, or no frame of it is sound.
    """
    recording = open_recording(path)
    try:
        left = sum(recording.run_frames) if limit is None else limit
        blocks: list[FrameBlock] = []
        for run, frames in enumerate(recording.run_frames):
            position = 0
            while position < frames and left > 0:
                stop = position + min(left, frames - position, recording.block_frames)
                blocks.append(recording.read(run, position, stop, labels=recording.has_labels))
                position, left = position + len(blocks[-1]), left - len(blocks[-1])
    finally:
        recording.close()
    return _sound(blocks, path)


def _sound(
    blocks: list[FrameBlock], path: Path
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32] | None, npt.NDArray[np.uint64]]:
    labels = [block.label_NCE for block in blocks if block.label_NCE is not None]
    counts_NCE = np.concatenate([block.counts_NCE for block in blocks])
    label_NCE = np.concatenate(labels) if labels else None
    pulse_id_N = np.concatenate([block.pulse_id_N for block in blocks])
    sound_N = np.concatenate([block.flags_N for block in blocks]) & BAD == 0
    if sound_N.all():
        return counts_NCE, label_NCE, pulse_id_N
    what = f"{path}: {(~sound_N).sum()} of {len(sound_N)} frames are damaged, the first is {pulse_id_N[~sound_N][0]}"
    if not sound_N.any():
        raise DataError(f"{what}.", hint="Name another file.", ids={"path": str(path)})
    _log.warning("%s: left out", what)
    return counts_NCE[sound_N], None if label_NCE is None else label_NCE[sound_N], pulse_id_N[sound_N]
