"""Which former versions are worth a score: the index over what each was trained on.

The index is the registry itself. Every version carries the embedding of its frames in a tag, so that there is nothing to
rebuild and nothing that could disagree; one that has none, from before there was a zoo, is looked at when its turn comes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from filmloop.config.schema import SiteConfig
from filmloop.core.documents import AliasMove, VersionInfo
from filmloop.zoo.embedding import DataEmbedding, distance

DATA_TAG = "filmloop.data"
"""`DataEmbedding` of the fresh frames that a version was trained on, as JSON."""
ZOO_TAG = "filmloop.zoo"
"""What a version's cycle found in the zoo: the gain of each former version over the champion, as JSON."""
RECALLED_TAG = "filmloop.recalled"
"""When and why a version was made champion again without training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A version with what is known of the frames that it was trained on."""

    info: VersionInfo
    data: DataEmbedding | None

    @property
    def version(self) -> str:
        """Its number."""
        return self.info.version


def data_tag(info: VersionInfo) -> DataEmbedding | None:
    """The embedding that the registry knows; None for none that this filmloop reads."""
    try:
        return DataEmbedding.model_validate_json(info.tags.get(DATA_TAG, ""))
    except ValidationError:
        return None


def nearest(
    versions: Sequence[VersionInfo], data: DataEmbedding, *, champion: str, most: int, mistrusted: set[str]
) -> list[Entry]:
    """At most `most` versions to score, the champion first: with it the newest, and those trained on the most similar frames.

    Half of the places are for versions of which nothing is known yet, as long as there are any.

    Args:
        versions: All of one form, newest first.
        data: What the newest frames look like.
        champion: Its version, '' for none; it takes no place from the others.
        most: How many others.
        mistrusted: Left out.
    """
    known = [Entry(info=info, data=data_tag(info)) for info in versions if info.bundle_digest]
    first = [entry for entry in known if entry.version == champion]
    others = [entry for entry in known if entry.version != champion and entry.version not in mistrusted]
    chosen = others[:1]
    unknown = [entry for entry in others[1:] if entry.data is None]
    similar = sorted(
        ((distance(entry.data, data), number) for number, entry in enumerate(others[1:], 1) if entry.data is not None)
    )
    places = max(0, most - len(chosen))
    strangers = min(len(unknown), max(places // 2, places - len(similar)))
    chosen += [others[number] for _distance, number in similar[: places - strangers]]
    chosen += unknown[:strangers]
    return first + chosen[:most]


def same_form(info: VersionInfo, config: SiteConfig) -> bool:
    """Whether the version's tags allow that it is a network of the configured form; its bundle has the last word."""
    try:
        told = json.loads(info.tags.get("filmloop.config", "{}"))
        return _form(told) in (_form(config.as_json()), None)
    except (ValueError, AttributeError):  # a person may have edited the tag
        return True


def _form(config: Mapping[str, object]) -> tuple[object, ...] | None:
    model, frame = config.get("model"), config.get("frame")
    if not isinstance(model, dict) or not isinstance(frame, dict):
        return None
    return model.get("name"), model.get("hyper"), frame.get("channels"), frame.get("energy_bins")


def mistrusted(moves: Sequence[AliasMove]) -> set[str]:
    """Versions that a person took back: the loop does not bring them up again until a person does.

    A person's move away from a version, to one that was champion before, is a roll back. `moves` of the champion,
    newest first.
    """
    taken_back: set[str] = set()
    champions: set[str] = set()
    for move in reversed(moves):
        if not move.cycle_id and move.to_version in taken_back:
            taken_back.discard(move.to_version)
        elif not move.cycle_id and (move.to_version in champions or not move.to_version):
            taken_back.add(move.from_version)
        champions.add(move.to_version)
    return taken_back - {""}
