from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from filmloop.adapters.local.mover import LocalMover
from filmloop.adapters.moving import deliver
from filmloop.config.schema import LocalMover as MoverSection
from filmloop.core.errors import DataError
from filmloop.core.fsio import try_lock
from filmloop.testing.contracts.mover import THREE, MoverSite, ended, files_below

Make = Callable[..., LocalMover]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    for side in ("edge", "cluster"):
        (tmp_path / side).mkdir()
    made: list[LocalMover] = []

    def build(deadline_s: float = 60.0) -> LocalMover:
        section = MoverSection(deadline_s=deadline_s)
        roots = {"edge_root": tmp_path / "edge", "cluster_root": tmp_path / "cluster"}
        made.append(LocalMover(**roots, journal=tmp_path / "moves", section=section))
        return made[-1]

    yield build
    for mover in made:
        mover.close()


@pytest.fixture
def site(tmp_path: Path, make: Make) -> MoverSite:
    return MoverSite(edge=tmp_path / "edge", cluster=tmp_path / "cluster", make=make)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that never gets a file done; the event says that a copy has begun."""
    begun = threading.Event()

    def never_done(source: Path, target: Path, *, keep_on: Callable[[], None]) -> None:
        target.write_bytes(source.read_bytes()[:1])
        begun.set()
        while True:
            keep_on()
            time.sleep(0.001)

    monkeypatch.setattr(deliver, "copy_bytes", never_done)
    return begun


def movers_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("move-")]


def damage(monkeypatch: pytest.MonkeyPatch, times: int) -> list[Path]:
    """Flip a byte of the first `times` copies on their way; returns the copies made."""
    copies: list[Path] = []
    copy_bytes = deliver.copy_bytes

    def damaged(source: Path, target: Path, *, keep_on: Callable[[], None]) -> None:
        copy_bytes(source, target, keep_on=keep_on)
        copies.append(target)
        if len(copies) <= times:
            data = bytearray(target.read_bytes())
            data[0] ^= 1
            target.write_bytes(data)

    monkeypatch.setattr(deliver, "copy_bytes", damaged)
    return copies


def test_two_damaged_arrivals_are_repeated(site: MoverSite, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = damage(monkeypatch, times=2)
    mover = make()
    status = ended(mover, mover.submit("to_cluster", site.put("to_cluster", {"f": b"bytes"}), key="k1"))
    assert (status.state, len(copies)) == ("succeeded", 3)
    assert (site.cluster / "there/f").read_bytes() == b"bytes"


def test_a_third_damaged_arrival_fails_for_now(site: MoverSite, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(monkeypatch, times=3)
    mover = make()
    status = ended(mover, mover.submit("to_cluster", site.put("to_cluster", {"f": b"bytes"}), key="k1"))
    assert (status.state, status.retryable) == ("failed", True)
    assert "damaged 3 times" in status.detail
    assert files_below(site.cluster) == set()


def test_a_source_that_vanishes_under_way_is_the_datas_fault(site: MoverSite, make: Make) -> None:
    mover = make()
    (site.edge.parent / "moves/k1").mkdir(parents=True)
    with try_lock(site.edge.parent / "moves/k1/lock"):
        handle = mover.submit("to_cluster", site.put("to_cluster", {"f": b"bytes"}), key="k1")
        (site.edge / "f").unlink()
    status = ended(mover, handle)
    assert (status.state, status.retryable) == ("failed", False)


def test_the_deadline_ends_a_move_that_may_be_tried_again(site: MoverSite, make: Make) -> None:
    items = site.put("to_cluster", THREE)
    hurried = make(deadline_s=1e-9)
    status = ended(hurried, hurried.submit("to_cluster", items, key="k1"))
    assert (status.state, status.retryable) == ("failed", True)
    assert "mover.deadline_s" in status.hint
    patient = make()
    assert ended(patient, patient.submit("to_cluster", items, key="k1")).state == "succeeded"


def test_a_clock_that_is_set_forward_does_not_make_a_move_hang(
    site: MoverSite, make: Make, slow_disk: threading.Event
) -> None:
    mover = make()
    handle = mover.submit("to_cluster", site.put("to_cluster", THREE), key="k1")
    assert slow_disk.wait(10)
    lock = site.edge.parent / "moves/k1/lock"
    os.utime(lock, (0, 0))  # as old as it looks once the clock has gone on by years
    assert mover.poll(handle).state == "active"
    mover.cancel(handle)


def test_a_bug_in_a_mover_is_told_as_one(site: MoverSite, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filmloop.adapters.local.moveworker.deliver", lambda *_, **__: 1 // 0)
    mover = make()
    status = ended(mover, mover.submit("to_cluster", site.put("to_cluster", THREE), key="k1"))
    assert (status.state, status.retryable, status.error) == ("failed", False, "FilmloopError")
    assert "ZeroDivisionError" in status.detail
    assert "bug" in status.hint


def test_a_failure_is_taken_up_again_while_its_worker_still_goes_home(site: MoverSite, make: Make) -> None:
    items = site.put("to_cluster", {"f": b"bytes"})
    hurried, patient = make(deadline_s=1e-9), make()
    ended(hurried, hurried.submit("to_cluster", items, key="k1"))
    hurried.close()
    with ExitStack() as stack:
        assert stack.enter_context(try_lock(site.edge.parent / "moves/k1/lock"))
        threading.Timer(0.2, stack.pop_all().close).start()
        assert ended(patient, patient.submit("to_cluster", items, key="k1")).state == "succeeded"


def test_cancel_reaches_a_move_before_its_first_file(site: MoverSite, make: Make) -> None:
    mover, moves = make(), site.edge.parent / "moves"
    (moves / "k1").mkdir(parents=True)
    with try_lock(moves / "k1/lock"):  # as if another process worked on it
        handle = mover.submit("to_cluster", site.put("to_cluster", THREE), key="k1")
        assert mover.poll(handle).state == "active"
        mover.cancel(handle)
    status = ended(mover, handle)
    assert (status.state, status.retryable) == ("failed", True)
    assert "cancelled" in status.detail
    assert files_below(site.cluster) == set()


def test_cancel_stops_between_two_blocks(site: MoverSite, make: Make, slow_disk: threading.Event) -> None:
    mover = make()
    handle = mover.submit("to_cluster", site.put("to_cluster", {"f": b"bytes"}), key="k1")
    assert slow_disk.wait(30)
    mover.cancel(handle)
    status = mover.poll(handle)
    assert (status.state, status.retryable) == ("failed", True)
    assert files_below(site.cluster) == set()
    assert not any((site.cluster / ".incoming").iterdir())


def test_the_deadline_is_seen_between_two_blocks(site: MoverSite, make: Make, slow_disk: threading.Event) -> None:
    mover = make(deadline_s=0.2)
    status = ended(mover, mover.submit("to_cluster", site.put("to_cluster", {"f": b"bytes"}), key="k1"))
    assert slow_disk.is_set()
    assert status.state == "failed"


def test_close_leaves_no_thread_and_another_instance_goes_on(
    site: MoverSite, make: Make, slow_disk: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover = make()
    handle = mover.submit("to_cluster", site.put("to_cluster", {"f": b"bytes"}), key="k1")
    assert slow_disk.wait(30)
    assert movers_threads() == ["move-k1"]
    mover.close()
    assert movers_threads() == []
    assert not (site.edge.parent / "moves/k1/outcome.json").exists()
    monkeypatch.undo()
    assert ended(make(), handle).state == "succeeded"


def test_a_copy_looks_up_after_every_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "_BLOCK_BYTES", 1000)
    (tmp_path / "source").write_bytes(os.urandom(2500))
    looks: list[int] = []
    deliver.copy_bytes(
        tmp_path / "source", tmp_path / "t", keep_on=lambda: looks.append((tmp_path / "t").stat().st_size)
    )
    assert looks == [1000, 2000, 2500]
    assert (tmp_path / "t").read_bytes() == (tmp_path / "source").read_bytes()


def test_no_thread_is_left_after_a_move_was_seen_to_end(site: MoverSite, make: Make) -> None:
    mover = make()
    ended(mover, mover.submit("to_cluster", site.put("to_cluster", THREE), key="k1"))
    assert movers_threads() == []


def test_many_pollers_at_once_make_one_move(site: MoverSite, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = damage(monkeypatch, times=0)
    items = site.put("to_cluster", {f"f{n}": bytes([n]) * 100_000 for n in range(20)})
    movers = [make() for _ in range(4)]
    threads = [
        threading.Thread(target=lambda mover=mover: ended(mover, mover.submit("to_cluster", items, key="k1")))
        for mover in movers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [mover.poll("k1").state for mover in movers] == ["succeeded"] * 4
    assert len(copies) == 20


def test_progress_of_another_process_is_told_by_the_files_in_place(site: MoverSite, make: Make) -> None:
    mover, moves = make(), site.edge.parent / "moves"
    (moves / "k1").mkdir(parents=True)
    with try_lock(moves / "k1/lock"):
        handle = mover.submit("to_cluster", site.put("to_cluster", THREE), key="k1")
        (site.cluster / "there/a").mkdir(parents=True)
        (site.cluster / "there/a/zarr.json").write_bytes(THREE["a/zarr.json"])
        status = mover.poll(handle)
    assert (status.state, status.files_done, status.bytes_done) == ("active", 1, 2)


def test_a_worker_that_hangs_past_its_deadline_is_reported(site: MoverSite, make: Make) -> None:
    mover, lock = make(deadline_s=60.0), site.edge.parent / "moves/k1/lock"
    lock.parent.mkdir(parents=True)
    with try_lock(lock):
        handle = mover.submit("to_cluster", site.put("to_cluster", THREE), key="k1")
        hour_ago = time.time() - 3600
        os.utime(lock, (hour_ago, hour_ago))
        status = mover.poll(handle)
        assert (status.state, status.retryable) == ("failed", True)
        assert str(os.getpid()) in status.detail
    assert ended(mover, handle).state == "succeeded"


@pytest.mark.parametrize("key", ["", "../k1", "a/b", ".hidden", "k" * 129, "a b"])
def test_a_key_that_is_no_file_name_is_refused(make: Make, key: str) -> None:
    with pytest.raises(DataError):
        make().submit("to_cluster", [], key=key)


def test_an_item_without_a_proper_hash_is_refused(site: MoverSite, make: Make) -> None:
    good = site.put("to_cluster", {"f": b"bytes"})[0]
    bad = type(good)(source_path="f", target_path="f", size_bytes=5, sha256="abc")
    with pytest.raises(DataError, match="sha256"):
        make().submit("to_cluster", [bad], key="k1")


def test_nothing_to_move_is_a_success(make: Make) -> None:
    mover = make()
    assert ended(mover, mover.submit("to_edge", [], key="k1")).state == "succeeded"
