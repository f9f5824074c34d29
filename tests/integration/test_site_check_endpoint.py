"""`filmloop site check` of a site that trains through Globus Compute: the real endpoint, right and wrong."""

from __future__ import annotations

import logging
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from filmloop.adapters.globus.checks import calling
from filmloop.bootstrap import Site
from filmloop.checks.globus import check_globus
from filmloop.config.globus import GlobusSection
from filmloop.config.loader import parse_site
from filmloop.config.paths import Home
from filmloop.core.finding import Finding
from filmloop.core.retry import wait_until
from filmloop.testing.slurm import SlurmRig
from rigs.endpoint import CLIENT_ID, ENGINES, SECRET
from rigs.globus import Compute
from rigs.globus_mover import GlobusRig, GlobusSite

pytestmark = pytest.mark.slow
THREADS, CONTROL = ENGINES["threads"], ENGINES["control"]
QUEUE = {"engine": "slurm", "walltime": "00:20:00", "interface": "lo", "account": "physics"}


Findings = dict[str, Finding]


def checked(compute: Compute, site: GlobusSite, *, job: bool = False, host_path: str = "", **keys: Any) -> Findings:
    """The findings by their item; `keys` are those of [launcher]. What is not well has a hint, and nothing stays."""
    launcher = {"kind": "globus", "endpoint": compute.endpoint.id, "options": THREADS, "control": CONTROL, **keys}
    mover = site.section.model_dump()
    mover["cluster"]["host_path"] = host_path or str(site.cluster)
    values = {"mover": mover, "globus": site.globus.model_dump(), "launcher": launcher}
    config = parse_site({"site": "emulated", "training": {"deadline_s": 60.0}, **values})
    made = Site(file=Path("/sites/emulated.toml"), config=config, home=Home(site.edge))
    found = {finding.item: finding for finding in check_globus(made, job=job)}
    assert list(site.edge.iterdir()) == []
    assert list(site.cluster.iterdir()) == []
    assert all(finding.hint for finding in found.values() if finding.state != "ok")
    return found


@pytest.fixture
def site(compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GlobusSite]:
    monkeypatch.setenv("FILMLOOP_GLOBUS_SECRET", SECRET)
    with GlobusRig(compute.hosted).site(tmp_path, globus=GlobusSection(client_id=CLIENT_ID)) as found:
        yield found


@pytest.fixture
def run(compute: Compute, site: GlobusSite) -> Callable[..., Findings]:
    return partial(checked, compute, site)


def functions(compute: Compute) -> int:
    asked = compute.hosted.counts()
    return asked.get("POST /v3/functions", 0) - asked.get("DELETE /v2/functions/<uuid:function_id>", 0)


def test_an_endpoint_that_can_train_is_well_in_every_item(compute: Compute, run: Callable[..., Findings]) -> None:
    before = functions(compute)
    found = run()
    assert {item: finding.state for item, finding in found.items() if finding.state != "ok"} == {}
    assert {"endpoint", "versions", "cluster folder", "job options"} <= set(found)
    assert "filmloop 0.1.0, torch" in found["versions"].detail
    assert "the sent file is there" in found["cluster folder"].detail
    assert functions(compute) == before


def test_a_node_is_looked_at_through_the_queue_if_asked_to(run: Callable[..., Findings]) -> None:
    found = run(job=True, processes_per_node=2)
    assert [found[item].state for item in ("job", "node versions", "node folder", "node locks")] == ["ok"] * 4
    assert "is seen on" in found["node locks"].detail
    assert "the sent file is there" in found["node folder"].detail
    assert "processes_per_node is 2" in found["node GPUs"].detail


def test_a_function_that_stays_registered_is_told(compute: Compute, run: Callable[..., Findings]) -> None:
    route = "DELETE /v2/functions/<uuid:function_id>"
    compute.hosted.fault("refuse", times=-1, match={"route": route}, status=403, code="FORBIDDEN", message="not now")
    found = run()["functions"]
    assert compute.hosted.fired("refuse") > 0
    assert (found.state, "stays registered" in found.detail, "not now" in found.detail) == ("warn", True, True)


def test_a_job_that_nobody_waits_for_any_longer_is_told_with_what_shows_it(
    compute: Compute, run: Callable[..., Findings]
) -> None:
    compute.hosted.fault("lose_result", times=-1)
    found = run(control={}, job=True, queue_wait_s=8.0)["job"]
    assert compute.hosted.fired("lose_result") > 0
    assert (found.state, "did not happen within 8 s" in found.detail) == ("fail", True)
    assert "stays queued" in found.hint
    assert "qstat -u $USER" in found.hint


def test_who_interrupts_the_wait_for_a_job_is_told_the_same(
    compute: Compute, run: Callable[..., Findings], caplog: pytest.LogCaptureFixture
) -> None:
    compute.hosted.fault("lose_result", times=-1)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        wait_until(lambda: compute.hosted.fired("lose_result") or None, deadline_s=200, what="a function on a node")
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with caplog.at_level(logging.ERROR), pytest.raises(KeyboardInterrupt):
        run(control={}, job=True)
    thread.join()
    assert calling.STAYS in caplog.text


def test_without_control_functions_wait_for_a_job_that_somebody_asks_for(run: Callable[..., Findings]) -> None:
    found = run(control={})
    assert found["functions"].state == "warn"
    assert found["functions"].hint == "filmloop site check --job"
    assert "versions" not in found
    found = run(control={}, job=True)
    assert (found["node versions"].state, found["node folder"].state) == ("ok", "ok")
    assert "the sent file is there" in found["node folder"].detail
    assert "node locks" not in found


def test_an_endpoint_that_is_offline_is_told_with_what_starts_it(
    compute: Compute, run: Callable[..., Findings]
) -> None:
    compute.hosted.fault("endpoint_offline", times=-1)
    found = run()["endpoint"]
    assert (found.state, "offline" in found.detail) == ("fail", True)
    assert "globus-compute-endpoint start" in found.hint
    assert compute.hosted.fired("endpoint_offline") > 0


def test_an_endpoint_that_nobody_knows_is_told(run: Callable[..., Findings]) -> None:
    unknown = str(uuid.uuid4())
    found = run(endpoint=unknown)["endpoint"]
    assert found.state == "fail"
    assert unknown in found.detail


def test_an_endpoint_of_another_identity_is_told(compute: Compute, run: Callable[..., Findings]) -> None:
    route = "POST /v3/endpoints/<uuid:endpoint_id>/submit"
    compute.hosted.fault("refuse", times=-1, match={"route": route}, status=403, code="FORBIDDEN", message="not yours")
    found = run()["endpoint"]
    assert (found.state, "not yours" in found.detail) == ("fail", True)
    assert "GLOBUS_COMPUTE_CLIENT_ID" in found.hint
    assert compute.hosted.fired("refuse") == 1


def test_options_that_the_template_has_not_are_told_before_a_job_is_sent(run: Callable[..., Findings]) -> None:
    found = run(options={**QUEUE, "acount": "x"})["job options"]
    assert found.state == "fail"
    assert "'acount' was unexpected" in found.detail


def test_an_interface_that_the_endpoints_host_has_not_is_told(run: Callable[..., Findings]) -> None:
    found = run(options={**QUEUE, "interface": "hsn99"})["job options"]
    assert "No such device" in found.detail


def test_control_options_that_the_template_has_not_are_told(run: Callable[..., Findings]) -> None:
    found = run(control={"engine": "contro"})["endpoint"]
    assert found.state == "fail"
    assert "'contro' is not one of" in found.detail
    assert "[launcher.control]" in found.hint


def test_a_python_that_is_not_there_is_told(run: Callable[..., Findings]) -> None:
    found = run(python="/no/such/python")["versions"]
    assert found.state == "fail"
    assert "/no/such/python" in found.detail
    assert "[launcher] python" in found.hint


def test_a_python_without_filmloop_is_told(run: Callable[..., Findings], tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\nexec /usr/bin/env -u PYTHONPATH python3 -S -E "$@"\n')
    bare.chmod(0o755)
    found = run(python=str(bare))["versions"]
    assert found.state == "fail"
    assert "has no filmloop" in found.detail
    assert "filmloop[hpc]" in found.hint


@pytest.mark.parametrize("kind", ["absent", "elsewhere"])
def test_a_host_path_that_is_not_the_collections_folder_is_told(
    run: Callable[..., Findings], tmp_path: Path, kind: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    found = run(host_path=str(tmp_path / kind))["cluster folder"]
    assert found.state == "fail"
    assert "host_path" in found.hint
    assert ("what the collection took is not there" in found.detail) == (kind == "elsewhere")


def test_a_queue_is_asked_before_a_job_is_sent(
    slurm_compute: Compute, slurm: SlurmRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILMLOOP_GLOBUS_SECRET", SECRET)
    options = {**ENGINES["slurm"], "gpus_per_node": 1, "partition": "debug"}
    with GlobusRig(slurm_compute.hosted).site(tmp_path, globus=GlobusSection(client_id=CLIENT_ID)) as site:
        found = checked(slurm_compute, site, options=options)
        assert (found["queue"].state, found["job options"].state) == ("ok", "ok"), found
        found = checked(slurm_compute, site, options={**options, "partition": "nonexistent"})
        assert found["queue"].state == "fail"
        assert "partition" in found["queue"].detail
        found = checked(slurm_compute, site, options={**options, "nodes_per_block": 99}, nodes=99)
        assert found["queue"].state == "fail"
    assert slurm.run("squeue", "--noheader") == ""


def test_a_function_for_several_nodes_says_so_to_its_engine(
    slurm_compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILMLOOP_GLOBUS_SECRET", SECRET)
    with GlobusRig(slurm_compute.hosted).site(tmp_path, globus=GlobusSection(client_id=CLIENT_ID)) as site:
        found = checked(slurm_compute, site, job=True, options=ENGINES["slurm-mpi"], nodes=2)
    wanted = ("job", "node versions", "node folder", "node locks")
    assert [found[item].state for item in wanted] == ["ok"] * 4, found


def test_a_function_that_does_not_come_back_is_given_up(
    compute: Compute, run: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "_ANSWER_S", 2.0)
    compute.hosted.fault("lose_result", times=-1)
    found = run()["endpoint"]
    assert "did not happen within 2 s" in found.detail
    assert compute.hosted.fired("lose_result") > 0
