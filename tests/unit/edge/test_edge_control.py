from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from filmloop.config.paths import Home
from filmloop.core.errors import ConfigError, TransientError
from filmloop.edge.control import pending_requests, request_look, request_seal, take_look
from filmloop.edge.lock import is_alive, lock_path, only_edge
from filmloop.edge.status import EdgeStatus, read_status, write_status


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def test_alive_is_exactly_while_the_lock_is_held(home):
    assert not is_alive(home)
    with only_edge(home):
        assert is_alive(home)
    assert not is_alive(home)


def test_a_second_edge_is_refused_and_told_which_process_has_the_folder(home):
    with only_edge(home), pytest.raises(TransientError, match=f"pid {os.getpid()}") as error, only_edge(home):
        pass
    assert "filmloop status" in error.value.hint


def test_a_look_whether_an_edge_is_alive_keeps_none_from_starting(home):
    """The look holds the lock for microseconds; here for 0.2 s, so that the start surely falls into it."""
    lock_path(home).parent.mkdir(parents=True)
    fd = os.open(lock_path(home), os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_SH)
    threading.Timer(0.2, os.close, (fd,)).start()
    with only_edge(home):
        assert is_alive(home)


def test_the_lock_goes_with_the_process_that_was_killed(home):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom filmloop.config.paths import Home\n"
        "from filmloop.edge.lock import only_edge\n"
        "with only_edge(Home(Path(sys.argv[1]))):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(home.root)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    assert is_alive(home)
    child.kill()
    child.wait()
    child.stdout.close()
    assert not is_alive(home)


def test_a_request_without_an_edge_is_false_and_leaves_nothing(home):
    assert request_seal(home, "c1", 5.0) is False
    assert pending_requests(home) == []


def test_a_request_is_true_once_the_edge_took_the_file_away(home):
    with only_edge(home):

        def edge():
            while not (found := pending_requests(home)):
                time.sleep(0.005)
            found[0].unlink()

        answering = threading.Thread(target=edge)
        answering.start()
        assert request_seal(home, "c1", 5.0) is True
        answering.join()


def test_a_request_that_nobody_answers_ends_at_its_deadline_and_is_taken_back(home):
    with only_edge(home), pytest.raises(TransientError, match="seal-c1"):
        request_seal(home, "c1", 0.2)
    assert pending_requests(home) == []


def test_an_edge_that_dies_meanwhile_makes_it_false(home):
    holding, let_go = threading.Event(), threading.Event()

    def edge():
        with only_edge(home):
            holding.set()
            let_go.wait(5)

    dying = threading.Thread(target=edge)
    dying.start()
    holding.wait(5)
    threading.Timer(0.2, let_go.set).start()
    assert request_seal(home, "c1", 5.0) is False
    dying.join()


def test_a_key_that_is_no_file_name_is_refused(home):
    with pytest.raises(ConfigError):
        request_seal(home, "../c1", 1.0)


def test_a_status_is_read_as_it_was_written_and_a_torn_one_is_none(home):
    assert read_status(home) is None
    status = EdgeStatus(
        pid=1, state="running", started_utc="a", updated_utc="b", site="s", stream="t", frames_dropped={"no_model": 3}
    )
    write_status(home, status)
    assert read_status(home) == status
    assert [path.name for path in home.edge.iterdir()] == ["status.json"]
    home.edge_status.write_text("{")
    assert read_status(home) is None


def test_those_who_only_look_need_no_torch_and_no_zarr():
    code = (
        "import sys, filmloop.edge.status, filmloop.edge.control, filmloop.edge.spawn\n"
        "assert not {'torch', 'zarr', 'mlflow'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_look_is_asked_for_once_and_of_a_running_edge_only(home):
    request_look(home)
    assert not home.edge_control.exists()
    with only_edge(home):
        request_look(home)
        request_look(home)
        assert pending_requests(home) == []
        assert (take_look(home), take_look(home)) == (True, False)
