"""`filmloop site check` of a site that moves files through Globus: each item right, each item wrong with what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from filmloop.adapters.globus.identity.login import log_in
from filmloop.bootstrap import Site
from filmloop.checks.globus import check_globus
from filmloop.config.globus import GlobusSection
from filmloop.config.loader import parse_site
from filmloop.config.paths import Home
from filmloop.core.finding import Finding
from filmloop.testing.globus.transfer import rig as transfer
from rigs.globus_auth import visit
from rigs.globus_mover import GlobusRig, GlobusSite, globus_rig, two_identities

ITEMS = [
    "Globus SDKs", "Globus keys", "identity", "consents", "weights identity", "edge collection", "cluster collection",
    "transfer there", "transfer home",
]  # fmt: skip


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlobusRig]:
    with globus_rig(tmp_path_factory.mktemp("globus")) as found:
        yield found


@pytest.fixture
def site(rig: GlobusRig, tmp_path: Path) -> Iterator[GlobusSite]:
    rig.hosted.reset()
    with rig.site(tmp_path) as found:
        yield found


def site_of(made: GlobusSite, **mover: Any) -> Site:
    section = made.section.model_dump()
    for key, value in mover.items():
        side, _, name = key.partition("_")
        section[side][name] = value
    config = parse_site({"site": "emulated", "mover": section, "globus": made.globus.model_dump()})
    return Site(file=Path("/sites/emulated.toml"), config=config, home=Home(made.edge))


def check(made: GlobusSite, **mover: Any) -> dict[str, Finding]:
    return {finding.item: finding for finding in check_globus(site_of(made, **mover))}


def failing(made: GlobusSite, item: str, **mover: Any) -> Finding:
    """The one finding that fails, and that nothing stays on either side."""
    found = check(made, **mover)
    assert [name for name, finding in found.items() if finding.state == "fail"] == [item]
    assert leftovers(made) == []
    assert found[item].hint
    return found[item]


def leftovers(made: GlobusSite) -> list[Path]:
    return [path for side in (made.edge, made.cluster.parents[1]) for path in side.rglob("*") if path.is_file()] + [
        path for side in (made.edge, made.cluster) for path in side.glob(".*")
    ]


def test_a_site_that_is_well_is_well_in_every_item_and_as_it_was_before(site: GlobusSite) -> None:
    found = check(site)
    assert list(found) == ITEMS
    assert {finding.state for finding in found.values()} == {"ok"}
    assert f"{site.globus.client_id}@clients.auth.globus.org" in found["identity"].detail
    assert list(site.edge.iterdir()) == []
    assert list(site.cluster.iterdir()) == []
    kinds = [len(site.tasks(kind)) for kind in ("TRANSFER", "DELETE")]
    assert kinds == [2, 1]


def test_two_identities_are_both_tried(rig: GlobusRig, tmp_path: Path) -> None:
    with rig.site(tmp_path, globus=two_identities()) as site:
        found = check(site)
        assert {"identity", "weights identity", "weights consents"} <= set(found)
        assert {finding.state for finding in found.values()} == {"ok"}
        owners = [task["owner"] for task in site.tasks()]
        assert owners == [site.globus.client_id, site.globus.weights.client_id]


def test_keys_that_nobody_filled_in_are_named_and_nothing_is_asked(site: GlobusSite) -> None:
    site.globus = GlobusSection()
    found = check(site, edge_collection="", cluster_path="", cluster_host_path="")
    assert list(found) == ["Globus SDKs", "Globus keys"]
    for key in ("[globus] client_id", "[mover] edge.collection", "[mover] cluster.path", "[mover] cluster.host_path"):
        assert key in found["Globus keys"].detail
    assert site.hosted.counts() == {}


def test_a_secret_that_is_not_there_is_named_by_its_variable(site: GlobusSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FILMLOOP_GLOBUS_SECRET")
    found = failing(site, "identity")
    assert "FILMLOOP_GLOBUS_SECRET is not in the environment" in found.detail
    assert "EnvironmentFile" in found.hint


def test_a_wrong_secret_is_told_without_being_shown(site: GlobusSite, monkeypatch: pytest.MonkeyPatch) -> None:
    check(site)
    monkeypatch.setenv("FILMLOOP_GLOBUS_SECRET", "not-the-secret")
    found = failing(site, "identity")
    assert "FILMLOOP_GLOBUS_SECRET" in found.hint
    assert "not-the-secret" not in repr(found)


def test_a_person_who_is_not_logged_in_gets_the_command(site: GlobusSite) -> None:
    site.globus = GlobusSection(client_id=str(uuid.uuid4()), login="user")
    found = failing(site, "consents")
    assert "filmloop login --site /sites/emulated.toml" in found.hint


@pytest.mark.parametrize("side", ["edge", "cluster"])
def test_a_collection_that_nobody_knows_is_told(site: GlobusSite, side: str) -> None:
    unknown = str(uuid.uuid4())
    found = failing(site, f"{side} collection", **{f"{side}_collection": unknown})
    assert unknown in found.detail


@pytest.mark.parametrize("side", ["edge", "cluster"])
def test_a_folder_that_is_not_there_is_told(site: GlobusSite, side: str) -> None:
    found = failing(site, f"{side} collection", **{f"{side}_path": "/no/such/folder"})
    assert "/no/such/folder" in found.detail
    assert "Make the folder" in found.hint


def test_a_collection_that_is_not_shared_asks_for_a_permission(site: GlobusSite, tmp_path: Path) -> None:
    transfer.serve(site.hosted, tmp_path / "storage", collection=site.section.cluster.collection, rules=[])
    found = failing(site, "cluster collection")
    assert f"Give {site.globus.client_id}@clients.auth.globus.org read and write on /projects/loop" in found.hint
    assert f"collections/{site.section.cluster.collection}/sharing" in found.hint


@pytest.mark.parametrize("side", ["edge", "cluster"])
def test_a_permission_to_read_alone_shows_in_the_transfer(site: GlobusSite, tmp_path: Path, side: str) -> None:
    rule = {"principal": site.globus.client_id, "path": "/", "permissions": "r"}
    folder = {"edge": tmp_path / "edge", "cluster": tmp_path / "storage"}[side]
    transfer.serve(site.hosted, folder, collection=getattr(site.section, side).collection, rules=[rule])
    site.section = site.section.model_copy(update={"stall_s": 1.0})
    found = check(site)
    item = {"edge": "transfer home", "cluster": "transfer there"}[side]
    assert found[item].state == "fail"
    assert "PERMISSION_DENIED" in found[item].detail
    assert "read and write" in found[item].hint
    transfer.serve(site.hosted, folder, collection=getattr(site.section, side).collection, rules=None)
    assert leftovers(site) == []


def test_a_collection_that_does_not_show_the_state_folder_is_found_out(site: GlobusSite, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    transfer.serve(site.hosted, tmp_path / "elsewhere", collection=site.section.edge.collection)
    site.section = site.section.model_copy(update={"stall_s": 1.0})
    found = failing(site, "transfer there")
    assert "has to show the state folder" in found.hint


def test_a_mapped_collection_is_not_for_an_application(site: GlobusSite, tmp_path: Path) -> None:
    transfer.serve(site.hosted, tmp_path / "storage", collection=site.section.cluster.collection, kind="mapped")
    found = failing(site, "cluster collection")
    assert "maps people to accounts" in found.detail
    assert "guest collection" in found.hint


def test_a_session_that_a_facility_asks_for_is_nothing_for_an_application(site: GlobusSite, tmp_path: Path) -> None:
    cluster = site.section.cluster.collection
    transfer.serve(site.hosted, tmp_path / "storage", collection=cluster, domains=["alcf.anl.gov"])
    found = failing(site, "cluster collection")
    assert "An application cannot log in as a person does" in found.hint


def test_a_person_with_a_mapped_collection_is_well_until_the_consent_is_withdrawn(
    site: GlobusSite, tmp_path: Path
) -> None:
    cluster = site.section.cluster.collection
    transfer.serve(site.hosted, tmp_path / "storage", collection=cluster, kind="mapped")
    site.globus = GlobusSection(client_id=str(uuid.uuid4()), login="user")
    assert "mapped = true" in logged_in(site, "cluster collection", mapped=False).hint
    found = check(site, cluster_mapped=True)
    assert "filmloop login" in found["consents"].hint
    log_in(site_of(site, cluster_mapped=True).config, "data", ask=visit)
    found = check(site, cluster_mapped=True)
    assert {finding.state for finding in found.values()} == {"ok"}
    scope = f"https://auth.globus.org/scopes/{cluster}/data_access"
    assert site.hosted.ask("POST", "auth/withdraw", {"scope": scope})["count"] == 1
    assert "filmloop login" in failing(site, "consents", cluster_mapped=True).hint


def logged_in(made: GlobusSite, item: str, *, mapped: bool) -> Finding:
    log_in(site_of(made, cluster_mapped=mapped).config, "data", ask=visit)
    return failing(made, item, cluster_mapped=mapped)


def cli(made: GlobusSite, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    file = folder / "site.json"
    file.write_text(json.dumps(site_of(made).config.as_json()))
    argv = [sys.executable, "-m", "filmloop.cli", "site", "check", "--site", str(file), *options]
    environ = {**os.environ, "FILMLOOP_HOME": str(made.edge)}
    return subprocess.run(argv, env=environ, text=True, capture_output=True, timeout=120)


def test_the_command_says_ready_with_exit_code_0_and_what_to_do_with_2(
    site: GlobusSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = cli(site, tmp_path, "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["ready"]) == (0, True)
    assert set(ITEMS) <= {item["item"] for item in said["items"]}
    monkeypatch.setenv("FILMLOOP_GLOBUS_SECRET", "")
    done = cli(site, tmp_path)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("fail  identity")]
    assert lines[at + 1].strip().startswith("-> ")
    assert leftovers(site) == []


def test_a_service_that_is_away_is_no_fault_of_the_site(site: GlobusSite) -> None:
    site.hosted.fault("refuse", times=-1, match={"route": "GET /v0.10/endpoint/<collection_id>"}, status=503)
    found = check(site)
    assert found["edge collection"].state == "fail"
    assert "may work later" in found["edge collection"].hint
    assert site.hosted.fired("refuse") > 0


def test_a_full_disk_at_the_cluster_is_told(site: GlobusSite, tmp_path: Path) -> None:
    transfer.serve(site.hosted, tmp_path / "storage", collection=site.section.cluster.collection, quota_bytes=3)
    found = failing(site, "transfer there")
    assert "Make room" in found.hint


def test_what_cannot_be_deleted_is_said(site: GlobusSite) -> None:
    site.hosted.fault("refuse", times=-1, match={"route": "POST /v0.10/delete"}, status=403, code="PermissionDenied")
    found = check(site)
    assert found["clean-up"].state == "fail"
    assert ".check-" in found["clean-up"].detail
    assert site.hosted.fired("refuse") > 0


def test_a_deletion_that_failed_is_said_and_tried_again_by_the_next_check(site: GlobusSite) -> None:
    site.hosted.fault("fail", times=1, match={"type": "DELETE"}, code="PERMISSION_DENIED")
    found = check(site)["clean-up"]
    assert site.hosted.fired("fail") == 1
    (left,) = site.cluster.iterdir()
    assert found.state == "fail"
    assert left.name in found.detail
    assert "PERMISSION_DENIED" in found.detail
    assert "app.globus.org/activity/" in found.hint
    site.hosted.fault("fail", times=1, match={"type": "DELETE"})
    assert left.name in check(site)["clean-up"].detail
    assert "clean-up" not in check(site)
    assert [*site.cluster.iterdir(), *site.edge.iterdir()] == []


def test_a_check_that_was_killed_is_cleaned_up_by_the_next(site: GlobusSite) -> None:
    name = ".check-0123456789abcdef"
    for side in (site.edge, site.cluster):
        (side / name).mkdir()
        (side / name / "probe").write_text("old")
    young = site.edge / ".check-young"
    young.mkdir()
    long_ago = time.time() - 7200
    os.utime(site.edge / name, (long_ago, long_ago))
    check(site)
    assert list(site.edge.iterdir()) == [young]
    assert list(site.cluster.iterdir()) == []


def test_a_check_that_is_left_early_takes_everything_back(site: GlobusSite) -> None:
    checks = check_globus(site_of(site))
    assert any(finding.item == "transfer there" for finding in checks)
    assert [path.name for path in site.cluster.iterdir()] == [path.name for path in site.edge.iterdir()] != []
    checks.close()
    assert leftovers(site) == []


Run = Callable[[GlobusSite], "subprocess.Popen[str]"]


@pytest.fixture
def started(site: GlobusSite, tmp_path: Path) -> Iterator[Run]:
    """`filmloop site check` in a process of its own."""
    file = tmp_path / "site.json"
    processes: list[subprocess.Popen[str]] = []

    def start(made: GlobusSite) -> subprocess.Popen[str]:
        file.write_text(json.dumps(site_of(made).config.as_json()))
        environ = {**os.environ, "FILMLOOP_HOME": str(made.edge)}
        argv = [sys.executable, "-m", "filmloop.cli", "site", "check", "--json", "--site", str(file)]
        process = subprocess.Popen(
            argv, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_stays_after_a_signal_in_the_middle_of_a_transfer(
    site: GlobusSite, started: Run, number: signal.Signals
) -> None:
    transfer.behave(site.hosted, bytes_per_s=1.0)
    process = started(site)
    try:
        end = time.monotonic() + 60
        while not site.tasks() and time.monotonic() < end:
            time.sleep(0.05)
        assert site.tasks()
        process.send_signal(number)
        process.communicate(timeout=60)
    finally:
        transfer.behave(site.hosted, bytes_per_s=None)
    assert leftovers(site) == []
    assert {task["status"] for task in site.tasks()} == {"FAILED"}
