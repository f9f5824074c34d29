"""What the files of a shard are called.

    <stage>/<stream>/run<run>/<seq>.zarr                     the group; <seq>.zarr.part while it is written
    <stage>/<stream>/run<run>/<seq>.manifest.json            its presence is the commit
    <stage>/<stream>/run<run>/<seq>.manifest.json.part       finished and durable, the commit is under way
    <stage>/<stream>/run<run>/<seq>.manifest.json.expired    taken back by retention, the group is on its way out
    <stage>/.quarantine/                                     groups that a crash left without a manifest

`<run>` has six digits and `<seq>` eight, so that names sort as numbers do. `<seq>` counts on across the runs of a
stream, and a site may go back to an earlier run number: it alone says which shard is newer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filmloop.core.errors import ConfigError
from filmloop.core.fsio import PART_SUFFIX, disk_errors

GROUP_SUFFIX = ".zarr"
MANIFEST_SUFFIX = ".manifest.json"
EXPIRED_SUFFIX = ".expired"
QUARANTINE = ".quarantine"
METADATA = "zarr.json"
"""Zarr's own, of the group and of each array in it."""

_STREAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RUN = re.compile(r"run[0-9]{6}")
_SHARD_FILE = re.compile(r"[0-9]{8}\..*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardName:
    """One shard by name; the number alone tells the shards of a stream apart, and their order."""

    stream: str
    run_number: int
    seq: int

    def __post_init__(self) -> None:
        """Refuse names that cannot be a path below the stage.

        Raises:
            ConfigError: the stream is no plain folder name, or a number has too many digits.
        """
        if not _STREAM.fullmatch(self.stream):
            raise ConfigError(
                f"{self.stream!r} cannot be the name of a stream.",
                hint="Use letters, digits, '.', '_' and '-', beginning with a letter or digit: [source] stream.",
            )
        if not (0 <= self.run_number < 10**6 and 0 <= self.seq < 10**8):
            raise ConfigError(f"Run {self.run_number} or shard {self.seq} of stream {self.stream} is out of range.")

    @property
    def shard_id(self) -> str:
        """`<stream>/run000001/00000012`."""
        return f"{self.stream}/run{self.run_number:06d}/{self.seq:08d}"

    def group_path(self, stage: Path) -> Path:
        """The Zarr group's folder."""
        return stage / f"{self.shard_id}{GROUP_SUFFIX}"

    def manifest_path(self, stage: Path) -> Path:
        """The manifest beside it."""
        return stage / f"{self.shard_id}{MANIFEST_SUFFIX}"


def part_of(path: Path) -> Path:
    """The name of `path` while it is being written."""
    return path.with_name(path.name + PART_SUFFIX)


def name_of(path: Path) -> ShardName:
    """The shard that a group, manifest or leftover at `path` belongs to."""
    return ShardName(
        stream=path.parent.parent.name,
        run_number=int(path.parent.name.removeprefix("run")),
        seq=int(path.name.split(".", 1)[0]),
    )


def streams(stage: Path) -> list[str]:
    """Names of the streams that have a folder in `stage`, sorted.

    Raises:
        TransientError: the disk refuses.
    """
    return sorted(_folders(stage, _STREAM))


def shard_files(stage: Path, stream: str, suffix: str = "") -> Iterator[Path]:
    """Everything of `stream` whose name is a shard's, or only what ends in `suffix`, oldest first: in order of number.

    Raises:
        TransientError: the disk refuses.
    """
    found = [
        stage / stream / run / name
        for run in _folders(stage / stream, _RUN)
        for name in _names(stage / stream / run)
        if _SHARD_FILE.fullmatch(name) and name.endswith(suffix)
    ]
    yield from sorted(found, key=lambda path: (path.name, path.parent.name))


def next_seq(stage: Path, stream: str) -> int:
    """A sequence number above all that `stream` has used, damaged shards and leftovers included.

    Raises:
        TransientError: the disk refuses.
    """
    return max((name_of(path).seq for path in shard_files(stage, stream)), default=-1) + 1


def _folders(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    """Names of the folders in `folder` that match."""
    with disk_errors(folder):
        return [name for name in _names(folder) if pattern.fullmatch(name) and (folder / name).is_dir()]


def _names(folder: Path) -> list[str]:
    """What lies in `folder`: nothing if it is not there. One that cannot be read must not look empty, as it would to `glob`."""
    with disk_errors(folder):
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []
