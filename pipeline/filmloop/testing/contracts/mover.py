"""What every mover must do. Subclass `MoverContract` and provide the fixture `site`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from filmloop.core.errors import DataError
from filmloop.core.retry import wait_until
from filmloop.ports.mover import Direction, MoveItem, Mover, MoveStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class MoverSite:
    """An adapter under test and the two sides that it serves.

    Attributes:
        edge: The edge's root, as this process sees it.
        cluster: The cluster's root, as this process sees it.
        make: A new instance over the same state, as after a restart of the caller.
    """

    edge: Path
    cluster: Path
    make: Callable[[], Mover]

    def put(self, direction: Direction, files: dict[str, bytes]) -> list[MoveItem]:
        """Write the files at the sending side; returns their items, bound for `there/<name>`."""
        root = self.edge if direction == "to_cluster" else self.cluster
        for name, data in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        return [item(name, data) for name, data in files.items()]


def item(name: str, data: bytes) -> MoveItem:
    """The item for a file with these bytes, bound for `there/<name>`."""
    digest = hashlib.sha256(data).hexdigest()
    return MoveItem(source_path=name, target_path=f"there/{name}", size_bytes=len(data), sha256=digest)


def ended(mover: Mover, handle: str, *, deadline_s: float = 60.0) -> MoveStatus:
    """Poll until the move is over."""

    def look() -> MoveStatus | None:
        status = mover.poll(handle)
        return status if status.state != "active" else None

    return wait_until(look, deadline_s=deadline_s, what=f"the end of move {handle}", first_s=0.01)


def files_below(root: Path) -> set[str]:
    """Files that a reader of `root` sees; what is not verified yet lies under `.incoming` and is nobody's business.

    Whatever vanishes under the walk is not there: this is also looked at while a mover is at work.
    """
    found: set[str] = set()
    for folder, folders, names in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name != ".incoming"]
        found.update(Path(folder, name).relative_to(root).as_posix() for name in names)
    return found


THREE = {"a/zarr.json": b"{}", "a/c/0/0/0": bytes(range(256)) * 40_000, "a.manifest.json": b"the manifest"}
"""A shard in small: metadata, one chunk of 10 MB (more than one block of any copier), the manifest last."""


class MoverContract:
    """The promises of `ports.mover.Mover`, tested from the outside."""

    @pytest.fixture
    def site(self, tmp_path: Path) -> MoverSite | Iterator[MoverSite]:
        """The adapter under test; the subclass provides it."""
        raise NotImplementedError

    @pytest.mark.parametrize("direction", ["to_cluster", "to_edge"])
    def test_files_arrive_whole_and_nothing_else_does(self, site: MoverSite, direction: Direction) -> None:
        items = site.put(direction, THREE)
        mover = site.make()
        status = ended(mover, mover.submit(direction, items, key="k1"))
        assert status == MoveStatus(state="succeeded", files_done=3, bytes_done=sum(map(len, THREE.values())))
        there = site.cluster if direction == "to_cluster" else site.edge
        assert {name: (there / "there" / name).read_bytes() for name in THREE} == THREE
        assert files_below(there) == {f"there/{name}" for name in THREE}

    def test_an_empty_file_arrives(self, site: MoverSite) -> None:
        mover = site.make()
        handle = mover.submit("to_cluster", site.put("to_cluster", {"empty": b""}), key="k1")
        assert ended(mover, handle).state == "succeeded"
        assert (site.cluster / "there/empty").read_bytes() == b""

    def test_the_source_stays_and_shares_no_inode_with_the_target(self, site: MoverSite) -> None:
        mover = site.make()
        ended(mover, mover.submit("to_cluster", site.put("to_cluster", {"f": b"one"}), key="k1"))
        (site.edge / "f").write_bytes(b"two")
        assert (site.cluster / "there/f").read_bytes() == b"one"

    def test_same_key_and_items_are_one_move(self, site: MoverSite) -> None:
        items = site.put("to_cluster", THREE)
        first, second = site.make(), site.make()
        handle = first.submit("to_cluster", items, key="k1")
        assert second.submit("to_cluster", items, key="k1") == handle
        assert ended(second, handle) == ended(first, handle)
        written_ns = (site.cluster / "there/a/zarr.json").stat().st_mtime_ns
        assert first.submit("to_cluster", items, key="k1") == handle
        assert ended(first, handle).state == "succeeded"
        assert (site.cluster / "there/a/zarr.json").stat().st_mtime_ns == written_ns

    def test_a_move_that_succeeded_needs_its_source_no_more(self, site: MoverSite) -> None:
        items = site.put("to_cluster", {"f": b"bytes"})
        mover = site.make()
        ended(mover, mover.submit("to_cluster", items, key="k1"))
        (site.edge / "f").unlink()
        again = site.make()
        assert ended(again, again.submit("to_cluster", items, key="k1")).state == "succeeded"

    def test_same_key_with_other_items_is_refused(self, site: MoverSite) -> None:
        mover = site.make()
        mover.submit("to_cluster", site.put("to_cluster", {"f": b"bytes"}), key="k1")
        with pytest.raises(DataError, match="k1"):
            mover.submit("to_cluster", site.put("to_cluster", {"g": b"bytes"}), key="k1")

    def test_a_handle_survives_a_restart(self, site: MoverSite) -> None:
        handle = site.make().submit("to_cluster", site.put("to_cluster", THREE), key="k1")
        assert ended(site.make(), handle).state == "succeeded"

    def test_an_unknown_handle_is_an_error(self, site: MoverSite) -> None:
        with pytest.raises(DataError):
            site.make().poll("never-submitted")
        with pytest.raises(DataError):
            site.make().cancel("never-submitted")

    def test_an_absent_source_is_refused_at_once(self, site: MoverSite) -> None:
        with pytest.raises(DataError, match="gone"):
            site.make().submit("to_cluster", [item("gone", b"bytes")], key="k1")
        assert files_below(site.cluster) == set()

    def test_a_truncated_source_is_refused_at_once(self, site: MoverSite) -> None:
        items = site.put("to_cluster", {"f": b"bytes"})
        (site.edge / "f").write_bytes(b"byt")
        with pytest.raises(DataError, match="3 bytes"):
            site.make().submit("to_cluster", items, key="k1")

    def test_a_flipped_bit_in_the_source_never_appears_at_the_target(self, site: MoverSite) -> None:
        items = site.put("to_cluster", {"f": b"bytes"})
        (site.edge / "f").write_bytes(b"bytez")
        mover = site.make()
        status = ended(mover, mover.submit("to_cluster", items, key="k1"))
        assert (status.state, status.retryable) == ("failed", False)
        assert "SHA-256" in status.detail
        assert files_below(site.cluster) == set()

    def test_a_partial_failure_goes_on_where_it_stopped(self, site: MoverSite) -> None:
        items = site.put("to_cluster", THREE)
        (site.edge / "a.manifest.json").write_bytes(b"THE MANIFEST")
        mover = site.make()
        status = ended(mover, mover.submit("to_cluster", items, key="k1"))
        assert (status.state, status.files_done) == ("failed", 2)
        written_ns = (site.cluster / "there/a/zarr.json").stat().st_mtime_ns
        (site.edge / "a.manifest.json").write_bytes(THREE["a.manifest.json"])
        assert ended(mover, mover.submit("to_cluster", items, key="k1")).state == "succeeded"
        assert (site.cluster / "there/a/zarr.json").stat().st_mtime_ns == written_ns

    def test_other_bytes_at_the_target_are_replaced(self, site: MoverSite) -> None:
        items = site.put("to_cluster", {"f": b"bytes"})
        (site.cluster / "there").mkdir()
        (site.cluster / "there/f").write_bytes(b"bytez")
        mover = site.make()
        assert ended(mover, mover.submit("to_cluster", items, key="k1")).state == "succeeded"
        assert (site.cluster / "there/f").read_bytes() == b"bytes"

    @pytest.mark.parametrize("path", ["../f", "a/../../f", "/etc/passwd", "", ".incoming/k/0"])
    def test_paths_that_lead_outside_are_refused(self, site: MoverSite, path: str) -> None:
        good = site.put("to_cluster", {"f": b"bytes"})[0]
        fields: dict[str, Any] = {"size_bytes": good.size_bytes, "sha256": good.sha256}
        with pytest.raises(DataError):
            site.make().submit("to_cluster", [MoveItem(source_path=path, target_path="f", **fields)], key="k1")
        with pytest.raises(DataError):
            site.make().submit("to_cluster", [MoveItem(source_path="f", target_path=path, **fields)], key="k2")

    def test_two_files_for_one_place_are_refused(self, site: MoverSite) -> None:
        items = site.put("to_cluster", {"f": b"bytes"})
        with pytest.raises(DataError):
            site.make().submit("to_cluster", [*items, *items], key="k1")

    def test_a_cancelled_move_ends_and_may_be_submitted_again(self, site: MoverSite) -> None:
        items = site.put("to_cluster", {f"f{n}": bytes(4_000_000) for n in range(20)})
        mover = site.make()
        handle = mover.submit("to_cluster", items, key="k1")
        mover.cancel(handle)
        status = ended(mover, handle)
        assert status.state == "succeeded" or (status.state, status.retryable) == ("failed", True)
        for name in files_below(site.cluster):
            assert (site.cluster / name).stat().st_size == 4_000_000
        assert ended(mover, mover.submit("to_cluster", items, key="k1")).state == "succeeded"
        assert len(files_below(site.cluster)) == 20

    def test_cancelling_a_move_that_ended_changes_nothing(self, site: MoverSite) -> None:
        mover = site.make()
        handle = mover.submit("to_cluster", site.put("to_cluster", {"f": b"bytes"}), key="k1")
        before = ended(mover, handle)
        mover.cancel(handle)
        assert mover.poll(handle) == before

    def test_discard_deletes_at_the_cluster_and_forgives_what_is_absent(self, site: MoverSite) -> None:
        mover = site.make()
        ended(mover, mover.submit("to_cluster", site.put("to_cluster", THREE | {"keep": b"me"}), key="k1"))
        for _ in range(2):
            mover.discard(["there/a", "there/a.manifest.json"], key="d1")
        wait_until(
            lambda: files_below(site.cluster) == {"there/keep"} or None, deadline_s=60, what="the end of the deletion"
        )
        assert files_below(site.edge) == set(THREE) | {"keep"}

    def test_placed_lists_the_files_of_a_folder_that_are_not_discarded(self, site: MoverSite) -> None:
        mover = site.make()
        assert mover.placed("there") == []
        ended(
            mover, mover.submit("to_cluster", site.put("to_cluster", {"s/a": b"a", "s/b": b"b", "t": b"t"}), key="k1")
        )
        assert mover.placed("there/s") == ["there/s/a", "there/s/b"]
        mover.discard(["there/s/a"], key="d1", over=["k1"])
        assert mover.placed("there") == ["there/s/b", "there/t"]

    @pytest.mark.parametrize("path", ["../edge", "/tmp", ""])
    def test_discard_never_leaves_the_cluster_root(self, site: MoverSite, path: str) -> None:
        mover = site.make()
        site.put("to_cluster", {"f": b"bytes"})
        with pytest.raises(DataError):
            mover.discard([path], key="d1")
        assert files_below(site.edge) == {"f"}
