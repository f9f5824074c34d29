from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from filmloop.adapters.globus.transfer.client import Entry
from filmloop.adapters.globus.transfer.renames import Step, plan_renames, standing

SHARDS = [
    path
    for number in (7, 8)
    for path in (
        f"data/cue/run000001/{number:08d}.zarr/zarr.json",
        f"data/cue/run000001/{number:08d}.zarr/counts/zarr.json",
        f"data/cue/run000001/{number:08d}.zarr/counts/c/0",
        f"data/cue/run000001/{number:08d}.manifest.json",
    )
]
WEIGHTS = ["weights/mixer/3/weights.safetensors", "weights/mixer/3/plots/loss.png", "weights/mixer/3/result.json"]


class Collection:
    """A collection by its files and their sizes, that counts the looks at it."""

    def __init__(self, *files: str, folders: tuple[str, ...] = (), size_bytes: int = 1) -> None:
        self.files, self.looks = dict.fromkeys(files, size_bytes), 0
        self.folders = {"", *folders}
        for path in (*files, *folders):
            parts = path.split("/")
            self.folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))

    def listing(self, folder: str) -> Mapping[str, Entry] | None:
        self.looks += 1
        if folder not in self.folders:
            return None
        start = f"{folder}/" if folder else ""
        inside = {*self.files, *self.folders} - {""}
        names = {path.removeprefix(start).split("/")[0] for path in inside if path.startswith(start)}
        return {
            name: Entry(is_folder=start + name in self.folders, size_bytes=self.files.get(start + name, 0))
            for name in names
        }


def done(steps: list[Step], paths: list[str], there: Collection) -> list[set[str]]:
    """Which of the paths are in place after each step; fails if a step cannot be done."""
    folders, placed, history = set(there.folders), set(there.files), []
    for step in steps:
        parent = step.path.rpartition("/")[0]
        assert parent in folders, f"{step} needs {parent}"
        if step.kind == "mkdir":
            assert step.path not in folders
            folders.add(step.path)
        else:
            below = {path for path in paths if path == step.path or path.startswith(step.path + "/")}
            assert below
            assert (step.kind == "replace") == (step.path in placed | folders), step
            placed |= below
        history.append({path for path in paths if path in placed})
    return history


def in_order(history: list[set[str]], paths: list[str]) -> bool:
    return all(seen == set(paths[: len(seen)]) for seen in history)


@pytest.mark.parametrize(
    ("there", "steps", "looks"),
    [
        pytest.param(Collection(), ["rename data", "rename weights"], 6, id="nothing is there"),
        pytest.param(
            Collection("data/cue/run000001/00000001.manifest.json", "weights/mixer/1/result.json"),
            [
                "rename data/cue/run000001/00000007.zarr",
                "rename data/cue/run000001/00000007.manifest.json",
                "rename data/cue/run000001/00000008.zarr",
                "rename data/cue/run000001/00000008.manifest.json",
                "rename weights/mixer/3",
            ],
            3,
            id="as on any day",
        ),
        pytest.param(
            Collection("data/cue/run000000/00000001.manifest.json", folders=("weights",)),
            ["rename data/cue/run000001", "rename weights/mixer"],
            5,
            id="a new run and a new model",
        ),
    ],
)
def test_a_folder_goes_as_a_whole_where_it_is_new(there: Collection, steps: list[str], looks: int) -> None:
    paths = SHARDS + WEIGHTS
    planned = plan_renames(paths, there.listing)
    assert [f"{step.kind} {step.path}" for step in planned] == steps
    assert there.looks == looks
    history = done(planned, paths, there)
    assert history[-1] == set(paths)
    assert in_order(history, paths)


def test_a_folder_that_is_there_in_part_is_filled_file_by_file() -> None:
    there = Collection(SHARDS[0], SHARDS[2])
    planned = plan_renames(SHARDS, there.listing)
    assert [step.kind for step in planned][:3] == ["replace", "rename", "replace"]
    assert done(planned, SHARDS, there)[-1] == set(SHARDS)


def test_files_that_do_not_follow_each_other_do_not_appear_together() -> None:
    paths = ["a/first", "b/second", "a/third"]
    planned = plan_renames(paths, Collection().listing)
    assert [f"{step.kind} {step.path}" for step in planned] == [
        "mkdir a", "rename a/first", "rename b", "rename a/third",
    ]  # fmt: skip
    assert in_order(done(planned, paths, Collection())[1:], paths)


@pytest.mark.parametrize("paths", [["f"], ["f", "a/b"], ["a/b", "f"], SHARDS[3:4], [*SHARDS, "f"]])
@pytest.mark.parametrize("there", [Collection, lambda: Collection("f"), lambda: Collection("a/x", "f")])
def test_any_set_of_paths_gets_in_place(paths: list[str], there: Callable[[], Collection]) -> None:
    history = done(plan_renames(paths, there().listing), paths, there())
    assert history[-1] == set(paths)


def test_what_is_there_is_told_by_a_look_at_each_branch_and_at_folders_that_no_file_speaks_for() -> None:
    there = Collection(*SHARDS, *WEIGHTS)
    assert standing(dict.fromkeys(SHARDS + WEIGHTS, 1), there.listing) == set(SHARDS + WEIGHTS)
    assert there.looks == 3, "the shards' run, the version, its plots"


def folders_of(*paths: str) -> tuple[str, ...]:
    return tuple(path.rpartition("/")[0] for path in paths)


def test_folders_that_a_purge_has_emptied_are_no_proof_of_their_files() -> None:
    versions = [*WEIGHTS, *(path.replace("/3/", "/4/") for path in WEIGHTS)]
    wanted = dict.fromkeys(SHARDS + versions, 1)
    emptied = Collection(folders=folders_of(*SHARDS, *versions))
    assert standing(wanted, emptied.listing) == set()
    left = Collection(*SHARDS[4:], *versions[3:], folders=folders_of(*SHARDS, *versions))
    assert standing(wanted, left.listing) == {*SHARDS[4:], *versions[3:]}


def test_a_manifest_that_is_gone_or_another_takes_its_folder_with_it() -> None:
    wanted = dict.fromkeys(SHARDS, 1)
    assert standing(wanted, Collection(*SHARDS[:3], *SHARDS[4:]).listing) == set(SHARDS[4:])
    assert standing(wanted | {SHARDS[3]: 2}, Collection(*SHARDS).listing) == set(SHARDS[4:])


def test_a_file_of_another_size_or_a_folder_that_is_gone_is_not_there() -> None:
    there = Collection(*SHARDS[4:])
    assert standing(dict.fromkeys(SHARDS, 1), there.listing) == set(SHARDS[4:])
    assert standing(dict.fromkeys([SHARDS[7]], 2), there.listing) == set()
    assert standing(dict.fromkeys(SHARDS, 1), Collection().listing) == set()
