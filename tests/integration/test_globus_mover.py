"""What the Globus mover does beyond the contract: few requests, weights before data, what is there is not sent again."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from filmloop.adapters.globus.transfer.client import Transfer
from filmloop.adapters.globus.transfer.place import FarSide, LostError
from filmloop.adapters.globus.transfer.renames import Step
from filmloop.adapters.globus.transfer.side import Side
from filmloop.core.clock import epoch_s
from filmloop.core.errors import DataError, TransientError
from filmloop.core.retry import wait_until
from filmloop.ports.mover import MoveItem, MoveStatus
from filmloop.testing.contracts.mover import THREE, MoverSite, ended, files_below, item
from filmloop.testing.globus.transfer import rig as transfer
from rigs.globus_faults import RENAME
from rigs.globus_mover import GlobusRig, GlobusSite, globus_rig, two_identities

COLUMNS = ("counts", "pulse_id", "phase", "weight", "version", "sort")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlobusRig]:
    with globus_rig(tmp_path_factory.mktemp("globus")) as found:
        yield found


@pytest.fixture
def site(rig: GlobusRig, tmp_path: Path) -> Iterator[GlobusSite]:
    with rig.site(tmp_path) as found:
        yield found
    rig.hosted.reset()
    transfer.behave(rig.hosted, bytes_per_s=None, file_s=0.0, slots=3, page=100)


def put(site: GlobusSite, *names: str) -> list[MoveItem]:
    """Write files of a few bytes at the edge; returns their items, bound for the same path."""
    items = []
    for name in names:
        data = os.urandom(50)
        (site.edge / name).parent.mkdir(parents=True, exist_ok=True)
        (site.edge / name).write_bytes(data)
        one = item(name, data)
        items.append(MoveItem(source_path=name, target_path=name, size_bytes=one.size_bytes, sha256=one.sha256))
    return items


def shard(number: int) -> list[str]:
    base = f"data/cue/run000001/{number:08d}"
    columns = [f"{base}.zarr/{name}/{file}" for name in COLUMNS for file in ("zarr.json", "c/0")]
    return [f"{base}.zarr/zarr.json", *columns, f"{base}.manifest.json"]


def bundle(version: int) -> list[str]:
    return [f"weights/mixer/{version}/{name}" for name in ("weights.safetensors", "plots/loss.png", "result.json")]


def moved(site: GlobusSite, items: list[MoveItem], key: str, **limits: float) -> MoveStatus:
    mover = site.make(**limits)
    return ended(mover, mover.submit("to_cluster", items, key=key))


def requests(rig: GlobusRig) -> dict[str, int]:
    """Requests to Transfer since the last reset, without the looks at a running task: those are a matter of time."""
    counts = {route: number for route, number in rig.hosted.counts().items() if "/v0.10/" in route}
    counts.pop("GET /v0.10/task/<task_id>", None)
    rig.hosted.reset()
    return counts


def test_a_move_of_ten_shards_takes_thirty_requests_and_two_hundred_files_are_one_task(
    rig: GlobusRig, site: GlobusSite
) -> None:
    first = put(site, *(name for number in range(10) for name in shard(number)), *bundle(1))
    rig.hosted.reset()
    assert moved(site, first, "c1-move").state == "succeeded"
    counts = requests(rig)
    assert sum(counts.values()) <= 12, counts
    second = put(site, *(name for number in range(10, 20) for name in shard(number)))
    assert moved(site, [*second, *first[6 * 14 :]], "c2-move").state == "succeeded"
    counts = requests(rig)
    assert sum(counts.values()) <= 30, counts
    assert [len(task["asked"]["DATA"]) for task in site.tasks()] == [143, 140], "what is there is not sent again"


def test_a_shard_appears_at_the_cluster_with_its_manifest_last(rig: GlobusRig, site: GlobusSite) -> None:
    moved(site, put(site, *shard(0)), "c1-move")
    items = put(site, *shard(1), *shard(2))
    rig.hosted.fault(
        "late", times=-1, match={"route": "POST /v0.10/operation/endpoint/<collection_id>/rename"}, seconds=0.1
    )
    seen, over = [], threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            there = {name for name in files_below(site.cluster) if "00000000" not in name}
            if not seen or seen[-1] != there:
                seen.append(there)

    watcher = threading.Thread(target=look)
    watcher.start()
    assert moved(site, items, "c2-move").state == "succeeded"
    over.set()
    watcher.join()
    steps = [set(), set(shard(1)[:-1]), set(shard(1)), {*shard(1), *shard(2)[:-1]}, {*shard(1), *shard(2)}]
    assert [there for there in seen if there in steps] == seen
    assert len(seen) >= 4


def test_weights_come_home_while_data_are_queued(rig: GlobusRig, tmp_path: Path) -> None:
    with rig.site(tmp_path, globus=two_identities(), stall_s=60.0) as site:
        transfer.behave(rig.hosted, bytes_per_s=20_000.0, slots=3)
        mover, data = site.make(), MoverSite(edge=site.edge, cluster=site.cluster, make=site.make)
        for number in range(4):
            mover.submit("to_cluster", data.put("to_cluster", {f"f{number}": bytes(200_000)}), key=f"c{number}-move")
        wait_until(lambda: len(site.tasks()) == 4 or None, deadline_s=30, what="four tasks of data")
        home = data.put("to_edge", {"bundle/weights": b"better", "bundle/result.json": b"{}"})
        assert ended(mover, mover.submit("to_edge", home, key="c4-fetch"), deadline_s=5).state == "succeeded"
        assert [task["status"] for task in site.tasks()[:4]] == ["ACTIVE"] * 4
        assert site.tasks()[3]["nice_status"] == "Queued"
        for number in range(4):
            mover.cancel(f"c{number}-move")
        transfer.behave(rig.hosted, bytes_per_s=None)


def test_under_one_identity_data_hold_weights_up(rig: GlobusRig, tmp_path: Path) -> None:
    with rig.site(tmp_path) as site:
        transfer.behave(rig.hosted, bytes_per_s=20_000.0, slots=3)
        mover, data = site.make(), MoverSite(edge=site.edge, cluster=site.cluster, make=site.make)
        for number in range(3):
            mover.submit("to_cluster", data.put("to_cluster", {f"f{number}": bytes(200_000)}), key=f"c{number}-move")
        wait_until(lambda: len(site.tasks()) == 3 or None, deadline_s=30, what="three tasks of data")
        mover.submit("to_edge", data.put("to_edge", {"bundle/weights": b"better"}), key="c4-fetch")
        wait_until(lambda: len(site.tasks()) == 4 or None, deadline_s=30, what="the task of weights")
        wait_until(lambda: "Queued" in mover.poll("c4-fetch").detail or None, deadline_s=5, what="the wait of weights")
        for key in ("c0-move", "c1-move", "c2-move", "c4-fetch"):
            mover.cancel(key)
        transfer.behave(rig.hosted, bytes_per_s=None)


def test_to_be_queued_for_longer_than_a_task_may_stall_is_no_stall(rig: GlobusRig, site: GlobusSite) -> None:
    transfer.behave(rig.hosted, file_s=0.1, slots=1)
    mover = site.make(stall_s=1.0)
    mover.submit("to_cluster", put(site, *(f"a/f{number}" for number in range(30))), key="c1-move")
    wait_until(lambda: site.tasks() or None, deadline_s=30, what="the first task")
    begun_s = time.monotonic()
    queued = mover.submit("to_cluster", put(site, "b/f"), key="c2-move")
    assert ended(mover, queued).state == "succeeded"
    assert time.monotonic() - begun_s > 2.0
    assert ended(mover, "c1-move").state == "succeeded"
    assert len(site.tasks()) == 2


def test_what_goes_out_was_written_down_before_word_for_word(rig: GlobusRig, site: GlobusSite) -> None:
    rig.hosted.fault("refuse", times=-1, match={"route": "POST /v0.10/transfer"}, status=503)
    mover = site.make()
    mover.submit("to_cluster", put(site, "a", "b"), key="c1-move")
    wait_until(lambda: rig.hosted.fired("refuse") or None, deadline_s=30, what="a refusal")
    mover.close()
    written = json.loads((site.journal / "c1-move/attempt-0001-task-0.json").read_text())
    rig.hosted.clear_faults()
    again = site.make()
    assert ended(again, "c1-move").state == "succeeded"
    (task,) = site.tasks()
    assert task["asked"] == written
    assert written["label"] == f"filmloop emulated c1-move {written['submission_id'][:8]}"
    assert (written["sync_level"], written["verify_checksum"], written["notify_on_failed"]) == (3, True, False)
    assert {one["checksum_algorithm"] for one in written["DATA"]} == {"sha256"}


def test_more_files_than_a_task_holds_are_several_tasks(
    rig: GlobusRig, site: GlobusSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filmloop.adapters.globus.transfer.tasks.MAX_ITEMS", 10)
    transfer.behave(rig.hosted, page=3)
    items = put(site, *(f"many/f{number}" for number in range(25)))
    assert moved(site, items, "c1-move") == MoveStatus(state="succeeded", files_done=25, bytes_done=25 * 50)
    assert [len(task["asked"]["DATA"]) for task in site.tasks()] == [10, 10, 5]
    assert len(files_below(site.cluster)) == 25


def test_what_somebody_cleaned_away_at_the_cluster_is_sent_again(site: GlobusSite) -> None:
    items = put(site, *shard(0))
    moved(site, items, "c1-move")
    (site.cluster / shard(0)[-1]).unlink()
    assert moved(site, items, "c2-move").state == "succeeded"
    assert [len(task["asked"]["DATA"]) for task in site.tasks()] == [14, 14], "nothing speaks for the rest of the shard"


def test_what_a_purge_removed_is_sent_again_although_it_left_the_folders(site: GlobusSite) -> None:
    items = put(site, *shard(0), *shard(1), *bundle(3), *bundle(4))
    moved(site, items, "c1-move")
    for name in (*shard(0), *bundle(3)):
        (site.cluster / name).unlink()
    assert moved(site, items, "c2-move").state == "succeeded"
    assert [len(task["asked"]["DATA"]) for task in site.tasks()] == [34, 17]
    for name in (*shard(0), *bundle(3)):
        assert (site.cluster / name).read_bytes() == (site.edge / name).read_bytes()


def test_what_was_discarded_is_sent_again_and_the_deletion_takes_nothing_of_it(
    rig: GlobusRig, site: GlobusSite
) -> None:
    items = put(site, *shard(0))
    moved(site, items, "c1-move")
    mover = site.make()
    rig.hosted.fault("stall", match={"type": "DELETE"}, seconds=1.0)
    mover.discard(["data/cue/run000001/00000000.zarr"], key="c1-tidy")
    assert moved(site, items, "c2-move").state == "succeeded"
    assert rig.hosted.fired("stall") == 1
    wait_until(lambda: site.tasks("DELETE")[0]["status"] == "SUCCEEDED" or None, deadline_s=10, what="the deletion")
    assert files_below(site.cluster) == set(shard(0))
    assert [len(task["asked"]["DATA"]) for task in site.tasks()] == [14, 13]


def test_what_was_discarded_is_replaced_even_if_its_deletion_fails(rig: GlobusRig, site: GlobusSite) -> None:
    items = put(site, *shard(0))
    moved(site, items, "c1-move")
    rotten = site.cluster / items[2].target_path
    rotten.write_bytes(bytes(50))
    rig.hosted.fault("fail", match={"type": "DELETE"}, code="PERMISSION_DENIED")
    site.make().discard(["data/cue/run000001/00000000.zarr"], key="c1-damaged")
    assert moved(site, items, "c2-move").state == "succeeded"
    assert rig.hosted.fired("fail") == 1
    assert rotten.read_bytes() == (site.edge / items[2].source_path).read_bytes()


def test_a_deletion_whose_answer_was_lost_is_one_deletion(rig: GlobusRig, site: GlobusSite) -> None:
    moved(site, put(site, *shard(0)), "c1-move")
    rig.hosted.fault("lose_answer", match={"route": "POST /v0.10/delete"})
    site.make().discard(["data"], key="c1-tidy")
    assert rig.hosted.fired("lose_answer") == 1
    wait_until(lambda: not files_below(site.cluster) or None, deadline_s=10, what="the deletion")
    assert len(site.tasks("DELETE")) == 1
    assert list((site.cluster / ".incoming").iterdir()) == [], "folders of moves that are over go with it"


def test_a_path_that_leads_outside_keeps_everything(site: GlobusSite) -> None:
    moved(site, put(site, *shard(0)), "c1-move")
    with pytest.raises(DataError):
        site.make().discard(["data", "../../edge"], key="c1-tidy")
    assert site.tasks("DELETE") == []


def test_the_edge_gets_only_what_it_has_hashed_itself(rig: GlobusRig, site: GlobusSite) -> None:
    sides = MoverSite(edge=site.edge, cluster=site.cluster, make=site.make)
    items = sides.put("to_edge", THREE)
    rig.hosted.fault("corrupt_after", times=1, match={"number": 0})
    mover = site.make()
    status = ended(mover, mover.submit("to_edge", items, key="c1-fetch"))
    assert rig.hosted.fired("corrupt_after") == 1
    assert (status.state, status.retryable) == ("failed", True)
    assert "arrived damaged" in status.detail
    assert files_below(site.edge) == set()
    assert ended(mover, mover.submit("to_edge", items, key="c1-fetch")).state == "succeeded"
    assert not (site.edge / ".incoming/c1-fetch").exists()


def late(site: GlobusSite, key: str) -> None:
    """Wait until the recorded deadline of the move's task has passed."""
    written = json.loads((site.journal / key / "attempt-0001.json").read_text())["tasks"][0]
    assert written["task_id"] == ""
    time.sleep(max(0.0, epoch_s(written["deadline_utc"]) - time.time()) + 0.1)


def test_after_its_deadline_a_task_whose_answer_was_lost_is_looked_for(rig: GlobusRig, site: GlobusSite) -> None:
    rig.hosted.fault("lose_answer", times=-1, match={"route": "POST /v0.10/transfer"})
    mover = site.make(task_deadline_s=2.0)
    mover.submit("to_cluster", put(site, "a", "b"), key="c1-move")
    wait_until(lambda: site.tasks() or None, deadline_s=10, what="a task")
    mover.close()
    assert rig.hosted.fired("lose_answer") >= 1
    rig.hosted.clear_faults()
    late(site, "c1-move")
    assert ended(site.make(), "c1-move").state == "succeeded"
    assert len(site.tasks()) == 1


def test_after_its_deadline_a_document_that_never_arrived_is_written_anew(rig: GlobusRig, site: GlobusSite) -> None:
    rig.hosted.fault("refuse", times=-1, match={"route": "POST /v0.10/transfer"}, status=503)
    mover = site.make(task_deadline_s=2.0)
    mover.submit("to_cluster", put(site, "a", "b"), key="c1-move")
    wait_until(lambda: rig.hosted.fired("refuse") or None, deadline_s=10, what="a refusal")
    mover.close()
    rig.hosted.clear_faults()
    late(site, "c1-move")
    assert ended(site.make(), "c1-move").state == "succeeded"
    assert len(site.tasks()) == 1
    assert (site.journal / "c1-move/attempt-0002.json").exists()


@pytest.fixture
def far(site: GlobusSite) -> Iterator[FarSide]:
    transfer = Transfer(site.globus, site.section, "data")
    yield FarSide(Side(site.section.cluster), "k1", lambda send: send(transfer))
    transfer.close()


def test_a_folder_whose_parent_was_cleaned_up_is_made_with_files_that_are_sent_again(far: FarSide) -> None:
    far.take(Step(kind="mkdir", path="weights"), {})
    far.take(Step(kind="mkdir", path="weights"), {})
    with pytest.raises(LostError, match="weights/mixer/3"):
        far.take(Step(kind="mkdir", path="weights/mixer/3"), {})


@pytest.mark.parametrize("kind", ["rename", "replace"])
def test_an_old_file_of_the_same_size_that_does_not_make_way_is_not_taken_for_the_new_one(
    site: GlobusSite, far: FarSide, kind: str
) -> None:
    (site.cluster / ".incoming/k1").mkdir(parents=True)
    (site.cluster / ".incoming/k1/f").write_bytes(b"new")
    (site.cluster / "f").write_bytes(b"old")
    step = Step.model_validate({"kind": kind, "path": "f"})
    site.hosted.fault("refuse", times=-1, match=RENAME, status=409, code="RenameFailed.Exists")
    with pytest.raises(TransientError, match="does not make way"):
        far.take(step, {"f": 3})
    assert site.hosted.fired("refuse") == (4 if kind == "replace" else 3)
    site.hosted.clear_faults()
    far.take(step, {"f": 3})
    assert (site.cluster / "f").read_bytes() == b"new"


def test_a_storage_without_sha256_is_asked_for_none_and_its_files_are_audited_all_the_same(site: GlobusSite) -> None:
    items = put(site, *shard(1))
    mover = site.make(item_checksums=False)
    assert ended(mover, mover.submit("to_cluster", items, key="k1")).state == "succeeded"
    (task,) = site.tasks()
    assert task["asked"]["verify_checksum"]
    assert not any("external_checksum" in one or "checksum_algorithm" in one for one in task["asked"]["DATA"])
    assert files_below(site.cluster) == set(shard(1))
    site.hosted.fault("corrupt_after", match={"file": "00000001.manifest.json"}, how="truncate")
    (site.edge / "data").rename(site.edge / "gone")
    status = ended(mover, mover.submit("to_edge", items, key="k2"))
    assert (status.state, site.hosted.fired("corrupt_after")) == ("failed", 1), "this side hashes what comes"
    assert ended(mover, mover.submit("to_edge", items, key="k2")).state == "succeeded"
    assert all((site.edge / name).read_bytes() == (site.edge / f"gone{name[4:]}").read_bytes() for name in shard(1))
