"""A folder on one side as its collection names it, and what a move's files are called there until they are verified."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from filmloop.adapters.moving.deliver import INCOMING, below
from filmloop.config.globus import Collection


def relative(path: str) -> str:
    """`path` in its one form, if it stays inside the folder that the mover serves.

    Raises:
        DataError: it is empty, absolute, climbs out with `..`, or lies in the folder for unverified files.
    """
    return below(Path("/"), path).relative_to("/").as_posix()


def incoming(key: str) -> str:
    """Where the files of a move lie until they are verified, relative to the root of the receiving side."""
    return f"{INCOMING}/{key}"


class Side:
    """Paths below one side's folder, as its collection shows them."""

    def __init__(self, section: Collection) -> None:
        self.collection = section.collection
        # Transfer calls the home folder /~/.
        root = section.path if section.path.startswith("/") else f"/{section.path}"
        self._root = root.rstrip("/")

    def path(self, relative_path: str) -> str:
        """The collection's path of a place that `relative` has looked at, or of one below `incoming`."""
        return f"{self._root}/{relative_path}" if relative_path else f"{self._root}/"


def overlap(one: str, other: str) -> bool:
    """Whether one of two relative paths is the other, or lies in it."""
    a, b = PurePosixPath(one), PurePosixPath(other)
    return a.is_relative_to(b) or b.is_relative_to(a)
