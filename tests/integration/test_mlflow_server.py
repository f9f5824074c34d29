"""Our own MLflow server: started once, found again, survives kill -9 with its data, stops; and every way not to start."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from filmloop.adapters.mlflow import server
from filmloop.adapters.mlflow.processes import group_runs, port_is_free, start_ticks
from filmloop.adapters.mlflow.registry import MlflowRegistry
from filmloop.adapters.mlflow.server import ServerRecord, ensure_server, find_server, stop_server
from filmloop.config.paths import Home
from filmloop.config.schema import MlflowRegistry as Section
from filmloop.core.clock import utc_now
from filmloop.core.errors import ConfigError, DataError, TransientError
from filmloop.testing.bundles import make_bundle
from filmloop.testing.mlflow_server import free_port
from filmloop.testing.shards import example_block, write_shard

STARTER = """
import sys
from pathlib import Path
from filmloop.adapters.mlflow.server import ensure_server, serve
from filmloop.config.paths import Home
from filmloop.config.schema import MlflowRegistry
home, how, section = Home(Path(sys.argv[1])), sys.argv[2], MlflowRegistry(port=int(sys.argv[3]))
def say(line): print(line, flush=True)
if how == "serve":
    serve(home, section, announce=say)
else:
    say(ensure_server(home, section))
"""


def starter(home, how, port):
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, str(home.root), how, str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def record_of(home):
    return ServerRecord.read(home.registry / "server.json")


def write_record(home, **changes):
    values = {
        "home": str(home.registry),
        "uri": "http://127.0.0.1:1",
        "port": 1,
        "pid": 1,
        "start_ticks": 1,
        "started_utc": utc_now(),
    } | changes
    ServerRecord(**values).write(home.registry / "server.json")


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path)
    yield home
    stop_server(home)


@pytest.mark.slow
def test_the_life_of_a_server(home, tmp_path):
    section = Section(port=free_port())  # its own: other servers on this machine come and go in the default range
    # Two start at once: one server, which outlives both.
    starters = [starter(home, "ensure", section.port) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in starters]
    assert [process.returncode for process in starters] == [0, 0], outputs
    uri = outputs[0][0].strip()
    assert outputs[1][0].strip() == uri
    assert find_server(home, section) == uri == ensure_server(home, section)
    # MLflow's parent and uvicorn alone: no job runner, no second worker.
    assert len(processes_of(record_of(home).pid)) == 2

    make_bundle(tmp_path / "bundle")
    registry = MlflowRegistry(uri, model="m", experiment="e", timeout_s=10)
    made = registry.register(tmp_path / "bundle", key="c1", description="", tags={}, metrics={"nll": 1.0})
    registry.set_alias("champion", made.version)

    # kill -9 of MLflow's parent leaves uvicorn on the port; kill -9 of all leaves nothing. Both come back the same.
    for kill in (os.kill, os.killpg):
        first = record_of(home)
        kill(first.pid, signal.SIGKILL)
        wait_for(lambda pid=first.pid: start_ticks(pid) is None)
        assert find_server(home, section) is None
        assert ensure_server(home, section) == uri
        assert record_of(home).pid != first.pid
        assert not group_runs(first.pid)
        assert registry.get("champion").bundle_digest == made.bundle_digest

    # `registry serve` takes the running one over, and ends it when told to.
    foreground = starter(home, "serve", section.port)
    assert uri in foreground.stdout.readline()
    foreground.send_signal(signal.SIGTERM)
    _, errors = foreground.communicate(timeout=30)
    assert (foreground.returncode, errors) == (0, "")
    assert find_server(home, section) is None
    assert not group_runs(record_of(home).pid)
    assert port_is_free("127.0.0.1", record_of(home).port)
    assert not stop_server(home)


def processes_of(group):
    listing = subprocess.run(["ps", "-eo", "pgid="], capture_output=True, text=True, check=True)
    return [line for line in listing.stdout.split() if int(line) == group]


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_port_in_use_names_its_holder_and_the_key(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            ensure_server(home, Section(port=port))
    assert f"Port {port} is in use by process {os.getpid()}" in caught.value.message
    assert "[registry] port" in caught.value.hint


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_while_the_server_comes_up_the_foreground_leaves_none_behind(home, number):
    foreground = starter(home, "serve", free_port())
    assert "Starting" in foreground.stdout.readline()
    wait_for((home.registry / "server.json").exists)
    foreground.send_signal(number)
    out, problems = foreground.communicate(timeout=120)
    assert foreground.returncode == 0, out + problems
    assert not group_runs(record_of(home).pid)


NEVER_UP = """
import socket, sys, time
from pathlib import Path
with Path("mlflow.sqlite").open("ab") as tables:
    tables.write(b"half made")
place = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1]))) if LISTENS else None
Path("begun").touch()
time.sleep(120)
"""


@pytest.fixture
def never_up(home):
    """Whatever is started as MLflow here begins with its tables and answers nobody."""
    return with_server(home, listens=False)


def with_server(home, *, listens):
    """A home whose server never comes up. Of one that listens whoever asks it notices that after two seconds only."""
    (home.registry / "mlflow").mkdir(parents=True)
    (home.registry / "mlflow/__init__.py").touch()
    (home.registry / "mlflow/__main__.py").write_text(f"LISTENS = {listens}\n{NEVER_UP}")
    return home


def interrupted(home, process, number=signal.SIGINT, after_s=0.0):
    """What an interrupted start said; it ends at once, and all that it started with it."""
    wait_for((home.registry / "begun").exists)
    time.sleep(after_s)
    begun_s = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=60)
    assert time.monotonic() - begun_s < 10, "about a second; it is long with others at work"
    assert not group_runs(record_of(home).pid)
    return said


@pytest.mark.parametrize("how", ["serve", "ensure"])
def test_a_start_that_is_interrupted_ends_at_once_and_leaves_neither_server_nor_half_made_tables(never_up, how):
    interrupted(never_up, starter(never_up, how, free_port()))
    assert not (never_up.registry / "mlflow.sqlite").exists()


def test_a_start_that_is_interrupted_keeps_the_tables_that_were_there(never_up):
    (never_up.registry / "mlflow.sqlite").write_bytes(b"versions, ")
    interrupted(never_up, starter(never_up, "ensure", free_port()))
    assert (never_up.registry / "mlflow.sqlite").read_bytes() == b"versions, half made"


def test_a_new_server_that_does_not_come_up_in_time_leaves_no_half_made_tables(never_up):
    with pytest.raises(TransientError, match="did not answer within"):
        ensure_server(never_up, Section(port=free_port(), start_deadline_s=2))
    assert not (never_up.registry / "mlflow.sqlite").exists()


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize("after_s", [0.0, 0.5])  # while it does other things, and while it waits for the registry
def test_a_cycle_that_is_interrupted_while_the_server_comes_up_ends_at_once_and_leaves_none(
    home, filmloop, listens, after_s
):
    with_server(home, listens=listens)
    cycle = filmloop(home.root, f"registry.port={free_port()}").start("retrain", "--no-edge")
    _, said = interrupted(home, cycle, after_s=after_s)
    assert not (home.registry / "mlflow.sqlite").exists()
    assert cycle.returncode == 130
    assert said.count("interrupted") == 1
    assert "Traceback" not in said


@pytest.mark.slow
def test_after_an_interrupted_first_start_the_next_one_comes_up(home):
    section, tables = Section(port=free_port()), home.registry / "mlflow.sqlite"
    process = starter(home, "ensure", section.port)
    wait_for(lambda: tables.exists() and tables.stat().st_size > 0, 60)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert find_server(home, section) is None
    assert MlflowRegistry(ensure_server(home, section), model="m", experiment="e", timeout_s=10).versions() == []


@pytest.mark.slow
def test_looking_says_that_a_server_was_started_and_how_to_end_it(home, filmloop):
    command = filmloop(home.root)
    assert "server: the registry is at http://127.0.0.1:" in command.run("registry", "start").stderr
    command.run("registry", "stop")
    looked = command.run("models", "list")
    assert "There is no version of local-mixer-16x128 yet. `filmloop retrain` makes the first." in looked.stdout
    assert looked.stderr.splitlines()[-1].endswith("; `filmloop registry stop` ends it")
    assert command.run("models", "list").stderr == "", "it runs, and nothing is to be said"


@pytest.mark.parametrize(
    "words", [("models", "show", "champion"), ("models", "rollback"), ("models", "promote", "1"), ("models", "zoo"),
              ("evaluate", "--data", "shards"), ("evaluate", "--data", "shards", "--model", "7")],
    ids=" ".join,
)  # fmt: skip
def test_before_there_is_any_version_that_is_said_and_no_server_is_started(home, filmloop, monkeypatch, words):
    write_shard(home.root / "shards", example_block(8, frame_shape=(16, 128)))
    monkeypatch.chdir(home.root)
    said = filmloop(home.root).run(*words, code=DataError.exit_code).stderr
    assert "There is no version of local-mixer-16x128 yet." in said
    assert "hint: `filmloop retrain` makes the first." in said
    assert not home.registry.exists()


def test_a_list_of_no_versions_is_no_error_and_starts_no_server(home, filmloop):
    command = filmloop(home.root)
    assert command.run("models", "list").stdout.startswith("There is no version of local-mixer-16x128 yet.")
    assert command.json("models", "list")["versions"] == []
    assert not home.registry.exists()


def test_a_host_that_is_not_here_is_refused_and_costs_no_server_that_runs(home):
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as running:
        try:
            write_record(home, pid=running.pid, start_ticks=start_ticks(running.pid))
            with pytest.raises(ConfigError, match=r"nowhere\.invalid") as caught:
                ensure_server(home, Section(host="nowhere.invalid", start_deadline_s=1))
            assert "[registry] host" in caught.value.hint
            assert running.poll() is None
        finally:
            running.kill()


def test_the_port_of_a_server_that_is_still_dying_is_waited_for():
    held = socket.create_server(("127.0.0.1", free_port()))
    port = held.getsockname()[1]
    last = ServerRecord(home="", uri="", port=port, pid=1, start_ticks=1, started_utc=utc_now())
    with pytest.raises(ConfigError):  # never ours: said at once
        server._ports(Section(port=port), None)
    closing = threading.Timer(0.3, held.close)
    closing.start()
    assert server._ports(Section(port=port), last) == [port]
    assert closing.finished.is_set()


def test_the_last_port_is_used_again_and_left_if_someone_has_it():
    section = Section()
    last = ServerRecord(home="", uri="", port=free_port(), pid=1, start_ticks=1, started_utc=utc_now())
    assert server._ports(section, last)[0] == last.port
    with socket.create_server(("127.0.0.1", last.port)):
        assert last.port not in server._ports(section, last)
    assert server.FIRST_PORT <= server._ports(section, None)[0] <= server.LAST_PORT


def test_a_process_that_got_the_number_of_a_dead_server_is_neither_taken_for_it_nor_killed(home):
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as bystander:
        try:
            write_record(home, pid=bystander.pid, start_ticks=1)
            assert find_server(home, Section()) is None
            assert not stop_server(home)
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_a_group_that_got_the_number_of_a_dead_server_and_lost_its_leader_is_not_ended(home):
    script = "sleep 60 & echo $!"
    with subprocess.Popen(["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE) as leader:
        bystander = int(leader.stdout.readline())
        leader.wait()
        try:
            write_record(home, pid=leader.pid, start_ticks=1, token="a" * 32)
            assert not stop_server(home)
            # The start of another server looks at it, too, and goes on without it.
            with pytest.raises(TransientError, match=r"did not answer within|ended at once"):
                ensure_server(home, Section(port=free_port(), start_deadline_s=0.5))
            assert start_ticks(bystander) is not None
        finally:
            os.kill(bystander, signal.SIGKILL)


def test_a_stranger_on_the_recorded_port_is_not_our_server(home):
    from filmloop.testing.mlflow_server import shared_server

    # A healthy MLflow, but of another home.
    port = int(shared_server().rpartition(":")[2])
    write_record(home, uri=shared_server(), port=port, pid=2**22 - 1)
    assert find_server(home, Section()) is None


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"uri": "x"})])
def test_a_damaged_record_counts_as_none(home, text):
    home.registry.mkdir(parents=True)
    (home.registry / "server.json").write_text(text)
    assert find_server(home, Section()) is None
    assert not stop_server(home)


def test_a_server_that_cannot_start_shows_the_end_of_its_log(home):
    home.registry.mkdir(parents=True)
    (home.registry / "mlflow.sqlite").write_text("this is not a database" * 100)
    with pytest.raises(TransientError) as caught:
        ensure_server(home, Section(port=free_port()))
    assert "ended at once" in caught.value.message
    assert "file is not a database" in caught.value.message
    assert "filmloop registry serve" in caught.value.hint


def test_a_server_that_takes_too_long_is_ended(home):
    # Importing MLflow alone takes longer.
    with pytest.raises(TransientError, match=r"did not answer within|ended at once"):
        ensure_server(home, Section(port=free_port(), start_deadline_s=0.5))
    assert not group_runs(record_of(home).pid)


def test_without_mlflows_server_the_extra_is_named(home, monkeypatch):
    def absent(name):
        raise server.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(server.importlib.metadata, "version", absent)
    with pytest.raises(ConfigError) as caught:
        ensure_server(home, Section())
    assert "filmloop[registry]" in caught.value.hint


@pytest.mark.slow
def test_all_that_the_server_keeps_is_in_its_home_whatever_that_is_called(tmp_path):
    home = Home(tmp_path / "50%20of this? #1")
    make_bundle(tmp_path / "bundle")
    try:
        registry = MlflowRegistry(
            ensure_server(home, Section(port=free_port())), model="m", experiment="e", timeout_s=10
        )
        made = registry.register(tmp_path / "bundle", key="c1", description="", tags={}, metrics={})
        registry.download(made.version, tmp_path / "back")
    finally:
        stop_server(home)
    assert server.database_of(home).is_file()
    assert len(list(home.registry.glob("artifacts/**/weights.safetensors"))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [home.root.name, "back", "bundle"]


def servers_of(home):
    """Processes of MLflow that work in the registry folder of this home."""
    found = []
    for entry in os.listdir("/proc"):
        with suppress(OSError):
            if entry.isdigit() and os.readlink(f"/proc/{entry}/cwd") == str(home.registry):
                found.append(int(entry))
    return found


def test_a_server_that_cannot_be_written_down_does_not_stay_behind(home):
    (home.registry / "server.json" / "in the way").mkdir(parents=True)
    for _ in range(2):
        with pytest.raises((DataError, TransientError), match=r"server\.json"):
            ensure_server(home, Section(port=free_port()))
    assert servers_of(home) == []


def test_a_server_inherits_no_secret_of_globus(home, monkeypatch):
    monkeypatch.setenv("FILMLOOP_GLOBUS_SECRET", "for nobody to see")
    home.registry.mkdir(parents=True)
    record = server._launch(home, Section(), free_port())
    try:
        assert b"for nobody to see" not in Path(f"/proc/{record.pid}/environ").read_bytes()
    finally:
        server._end(record)
