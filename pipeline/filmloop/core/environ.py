"""What the environment of another process says: a variable that its starter gave it, and that all below it inherit.

A process number is given to others once its owner has ended; a random token in the environment belongs to nobody else.
"""

from __future__ import annotations

from pathlib import Path


def environ_of(process: int | str) -> list[bytes]:
    """`NAME=value` of each variable as exec left them; empty for a process that has ended, or is another user's.

    Args:
        process: Its id, or `self`.
    """
    try:
        return Path("/proc", str(process), "environ").read_bytes().split(b"\0")
    except OSError:
        return []
