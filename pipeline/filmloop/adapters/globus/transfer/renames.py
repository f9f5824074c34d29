"""Which renames bring verified files to their places, in as few requests as possible; and which files are there already.

A folder that the target has not yet goes there as a whole; into one that is there, file by file. What a collection has is
asked for folder by folder, beginning far down: where `data/stream/run` is, `data` need not be looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from filmloop.adapters.globus.transfer.client import Entry
from filmloop.core.documents import Document

Listing = Callable[[str], Mapping[str, Entry] | None]
"""What is in a folder, by its path below the root; None if there is no such folder."""


class Step(Document):
    """One request, or two: `replace` first sets aside what has the name."""

    kind: Literal["mkdir", "rename", "replace"]
    path: str


@dataclass(slots=True)
class _Node:
    """A file or a folder that files go to; `numbers` are the files' places in the order of the items."""

    name: str
    is_file: bool = False
    numbers: list[int] = field(default_factory=list)
    children: dict[str, _Node] = field(default_factory=dict)

    @property
    def together(self) -> bool:
        """Whether its files follow each other in the order of the items: only then may they appear at once."""
        return self.numbers[-1] - self.numbers[0] + 1 == len(self.numbers)


def plan_renames(paths: Sequence[str], listing: Listing) -> list[Step]:
    """The steps that give the files at `paths` their names, so that they appear in this order."""
    found = _inside_root(_tree(paths), listing)
    return [step for _, step in sorted(found, key=lambda one: (one[0], one[1].kind != "mkdir", len(one[1].path)))]


def standing(sizes: Mapping[str, int], listing: Listing) -> set[str]:
    """Those of the paths that are there, by the sizes of files in as few folders as possible.

    A purge removes files and leaves folders: one is believed for the sake of the files beside it that share its name up
    to the first dot, as a shard's manifest does. Without such files it is looked into; with one of them gone it counts
    as gone.
    """
    paths = list(sizes)
    found = [_standing(*looked_at, sizes, paths, listing) for looked_at in _looked_at(_tree(paths), listing)]
    return set().union(*found)


def _standing(
    node: _Node,
    path: str,
    present: Mapping[str, Entry],
    sizes: Mapping[str, int],
    paths: Sequence[str],
    listing: Listing,
) -> set[str]:
    there: set[str] = set()
    whole: dict[str, bool] = {}
    for child in (child for child in node.children.values() if child.is_file):
        entry, place = present.get(child.name), _join(path, child.name)
        good = entry is not None and not entry.is_folder and entry.size_bytes == sizes[place]
        whole[_stem(child.name)] = whole.get(_stem(child.name), True) and good
        if good:
            there.add(place)
    for child in (child for child in node.children.values() if not child.is_file):
        entry, place, stem = present.get(child.name), _join(path, child.name), _stem(child.name)
        if entry is None or not entry.is_folder:
            continue
        if stem not in whole:
            there |= _standing(child, place, listing(place) or {}, sizes, paths, listing)
        elif whole[stem]:
            there.update(paths[number] for number in child.numbers)
    return there


def _stem(name: str) -> str:
    return name.partition(".")[0]


def _tree(paths: Sequence[str]) -> _Node:
    root = _Node("")
    for number, path in enumerate(paths):
        node = root
        node.numbers.append(number)
        for part in path.split("/"):
            node = node.children.setdefault(part, _Node(part))
            node.numbers.append(number)
        node.is_file = True
    return root


def _looked_at(root: _Node, listing: Listing) -> Iterator[tuple[_Node, str, Mapping[str, Entry]]]:
    """The folders, one for each branch of the tree at most, whose content tells what is there."""
    if any(child.is_file for child in root.children.values()):
        yield root, "", listing("") or {}
        return
    for child in root.children.values():
        if (found := _deepest(child, child.name, listing)) is not None:
            yield found


def _deepest(node: _Node, path: str, listing: Listing) -> tuple[_Node, str, Mapping[str, Entry]] | None:
    """The deepest folder that is there, from `node` on down as long as there is one way only; None if `node` is not."""
    way = [(node, path)]
    while len(node.children) == 1 and not (only := next(iter(node.children.values()))).is_file:
        node, path = only, _join(path, only.name)
        way.append((node, path))
    for deep, place in reversed(way):
        if (present := listing(place)) is not None:
            return deep, place, present
    return None


def _inside_root(root: _Node, listing: Listing) -> Iterator[tuple[int, Step]]:
    if any(child.is_file for child in root.children.values()):
        yield from _inside(root, "", listing("") or {}, listing)
        return
    for child in root.children.values():
        yield from _folder(child, child.name, listing)


def _folder(node: _Node, path: str, listing: Listing) -> Iterator[tuple[int, Step]]:
    """Steps for a folder whose parent is there."""
    found = _deepest(node, path, listing)
    if found is None:
        yield from _absent(node, path)
    else:
        yield from _inside(*found, listing)


def _inside(node: _Node, path: str, present: Mapping[str, Entry], listing: Listing) -> Iterator[tuple[int, Step]]:
    for child in node.children.values():
        place, entry = _join(path, child.name), present.get(child.name)
        if entry is None:
            yield from _absent(child, place)
        elif entry.is_folder and not child.is_file:
            yield from _folder(child, place, listing)
        else:
            yield child.numbers[0], Step(kind="replace", path=place)


def _absent(node: _Node, path: str) -> Iterator[tuple[int, Step]]:
    if node.is_file or node.together:
        yield node.numbers[0], Step(kind="rename", path=path)
        return
    yield node.numbers[0], Step(kind="mkdir", path=path)
    for child in node.children.values():
        yield from _absent(child, _join(path, child.name))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
