"""Which versions are scored: the champion, the newest, the nearest, and some of which nothing is known yet."""

from __future__ import annotations

import json

import numpy as np
import pytest

from filmloop.config.loader import parse_site
from filmloop.core.documents import AliasMove, VersionInfo
from filmloop.zoo.embedding import DataEmbedding, embed
from filmloop.zoo.index import DATA_TAG, Entry, data_tag, form_of, mistrusted, nearest

NOW = embed(np.full((300, 4, 16), 2, np.uint8))


def data(hits: float) -> DataEmbedding:
    return NOW.model_copy(update={"hits": hits})


def version(number: int, hits: float | None = None) -> VersionInfo:
    tags = {"filmloop.bundle_digest": "0" * 64}
    if hits is not None:
        tags[DATA_TAG] = data(hits).model_dump_json()
    return VersionInfo(name="m", version=str(number), created_utc="2026-01-01T00:00:00Z", tags=tags)


def chosen(
    versions: list[VersionInfo], *, champion: str = "", most: int, mistrusted: set[str] | None = None
) -> list[str]:
    found = nearest(
        [Entry.of(info) for info in versions], NOW, champion=champion, most=most, mistrusted=mistrusted or set()
    )
    return [entry.version for entry in found]


def test_the_champion_and_the_newest_come_first_then_what_was_trained_on_the_most_similar_frames() -> None:
    versions = [version(number, hits=NOW.hits * (1 + number)) for number in range(9, 0, -1)]
    assert chosen(versions, champion="7", most=4) == ["7", "9", "1", "2", "3"]
    assert chosen(versions, champion="9", most=2) == ["9", "8", "1"]


def test_versions_of_which_nothing_is_known_get_half_the_places_until_they_are_known() -> None:
    known = [version(number, hits=NOW.hits) for number in range(20, 10, -1)]
    unknown = [version(number) for number in range(10, 0, -1)]
    assert chosen(known + unknown, champion="20", most=5) == ["20", "19", "18", "17", "10", "9"]
    assert chosen(unknown, champion="10", most=3) == ["10", "9", "8", "7"]


def test_a_version_that_filmloop_did_not_make_or_a_person_took_back_is_left_out() -> None:
    foreign = VersionInfo(name="m", version="3", created_utc="2026-01-01T00:00:00Z")
    assert chosen([foreign, version(2, 1.0), version(1, 1.0)], most=5, mistrusted={"2"}) == ["1"]


def test_a_damaged_tag_is_no_tag() -> None:
    info = version(1).model_copy(update={"tags": {DATA_TAG: '{"scheme": 99}'}})
    assert data_tag(info) is None
    assert data_tag(version(1, 5.0)) == data(5.0)


def test_another_form_is_seen_by_the_tags_alone() -> None:
    config = parse_site({"model": {"hyper": {"depth": 1}}})
    other = parse_site({"model": {"hyper": {"depth": 2}}})

    def tagged(text: str) -> VersionInfo:
        return version(1).model_copy(update={"tags": {"filmloop.config": text}})

    own = form_of(config.as_json())
    assert Entry.of(tagged(json.dumps(config.as_json()))).form == own != ""
    assert Entry.of(tagged(json.dumps(other.as_json()))).form not in (own, "")
    assert Entry.of(tagged("edited by hand")).form == ""
    assert Entry.of(version(1)).form == ""


def moves(*each: tuple[str, str, str]) -> list[AliasMove]:
    made = [
        AliasMove(
            utc="", model="m", alias="champion", from_version=from_, to_version=to, who="", why="", cycle_id=cycle_id
        )
        for from_, to, cycle_id in each
    ]
    return made[::-1]


@pytest.mark.parametrize(
    ("trail", "taken_back"),
    [
        ([("", "1", "c"), ("1", "2", "c"), ("2", "1", "c")], set()),
        ([("", "1", "c"), ("1", "2", "c"), ("2", "1", "")], {"2"}),
        ([("", "1", "c"), ("1", "2", "c"), ("2", "1", ""), ("1", "3", "c")], {"2"}),
        ([("", "1", "c"), ("1", "2", "c"), ("2", "1", ""), ("1", "2", "")], set()),
        ([("", "1", "c"), ("1", "2", "")], set()),
        ([("", "1", "c"), ("1", "2", "c"), ("2", "", "")], {"2"}),
    ],
    ids=["the loop went back", "a person did", "long ago", "and changed their mind", "a new one by hand", "to none"],
)
def test_what_a_person_rolled_back_is_not_brought_up_again(
    trail: list[tuple[str, str, str]], taken_back: set[str]
) -> None:
    assert mistrusted(moves(*trail)) == taken_back
