from __future__ import annotations

import os
import socket
import struct
import threading
from pathlib import Path

import pytest

from filmloop.adapters.local.mark import BLANK, Markable
from filmloop.adapters.local.runfolder import Launch
from filmloop.adapters.local.workerline import Installation, at, private_folder, receive, send
from filmloop.core.errors import ConfigError


@pytest.fixture
def line():
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        end.settimeout(60)
    yield ends
    for end in ends:
        end.close()


def test_a_document_longer_than_the_sockets_buffer_arrives_with_its_descriptor(line, tmp_path: Path) -> None:
    here, there = line
    document = {"environ": {f"NAME_{n}": "x" * 1000 for n in range(2000)}}
    with (tmp_path / "f").open("w+") as file:
        sender = threading.Thread(target=send, args=(here, document, [file.fileno()]))
        sender.start()
        got, fds = receive(there, max_fds=1)
        sender.join()
        assert got == document
        assert os.fstat(fds[0]).st_ino == os.fstat(file.fileno()).st_ino
        assert not os.get_inheritable(fds[0])
        os.close(fds[0])


@pytest.mark.parametrize("sent", [b"", b"\x10", struct.pack("<I", 10) + b"{}", struct.pack("<I", 4) + b"nope"])
def test_half_a_document_or_none_is_an_error(line, sent: bytes) -> None:
    here, there = line
    here.sendall(sent)
    here.shutdown(socket.SHUT_WR)
    with pytest.raises((EOFError, ValueError)):
        receive(there)


def test_a_document_that_claims_to_be_huge_is_not_read(line) -> None:
    here, there = line
    here.sendall(struct.pack("<I", 1 << 31))
    with pytest.raises(ValueError, match="bytes"):
        receive(there)


def test_a_socket_has_a_short_path_however_long_that_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    private_folder(folder)
    with at(folder) as here, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{here}/socket")
    assert (folder / "socket").is_socket()


def test_a_folder_is_made_for_its_user_alone_and_refused_when_others_may_enter(tmp_path: Path) -> None:
    private_folder(tmp_path / "worker")
    assert (tmp_path / "worker").stat().st_mode & 0o777 == 0o700
    private_folder(tmp_path / "worker")
    (tmp_path / "worker").chmod(0o750)
    with pytest.raises(ConfigError, match="open to others"):
        private_folder(tmp_path / "worker")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError):
        private_folder(tmp_path / "link")


def test_the_path_of_modules_is_part_of_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Installation.here()
    assert before == Installation.here()
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert Installation.here() != before


def test_an_attempt_can_be_claimed_once(tmp_path: Path) -> None:
    launch = Launch(
        attempt=1, token="t", command=("x",), threads=1, deadline_s=1.0, grace_s=1.0, submitted_utc="now"
    )  # fmt: skip
    assert [launch.claim(tmp_path), launch.claim(tmp_path)] == [True, False]


def test_a_process_that_was_not_started_with_a_blank_mark_cannot_be_marked() -> None:
    assert not Markable().mark(BLANK)
