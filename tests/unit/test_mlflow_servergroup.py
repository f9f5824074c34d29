"""Who belongs to a server: its leader's whole group; once the leader has ended, only what carries the server's token."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from filmloop.adapters.mlflow.processes import group_runs, members_of, start_ticks
from filmloop.adapters.mlflow.servergroup import TOKEN, ServerGroup
from filmloop.core.errors import ConfigError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of two users")
NOBODY, SOMEBODY = 65534, 65533


@contextmanager
def leaderless(token: str = "") -> Iterator[tuple[int, int]]:
    """A process group whose leader has ended; yields its number and its one member."""
    command = ["sh", "-c", "sleep 300 & echo $!"]
    environ = {**os.environ, **({TOKEN: token} if token else {})}
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, env=environ) as leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        leader.wait()
        try:
            yield leader.pid, child
        finally:
            if start_ticks(child) is not None:
                os.kill(child, signal.SIGKILL)


@contextmanager
def seen_by(user: int) -> Iterator[None]:
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("token", ["", "b" * 32], ids=["without a token", "another token"])
@pytest.mark.parametrize("own", ["", "a" * 32], ids=["we have none", "we have one"])
def test_a_group_without_its_leader_is_not_ours_by_its_number(token: str, own: str) -> None:
    with leaderless(token) as (number, child):
        group = ServerGroup(leader=number, start_ticks=1, token=own)
        assert group.members() == []
        group.end()
        assert start_ticks(child) is not None


def test_what_a_killed_leader_left_is_ended_by_its_token() -> None:
    with leaderless("a" * 32) as (number, child):
        group = ServerGroup(leader=number, start_ticks=1, token="a" * 32)
        assert group.members() == [child]
        group.end()
        assert not group_runs(number)


def test_a_group_is_ended_whole_while_its_leader_runs_with_or_without_a_token() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 300 & sleep 300"], start_new_session=True) as leader:
        while len(members_of(leader.pid)) < 3:
            assert leader.poll() is None
        group = ServerGroup(leader=leader.pid, start_ticks=start_ticks(leader.pid) or 0, token="")
        assert sorted(group.members()) == sorted(members_of(leader.pid))
        group.end()
        assert not group_runs(leader.pid)


@needs_root
def test_a_server_of_another_user_is_told_with_a_hint() -> None:
    with subprocess.Popen(["sleep", "300"], start_new_session=True, user=SOMEBODY) as theirs:
        group = ServerGroup(leader=theirs.pid, start_ticks=start_ticks(theirs.pid) or 0, token="")
        try:
            with seen_by(NOBODY), pytest.raises(ConfigError, match="belongs to another user") as caught:
                group.end()
            assert theirs.poll() is None
        finally:
            theirs.kill()
    assert "filmloop registry stop" in caught.value.hint


@needs_root
def test_a_group_without_its_leader_of_another_user_is_left_alone() -> None:
    with leaderless() as (number, child), seen_by(NOBODY):
        group = ServerGroup(leader=number, start_ticks=1, token="a" * 32)
        assert group.members() == []
        group.end()
        assert start_ticks(child) is not None
