"""The emulator of Globus Transfer, seen through the unmodified SDK: it copies, refuses and fails as it is told to."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import globus_sdk
import pytest
from globus_sdk.transport import RetryConfig

from filmloop.core.retry import wait_until
from filmloop.testing.globus.hosted import Hosted, hosted
from filmloop.testing.globus.transfer import rig

POST = {"route": "POST /v0.10/transfer"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    with hosted(tmp_path_factory.mktemp("hosted")) as found:
        yield found


class Ends:
    """A client and two collections of its own."""

    def __init__(self, server: Hosted, root: Path, **fields: Any) -> None:
        self.server, self.here, self.there = server, root / "here", root / "there"
        self.source = rig.serve(server, self.here)
        self.destination = rig.serve(server, self.there, **fields)
        self.client_id = str(uuid.uuid4())
        self.client = client(self.client_id)

    def put(self, **files: bytes) -> None:
        for name, data in files.items():
            (self.here / name).write_bytes(data)

    def data(self, *names: str, items: bool = True, **options: Any) -> globus_sdk.TransferData:
        asked = {"sync_level": "checksum", "verify_checksum": True, **options}
        data = globus_sdk.TransferData(self.source, self.destination, **asked)
        data["submission_id"] = self.client.get_submission_id()["value"]
        for name in names if items else ():
            digest = hashlib.sha256((self.here / name).read_bytes()).hexdigest()
            data.add_item(f"/{name}", f"/in/{name}", external_checksum=digest, checksum_algorithm="SHA256")
        return data

    def submit(self, data: globus_sdk.TransferData) -> str:
        return str(self.client.submit_transfer(data)["task_id"])

    def ended(self, task_id: str) -> globus_sdk.GlobusHTTPResponse:
        def look() -> globus_sdk.GlobusHTTPResponse | None:
            task = self.client.get_task(task_id)
            return task if task["status"] in ("SUCCEEDED", "FAILED") else None

        return wait_until(look, deadline_s=30, what="the end of the task", first_s=0.02)

    def until(self, task_id: str, **state: Any) -> None:
        wait_until(
            lambda: all(self.client.get_task(task_id)[key] == value for key, value in state.items()) or None,
            deadline_s=30,
            what=f"task with {state}",
            first_s=0.02,
        )


def client(client_id: str, **retry: Any) -> globus_sdk.TransferClient:
    config = globus_sdk.GlobusAppConfig(environment="sandbox", token_storage="memory")
    app = globus_sdk.ClientApp("emulator", client_id=client_id, client_secret="secret", config=config)
    return globus_sdk.TransferClient(app=app, retry_config=RetryConfig(backoff=lambda _: 0.05, **retry))


@pytest.fixture
def ends(server: Hosted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    server.reset()
    found = Ends(server, tmp_path)
    yield found
    rig.behave(server, bytes_per_s=None, pending_limit=100, page=100)
    found.client.close()


def codes(ends: Ends, task_id: str) -> set[str]:
    return {event["code"] for event in ends.client.task_event_list(task_id, query_params={"filter": "is_error:1"})}


def test_batch_items_arrive_and_are_listed_with_their_checksums(ends: Ends) -> None:
    ends.put(a=b"one", b=b"two" * 100_000)
    rig.behave(ends.server, page=1)
    task = ends.ended(ends.submit(ends.data("a", "b", label="two")))
    assert (task["status"], task["files_transferred"], task["label"]) == ("SUCCEEDED", 2, "two")
    assert (ends.there / "in/b").read_bytes() == b"two" * 100_000
    listed = list(ends.client.paginated.task_successful_transfers(task["task_id"]).items())
    assert [(each["destination_path"], each["size"]) for each in listed] == [("/in/a", 3), ("/in/b", 300_000)]
    assert listed[0]["checksum"] == hashlib.sha256(b"one").hexdigest()


def test_what_is_the_same_is_not_transferred_again(ends: Ends) -> None:
    ends.put(a=b"one", b=b"two")
    ends.ended(ends.submit(ends.data("a", "b")))
    (ends.there / "in/b").write_bytes(b"twO")
    task = ends.ended(ends.submit(ends.data("a", "b")))
    assert (task["files_transferred"], task["files_skipped"]) == (1, 1)
    assert (ends.there / "in/b").read_bytes() == b"two"


def test_a_folder_goes_as_one_item_and_a_deletion_takes_it_away(ends: Ends) -> None:
    (ends.here / "d/e").mkdir(parents=True)
    (ends.here / "d/e/f").write_bytes(b"deep")
    data = ends.data(items=False)
    data.add_item("/d/", "/in/d/", recursive=True)
    assert ends.ended(ends.submit(data))["files"] == 1
    assert (ends.there / "in/d/e/f").read_bytes() == b"deep"
    gone = globus_sdk.DeleteData(ends.destination, recursive=True, ignore_missing=True)
    gone.add_item("/in/d")
    gone.add_item("/in/never")
    task_id = ends.client.submit_delete(gone)["task_id"]
    assert ends.ended(task_id)["status"] == "SUCCEEDED"
    assert not (ends.there / "in/d").exists()


def test_a_submission_id_makes_one_task_and_only_those_given_out_do(ends: Ends) -> None:
    ends.put(a=b"one")
    data = ends.data("a")
    first = ends.client.submit_transfer(data)
    again = ends.client.submit_transfer(data)
    assert (first["code"], again["code"], again["task_id"]) == ("Accepted", "Duplicate", first["task_id"])
    data["submission_id"] = str(uuid.uuid4())
    with pytest.raises(globus_sdk.TransferAPIError) as caught:
        ends.client.submit_transfer(data)
    assert caught.value.http_status == 400


@pytest.mark.parametrize("fault", ["gateway", "cut_body", "lose_answer"])
def test_an_accepted_submission_whose_answer_is_lost_is_one_task(ends: Ends, fault: str) -> None:
    ends.put(a=b"one")
    ends.server.fault(fault, match=POST)
    before = len(rig.tasks(ends.server))
    result = ends.client.submit_transfer(ends.data("a"))
    assert (result["code"], ends.server.fired(fault)) == ("Duplicate", 1)
    assert len(rig.tasks(ends.server)) == before + 1


def test_the_operations_look_make_and_rename(ends: Ends) -> None:
    ends.put(a=b"one")
    operate, where = ends.client, ends.source
    operate.operation_mkdir(where, "/d")
    operate.operation_rename(where, oldpath="/a", newpath="/d/b")
    assert operate.operation_stat(where, "/d/b")["size"] == 3
    assert [line["name"] for line in operate.operation_ls(where, "/d")] == ["b"]
    for status, call in (
        (404, lambda: operate.operation_stat(where, "/a")),
        (404, lambda: operate.operation_rename(where, oldpath="/a", newpath="/b")),
        (502, lambda: operate.operation_mkdir(where, "/d")),
        (502, lambda: operate.operation_stat(where, "/../etc")),
        (404, lambda: operate.operation_stat(str(uuid.uuid4()), "/")),
    ):
        with pytest.raises(globus_sdk.TransferAPIError) as caught:
            call()
        assert caught.value.http_status == status


def test_corruption_on_the_wire_is_found_and_corruption_afterwards_is_not(ends: Ends) -> None:
    ends.put(wire=b"one" * 999, after=b"two" * 999)
    ends.server.fault("corrupt_wire", match={"file": "wire"}, how="truncate")
    ends.server.fault("corrupt_after", match={"file": "after"})
    task = ends.ended(ends.submit(ends.data("wire", "after")))
    assert (task["status"], task["faults"]) == ("SUCCEEDED", 1)
    assert codes(ends, task["task_id"]) == {"VERIFY_CHECKSUM"}
    assert (ends.there / "in/wire").read_bytes() == b"one" * 999
    assert (ends.there / "in/after").read_bytes() != b"two" * 999
    assert ends.server.fired("corrupt_after") == 1


def test_a_source_that_is_not_what_was_promised_fails_the_task(ends: Ends) -> None:
    ends.put(a=b"one")
    ends.server.fault("source_changed")
    task = ends.ended(ends.submit(ends.data("a")))
    assert (task["status"], task["fatal_error"]["code"]) == ("FAILED", "EXTERNAL_CHECKSUM_MISMATCH")


@pytest.mark.parametrize("fault", ["file_not_found", "permission_denied", "quota_exceeded"])
def test_a_file_that_always_fails_leaves_the_task_active_until_the_deadline(ends: Ends, fault: str) -> None:
    ends.put(a=b"one", b=b"two")
    ends.server.fault(fault, times=-1, match={"file": "a"})
    task_id = ends.submit(ends.data("a", "b", deadline=datetime.now(UTC) + timedelta(seconds=3)))
    ends.until(task_id, nice_status=fault.upper(), files_transferred=1, status="ACTIVE")
    assert ends.ended(task_id)["fatal_error"]["code"] == "EXPIRED"
    assert codes(ends, task_id) == {fault.upper()}


def test_absent_files_forbidden_folders_and_full_quotas_need_no_fault(server: Hosted, ends: Ends) -> None:
    ends.put(a=b"one", b=b"two")
    data = ends.data("a", "b")
    rig.serve(server, ends.there, collection=ends.destination, quota_bytes=4)
    task_id = ends.submit(data)
    ends.until(task_id, nice_status="QUOTA_EXCEEDED", files_transferred=1)
    (ends.here / "b").unlink()
    rig.serve(server, ends.there, collection=ends.destination, quota_bytes=None)
    ends.until(task_id, nice_status="FILE_NOT_FOUND")
    ends.put(b=b"two")
    assert ends.ended(task_id)["status"] == "SUCCEEDED"
    rig.serve(server, ends.there, collection=ends.destination, rules=[])
    (ends.there / "in/a").unlink()
    task_id = ends.submit(ends.data("a"))
    ends.until(task_id, nice_status="PERMISSION_DENIED")
    with pytest.raises(globus_sdk.TransferAPIError) as caught:
        ends.client.operation_ls(ends.destination, "/")
    assert caught.value.code == "EndpointPermissionDenied"
    ends.client.cancel_task(task_id)


def test_paused_inactive_and_stalled_tasks_wait_and_go_on(ends: Ends) -> None:
    ends.put(a=b"one")
    ends.server.fault("paused", message="purge day")
    ends.server.fault("inactive")
    task_id = ends.submit(ends.data("a"))
    ends.until(task_id, is_paused=True)
    assert ends.client.task_pause_info(task_id)["destination_pause_message"] == "purge day"
    assert ends.client.get_task(task_id)["status"] == "INACTIVE"
    rig.change(ends.server, task_id, is_paused=False, status="ACTIVE")
    assert ends.ended(task_id)["status"] == "SUCCEEDED"
    ends.put(b=b"two")
    ends.server.fault("stall", seconds=0.3)
    task_id = ends.submit(ends.data("b"))
    time.sleep(0.1)
    assert ends.client.get_task(task_id)["files_transferred"] == 0
    assert ends.ended(task_id)["status"] == "SUCCEEDED"


def test_owners_and_operators_cancel_and_a_task_may_fail_in_the_middle(ends: Ends) -> None:
    ends.put(a=bytes(100_000), b=bytes(100_001))
    rig.behave(ends.server, bytes_per_s=50_000)
    task_id = ends.submit(ends.data("a", "b"))
    ends.until(task_id, nice_status="OK")
    assert ends.client.cancel_task(task_id)["code"] == "Canceled"
    assert ends.client.get_task(task_id)["fatal_error"]["code"] == "CANCELED"
    assert ends.client.cancel_task(task_id)["code"] == "TaskComplete"
    rig.behave(ends.server, bytes_per_s=None)
    ends.server.fault("operator_cancel", match={"number": 1}, message="not today")
    task = ends.ended(ends.submit(ends.data("a", "b")))
    assert (task["canceled_by_admin_message"], task["files_transferred"]) == ("not today", 1)
    ends.server.fault("fail", match={"number": 1}, code="ENDPOINT_ERROR")
    task = ends.ended(ends.submit(ends.data("a", "b")))
    assert (task["status"], task["files_skipped"], task["subtasks_failed"]) == ("FAILED", 1, 1)


def test_three_tasks_of_an_identity_are_worked_on_and_one_too_many_is_refused(ends: Ends) -> None:
    ends.put(a=b"one")
    ends.server.fault("stall", times=3, seconds=1.0)
    rig.behave(ends.server, pending_limit=4)
    four = [ends.submit(ends.data("a", label=f"t{n}")) for n in range(4)]
    with pytest.raises(globus_sdk.TransferAPIError) as caught:
        ends.submit(ends.data("a"))
    assert (caught.value.http_status, caught.value.code) == (409, "Conflict")
    assert ends.client.get_task(four[3])["nice_status"] == "Queued"
    other = client(str(uuid.uuid4()))
    assert list(other.task_list()) == [], "another identity sees none of them"
    other.close()
    assert all(ends.ended(task_id)["status"] == "SUCCEEDED" for task_id in four)
    (found,) = ends.client.task_list(query_params={"filter": "label:t3/status:SUCCEEDED"})
    assert found["task_id"] == four[3]


def test_collections_may_want_a_consent_or_a_login_of_a_kind(server: Hosted, ends: Ends) -> None:
    for wants, parameter in (
        ({"kind": "mapped"}, "required_scopes"),
        ({"kind": "guest", "policies": ["p1"]}, "session_required_policies"),
        ({"policies": [], "domains": ["lab.gov"]}, "session_required_single_domain"),
    ):
        rig.serve(server, ends.here, collection=ends.source, **wants)
        with pytest.raises(globus_sdk.TransferAPIError) as caught:
            ends.client.operation_ls(ends.source, "/")
        assert caught.value.http_status == 403
        assert (caught.value.raw_json or {})["authorization_parameters"][parameter]
    rig.serve(server, ends.here, collection=ends.source, kind="mapped", domains=[])
    allowed = client(ends.client_id)
    allowed.add_app_data_access_scope(ends.source)
    assert list(allowed.operation_ls(ends.source, "/")) == []
    allowed.close()


def test_collections_and_tasks_survive_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hosted(tmp_path / "state") as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        ends = Ends(server, tmp_path)
        ends.put(a=b"one", b=b"two")
        server.fault("paused", match={"number": 1})
        data = ends.data("a", "b")
        task_id = ends.submit(data)
        ends.until(task_id, is_paused=True)
    with hosted(tmp_path / "state", port=int(server.url.rsplit(":", 1)[1])):
        again = client(ends.client_id)
        assert again.submit_transfer(data)["task_id"] == task_id
        wait_until(
            lambda: again.get_task(task_id)["status"] == "SUCCEEDED" or None,
            deadline_s=30,
            what="the end",
            first_s=0.02,
        )
        again.close()
        assert (ends.there / "in/b").read_bytes() == b"two"
    ends.client.close()
