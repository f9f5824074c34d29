from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from filmloop.config.paths import Home
from filmloop.core.errors import CancelledError, DataError, FilmloopError, TransientError, VerificationError
from filmloop.ports.mover import Direction, MoveItem, Mover, MoveStatus
from filmloop.shipping import keep_bundle, local_bundle, move
from filmloop.testing.bundles import make_bundle
from filmloop.testing.fakes import MemoryRegistry


class Scripted:
    """A mover that tells one status after the other; the last one for ever."""

    def __init__(self, *statuses: MoveStatus) -> None:
        self.statuses = list(statuses)
        self.submitted = 0

    def submit(self, direction: Direction, items: Sequence[MoveItem], *, key: str) -> str:
        self.submitted += 1
        return key

    def poll(self, handle: str) -> MoveStatus:
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


def run(mover: Scripted, told: list[str] | None = None, deadline_s: float = 10.0) -> dict[str, int]:
    how: dict[str, Any] = {"key": "c1-move", "deadline_s": deadline_s, "poll_s": 0.01, "keep_handle": lambda _: None}
    return move(cast(Mover, mover), "to_cluster", [], tell=(told if told is not None else []).append, **how)


def waits(detail: str) -> MoveStatus:
    return MoveStatus(state="active", detail=detail)


def failed(error: str, *, retryable: bool = False, hint: str = "Do this.") -> MoveStatus:
    return MoveStatus(state="failed", detail="what happened", error=error, hint=hint, retryable=retryable)


def test_what_the_mover_waits_for_is_told_when_it_changes() -> None:
    told: list[str] = []
    done = MoveStatus(state="succeeded")
    run(Scripted(*map(waits, ["Queued", "Queued", "paused: drained", "", "paused: drained"]), done), told)
    assert told == ["Queued", "paused: drained", "paused: drained"]


def test_a_deadline_that_passes_names_what_was_waited_for() -> None:
    with pytest.raises(TransientError, match="did not happen within 0 s: paused: drained"):
        run(Scripted(waits("paused: drained")), deadline_s=0.1)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("DataError", DataError),
        ("VerificationError", VerificationError),
        ("CancelledError", CancelledError),
        ("FilmloopError", FilmloopError),
        ("", FilmloopError),
    ],
)
def test_the_movers_error_keeps_its_class_and_its_hint(error: str, kind: type[FilmloopError]) -> None:
    mover = Scripted(failed(error))
    with pytest.raises(FilmloopError, match="what happened") as caught:
        run(mover)
    assert (type(caught.value), caught.value.hint, mover.submitted) == (kind, "Do this.", 1)


def test_only_damaged_data_without_a_hint_are_to_be_verified() -> None:
    for error, verify in (("DataError", True), ("FilmloopError", False)):
        with pytest.raises(FilmloopError) as caught:
            run(Scripted(failed(error, hint="")))
        assert ("filmloop shards verify" in caught.value.hint) is verify


def test_a_passing_failure_is_submitted_three_times_and_stays_a_passing_one() -> None:
    mover = Scripted(failed("OverdueError", retryable=True))
    with pytest.raises(TransientError, match="what happened") as caught:
        run(mover)
    assert (type(caught.value), mover.submitted) == (TransientError, 3)


class Overdue(Scripted):
    """A mover that gives up a little before the deadline of whoever waits, as that of Globus does, again and again."""

    def __init__(self, after_s: float) -> None:
        super().__init__()
        self.after_s, self.since_s = after_s, 0.0

    def submit(self, direction: Direction, items: Sequence[MoveItem], *, key: str) -> str:
        self.since_s = time.monotonic()
        return super().submit(direction, items, key=key)

    def poll(self, handle: str) -> MoveStatus:
        overdue = time.monotonic() - self.since_s >= self.after_s
        return failed("OverdueError", retryable=True) if overdue else waits("Globus cannot be reached")


def test_the_deadline_is_for_all_attempts_together() -> None:
    mover, begun_s = Overdue(0.95), time.monotonic()
    with pytest.raises(TransientError, match="what happened"):
        run(mover, deadline_s=1.0)
    assert (mover.submitted, time.monotonic() - begun_s < 1.3) == (1, True)
    mover, begun_s = Overdue(0.6), time.monotonic()
    with pytest.raises(TransientError, match="did not happen within 1 s: Globus cannot be reached"):
        run(mover, deadline_s=1.0)
    assert (mover.submitted, time.monotonic() - begun_s < 1.3) == (2, True)


def test_a_bundle_that_was_kept_is_not_downloaded_and_a_damaged_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, registry = Home(tmp_path / "home"), MemoryRegistry(tmp_path / "registry")
    made = tmp_path / "made"
    make_bundle(made)
    version = registry.register(made, key="c1", description="", tags={}, metrics={}).version
    keep_bundle(home, registry.model, version, made)
    keep_bundle(home, registry.model, version, made)  # after a kill: once more
    shutil.rmtree(made)  # as housekeeping does, after a while
    downloads: list[str] = []
    download = registry.download
    monkeypatch.setattr(
        registry, "download", lambda version, target: (downloads.append(version), download(version, target))[1]
    )
    folder = local_bundle(home, registry, version)
    assert (folder, downloads) == (home.weights / registry.model / version, [])
    damaged = folder / "golden.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert local_bundle(home, registry, version) == folder
    assert downloads == [version]
    assert [path.name for path in folder.parent.iterdir()] == [version]
