"""Did every file of a move arrive, and whole? A task that SUCCEEDED is not believed by that word alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from filmloop.adapters.globus.transfer.client import Arrival
from filmloop.core.counted import counted
from filmloop.ports.mover import MoveItem


def missing(items: Sequence[MoveItem], arrivals: Iterable[Arrival], folder: str, *, skipped: int) -> list[str]:
    """What a task's own books say against the items, in words; nothing if every file is accounted for.

    Files that an earlier attempt had brought are not in the books: Transfer has compared both sides by checksum and skipped
    them, and the source was hashed here. Their number must fit.

    Args:
        items: What was sent.
        arrivals: What the task tells that it transferred.
        folder: Where the files went, relative to the target's root.
        skipped: How many files the task found there already.
    """
    # Transfer may write out what is short for it, as /~/: the end of the path is what counts.
    found = {arrival.path.rpartition(f"/{folder}/")[2]: arrival for arrival in arrivals}
    problems, absent = [], []
    for item in items:
        arrival = found.get(item.target_path)
        if arrival is None:
            absent.append(item.target_path)
        elif arrival.size_bytes != item.size_bytes:
            problems.append(f"{item.target_path} has {arrival.size_bytes} bytes there, not {item.size_bytes}")
        elif _is_sha256(arrival) and arrival.checksum.lower() != item.sha256:
            problems.append(f"{item.target_path} has another SHA-256 there")
    if len(absent) > skipped:
        files = f"{counted(len(absent), 'file')} {'is' if len(absent) == 1 else 'are'}"
        problems.append(f"{files} not in the books, {skipped} were there before; {absent[0]} is one")
    return problems


def _is_sha256(arrival: Arrival) -> bool:
    return bool(arrival.checksum) and arrival.algorithm.replace("-", "").lower() == "sha256"
