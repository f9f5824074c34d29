"""What is known of a registry's versions: asked for once, and again whenever the file does not tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from filmloop.core.documents import VersionInfo
from filmloop.zoo.index import Entry
from filmloop.zoo.memory import Memory
from rigs.zoo import Site


class Counting:
    """A registry that only lists, and keeps what it was asked."""

    model, url = "m", "memory://m"

    def __init__(self, versions: int) -> None:
        self.count, self.asked, self.bundle_digest = versions, list[int](), "0" * 64

    def versions(self, *, after: int = 0) -> list[VersionInfo]:
        self.asked.append(after)
        tags = {"filmloop.bundle_digest": self.bundle_digest}
        return [
            VersionInfo(name="m", version=str(number), created_utc="2026-01-01T00:00:00Z", tags=tags)
            for number in range(self.count, after, -1)
        ]


def numbers(entries: list[Entry]) -> list[int]:
    return [int(entry.version) for entry in entries]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "zoo" / "m.jsonl"


def memory(path: Path, registry: Counting, *, keep: bool = True) -> Memory:
    return Memory(path, registry, keep=keep)  # type: ignore[arg-type]


def test_a_version_is_asked_for_once(path: Path) -> None:
    registry = Counting(11)
    assert numbers(memory(path, registry).entries()) == list(range(11, 0, -1))
    registry.count = 13
    found = memory(path, registry).entries()
    assert numbers(found) == list(range(13, 0, -1))
    assert memory(path, registry).entries() == found
    assert registry.asked == [0, 10, 12], "the newest that is known is looked at again"


def test_whoever_only_looks_writes_nothing(path: Path) -> None:
    registry = Counting(2)
    looking = memory(path, registry, keep=False)
    assert numbers(looking.entries()) == [2, 1]
    looking.learn(Entry(version="1", bundle_digest="", form="", data=None))
    assert not path.exists()


def test_what_was_found_out_later_counts(path: Path) -> None:
    registry = Counting(2)
    first = memory(path, registry)
    first.entries()
    first.learn(Entry(version="1", bundle_digest="d", form="f", data=None))
    assert [entry.form for entry in memory(path, registry).entries()] == ["", "f"]


@pytest.mark.parametrize("versions", [2, 3, 5])
def test_a_registry_that_was_begun_anew_at_the_same_address_is_another(path: Path, versions: int) -> None:
    """Or its newest versions were deleted, and their numbers given again."""
    memory(path, Counting(3)).entries()
    anew = Counting(versions)
    anew.bundle_digest = "1" * 64
    for _ in range(2):
        found = memory(path, anew).entries()
        assert numbers(found) == list(range(versions, 0, -1))
        assert {entry.bundle_digest for entry in found} == {"1" * 64}
    assert anew.asked == [2, 0, versions - 1]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def zero_the_end(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-200] + bytes(200))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"version":"2"', b'"version":"x"'))


def another_registry(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"memory://m", b"memory://n"))


@pytest.mark.parametrize(
    ("damage", "asked_after"), [(cut, 1), (zero_the_end, 0), (empty, 0), (spoil, 0), (another_registry, 0)]
)
def test_a_file_that_was_damaged_is_made_whole(path: Path, damage: Callable[[Path], None], asked_after: int) -> None:
    registry = Counting(3)
    found = memory(path, registry).entries()
    whole = path.read_bytes()
    damage(path)
    for _ in range(2):
        assert memory(path, registry).entries() == found
    assert path.read_bytes() == whole
    assert registry.asked == [0, asked_after, 2]


def test_a_disk_that_refuses_costs_nothing_but_another_question(path: Path) -> None:
    registry = Counting(3)
    path.mkdir(parents=True)
    for _ in range(2):
        assert numbers(memory(path, registry).entries()) == [3, 2, 1]
    assert registry.asked == [0, 0]


def test_a_version_that_is_gone_is_not_proposed(site: Site) -> None:
    """It was known, and its bundle lies here; somebody has deleted it in the registry since."""
    champion, better, good = site.add(0.9), site.add(0.3), site.add(0.4)
    site.make_champion(champion)
    assert site.look().base == better
    del site.registry._versions[better]
    assert site.look().base == good
    (path,) = site.home.zoo.iterdir()
    assert len(path.read_text().splitlines()) == 3, "the head and two versions"
