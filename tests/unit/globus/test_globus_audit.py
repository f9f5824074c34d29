from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from filmloop.adapters.globus.transfer.audit import missing
from filmloop.adapters.globus.transfer.client import Arrival
from filmloop.testing.contracts.mover import item

ITEMS = [item("a", b"one"), item("b/c", b"three")]
FOLDER = ".incoming/k1"


def books(root: str = "/loop") -> list[Arrival]:
    return [
        Arrival(
            path=f"{root}/{FOLDER}/{one.target_path}",
            size_bytes=one.size_bytes,
            checksum=one.sha256,
            algorithm="SHA256",
        )
        for one in ITEMS
    ]


@pytest.mark.parametrize("root", ["", "/loop", "/~", "/home/somebody/loop"])
def test_books_that_fit_the_items_are_believed(root: str) -> None:
    assert missing(ITEMS, books(root), FOLDER, skipped=0) == []


def test_a_file_that_is_in_no_book_is_missed_unless_it_was_there_before() -> None:
    assert "there/b/c" in missing(ITEMS, books()[:1], FOLDER, skipped=0)[0]
    assert missing(ITEMS, books()[:1], FOLDER, skipped=1) == []
    assert missing(ITEMS, [], FOLDER, skipped=1) != []


@pytest.mark.parametrize(
    ("change", "word"),
    [({"size_bytes": 2}, "2 bytes"), ({"checksum": "0" * 64}, "SHA-256"), ({"path": "/loop/there/b/c"}, "books")],
)
def test_books_that_differ_are_not_believed(change: dict[str, object], word: str) -> None:
    first, second = books()
    problems = missing(ITEMS, [first, replace(second, **change)], FOLDER, skipped=0)  # type: ignore[arg-type]
    assert word in problems[0]
    assert "there/b/c" in problems[0]


def test_a_connector_that_hashes_otherwise_is_held_to_the_size(tmp_path: Path) -> None:
    first, second = books()
    assert missing(ITEMS, [first, replace(second, checksum="abc", algorithm="MD5")], FOLDER, skipped=0) == []
