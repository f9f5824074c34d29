"""Bad input, one table: every case ends with its exit code and a hint, and leaves the state as it was."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from filmloop.core.documents import ModelChoice
from filmloop.testing.bundles import seal_bundle
from filmloop.testing.models import make_model_bundle
from filmloop.testing.shards import example_block, write_shard


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file below a folder, but SQLite's side files and locks, which opening alone may touch."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith((".lock", "-wal", "-shm", "ledger.sqlite"))
    }


def counts_file(home: Path) -> Path:
    return home / "stage/simulator/run000001/00000000.zarr/counts/c/0/0/0"


def truncate(home: Path) -> None:
    path = counts_file(home)
    path.write_bytes(path.read_bytes()[:-7])


def flip(home: Path) -> None:
    path = counts_file(home)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def lose_file(home: Path) -> None:
    counts_file(home).unlink()


def edit_manifest(home: Path) -> None:
    path = home / "stage/simulator/run000001/00000000.manifest.json"
    path.write_text(path.read_text().replace('"frames": 64', '"frames": 65'))


def test_the_streams_that_are_there_are_named_to_whoever_asks_for_another(filmloop: Any, tmp_path: Path) -> None:
    for stream in ("replay-x-0a1b2c", "zeromq"):
        block = example_block(64, first_pulse_id=0, frame_shape=(16, 128))
        write_shard(tmp_path / "home/stage", block, stream=stream, seq=0)
    command = filmloop(tmp_path / "home")
    for word in ("list", "verify"):
        error = command.json("shards", word, "--stream", "zeromk", code=2)
        assert "the streams there are replay-x-0a1b2c, zeromq" in error["message"]
        assert len(command.json("shards", "list", "--stream", "zeromq")["shards"]) == 1
        # The site's own stream is one, also before its first shard.
        assert command.json("shards", word, "--stream", "simulator")["shards"] in ([], 0)
    assert "1 sealed shard in" in command.run("shards", "list", "--stream", "zeromq").stdout
    assert "1 shard read, 0 damaged" in command.run("shards", "verify", "--stream", "zeromq").stdout


@pytest.mark.parametrize("spoil", [truncate, flip, lose_file, edit_manifest])
def test_a_damaged_shard_is_found_by_verify_and_named(
    filmloop: Any, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    home = tmp_path / "home"
    for seq in range(2):
        block = example_block(64, first_pulse_id=64 * seq, frame_shape=(16, 128))
        write_shard(home / "stage", block, stream="simulator", seq=seq)
    command = filmloop(home)
    assert command.json("shards", "verify")["damaged"] == {}
    spoil(home)
    before = fingerprint(home)
    found = command.json("shards", "verify", code=5)
    assert [name for name in found["damaged"] if "00000000" in name], found
    assert (found["shards"], found["whole"]) == (2, 1)
    assert fingerprint(home) == before


def test_a_site_file_with_empty_keys_is_refused_before_anything_is_started(filmloop: Any, tmp_path: Path) -> None:
    site = Path(__file__).parents[2] / "site_configs/lcls-polaris.toml"
    command = filmloop(tmp_path / "home")
    command.sets = ()
    error = command.json("retrain", "--site", str(site), code=2)
    assert "launcher] endpoint" in error["message"]
    assert "two-facilities.md" in error["hint"]
    assert not (tmp_path / "home").exists()


def test_a_model_that_cannot_be_built_is_refused_before_anything_is_started(filmloop: Any, tmp_path: Path) -> None:
    error = filmloop(tmp_path / "home", "model.hyper.features=0").json("retrain", code=2)
    assert "features = 0" in error["message"]
    assert not (tmp_path / "home").exists()


def nan_weights(bundle: Path) -> None:
    arrays = load_file(bundle / "weights.safetensors")
    name = sorted(arrays)[0]
    save_file({**arrays, name: np.full_like(arrays[name], np.nan)}, bundle / "weights.safetensors")
    seal_bundle(bundle, ModelChoice(name="mixer", frame_shape=(16, 128)))


def pickled_weights(bundle: Path) -> None:
    (bundle / "weights.safetensors").write_bytes(pickle.dumps({"weight": np.zeros(3)}))
    seal_bundle(bundle, ModelChoice(name="mixer", frame_shape=(16, 128)))


def flipped_weights(bundle: Path) -> None:
    data = bytearray((bundle / "weights.safetensors").read_bytes())
    data[-9] ^= 16
    (bundle / "weights.safetensors").write_bytes(data)


def other_shape(bundle: Path) -> None:
    shutil.rmtree(bundle)
    make_model_bundle(bundle, frame_shape=(8, 128))


@pytest.fixture(scope="module")
def recorded(filmloop: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    filmloop(folder / "home").run("simulate", str(folder / "frames.h5"), "--frames", "300")
    return folder / "frames.h5"


@pytest.mark.parametrize("spoil", [nan_weights, pickled_weights, flipped_weights, other_shape])
def test_unfit_weights_are_never_loaded(
    filmloop: Any, tmp_path: Path, recorded: Path, spoil: Callable[[Path], None]
) -> None:
    bundle = make_model_bundle(tmp_path / "bundle")
    spoil(bundle)
    before = fingerprint(tmp_path)
    error = filmloop(tmp_path / "home").json("evaluate", "--model", str(bundle), "--data", str(recorded), code=5)
    assert error["error"] in ("VerificationError", "DataError")
    assert not error["retryable"]
    assert fingerprint(tmp_path) == before


@dataclass(frozen=True)
class Case:
    """A command that must fail: its words, exit code, and what message and hint must name."""

    words: tuple[str, ...]
    code: int
    message: str
    hint: str


CASES = {
    "unknown key in the site file": Case(("status", "--set", "edge.batch_frame=3"), 2, "batch_frames", "config.md"),
    "value out of range": Case(("status", "--set", "training.hyper.learning_rate=-1"), 2, "learning_rate", "config.md"),
    "absent site file": Case(("status", "--site", "/nowhere/site.toml"), 2, "/nowhere/site.toml", "--site"),
    "absent recording": Case(("retrain", "--source", "replay:/nowhere/f.h5"), 5, "/nowhere/f.h5", "replay:FILE"),
    "unknown source": Case(("edge", "run", "--source", "detector"), 2, "detector", "--source"),
    "set without =": Case(("status", "--set", "training.min_frames"), 2, "no '='", "--set"),
    "unknown model": Case(("edge", "run", "--frames", "1", "--set", "model.name=mixr"), 2, "mixr", "model"),
    "hyper-parameter of another type": Case(
        ("retrain", "--set", 'model.hyper.features="x"'), 2, "features = 'x'", "site check"
    ),
    "hyper-parameter that the site check finds": Case(
        ("site", "check", "--set", "model.hyper.depth=2.5"), 2, "depth = 2.5", "[model]"
    ),
    "registry of another kind": Case(("status", "--set", "registry.uri=ftp://x"), 2, "registry.uri", "config.md"),
    "runtime that is not here": Case(("site", "check", "--set", "edge.runtime=cuda"), 2, "no CUDA device", "runtime"),
    "unknown stream to list": Case(("shards", "list", "--stream", "nope"), 2, "no stream 'nope'", "without --stream"),
    "unknown stream to verify": Case(("shards", "verify", "--stream", "nope"), 2, "no stream is there", "--stream"),
    "frames to a folder that is not there": Case(("simulate", "no/where/x.h5"), 2, "There is no folder", "mkdir -p"),
    "frames to a folder": Case(("simulate", "."), 2, "is a folder", "frames.h5"),
    "frames to a file system that takes none": Case(
        ("simulate", "/proc/x.h5"), 2, "/proc/x.h5 cannot be written", "may write"
    ),
    "frames below a file": Case(("simulate", "/etc/hosts/x.h5"), 2, "no folder /etc/hosts", "mkdir"),
    "option that is none": Case(("status", "--frames"), 2, "No such option: --frames", "`filmloop status --help`"),
    "option out of range": Case(
        ("history", "--limit", "-1"), 2, "'--limit': it must be at least 1, not '-1'", "history --help"
    ),
    "option of another type": Case(
        ("edge", "run", "--frames", "x"), 2, "it must be a whole number, not 'x'", "edge run --help"
    ),
    "option that is none of a few": Case(
        ("whoami", "--role", "nope"), 2, "'--role': 'nope' is not one of 'data'", "whoami --help"
    ),
    "command that is none": Case(("stauts",), 2, "No such command 'stauts'", "`filmloop --help`"),
    "recording of a name that is too long": Case(
        ("evaluate", "--data", "x" * 300), 5, "No recording at", "replay:FILE"
    ),
    "recordings folder without a shard": Case(("evaluate", "--data", "."), 5, "holds no sealed shard", "one stream"),
    "more hits than can be drawn": Case(
        ("simulate", "x.h5", "--set", "source.conditions.gain=1e300"), 2, "lower pulses_mean", "[source]"
    ),
    "larger frames than can be drawn": Case(
        ("simulate", "x.h5", "--set", "frame.channels=500000"), 2, "64,000,000 bins", "[source]"
    ),
    "drift to what cannot be": Case(
        ("simulate", "x.h5", "--set", "source.drift=[{from_frame=1,set={gain=-1.0}}]"),
        2,
        "gain, which must be at least 0",
        "[source]",
    ),
    "folder that is no bundle": Case(
        ("evaluate", "--data", "F.h5", "--model", "."), 5, "is no bundle: there is no result.json", "models list"
    ),
    "bundle that is not there": Case(
        ("evaluate", "--data", "F.h5", "--model", "no/bundle"), 5, "no/bundle is no bundle", "models list"
    ),
    "registry of others that is away": Case(
        ("registry", "start", "--set", "registry.uri=http://127.0.0.1:1"),
        3,
        "Nothing answers at http://127.0.0.1:1",
        "[registry] uri",
    ),
    "dead channel that is not there": Case(
        ("simulate", "x.h5", "--set", "source.conditions.dead_channels=[99]"), 2, "99", "[source]"
    ),
}


def test_a_state_folder_that_cannot_be_one_is_refused_for_good(filmloop: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for words in (("status",), ("site", "check"), ("retrain",)):
        error = filmloop(tmp_path / "file" / "home").json(*words, code=2)
        assert "no folder" in error["message"]
        assert "FILMLOOP_HOME" in error["hint"]


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_command_says_what_and_how_to_mend_it(filmloop: Any, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    if "F.h5" in case.words:
        with h5py.File(tmp_path / "F.h5", "w") as file:
            file["Ximg"] = np.ones((8, 16, 128), np.uint8)
    argv = filmloop(tmp_path / "home").argv(*case.words, "--json")
    check_refusal(filmloop(tmp_path / "home"), argv, tmp_path, case)


def check_refusal(command: Any, argv: list[str], folder: Path, case: Case) -> None:
    done = subprocess.run(
        argv, env=command.env(), cwd=folder, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    assert done.returncode == case.code, done.stdout + done.stderr
    assert case.message in done.stdout
    assert case.hint in done.stdout
    assert "Traceback" not in done.stderr


def test_a_recording_of_another_shape_than_the_site_is_refused_with_the_keys_to_set(
    filmloop: Any, tmp_path: Path, recorded: Path
) -> None:
    site = tmp_path / "site.toml"
    site.write_text(f'[frame]\nchannels = 8\n[source]\nkind = "replay"\npath = "{recorded}"\n')
    command = filmloop(tmp_path / "home")
    argv = command.argv("edge", "run", "--no-registry", "--json", "--site", str(site))
    check_refusal(command, argv, tmp_path, Case((), 2, "(16, 128)", "channels"))


def test_a_recording_with_a_link_to_nothing_is_bad_data_and_no_bug(filmloop: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["X_test"] = h5py.SoftLink("/nowhere")
    command = filmloop(tmp_path / "home")
    for words in (("edge", "run", "--no-registry"), ("retrain",)):
        argv = command.argv(*words, "--json", "--source", f"replay:{tmp_path}/x.h5")
        check_refusal(command, argv, tmp_path, Case((), 5, "X_test (a link to nothing)", "CookieNetAE"))


def test_a_port_in_use_is_named_and_nothing_is_started(filmloop: Any, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = filmloop(tmp_path / "home", f"registry.port={port}").json("registry", "start", code=2)
    assert str(port) in error["message"]
    assert "port" in error["hint"]


def test_a_full_disk_is_a_transient_error_and_what_was_sealed_stays_whole(
    filmloop: Any, make_disk: Callable[[str], Path]
) -> None:
    disk = make_disk("3m")
    command = filmloop(disk / "home", "source.rate_hz=0", "staging.frames_per_shard=1024")
    command.run("edge", "run", "--no-registry", "--frames", "2048")
    whole = command.json("shards", "verify")
    # Unbuffered: what a buffer still holds would fail again when the file is closed.
    with (disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
        while ballast.write(bytes(4096)):
            pass
    error = command.json("retrain", "--no-edge", "--set", "training.min_frames=1", code=3)
    assert error["retryable"]
    assert "space" in (error["message"] + error["hint"]).lower()
    (disk / "ballast").unlink()
    assert command.json("shards", "verify") == whole
    assert whole["shards"] == whole["whole"] > 0


@pytest.mark.parametrize("words", [("status",), ("shards", "list", "--json")])
def test_output_that_goes_nowhere_is_no_bug(filmloop: Any, tmp_path: Path, words: tuple[str, ...]) -> None:
    command = filmloop(tmp_path / "home")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command.argv(*words), env=command.env(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.returncode == 3, done.stderr
    assert "No space left to write what the command prints" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_with_its_exit_code_and_no_traceback(filmloop: Any, tmp_path: Path) -> None:
    command = filmloop(tmp_path / "home")
    process = command.start("site", "check", "--source", f"zeromq:ipc://{tmp_path}/nobody")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said


@pytest.mark.parametrize("folder", ["absent", "file", "/proc"])
def test_a_benchmark_that_has_nowhere_to_write_says_so(filmloop: Any, tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    command = filmloop(tmp_path / "home")
    argv = [sys.executable, "-m", "filmloop.cli", "bench", "stage", "--quick", "--json", "--folder", folder]
    check_refusal(command, argv, tmp_path, Case((), 2, f"Nothing can be written to {folder}: ", "--folder"))
