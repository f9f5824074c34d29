"""Deletions at the cluster that fail, hang or are not even heard: nothing waits for ever, nothing is forgotten."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from filmloop.core.errors import TransientError
from filmloop.testing.contracts.mover import ended, files_below
from rigs.globus_faults import Scenario
from rigs.globus_mover import GlobusRig, globus_rig

DELETE = {"type": "DELETE"}
SUBMISSION = {"route": "GET /v0.10/submission_id"}
POST_DELETE = {"route": "POST /v0.10/delete"}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlobusRig]:
    with globus_rig(tmp_path_factory.mktemp("globus")) as found:
        yield found


@pytest.fixture
def scenario(rig: GlobusRig, tmp_path: Path, record_property: Callable[[str, object], None]) -> Iterator[Scenario]:
    record_property("scenario", "Globus mover")
    rig.hosted.reset()
    with rig.site(tmp_path) as site:
        yield Scenario(site=site)
    rig.hosted.reset()


def put(scenario: Scenario, *names: str) -> None:
    """Files at the cluster, as something else has left them."""
    for name in names:
        (scenario.target / name).parent.mkdir(parents=True, exist_ok=True)
        (scenario.target / name).write_bytes(b"old")


def gone(scenario: Scenario, name: str) -> None:
    """Wait until it is."""
    scenario.wait(lambda: not (scenario.target / name).exists(), f"the deletion of {name}")


def active(scenario: Scenario) -> list[str]:
    """Deletions under way."""
    return [task["label"] for task in scenario.site.tasks("DELETE") if task["status"] == "ACTIVE"]


def test_a_deletion_that_cannot_finish_is_told_and_does_not_hold_a_move_up(scenario: Scenario) -> None:
    put(scenario, "there/s/old", "elsewhere")
    scenario.fault("permission_denied", times=-1, match=DELETE)
    mover = scenario.site.make(stall_s=1.5)
    mover.discard(["there/s", "elsewhere"], key="d1")
    handle = scenario.start(mover)
    scenario.wait(
        lambda: (told := mover.poll(handle).detail).startswith("waiting for deletion") and "PERMISSION_DENIED" in told,
        "the deletion in the status",
    )
    assert ended(mover, handle).state == "succeeded"
    assert scenario.fired("permission_denied") > 1
    assert active(scenario) == [], "what is given up is cancelled"
    scenario.hosted.clear_faults()
    mover.discard([], key="d2")
    gone(scenario, "elsewhere")
    scenario.wait(lambda: active(scenario) == [], "the end of the deletion")
    assert files_below(scenario.target) == {"there/s/old", *(f"there/{name}" for name in scenario.files)}


def test_deletions_that_cannot_finish_do_not_pile_up(scenario: Scenario) -> None:
    scenario.fault("permission_denied", times=-1, match=DELETE)
    mover = scenario.site.make(stall_s=0.2)
    for number in range(5):
        put(scenario, f"runs/c{number}")
        mover.discard([f"runs/c{number}"], key=f"c{number}-tidy")
        scenario.until("permission_denied", scenario.fired("permission_denied") + 1)
        time.sleep(0.3)
    assert len(scenario.site.tasks("DELETE")) > 5
    assert len(active(scenario)) <= 2, "the newest, and one for all that failed before"
    scenario.hosted.clear_faults()
    mover.discard([], key="last-tidy")
    scenario.wait(lambda: not files_below(scenario.target), "the deletion of all")


def test_a_deletion_that_goes_on_is_left_alone(scenario: Scenario) -> None:
    put(scenario, "there/s/old")
    scenario.fault("stall", match=DELETE, seconds=1.0)
    mover = scenario.site.make(stall_s=0.2)
    mover.discard(["there/s/old"], key="d1")
    scenario.until("stall")
    time.sleep(0.4)
    mover.discard([], key="d2")
    gone(scenario, "there/s/old")
    (task,) = scenario.site.tasks("DELETE")
    assert task["status"] in ("ACTIVE", "SUCCEEDED")


@pytest.mark.parametrize("match", [SUBMISSION, POST_DELETE], ids=["number", "submit"])
def test_a_deletion_that_nobody_heard_is_asked_for_again(scenario: Scenario, match: dict[str, str]) -> None:
    put(scenario, "runs/c1")
    scenario.fault("refuse", times=-1, match=match, status=503, headers={"Retry-After": "0"})
    mover = scenario.site.make()
    with pytest.raises(TransientError):
        mover.discard(["runs/c1"], key="c1-tidy")
    assert scenario.fired("refuse") > 1
    scenario.hosted.clear_faults()
    scenario.site.make().discard([], key="c2-tidy")
    gone(scenario, "runs/c1")
    assert len(scenario.site.tasks("DELETE")) == 1


def test_a_deletion_that_failed_is_logged_and_tried_again(scenario: Scenario, caplog: pytest.LogCaptureFixture) -> None:
    put(scenario, "runs/c1")
    scenario.fault("fail", match=DELETE, code="ENDPOINT_ERROR", details="the server went down")
    mover = scenario.site.make()
    mover.discard(["runs/c1"], key="c1-tidy")
    scenario.wait(lambda: scenario.site.tasks("DELETE")[0]["status"] == "FAILED", "the failure")
    mover.discard([], key="c2-tidy")
    assert "the server went down" in caplog.text
    gone(scenario, "runs/c1")
    scenario.wait(lambda: active(scenario) == [], "the end of the deletion")
    mover.discard([], key="c3-tidy")
    assert len(scenario.site.tasks("DELETE")) == 2, "what is gone is not asked for again"


def test_what_failed_to_be_deleted_is_not_deleted_once_a_move_has_filled_it_anew(scenario: Scenario) -> None:
    scenario.fault("refuse", times=-1, match=SUBMISSION, status=503, headers={"Retry-After": "0"})
    mover = scenario.site.make()
    with pytest.raises(TransientError):
        mover.discard(["there/s"], key="d1")
    scenario.hosted.clear_faults()
    assert scenario.run(mover).state == "succeeded"
    mover.discard([], key="d2")
    asked = [one["path"] for task in scenario.site.tasks("DELETE") for one in task["asked"]["DATA"]]
    assert [path for path in asked if "/there/" in path] == []
    scenario.wait(lambda: active(scenario) == [], "the end of the sweep")
    scenario.check()


def fill(scenario: Scenario) -> None:
    """A move that fails in the middle and leaves two files beside their places."""
    scenario.fault("fail", match={"number": 2, "type": "TRANSFER"}, code="QUOTA_EXCEEDED")
    assert scenario.run().state == "failed"
    assert scenario.fired("fail") == 1
    assert list((scenario.target / ".incoming" / scenario.key).rglob("*.json")), "it has left something"


def test_what_a_move_brought_that_nobody_submits_again_goes_at_once(scenario: Scenario) -> None:
    fill(scenario)
    mover = scenario.site.make()
    mover.discard([], key="d0")
    assert scenario.site.tasks("DELETE") == [], "until then the next attempt needs it"
    mover.discard([], key="d1", over=[scenario.key])
    gone(scenario, f".incoming/{scenario.key}")
    mover.discard([], key="d2", over=[scenario.key])
    scenario.wait(lambda: active(scenario) == [], "the end of the deletion")
    assert len(scenario.site.tasks("DELETE")) == 1


def test_the_next_move_makes_room_first_if_nobody_could_before(scenario: Scenario) -> None:
    fill(scenario)
    first = scenario.key
    scenario.fault("refuse", times=-1, match=POST_DELETE, status=503, headers={"Retry-After": "0"})
    mover = scenario.site.make()
    with pytest.raises(TransientError):
        mover.discard([], key="d1", over=[first])
    scenario.hosted.clear_faults()
    scenario.key = "k2"
    assert scenario.run(mover).state == "succeeded"
    gone(scenario, f".incoming/{first}")


def test_what_came_home_half_goes_with_its_move(rig: GlobusRig, tmp_path: Path) -> None:
    with rig.site(tmp_path) as site:
        scenario = Scenario(site=site, direction="to_edge")
        fill(scenario)
        site.make().discard([], key="d1", over=[scenario.key])
        assert not (site.edge / ".incoming" / scenario.key).exists()
        assert site.tasks("DELETE") == []
    rig.hosted.reset()


def test_a_move_that_is_over_and_is_submitted_all_the_same_arrives(scenario: Scenario) -> None:
    fill(scenario)
    mover = scenario.site.make()
    scenario.fault("stall", match=DELETE, seconds=0.5)
    mover.discard([], key="d1", over=[scenario.key])
    assert scenario.run(mover).state == "succeeded"
    assert scenario.fired("stall") == 1
    assert files_below(scenario.target) == {f"there/{name}" for name in scenario.files}


@pytest.mark.parametrize("route", [SUBMISSION, POST_DELETE], ids=["number", "submit"])
def test_an_answer_that_is_none_of_transfers_counts_as_a_service_that_is_away(
    scenario: Scenario, route: dict[str, str]
) -> None:
    scenario.fault("refuse", match=route, status=200)
    with pytest.raises(TransientError, match="no answer"):
        scenario.site.make().discard(["runs/c1"], key="c1-tidy")
    assert scenario.fired("refuse") == 1


def test_placed_tells_what_moves_have_placed_in_a_folder(scenario: Scenario) -> None:
    mover = scenario.site.make()
    assert mover.placed("there") == []
    assert scenario.run(mover).state == "succeeded"
    assert mover.placed("there/s/a.zarr") == ["there/s/a.zarr/c", "there/s/a.zarr/zarr.json"]
    assert mover.placed("th") == []
    mover.discard(["there/s/a.zarr"], key="d1")
    assert mover.placed("there") == ["there/s/a.json"]
