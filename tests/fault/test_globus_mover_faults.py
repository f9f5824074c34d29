"""The Globus mover and everything that Transfer, the network and the disks can do to it: nothing lost, nothing doubled.

Each scenario asks the emulated services whether its fault fired.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from filmloop.adapters.globus.transfer.attempts import Attempts
from filmloop.adapters.globus.transfer.client import REPEATS
from filmloop.adapters.globus.transfer.mover import GlobusMover
from filmloop.config.paths import Home
from filmloop.core.errors import AuthError, DataError, TransientError
from filmloop.shipping import shard_items, shard_paths
from filmloop.staging.verify import verify_shard
from filmloop.testing.contracts.mover import ended
from filmloop.testing.globus.hosted import hosted
from filmloop.testing.globus.transfer import rig as transfer
from filmloop.testing.mlflow_server import free_port
from filmloop.testing.shards import example_block, write_shard
from rigs.globus_faults import GET_TASK, POST_TRANSFER, RENAME, Scenario, resume, timed
from rigs.globus_mover import GlobusRig, globus_rig

BUSY = {"status": 503, "headers": {"Retry-After": "1"}}
"""Without the header the SDK waits longer each time."""
SDK_TRIES = 1 + REPEATS
Make = Callable[..., Scenario]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlobusRig]:
    with globus_rig(tmp_path_factory.mktemp("globus")) as found:
        yield found


@pytest.fixture
def make(rig: GlobusRig, tmp_path: Path, record_property: Callable[[str, object], None]) -> Iterator[Make]:
    record_property("scenario", "Globus mover")
    rig.hosted.reset()
    with rig.site(tmp_path) as site:
        yield lambda **of: Scenario(site=site, **of)
    rig.hosted.reset()
    transfer.behave(rig.hosted, bytes_per_s=None, pending_limit=100, page=100, slots=3)


@pytest.fixture
def scenario(make: Make) -> Scenario:
    return make()


# Answers that get lost


@pytest.mark.parametrize("fault", ["gateway", "cut_body", "lose_answer"])
def test_a_submission_whose_answer_is_lost_is_one_task(scenario: Scenario, fault: str) -> None:
    scenario.fault(fault, match=POST_TRANSFER)
    assert scenario.run().state == "succeeded"
    assert scenario.fired(fault) == 1
    scenario.check()


def test_a_submission_whose_answer_comes_too_late_is_one_task(scenario: Scenario) -> None:
    scenario.fault("late", seconds=2.5, match=POST_TRANSFER)
    assert scenario.run(request_timeout_s=1.0).state == "succeeded"
    assert scenario.fired("late") == 1
    scenario.check()


@pytest.mark.slow
def test_a_submission_that_loses_more_answers_than_the_sdk_asks_for_is_one_task(scenario: Scenario) -> None:
    scenario.fault("gateway", times=SDK_TRIES + 1, match=POST_TRANSFER, **BUSY)
    assert scenario.run().state == "succeeded"
    assert scenario.fired("gateway") == SDK_TRIES + 1
    scenario.check()


@pytest.mark.parametrize("match", [POST_TRANSFER, GET_TASK, RENAME], ids=["submit", "poll", "rename"])
def test_a_connection_that_breaks_before_anything_is_done_costs_nothing(
    scenario: Scenario, match: dict[str, Any]
) -> None:
    scenario.fault("cut", times=2, match=match)
    assert scenario.run().state == "succeeded"
    assert scenario.fired("cut") == 2
    scenario.check()


@pytest.mark.parametrize("fault", ["lose_answer", "gateway"])
def test_a_rename_that_was_done_and_whose_answer_is_lost_is_done(scenario: Scenario, fault: str) -> None:
    scenario.fault(fault, match=RENAME)
    assert scenario.run().state == "succeeded"
    assert scenario.fired(fault) == 1
    scenario.check()


# A service that is away or busy


@pytest.mark.slow
@pytest.mark.parametrize("match", [POST_TRANSFER, GET_TASK, RENAME], ids=["submit", "poll", "rename"])
def test_a_storm_of_503_that_outlasts_the_sdk_is_waited_out(scenario: Scenario, match: dict[str, Any]) -> None:
    scenario.fault("refuse", times=SDK_TRIES + 1, match=match, **BUSY)
    assert scenario.run().state == "succeeded"
    assert scenario.fired("refuse") == SDK_TRIES + 1
    scenario.check()


@pytest.mark.slow
def test_a_storm_that_does_not_say_when_it_ends_is_waited_out(scenario: Scenario) -> None:
    scenario.fault("refuse", times=SDK_TRIES + 1, match=GET_TASK, status=503)
    assert scenario.run(stall_s=60.0).state == "succeeded"
    assert scenario.fired("refuse") == SDK_TRIES + 1
    scenario.check()


def test_a_storm_longer_than_our_patience_fails_for_now_and_the_next_call_goes_on(scenario: Scenario) -> None:
    scenario.fault("refuse", times=-1, match=GET_TASK, **BUSY)
    status = scenario.run(stall_s=0.5)
    assert (status.state, status.retryable) == ("failed", True)
    assert scenario.fired("refuse") >= SDK_TRIES
    scenario.hosted.clear_faults()
    assert scenario.run().state == "succeeded"
    scenario.check()


def test_429_is_obeyed(scenario: Scenario) -> None:
    scenario.fault("refuse", times=2, match=GET_TASK, status=429, code="TooManyRequests", headers={"Retry-After": "1"})
    assert scenario.run().state == "succeeded"
    assert scenario.fired("refuse") == 2
    polls = [line for line in scenario.hosted.log() if line["route"] == GET_TASK["route"]]
    assert [line["status"] for line in polls[:3]] == [429, 429, 200]
    assert all(later["time"] - earlier["time"] >= 1.0 for earlier, later in pairwise(polls[:3]))
    scenario.check()


def test_a_full_queue_is_waited_for(scenario: Scenario) -> None:
    scenario.fault("pending_limit", times=3)
    assert scenario.run().state == "succeeded"
    assert scenario.fired("pending_limit") == 3
    scenario.check()


@pytest.mark.parametrize(
    "match", [{}, {"route": "POST /v2/oauth2/token"}, POST_TRANSFER, GET_TASK], ids=["all", "token", "submit", "poll"]
)  # fmt: skip
def test_a_service_that_does_not_answer_ends_a_move_at_its_deadline_not_at_its_own(
    scenario: Scenario, match: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    scenario.fault("slow", times=-1, seconds=10.0, match=match)
    status, took_s = timed(lambda: scenario.run(deadline_s=3.0, request_timeout_s=30.0))
    assert scenario.fired("slow") >= 1
    assert (status.state, status.retryable, status.error) == ("failed", True, "OverdueError")
    assert "Globus did not answer in time" in status.detail
    assert took_s < 7, "3 s, and 2 s in which a task would be cancelled"
    assert caplog.text.count("waiting for Globus") == 1


def test_a_service_that_does_not_answer_is_told_at_the_first_time_and_when_it_answers_again(
    scenario: Scenario, caplog: pytest.LogCaptureFixture
) -> None:
    scenario.fault("cut", times=2, match=GET_TASK)
    with caplog.at_level("INFO", "filmloop"):
        assert scenario.run().state == "succeeded"
    told = [record for record in caplog.records if record.name.endswith("patience")]
    assert [record.levelname for record in told] == ["WARNING", "INFO"]
    assert told[0].message == "waiting for Globus: Globus does not answer (ConnectionError)."
    assert told[1].message == "Globus answers again (after 2 failures)"


def test_a_deletion_at_a_service_that_does_not_answer_ends_at_the_deadline(scenario: Scenario) -> None:
    mover = scenario.site.make(deadline_s=3.0, request_timeout_s=30.0)
    assert scenario.run(mover).state == "succeeded"
    scenario.fault("slow", times=-1, seconds=10.0)
    begun_s = time.monotonic()
    with pytest.raises(TransientError, match="did not answer in time"):
        mover.discard(["there"], key="d1")
    assert time.monotonic() - begun_s < 5
    scenario.hosted.clear_faults()


@pytest.mark.slow
def test_a_service_that_is_down_for_a_while_and_has_forgotten_all_tokens_is_waited_for(
    tmp_path: Path, record_property: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    record_property("scenario", "Globus mover")
    state, port = tmp_path / "services", free_port()
    with ExitStack() as stack, ExitStack() as first:
        rig = GlobusRig(first.enter_context(hosted(state, port=port)))
        for name, value in (rig.hosted.environ | {"FILMLOOP_GLOBUS_SECRET": "secret"}).items():
            monkeypatch.setenv(name, value)
        scenario = Scenario(site=stack.enter_context(rig.site(tmp_path)))
        scenario.fault("paused", match={"number": 1})
        mover = scenario.site.make()
        handle = scenario.start(mover)
        scenario.until("paused")
        first.close()
        scenario.wait(lambda: "cannot be reached" in mover.poll(handle).detail, "the outage in the status")
        stack.enter_context(hosted(state, port=port))
        assert ended(mover, handle).state == "succeeded"
        scenario.check()
        mover.close()


# Bytes that are not what was sent


@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_corruption_on_the_wire_is_repaired_by_verification(scenario: Scenario, how: str) -> None:
    scenario.fault("corrupt_wire", match={"file": "c"}, how=how)
    assert scenario.run().state == "succeeded"
    assert scenario.fired("corrupt_wire") == 1
    assert scenario.site.tasks()[0]["faults"] == 1
    scenario.check()


@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_corruption_after_verification_is_found_at_home_and_sent_again(make: Make, how: str) -> None:
    scenario = make(direction="to_edge")
    scenario.fault("corrupt_after", match={"file": "c"}, how=how)
    mover = scenario.site.make()
    status = scenario.run(mover)
    assert scenario.fired("corrupt_after") == 1
    assert (status.state, status.retryable) == ("failed", True)
    scenario.nothing_arrived()
    assert scenario.run(mover).state == "succeeded"
    scenario.check(tasks=2, transferred=len(scenario.files) + 1)


@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_corruption_after_verification_at_the_cluster_is_found_before_training_and_sent_again(
    scenario: Scenario, how: str
) -> None:
    home = Home(scenario.site.edge)
    shard = write_shard(home.stage, example_block(64))
    items, there = (
        shard_items(home, shard),
        scenario.site.cluster / "data" / shard.manifest_path.relative_to(home.stage),
    )
    scenario.fault("corrupt_after", match={"file": items[0].target_path.rsplit("/", 1)[-1]}, how=how)
    mover = scenario.site.make()
    assert ended(mover, mover.submit("to_cluster", items, key="c1")).state == "succeeded"
    assert scenario.fired("corrupt_after") == 1
    with pytest.raises(DataError):
        verify_shard(there, digest=shard.manifest.digest())
    mover.discard(shard_paths(home, shard), key="c1-damaged")
    assert ended(mover, mover.submit("to_cluster", items, key="c2")).state == "succeeded"
    verify_shard(there, digest=shard.manifest.digest())
    assert [task["files_transferred"] for task in scenario.site.tasks()] == [len(items)] * 2
    assert len(scenario.site.tasks("DELETE")) == 1


def test_a_deletion_whose_answer_is_lost_deletes_once_and_is_not_overtaken_by_the_next_move(scenario: Scenario) -> None:
    mover = scenario.site.make()
    assert scenario.run(mover).state == "succeeded"
    scenario.fault("lose_answer", match={"route": "POST /v0.10/delete"})
    scenario.fault("stall", match={"type": "DELETE"}, seconds=1.0)
    mover.discard(["there"], key="d1")
    scenario.key = "k2"
    assert scenario.run(mover).state == "succeeded"
    assert (scenario.fired("lose_answer"), scenario.fired("stall")) == (1, 1)
    scenario.wait(lambda: [task["status"] for task in scenario.site.tasks("DELETE")] == ["SUCCEEDED"], "one deletion")
    scenario.check(tasks=2, transferred=2 * len(scenario.files))


def test_a_way_that_always_corrupts_is_given_up_and_no_bad_byte_appears(scenario: Scenario) -> None:
    scenario.fault("corrupt_wire", times=-1, match={"file": "c"})
    status = scenario.run(stall_s=1.5)
    assert (status.state, status.retryable) == ("failed", True)
    assert scenario.fired("corrupt_wire") > 1
    scenario.nothing_arrived()
    scenario.hosted.clear_faults()
    assert scenario.run().state == "succeeded"
    scenario.check(tasks=2)


@pytest.mark.parametrize("direction", ["to_cluster", "to_edge"])
def test_a_source_that_changed_after_its_manifest_is_the_datas_fault(make: Make, direction: str) -> None:
    scenario = make(direction=direction)
    scenario.fault("source_changed", match={"file": "c"})
    status = scenario.run()
    assert (status.state, status.retryable) == ("failed", False)
    assert scenario.fired("source_changed") == 1
    scenario.nothing_arrived()
    (scenario.source / "s/a.zarr/c").write_bytes(scenario.files["s/a.zarr/c"])
    assert scenario.run().state == "succeeded"
    scenario.check(tasks=2)


# Tasks that do not end


def test_an_inactive_task_asks_for_a_login_and_goes_on(scenario: Scenario) -> None:
    scenario.fault("inactive", match={"number": 1})
    mover = scenario.site.make(stall_s=1.5)
    handle = scenario.start(mover)
    with pytest.raises(AuthError, match="inactive"):
        ended(mover, handle)
    assert scenario.fired("inactive") == 1
    assert scenario.run(mover).state == "succeeded"
    scenario.check(tasks=2)


def test_a_task_that_is_paused_to_the_deadline_is_given_up_with_the_reason(scenario: Scenario) -> None:
    scenario.fault("paused", match={"number": 1}, message="the file system is drained")
    status, took_s = timed(lambda: scenario.run(stall_s=20.0, deadline_s=4.0))
    assert (status.state, status.retryable) == ("failed", True)
    assert scenario.fired("paused") == 1
    assert "the file system is drained" in status.detail
    assert "mover.deadline_s" in status.hint
    assert took_s < 15
    assert scenario.run().state == "succeeded"
    scenario.check(tasks=2)


def queued_to_its_deadline(scenario: Scenario) -> GlobusMover:
    """Another move has the only slot; the mover of that one."""
    transfer.behave(scenario.hosted, slots=1)
    scenario.fault("paused", match={"number": 0})
    other = scenario.site.make()
    replace(scenario, key="other").start(other)
    scenario.until("paused")
    status = scenario.run(deadline_s=2.0)
    assert (status.state, status.retryable, "Queued" in status.detail) == ("failed", True, True)
    assert [task["status"] for task in scenario.site.tasks()] == ["ACTIVE", "ACTIVE"]
    return other


def test_a_task_that_is_queued_to_the_deadline_keeps_its_place(scenario: Scenario) -> None:
    queued_to_its_deadline(scenario).cancel("other")
    assert scenario.run().state == "succeeded"
    scenario.check(tasks=2)


def test_a_queued_task_of_a_move_that_nobody_goes_on_with_is_cancelled(scenario: Scenario) -> None:
    queued_to_its_deadline(scenario)
    mover = scenario.site.make()
    mover.cancel(scenario.key)
    assert scenario.site.tasks()[1]["fatal_error"]["code"] == "CANCELED"
    assert "cancelled" in ended(mover, scenario.key).detail


def test_a_pause_is_told_and_when_it_ends_the_same_task_goes_on(scenario: Scenario) -> None:
    scenario.fault("paused", match={"number": 1}, message="the file system is drained")
    mover = scenario.site.make()
    handle = scenario.start(mover)
    scenario.wait(lambda: "drained" in mover.poll(handle).detail, "the pause in the status")
    assert scenario.fired("paused") == 1
    resume(scenario, scenario.site.tasks()[0], is_paused=False)
    assert ended(mover, handle).state == "succeeded"
    scenario.check()


def test_a_task_that_stalls_is_given_up_and_what_it_brought_is_kept(scenario: Scenario) -> None:
    scenario.fault("stall", match={"number": 2})
    status = scenario.run(stall_s=1.5)
    assert (status.state, status.retryable) == ("failed", True)
    assert "no progress" in status.detail
    assert scenario.fired("stall") == 1
    assert scenario.run().state == "succeeded"
    scenario.check(tasks=2)


def test_a_slow_task_that_goes_on_is_left_alone(scenario: Scenario) -> None:
    scenario.fault("throttle", match={"file": "c"}, bytes_per_s=80_000)
    status, took_s = timed(lambda: scenario.run(stall_s=1.5))
    assert status.state == "succeeded"
    assert scenario.fired("throttle") == 1
    assert took_s > 3.0, "it took longer than a stall may"
    scenario.check()


@pytest.mark.parametrize("fault", ["file_not_found", "no_space_left", "quota_exceeded", "endpoint_error"])
def test_a_task_that_tries_a_file_for_ever_is_given_up_and_says_why(scenario: Scenario, fault: str) -> None:
    scenario.fault(fault, times=-1, match={"file": "c"}, endless=True)
    status = scenario.run(stall_s=1.5)
    assert (status.state, status.retryable) == ("failed", True)
    assert fault.upper() in status.detail
    assert scenario.fired(fault) > 1
    scenario.hosted.clear_faults()
    assert scenario.run().state == "succeeded"
    scenario.check(tasks=2)


def test_a_file_that_is_gone_at_the_source_is_the_datas_fault(scenario: Scenario) -> None:
    scenario.fault("paused", match={"number": 1})
    mover = scenario.site.make()
    handle = scenario.start(mover)
    scenario.until("paused")
    (scenario.source / "s/a.zarr/c").unlink()
    resume(scenario, scenario.site.tasks()[0], is_paused=False)
    status = ended(mover, handle)
    assert (status.state, status.retryable) == ("failed", False)
    assert scenario.site.tasks()[0]["fatal_error"]["code"] == "CANCELED"
    scenario.nothing_arrived()


def test_a_permission_that_is_missing_for_ever_asks_for_it(scenario: Scenario) -> None:
    scenario.fault("permission_denied", times=-1, match={"file": "c"})
    mover = scenario.site.make(stall_s=1.5)
    handle = scenario.start(mover)
    with pytest.raises(AuthError, match="PERMISSION_DENIED"):
        ended(mover, handle)
    assert scenario.fired("permission_denied") > 1
    scenario.hosted.clear_faults()
    assert scenario.run(mover).state == "succeeded"
    scenario.check(tasks=2)


def test_a_quota_that_is_used_up_fails_the_task_and_when_there_is_room_it_goes_on(scenario: Scenario) -> None:
    storage = scenario.site.cluster.parents[1]
    collection = scenario.site.section.cluster.collection
    transfer.serve(scenario.hosted, storage, collection=collection, quota_bytes=1000)
    status = scenario.run()
    assert (status.state, status.retryable) == ("failed", True)
    assert scenario.site.tasks()[0]["fatal_error"]["code"] == "QUOTA_EXCEEDED"
    transfer.serve(scenario.hosted, storage, collection=collection, quota_bytes=None)
    assert scenario.run().state == "succeeded"
    scenario.check(tasks=2)


# Tasks that end badly


def test_a_task_that_fails_in_the_middle_is_resumed(scenario: Scenario) -> None:
    scenario.fault("fail", match={"number": 2}, code="ENDPOINT_ERROR", details="the server went down")
    mover = scenario.site.make()
    status = scenario.run(mover)
    assert (status.state, status.retryable) == ("failed", True)
    assert scenario.fired("fail") == 1
    scenario.nothing_arrived()
    assert scenario.run(mover).state == "succeeded"
    scenario.check(tasks=2)
    assert scenario.site.tasks()[1]["files_skipped"] == 2


def test_what_a_failed_attempt_brought_and_then_rots_is_sent_again(scenario: Scenario) -> None:
    scenario.fault("corrupt_after", match={"number": 1})
    scenario.fault("fail", match={"number": 2}, code="ENDPOINT_ERROR")
    mover = scenario.site.make()
    assert scenario.run(mover).state == "failed"
    assert (scenario.fired("corrupt_after"), scenario.fired("fail")) == (1, 1)
    assert scenario.run(mover).state == "succeeded"
    scenario.check(tasks=2, transferred=len(scenario.files) + 1)


def test_an_operators_cancel_is_respected_until_somebody_asks_again(scenario: Scenario) -> None:
    scenario.fault("operator_cancel", match={"number": 1}, message="not on a maintenance day")
    mover = scenario.site.make()
    status = scenario.run(mover)
    assert (status.state, status.retryable) == ("failed", False)
    assert "maintenance day" in status.detail
    assert (status.error, "next cycle" in status.hint) == ("CancelledError", True)
    assert scenario.fired("operator_cancel") == 1
    time.sleep(0.3)
    mover.poll(scenario.key)
    assert len(scenario.site.tasks()) == 1, "it is not sent again by itself"
    scenario.nothing_arrived()
    assert scenario.run(mover).state == "succeeded"
    scenario.check(tasks=2)


def test_a_task_that_passed_its_own_deadline_is_made_anew(scenario: Scenario) -> None:
    scenario.fault("stall", match={"number": 1})
    status = scenario.run(task_deadline_s=61.0, stall_s=1.5)
    assert status.state == "failed"
    assert scenario.fired("stall") == 1
    assert scenario.run().state == "succeeded"
    scenario.check(tasks=2)


def test_a_task_that_was_never_sent_is_made_anew_only_when_it_is_given_up(scenario: Scenario) -> None:
    scenario.fault("refuse", times=-1, match=POST_TRANSFER, **BUSY)
    assert scenario.run(stall_s=0.5).state == "failed"
    assert scenario.fired("refuse") >= SDK_TRIES
    scenario.hosted.clear_faults()
    attempts = Attempts(scenario.site.journal / scenario.key)
    attempt = attempts.latest()
    assert attempt is not None
    attempts.keep_task(attempt, 0, deadline_utc="2026-01-01T00:00:00+00:00")
    before = scenario.fired("refuse")
    scenario.fault("refuse", skip=1, times=-1, match={"route": "GET /v0.10/task_list"}, **BUSY)
    status = scenario.run(stall_s=0.5)
    assert (status.state, status.retryable, "was not sent in time" in status.detail) == ("failed", True, True)
    assert scenario.fired("refuse") == before + SDK_TRIES
    scenario.hosted.clear_faults()
    assert scenario.run().state == "succeeded"
    scenario.check()
