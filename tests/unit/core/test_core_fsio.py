from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from filmloop.adapters.local.held import hold
from filmloop.core import fsio
from filmloop.core.errors import ConfigError, DataError, FilmloopError, TransientError
from filmloop.core.retry import wait_until

# Two states of 400 kB: large enough that a plain write would be caught in the middle.
WRITER = """
import sys
from pathlib import Path
from filmloop.core.fsio import atomic_write_bytes
path, turn = Path(sys.argv[1]), 0
while True:
    atomic_write_bytes(path, (b"a" if turn % 2 else b"b") * 400_000)
    turn += 1
"""
HOLDER = """
import sys, time
from pathlib import Path
from filmloop.core.fsio import try_lock
with try_lock(Path(sys.argv[1])) as free:
    print(free, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def tiny_disk(make_disk: Callable[[str], Path]) -> Path:
    return make_disk("64k")


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for turn in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        path.unlink(missing_ok=True)
        wait_until(lambda: path.exists() or None, deadline_s=30, what="the first write", first_s=0.005, cap_s=0.005)
        time.sleep(0.003 * turn)  # a write takes some milliseconds: the kill falls into all of its parts
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert path.read_bytes() in (b"a" * 400_000, b"b" * 400_000)


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    wait_until(lambda: path.exists() or None, deadline_s=30, what="the first write")
    seen = {(len(data), len(set(data))) for data in (path.read_bytes() for _ in range(200))}
    writer.kill()
    writer.wait()
    assert seen == {(400_000, 1)}


def test_a_full_disk_leaves_the_old_file_and_no_litter(tiny_disk: Path) -> None:
    path = tiny_disk / "file"
    fsio.atomic_write_bytes(path, b"old")
    with pytest.raises(TransientError, match="No space left") as caught:
        fsio.atomic_write_bytes(path, b"x" * 200_000)
    assert "FILMLOOP_HOME" in caught.value.hint
    assert path.read_bytes() == b"old"
    assert os.listdir(tiny_disk) == ["file"]


def test_a_lock_on_a_full_disk_still_locks(tiny_disk: Path) -> None:
    lock = tiny_disk / "lock"
    with fsio.try_lock(lock) as free:
        assert free
    with pytest.raises(TransientError):
        fsio.atomic_write_bytes(tiny_disk / "file", b"x" * 200_000)
    (tiny_disk / "filler").write_bytes(bytes(4096 * (os.statvfs(tiny_disk).f_bavail)))
    with fsio.try_lock(lock) as free:
        assert free


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, TransientError),
        (errno.EDQUOT, TransientError),
        (errno.EROFS, TransientError),
        (errno.EACCES, TransientError),
        (errno.EIO, TransientError),
        (errno.ENOENT, DataError),
        (errno.ENOTDIR, DataError),
        (errno.EISDIR, DataError),
    ],
)
def test_what_the_disk_says_becomes_an_error_with_a_hint(code: int, kind: type[FilmloopError], tmp_path: Path) -> None:
    with pytest.raises(kind) as caught, fsio.disk_errors(tmp_path / "f"):
        raise OSError(code, os.strerror(code))
    assert type(caught.value) is kind
    assert caught.value.hint
    assert caught.value.ids == {"path": str(tmp_path / "f")}
    assert isinstance(caught.value.__cause__, OSError)


# ENOLCK: NFS without a lock daemon; ENOSYS and ENOTSUP: Lustre mounted without flock, some FUSE file systems.
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_a_config_error_that_points_at_a_local_disk(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    open_before = len(os.listdir("/proc/self/fd"))
    for lock in (fsio.try_lock, hold):
        with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "lock"))) as caught, lock(tmp_path / "lock"):
            pass
        assert "FILMLOOP_HOME" in caught.value.hint
        assert "local disk" in caught.value.hint
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_disk_error_under_a_lock_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(TransientError), fsio.try_lock(tmp_path / "lock"):
        pass


def test_of_many_creators_exactly_one_wins(tmp_path: Path) -> None:
    path, wins, barrier = tmp_path / "deep" / "file", [], threading.Barrier(8)

    def create(number: int) -> None:
        barrier.wait()
        if fsio.create_json(path, {"number": number}):
            wins.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [fsio.read_json(path)["number"]] == wins
    assert os.listdir(path.parent) == ["file"]


def test_json_that_is_not_a_number_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        fsio.atomic_write_json(tmp_path / "f", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "nope"])
def test_reading_what_is_no_json_is_a_data_error_with_the_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"f\.json"):
        fsio.read_json(path)
    with pytest.raises(DataError):
        fsio.read_json(tmp_path / "absent.json")


def test_reading_bytes_that_are_no_text_is_a_data_error_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match=re.escape(f"{path} is not valid JSON")):
        fsio.read_json(path)


def test_publishing_a_folder_replaces_what_was_there(tmp_path: Path) -> None:
    for turn in ("one", "two"):
        part = tmp_path / "shard.part"
        (part / "sub").mkdir(parents=True)
        (part / "sub" / turn).write_text(turn)
        fsio.publish_dir(part, tmp_path / "shard")
    assert [path.name for path in (tmp_path / "shard" / "sub").iterdir()] == ["two"]
    assert os.listdir(tmp_path) == ["shard"]


def test_hashes_are_sha256_and_canonical_json_knows_no_order(tmp_path: Path) -> None:
    # SHA-256 of "abc": FIPS 180-2, appendix B.1.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "f").write_bytes(b"abc")
    assert fsio.sha256_bytes(b"abc") == fsio.sha256_file(tmp_path / "f") == known
    with pytest.raises(DataError):
        fsio.sha256_file(tmp_path / "absent")
    assert (
        fsio.canonical_json({"b": 1, "a": [1.5]}) == fsio.canonical_json({"a": [1.5], "b": 1}) == b'{"a":[1.5],"b":1}'
    )


def test_a_lock_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with fsio.try_lock(path) as free:
            assert not free
        assert path.read_text() == f"{holder.pid}\n"
        holder.kill()
    with fsio.try_lock(path) as free:
        assert free


def test_written_json_reads_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, "µ"]}
    fsio.atomic_write_json(tmp_path / "deep" / "f.json", value)
    assert fsio.read_json(tmp_path / "deep" / "f.json") == value
    assert json.loads((tmp_path / "deep" / "f.json").read_bytes()) == value
