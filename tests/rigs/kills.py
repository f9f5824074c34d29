"""The points of a cycle's journal, SIGKILL at one of them, and what must not depend on how often that was done."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from filmloop.config.paths import Home
from filmloop.core.documents import TrainResult
from filmloop.ledger import Ledger

FULL = ("begun", "handled", "undone", "done")  # steps that call something remote and get a handle
PLAIN = ("begun", "undone", "done")
MOMENTS = {
    "seal": PLAIN, "select": PLAIN, "recall": PLAIN, "move": FULL, "train": FULL, "fetch": FULL, "judge": PLAIN, "register": PLAIN,
    "alias": ("begun", "undone"), "promote": PLAIN, "live": PLAIN, "cycle": ("undone",),
}  # fmt: skip
POINTS = [f"{step}:{moment}" for step, moments in MOMENTS.items() for moment in moments]


def kill_at(point: str, argv: Sequence[str], env: dict[str, str]) -> int:
    """Run a command of `filmloop` that dies at `point`; returns its exit code, 0 if it never came there."""
    words = [argv[0], "-m", "filmloop.testing.kill_at", point, "--", *argv[3:]]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL)
    assert done.returncode in (-signal.SIGKILL, 0), done.stdout + done.stderr
    return done.returncode


def cycle_state(home: Home, model: str, versions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Outcomes, alias moves, shards, weights, files of the newest cycle, versions of the registry."""
    with Ledger(home.ledger) as ledger:
        cycles = ledger.history()
        moves = [(m.alias, m.from_version, m.to_version) for m in ledger.moves(model)]
        shards, pending = ledger.shard_states(), ledger.pending_moves()
    folder = home.cycles / cycles[0].cycle_id
    trained = (folder / "bundle").exists()  # a version that came back was not
    result = TrainResult.read(folder / "bundle" / "result.json") if trained else None
    return {
        "outcomes": [row.outcome for row in cycles],
        "moves": moves,
        "pending": pending,
        "shards": shards,
        "weights": result and result.weights_sha256,
        "steps": result and result.steps,
        "folder": sorted(path.name for path in folder.iterdir()),
        "versions": [(v["version"], sorted(v["aliases"])) for v in versions],
    }
