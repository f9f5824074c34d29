"""How many of what, in words."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 shard`, `7,362 frames`; `plural` where an s at the end is not all."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
