"""Which former versions are worth a score: the index over what each was trained on.

The index is the registry itself: every version carries the embedding of its frames in a tag. One that has none, from
before there was a zoo, is looked at when its turn comes. `filmloop.zoo.memory` keeps what was read of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field, ValidationError

from filmloop.core.documents import AliasMove, Document, VersionInfo
from filmloop.zoo.embedding import DataEmbedding, distances

DATA_TAG = "filmloop.data"
"""`DataEmbedding` of the fresh frames that a version was trained on, as JSON."""
ZOO_TAG = "filmloop.zoo"
"""What a version's cycle found in the zoo: the gain of each former version over the champion, as JSON."""
RECALLED_TAG = "filmloop.recalled"
"""When and why a version was made champion again without training."""


class Entry(Document):
    """What the zoo has to know of a version before it looks at its bundle."""

    version: str = Field(pattern=r"^[0-9]+$")
    bundle_digest: str = Field(description="of its bundle; '' where filmloop did not make it")
    form: str = Field(description="of its network and its frames; '' where the tags do not tell")
    data: DataEmbedding | None = Field(description="what its frames looked like; None where the tags do not tell")

    @classmethod
    def of(cls, info: VersionInfo) -> Entry:
        """Of what the registry says."""
        return cls(version=info.version, bundle_digest=info.bundle_digest, form=_form_told(info), data=data_tag(info))

    def is_same(self, other: Entry) -> bool:
        """Whether it is the same version with the same bundle; a number may be given anew after its version was deleted."""
        return (self.version, self.bundle_digest) == (other.version, other.bundle_digest)


def data_tag(info: VersionInfo) -> DataEmbedding | None:
    """The embedding that the registry knows; None for none that this filmloop reads."""
    try:
        return DataEmbedding.model_validate_json(info.tags.get(DATA_TAG, ""))
    except ValidationError:
        return None


def nearest(
    entries: Sequence[Entry], data: DataEmbedding, *, champion: str, most: int, mistrusted: set[str]
) -> list[Entry]:
    """At most `most` versions to score, the champion first: with it the newest, and those trained on the most similar frames.

    Half of the places are for versions of which nothing is known yet, as long as there are any.

    Args:
        entries: All of one form, newest first.
        data: What the newest frames look like.
        champion: Its version, '' for none; it takes no place from the others.
        most: How many others.
        mistrusted: Left out.
    """
    made = [entry for entry in entries if entry.bundle_digest]
    first = [entry for entry in made if entry.version == champion]
    others = [entry for entry in made if entry.version != champion and entry.version not in mistrusted]
    chosen = others[:1]
    unknown = [entry for entry in others[1:] if entry.data is None]
    known = [(entry, entry.data) for entry in others[1:] if entry.data is not None]
    apart_K = distances([embedding for _, embedding in known], data)
    places = max(0, most - len(chosen))
    strangers = min(len(unknown), max(places // 2, places - len(known)))
    chosen += [known[number][0] for number in np.argsort(apart_K, kind="stable")[: places - strangers]]
    chosen += unknown[:strangers]
    return first + chosen[:most]


def form_of(config: Mapping[str, object]) -> str:
    """The form of network and frames in a resolved configuration, as text that is the same for the same one; '' for none.

    A version of another form is left alone; one whose tags tell no form may be of any, and its bundle has the last word.
    """
    model, frame = config.get("model"), config.get("frame")
    if not isinstance(model, dict) or not isinstance(frame, dict):
        return ""
    form = [model.get("name"), model.get("hyper"), frame.get("channels"), frame.get("energy_bins")]
    return json.dumps(form, sort_keys=True)


def _form_told(info: VersionInfo) -> str:
    try:
        return form_of(json.loads(info.tags.get("filmloop.config", "{}")))
    except (ValueError, AttributeError):  # a person may have edited the tag
        return ""


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
