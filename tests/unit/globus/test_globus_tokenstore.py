"""The file of tokens: whole, private, shared by threads and processes."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from globus_sdk.token_storage import JSONTokenStorage, TokenStorageData

from filmloop.adapters.globus.identity import tokenstore
from filmloop.adapters.globus.identity.tokenstore import TokenStore
from filmloop.core.errors import AuthError, FilmloopError, TransientError

WRITER = """
import sys
from pathlib import Path
from globus_sdk.token_storage import TokenStorageData
from filmloop.adapters.globus.identity.tokenstore import TokenStore
store, name, times = TokenStore(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for i in range(times):
    token = TokenStorageData(resource_server=f"{name}{i % 25}", identity_id=None, scope="s", access_token=name * 2000,
                             refresh_token=None, expires_at_seconds=i, token_type="Bearer")
    store.store_token_data_by_resource_server({token.resource_server: token})
"""


def token(server: str, value: str = "value") -> TokenStorageData:
    return TokenStorageData(
        resource_server=server, identity_id=None, scope="s", access_token=value, refresh_token=None,
        expires_at_seconds=0, token_type="Bearer",
    )  # fmt: skip


def writer(path: Path, name: str, times: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(times)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app" / "tokens.json"


def test_nobody_else_can_read_it_and_the_umask_of_the_process_stays(path: Path) -> None:
    before = os.umask(0)
    try:
        store = TokenStore(path)
        store.store_token_data_by_resource_server({"a": token("a")})
        assert os.umask(0) == 0
        store.store_token_data_by_resource_server({"b": token("b")})
        store.remove_token_data("a")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_sdk_reads_what_it_writes_and_it_reads_what_the_sdk_writes(path: Path) -> None:
    TokenStore(path).store_token_data_by_resource_server({"a": token("a")})
    JSONTokenStorage(path).store_token_data_by_resource_server({"b": token("b")})
    assert set(TokenStore(path).get_token_data_by_resource_server()) == {"a", "b"}
    assert set(JSONTokenStorage(path).get_token_data_by_resource_server()) == {"a", "b"}
    assert TokenStore(path).remove_token_data("a") is True
    assert TokenStore(path).remove_token_data("a") is False


def test_processes_that_write_at_once_lose_nothing_and_a_reader_never_sees_a_part(path: Path) -> None:
    writers = [writer(path, name, 25) for name in "abc"]
    store, reads = TokenStore(path), 0
    while any(process.poll() is None for process in writers):
        store.get_token_data_by_resource_server()
        reads += 1
    assert [process.wait() for process in writers] == [0, 0, 0]
    assert len(store.get_token_data_by_resource_server()) == 75
    assert reads > 20


def test_a_writer_that_is_killed_leaves_the_tokens_of_before(path: Path) -> None:
    TokenStore(path).store_token_data_by_resource_server({"mine": token("mine")})
    for kill in range(6):
        process = writer(path, "w", 100_000)
        while "w0" not in TokenStore(path).get_token_data_by_resource_server():
            time.sleep(0.01)
        time.sleep(0.01 * kill)
        process.send_signal(signal.SIGKILL)
        process.wait()
        held = TokenStore(path).get_token_data_by_resource_server()
        assert held["mine"].access_token == "value"
        TokenStore(path).remove_token_data("w0")
        assert {file.name for file in path.parent.iterdir()} == {"tokens.json", "tokens.json.lock"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"data": 3}', '{"format_version": "9.0", "data": {}}', "\x00\xff"])
def test_a_damaged_file_is_told_and_what_can_be_had_again_is_had_again(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(AuthError, match="damaged") as caught:
        TokenStore(path).get_token_data_by_resource_server()
    assert str(path) in caught.value.message
    with pytest.raises(AuthError, match="damaged"):
        TokenStore(path).store_token_data_by_resource_server({"a": token("a")})
    assert path.read_text() == text

    again = TokenStore(path)
    again.renewable = True
    again.store_token_data_by_resource_server({"a": token("a")})
    assert set(again.get_token_data_by_resource_server()) == {"a"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(path: Path, mode: int) -> None:
    TokenStore(path).store_token_data_by_resource_server({"a": token("a")})
    path.chmod(mode)
    with pytest.raises(AuthError, match=f"mode 0{mode:o}") as caught:
        TokenStore(path).get_token_data_by_resource_server()
    assert f"chmod 600 {path}" in caught.value.hint


def test_a_file_of_another_user_is_told(path: Path) -> None:
    TokenStore(path).store_token_data_by_resource_server({"a": token("a", "secret-value")})
    store = TokenStore(path)
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(AuthError, match="this user may not use it") as caught:
            store.get_token_data_by_resource_server()
    finally:
        if root:
            os.seteuid(0)
    assert "secret-value" not in repr(caught.value)


def test_a_folder_in_its_place_is_told(path: Path) -> None:
    path.mkdir(parents=True, mode=0o700)
    with pytest.raises(FilmloopError, match=str(path)):
        TokenStore(path).get_token_data_by_resource_server()


def test_its_content_is_the_sdks_form(path: Path) -> None:
    TokenStore(path).store_token_data_by_resource_server({"a": token("a")})
    assert set(json.loads(path.read_text())) == {"data", "format_version", "globus-sdk.version"}


def test_a_lock_that_nobody_gives_back_is_not_waited_for_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenstore, "_LOCK_S", 0.1)
    store = TokenStore(path)
    with path.with_name("tokens.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TransientError, match="Another process holds"):
            store.store_token_data_by_resource_server({"a": token("a")})
    store.store_token_data_by_resource_server({"a": token("a")})
