"""What a site that runs for weeks must not keep for ever. Reports and verdicts stay; the registry has every bundle."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from filmloop.config.paths import UNSWEPT, Home


def remove_old(home: Home, *, keep_cycles: Collection[str], keep_weights: int) -> None:
    """Remove the bundles and the journals of moves and launches of all cycles but these, and all but the newest downloaded weights.

    A move that may have left something on a disk keeps its journal until that is gone. What cannot be removed now is removed after a later cycle.
    """
    old = {cycle.name: cycle for cycle in _children(home.cycles) if cycle.name not in keep_cycles}
    for cycle in old.values():
        shutil.rmtree(cycle / "bundle", ignore_errors=True)
        shutil.rmtree(home.launches / cycle.name, ignore_errors=True)  # a job has its cycle's name
    for journal in _children(home.moves):  # of a year there are 50,000 cycles: not for each of them
        if any(owner in old for owner in _owners(journal.name)) and not (journal / UNSWEPT).exists():
            shutil.rmtree(journal, ignore_errors=True)
    for model in _children(home.weights):
        for version in sorted(_children(model), key=lambda path: path.stat().st_mtime)[:-keep_weights]:
            shutil.rmtree(version, ignore_errors=True)


def _owners(key: str) -> list[str]:
    """What a move's key may begin with: its cycle, then a dash."""
    words = key.split("-")
    return ["-".join(words[:count]) for count in range(1, len(words))]


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
