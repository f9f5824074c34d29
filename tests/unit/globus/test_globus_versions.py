from __future__ import annotations

import pytest

from filmloop.adapters.globus.compute.versions import compare, here
from filmloop.core.errors import ConfigError

OURS = {"python": "3.11.7", "filmloop": "0.1.0", "dill": "0.3.9", "globus-compute-sdk": "4.19.0"}
WORKER = {"python": "3.11.9", "dill": "0.3.9", "parsl": "2026.10.26", "globus-compute-endpoint": "4.19.0"}
TRAINING = {
    "executable": "/env/bin/python", "python": "3.12.1", "filmloop": "0.1.4", "torch": "2.13.0+cu128", "zarr": "3.1.0",
    "safetensors": "0.5", "parsl": "",
}  # fmt: skip


def test_two_sides_that_go_together_have_nothing_to_say() -> None:
    found = compare(OURS, WORKER, TRAINING)
    assert (found.problems, found.notes) == ((), ())
    found.raise_problems()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"filmloop": "", "why": "ModuleNotFoundError"}, "has no filmloop (ModuleNotFoundError)"),
        ({"filmloop": "0.2.0"}, "has filmloop 0.2.0, here it is 0.1.0"),
        ({"torch": ""}, "has no torch"),
        ({"torch": "2.5.1+cu121"}, "has torch 2.5.1+cu121"),
        ({"torch": "", "zarr": ""}, "has no torch, no zarr"),
        ({"python": "3.9.18"}, "is Python 3.9.18"),
    ],
)
def test_what_cannot_train_is_named_with_what_to_do(changes: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compare(OURS, WORKER, TRAINING | changes).raise_problems()
    assert says in refused.value.message
    assert "filmloop[hpc]==0.1.0" in refused.value.hint


def test_another_major_version_of_globus_compute_cannot_work() -> None:
    with pytest.raises(ConfigError, match="globus-compute-endpoint is 3"):
        compare(OURS, WORKER | {"globus-compute-endpoint": "3.16.1"}, TRAINING).raise_problems()


def test_differences_that_do_not_matter_are_noted() -> None:
    found = compare(OURS, WORKER | {"python": "3.12.1", "dill": "0.4.0"}, TRAINING | {"parsl": "2026.1.1"})
    assert not found.problems
    assert [note.partition(" is ")[0] for note in found.notes] == ["Python", "dill", "parsl"]


def test_this_side_knows_its_own_versions() -> None:
    assert {"python", "filmloop", "dill", "globus-compute-sdk", "globus-sdk"} == here().keys()
    assert all(here().values())
