"""The MLflow adapter against a real server: what people see there, kill -9 while registering, and bad servers."""

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from contextlib import contextmanager

import pytest

from filmloop.adapters.mlflow.registry import MlflowRegistry
from filmloop.bundle import verify_bundle
from filmloop.config.paths import Home
from filmloop.core.documents import TrainHyper, TrainResult
from filmloop.core.errors import AuthError, ConfigError, DataError, FilmloopError, TransientError
from filmloop.core.fsio import canonical_json, sha256_bytes
from filmloop.shipping import local_bundle
from filmloop.testing.bundles import make_bundle
from filmloop.testing.mlflow_server import shared_server

METRICS = {"nll": 60.5, "nll_low": 60.0, "nll_high": 61.0, "nll_gaussian": 62.0}


@pytest.fixture
def registry():
    return MlflowRegistry(shared_server(), model=f"m-{uuid.uuid4().hex[:8]}", experiment="integration", timeout_s=10)


@pytest.fixture
def bundle(tmp_path):
    make_bundle(tmp_path / "bundle", base_version="3")
    return tmp_path / "bundle"


def register(registry, bundle, key):
    return registry.register(bundle, key=key, description="# Passed", tags={"site": "local"}, metrics=METRICS)


def client_of(registry):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=registry.uri, registry_uri=registry.uri)


def runs_of(registry):
    client = client_of(registry)
    experiment = client.get_experiment_by_name("integration")
    return client.search_runs([experiment.experiment_id], f"tags.`filmloop.model`='{registry.model}'")


def test_the_ui_shows_run_curve_parameters_plots_and_lineage(registry, bundle):
    made = register(registry, bundle, "c1")
    client = client_of(registry)
    version = client.get_model_version(registry.model, made.version)
    run = client.get_run(version.run_id)
    assert version.source == f"{run.info.artifact_uri}/bundle"
    assert version.description == "# Passed"
    assert run.info.status == "FINISHED"
    assert {name: run.data.metrics[name] for name in METRICS} == METRICS
    curve = client.get_metric_history(run.info.run_id, "training/loss")
    # make_bundle logs 2 / (step + 1) every ten steps.
    assert [(point.step, point.value) for point in curve][:2] == [(0, 2.0), (10, 2.0 / 11)]
    assert len(curve) == 20
    assert run.data.params["train.learning_rate"] == str(TrainHyper().learning_rate)
    assert run.data.params["frame_shape"] == "4x8"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "bundle/plots")] == ["bundle/plots/loss.png"]
    result = verify_bundle(bundle)
    assert json.loads(version.tags["filmloop.lineage"]) == result.lineage
    (shard_id,) = result.lineage
    brief = {"shards": 1, "first": shard_id, "last": shard_id, "sha256": sha256_bytes(canonical_json(result.lineage))}
    assert json.loads(version.tags["filmloop.shards"]) == brief
    assert version.tags["filmloop.base_version"] == "3"
    assert version.tags["filmloop.code_commit"] == result.code_commit
    assert version.tags["filmloop.config_digest"] == result.config_digest


# Where the process dies: (method of MlflowClient, whether it still takes effect). log_artifact dies on the third file.
CUTS = [
    ("create_run", True),
    ("log_artifacts", False),
    ("log_batch", True),
    ("set_terminated", True),
    ("create_registered_model", True),
    ("create_model_version", True),
]
VICTIM = """
    import os, signal, sys
    from pathlib import Path
    uri, model, bundle, method, effective = sys.argv[1:]
    from mlflow import MlflowClient
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
    from filmloop.adapters.mlflow.registry import MlflowRegistry

    def die(*args, **kwargs):
        if effective == "True":
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    if method == "log_artifacts":
        sent = []
        real_one = HttpArtifactRepository.log_artifact
        def third_kills(self, *args, **kwargs):
            sent.append(args)
            if len(sent) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            real_one(self, *args, **kwargs)
        HttpArtifactRepository.log_artifact = third_kills
    else:
        real = getattr(MlflowClient, method)
        setattr(MlflowClient, method, die)
    registry = MlflowRegistry(uri, model=model, experiment="integration", timeout_s=10)
    registry.register(Path(bundle), key="c1", description="# Passed", tags={"site": "local"}, metrics={"nll": 60.5})
"""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "effective"), CUTS)
def test_kill_9_while_registering_and_again_ends_in_one_whole_version(registry, bundle, method, effective):
    command = [sys.executable, "-c", textwrap.dedent(VICTIM), registry.uri, registry.model, bundle, method]
    killed = subprocess.run([*map(str, command), str(effective)], capture_output=True, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    made = registry.register(bundle, key="c1", description="# Passed", tags={"site": "local"}, metrics={"nll": 60.5})
    assert [version.version for version in registry.versions()] == [made.version] == ["1"]
    (run,) = runs_of(registry)
    assert run.info.status == "FINISHED"
    history = client_of(registry).get_metric_history(run.info.run_id, "training/loss")
    assert len(history) == 20
    verify_bundle(registry.download("1", bundle.parent / "back"), digest=made.bundle_digest)


def test_a_key_belongs_to_one_bundle(registry, bundle, tmp_path):
    register(registry, bundle, "c1")
    make_bundle(tmp_path / "other", seed=1)
    with pytest.raises(DataError, match="registered with another bundle"):
        register(registry, tmp_path / "other", "c1")
    assert len(registry.versions()) == 1


def test_a_version_that_a_person_registered_is_listed_but_has_no_bundle(registry, tmp_path):
    client = client_of(registry)
    client.create_registered_model(registry.model)
    run = client.create_run("0")
    client.create_model_version(registry.model, f"{run.info.artifact_uri}/model", run.info.run_id)
    (found,) = registry.versions()
    assert found.bundle_digest == ""
    with pytest.raises(DataError):
        registry.download("1", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_scores_that_someone_edited_in_the_ui_do_not_stop_the_edge(registry, bundle):
    register(registry, bundle, "c1")
    for text in ("not JSON", "[1]", '{"nll": "x"}', '{"nll": NaN}'):
        client_of(registry).set_model_version_tag(registry.model, "1", "filmloop.metrics", text)
        assert registry.get("1").metrics == {}


def test_a_long_description_is_cut_to_mlflows_column(registry, bundle):
    made = registry.register(bundle, key="c1", description="x" * 9000, tags={}, metrics={})
    assert made.description == "x" * 5000
    registry.annotate("1", description="y" * 9000)
    assert registry.get("1").description == "y" * 5000


def test_a_version_of_more_shards_than_a_tag_has_room_for_is_registered_and_says_so(registry, bundle):
    lineage = {f"simulated/run000001/{n:08d}": f"{n:064x}" for n in range(1100)}
    TrainResult.read(bundle / "result.json").model_copy(update={"lineage": lineage}).write(bundle / "result.json")
    made = register(registry, bundle, "c1")
    assert json.loads(made.tags["filmloop.shards"]) == {
        "shards": 1100,
        "first": "simulated/run000001/00000000",
        "last": "simulated/run000001/00001099",
        "sha256": sha256_bytes(canonical_json(lineage)),
    }
    assert "filmloop.lineage" not in made.tags
    back = registry.download(made.version, bundle.parent / "back")
    assert TrainResult.read(back / "result.json").lineage == lineage


def test_more_versions_than_one_page_are_all_listed(registry, bundle, monkeypatch):
    monkeypatch.setattr("filmloop.adapters.mlflow.registry._PAGE", 2)
    for number in range(5):
        register(registry, bundle, f"c{number}")
    assert [version.version for version in registry.versions()] == ["5", "4", "3", "2", "1"]


def test_a_deleted_experiment_is_reported_with_the_command_that_restores_it(registry, bundle):
    name = f"gone-{uuid.uuid4().hex[:8]}"
    client = client_of(registry)
    client.delete_experiment(client.create_experiment(name))
    other = MlflowRegistry(registry.uri, model=registry.model, experiment=name, timeout_s=10)
    with pytest.raises(ConfigError) as caught:
        register(other, bundle, "c1")
    assert "mlflow experiments restore" in caught.value.hint


QUIET = """
    import sys
    from pathlib import Path
    from filmloop.adapters.mlflow.registry import MlflowRegistry
    uri, model, bundle, target = sys.argv[1:]
    registry = MlflowRegistry(uri, model=model, experiment="integration", timeout_s=10)
    assert "mlflow" not in sys.modules, "constructing must stay cheap"
    registry.register(Path(bundle), key="c1", description="", tags={}, metrics={"nll": 1.0})
    registry.set_alias("champion", "1")
    registry.download("1", Path(target))
    assert registry.get("champion").version == "1"
    server_side = {"flask", "sqlalchemy", "alembic", "mlflow.server"} & set(sys.modules)
    assert not server_side, f"a client must not need {server_side}"
"""


def test_the_client_prints_nothing_and_needs_no_part_of_the_server(registry, bundle, tmp_path):
    arguments = [registry.uri, registry.model, str(bundle), str(tmp_path / "target")]
    command = [sys.executable, "-c", textwrap.dedent(QUIET), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@contextmanager
def server_that(answer):
    """An HTTP server on loopback whose every answer is `answer(handler)`; yields (uri, requests, connections)."""
    requests, connections = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self):
            connections.append(self.client_address)
            super().setup()

        def do_GET(self):
            requests.append(self.path)
            status, kind, body = answer
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        server.daemon_threads = True
        server.block_on_close = False
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests, connections
        finally:
            server.shutdown()
            thread.join()


def test_looking_up_the_champion_is_one_request_over_a_connection_that_stays_open():
    version = {"name": "m", "version": "7", "creation_timestamp": 0, "tags": [], "aliases": ["champion"]}
    body = json.dumps({"model_version": version}).encode()
    with server_that((200, "application/json", body)) as (uri, requests, connections):
        registry = MlflowRegistry(uri, model="m", experiment="e", timeout_s=2)
        assert [registry.get("champion").version for _ in range(5)] == ["7"] * 5
    assert len(requests) == 5
    assert len(connections) == 1


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, b"You are not authenticated.", AuthError),
        (403, b"Permission denied", AuthError),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', AuthError),
        (404, b"<html>not here</html>", ConfigError),
        (200, b"<html>back soon</html>", TransientError),
        (429, b"slow down", TransientError),
        (500, b'{"error_code": "INTERNAL_ERROR", "message": "boom"}', TransientError),
        (503, b"<html>maintenance</html>", TransientError),
    ],
)
def test_what_a_bad_server_answers_becomes_the_right_error_at_once(status, body, error):
    with server_that((status, "text/html", body)) as (uri, _, _):
        registry = MlflowRegistry(uri, model="m", experiment="e", timeout_s=5)
        began_s = time.monotonic()
        with pytest.raises(error) as caught:
            registry.get("champion")
        assert time.monotonic() - began_s < 2
    assert caught.value.hint
    assert uri in caught.value.message
    assert type(caught.value) is error


@pytest.mark.parametrize("body", [b"", b"{}", b'{"status": "maintenance"}'])
def test_an_answer_without_a_version_does_not_mean_that_there_is_no_champion(body):
    with server_that((200, "application/json", body)) as (uri, _, _):
        registry = MlflowRegistry(uri, model="m", experiment="e", timeout_s=5)
        for asked in ("champion", "7"):
            with pytest.raises(TransientError, match="names no version of m") as caught:
                registry.get(asked)
            assert uri in caught.value.message


def test_a_page_that_is_not_found_where_mlflow_was_a_moment_ago_may_pass():
    version = {"name": "m", "version": "7", "creation_timestamp": 0, "tags": [], "aliases": ["champion"]}
    answer = [200, "application/json", json.dumps({"model_version": version}).encode()]
    with server_that(answer) as (uri, _, _):
        registry = MlflowRegistry(uri, model="m", experiment="e", timeout_s=5)
        assert registry.get("champion").version == "7"
        answer[:] = 404, "text/plain", b"404 page not found"
        for ask in (lambda: registry.get("champion"), registry.versions):
            with pytest.raises(TransientError):
                ask()


def test_sites_that_share_a_server_may_begin_at_once(registry, bundle):
    problems, together = [], threading.Barrier(4)

    def begin(number, name):
        own = MlflowRegistry(registry.uri, model=f"{name}-{number}", experiment=name, timeout_s=30)
        own.get("champion")
        together.wait()
        try:
            register(own, bundle, "c1")
        except FilmloopError as exc:
            problems.append(repr(exc))

    for _ in range(2):
        name = f"new-{uuid.uuid4().hex[:8]}"
        threads = [threading.Thread(target=begin, args=(number, name)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []


def test_a_disk_that_is_full_here_is_not_said_of_the_server(registry, bundle, make_disk):
    made, disk = register(registry, bundle, "c1"), make_disk("64k")
    filler = disk / "filler"
    filler.write_bytes(bytes(50_000))
    with pytest.raises(TransientError, match="No space left to write") as caught:
        registry.download(made.version, disk / "1")
    assert "filmloop shards list" in caught.value.hint
    filler.unlink()
    assert list(disk.iterdir()) == []
    verify_bundle(registry.download(made.version, disk / "1"), digest=made.bundle_digest)


def test_two_that_lack_a_bundle_at_once_both_get_it(registry, bundle, tmp_path):
    made = register(registry, bundle, "c1")
    for round_ in range(5):
        home, problems = Home(tmp_path / f"home{round_}"), []
        together = threading.Barrier(3)

        def bring(home=home, problems=problems, together=together):
            own = MlflowRegistry(registry.uri, model=registry.model, experiment="integration", timeout_s=10)
            own.get(made.version)
            together.wait()
            try:
                local_bundle(home, own, made.version)
            except FilmloopError as exc:
                problems.append(repr(exc))

        threads = [threading.Thread(target=bring) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        verify_bundle(home.weights / registry.model / made.version, digest=made.bundle_digest)


def test_a_server_that_never_answers_is_given_up_within_the_timeout():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began_s = time.monotonic()
        with pytest.raises(TransientError):
            MlflowRegistry(uri, model="m", experiment="e", timeout_s=1).get("champion")
        assert 0.9 < time.monotonic() - began_s < 3


def test_a_proxy_in_the_environment_is_not_asked_for_this_machine(registry, monkeypatch):
    # Port 9 (discard): nobody listens there.
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "example.org")
    assert registry.get("champion") is None
    assert os.environ["no_proxy"].startswith("example.org,127.0.0.1")
