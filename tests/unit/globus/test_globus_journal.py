from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from filmloop.adapters.globus.transfer.attempts import Attempts, SentTask
from filmloop.adapters.globus.transfer.client import Fault, TaskView
from filmloop.adapters.globus.transfer.diagnose import ended_badly, error_of, stalled
from filmloop.adapters.globus.transfer.document import delete_document, label, transfer_document
from filmloop.adapters.globus.transfer.placed import Placed
from filmloop.adapters.globus.transfer.side import Side, overlap, relative
from filmloop.config.globus import Collection
from filmloop.core.errors import AuthError, CancelledError, DataError, FilmloopError, TransientError
from filmloop.testing.contracts.mover import item

NUMBER = "0a1b2c3d-0000-4000-8000-000000000000"
ITEMS = [item("a", b"one"), item("b/c", b"three")]


def task(*numbers: int) -> SentTask:
    return SentTask(submission_id=NUMBER, label="l", deadline_utc="2026-01-01T00:00:00+00:00", items=numbers)


def test_an_attempt_is_there_only_with_its_documents(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    assert attempts.latest() is None
    first = attempts.open([task(0, 1), task(2)], [{"DATA": [1]}, {"DATA": [2]}])
    assert (first.number, first.state, first.items) == (1, "sent", (0, 1, 2))
    assert [attempts.document(first, number) for number in (0, 1)] == [{"DATA": [1]}, {"DATA": [2]}]
    known = attempts.keep_task(first, 1, task_id="t2")
    assert [one.task_id for one in known.tasks] == ["", "t2"]
    assert Attempts(tmp_path).latest() == known


def test_the_newest_attempt_counts_and_the_former_ones_stay(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    for number in range(1, 12):
        attempt = attempts.open([task(0)], [{"n": number}])
        assert attempt.number == number
        attempts.keep(attempt, state="failed")
    found = attempts.latest()
    assert found is not None
    assert (found.number, found.state) == (11, "failed")
    assert len(list(tmp_path.glob("attempt-*-task-0.json"))) == 11


def test_placed_files_are_known_by_their_bytes_until_they_are_forgotten(tmp_path: Path) -> None:
    placed = Placed(tmp_path)
    assert placed.among(ITEMS) == set()
    placed.add(ITEMS)
    assert Placed(tmp_path).among(ITEMS) == {"there/a", "there/b/c"}
    assert placed.among([replace(ITEMS[0], sha256="0" * 64), replace(ITEMS[1], size_bytes=4)]) == set()
    placed.forget(["there/b", "elsewhere"])
    assert placed.among(ITEMS) == {"there/a"}
    placed.forget(["there"])
    assert placed.among(ITEMS) == set()


def test_nothing_that_was_placed_is_lost_when_several_write_it_down(tmp_path: Path) -> None:
    many = [item(f"f{number}", b"x") for number in range(20)]
    threads = [threading.Thread(target=Placed(tmp_path).add, args=([one],)) for one in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Placed(tmp_path).among(many)) == 20


def test_a_label_names_site_cycle_and_step_in_letters_that_transfer_allows() -> None:
    assert label("lcls", "c20261122-130501-9f3a-move", NUMBER) == "filmloop lcls c20261122-130501-9f3a-move 0a1b2c3d"
    odd = label("lcls/x:1", "k" * 200, NUMBER)
    assert odd.startswith("filmloop lcls_x_1 kkk")
    assert odd.endswith(" 0a1b2c3d")
    assert len(odd) == 128


@pytest.mark.parametrize(
    ("root", "path"),
    [("/", "/a/b"), ("/projects/loop/", "/projects/loop/a/b"), ("~/", "/~/a/b"), ("/~/loop", "/~/loop/a/b")],
)
def test_a_collection_names_its_folder_in_its_own_way(root: str, path: str) -> None:
    assert Side(Collection(path=root)).path("a/b") == path


def test_paths_have_one_form_and_do_not_lead_out() -> None:
    assert relative("a//b/./c") == "a/b/c"
    for path in ("/a", "a/../../b", "", ".incoming/x", "a\0"):
        with pytest.raises(DataError):
            relative(path)


def test_paths_overlap_by_folders_not_by_letters() -> None:
    assert overlap("data/1.zarr", "data/1.zarr/counts")
    assert overlap("data/1.zarr/counts", "data")
    assert not overlap("data/1.zarr", "data/1.zarr2")


def test_a_document_asks_for_every_check_that_transfer_has_and_for_no_mail() -> None:
    edge, cluster = Side(Collection(collection=NUMBER)), Side(Collection(collection=NUMBER, path="/loop"))
    document = transfer_document(
        ITEMS, edge, cluster, ".incoming/k", submission_id=NUMBER, label="l", deadline_utc="2026-01-01T00:00:00+00:00"
    )
    first = document["DATA"][0]
    assert (first["source_path"], first["destination_path"]) == ("/a", "/loop/.incoming/k/there/a")
    assert (first["external_checksum"], first["checksum_algorithm"]) == (ITEMS[0].sha256, "sha256")
    assert (document["sync_level"], document["verify_checksum"], document["skip_source_errors"]) == (3, True, False)
    gone = delete_document(["a"], cluster, submission_id=NUMBER, label="l", deadline_utc="2026-01-01T00:00:00+00:00")
    assert (gone["recursive"], gone["ignore_missing"], gone["interpret_globs"]) == (True, True, False)
    for found in (document, gone):
        assert not any(value for key, value in found.items() if key.startswith("notify"))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("PERMISSION_DENIED", AuthError),
        ("NO_CREDENTIALS", AuthError),
        ("IS_A_DIRECTORY", DataError),
        ("QUOTA_EXCEEDED", TransientError),
        ("ENDPOINT_ERROR", TransientError),
        ("SOMETHING_NEW", TransientError),
    ],
)
def test_an_error_says_whose_task_it_is(code: str, kind: type[FilmloopError]) -> None:
    error = error_of(code, "what happened", "data")
    assert type(error) is kind
    assert error.hint


def view(**body: object) -> TaskView:
    return TaskView.of({"status": "ACTIVE", **body})


def test_a_verdict_names_the_file_the_code_and_the_pause_in_its_own_words() -> None:
    fault = Fault(code="ENDPOINT_ERROR", path="/loop/f", text="disk on fire")
    error = stalled("t1", view(nice_status="ENDPOINT_ERROR"), fault, "", 300.0, "data")
    assert all(word in error.message for word in ("t1", "300 s", "ENDPOINT_ERROR at /loop/f", "disk on fire"))
    paused = stalled("t1", view(is_paused=True), fault, "maintenance until Monday", 300.0, "data")
    assert "maintenance until Monday" in paused.message
    assert isinstance(stalled("t1", view(status="INACTIVE"), None, "", 300.0, "data"), AuthError)


def test_a_cancel_at_globus_is_not_retried_and_told_in_its_own_words() -> None:
    body = {"status": "FAILED", "canceled_by_admin": "SOURCE", "canceled_by_admin_message": "you fill our link"}
    error = ended_badly("t1", view(**body, fatal_error={"code": "CANCELED", "description": ""}), None, "data")
    assert type(error) is CancelledError
    assert not error.retryable
    assert "you fill our link" in error.message


@pytest.mark.parametrize(
    ("details", "path", "text"),
    [
        ('{"error": {"body": "no such file"}, "context": [{"operation": "read", "path": "/loop/f"}]}', "/loop/f",
         "no such file"),
        ("plain words", "", "plain words"),
        ('["odd"]', "", '["odd"]'),
        ("", "", "file not found"),
    ],
)  # fmt: skip
def test_an_event_is_read_in_whatever_form_its_details_come(details: str, path: str, text: str) -> None:
    fault = Fault.of({"code": "FILE_NOT_FOUND", "details": details, "description": "file not found"})
    assert (fault.path, fault.text) == (path, text)


def test_a_file_that_is_sent_over_and_over_is_no_progress() -> None:
    seen = {view(bytes_transferred=sent, bytes_checksummed=9 * sent).progress(1000) for sent in (1000, 2000, 3000)}
    assert len(seen) == 1
    assert view(bytes_transferred=10).progress(1000) != view(bytes_transferred=20).progress(1000)
