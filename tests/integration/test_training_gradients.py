"""Real ranks average real gradients: in shared memory and by messages, and what happens if one of them ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

_BEGINNING = """
import contextlib, json, os, pathlib, sys, time, torch
import torch.distributed as dist
from filmloop.core.errors import TransientError
from filmloop.training import gradients, shared_rows
from filmloop.training.ranks import joined_ranks

out, changed = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
rank = int(os.environ["RANK"])
if changed.get("rank") == rank:
    setattr(shared_rows, changed["name"], eval(changed["value"]))
shared, meet = [], shared_rows.SharedRows.meet
shared_rows.SharedRows.meet = lambda *row: shared.append(meet(*row)) or shared[-1]

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(700, 700), torch.nn.Linear(700, 1))  # more than one bucket

def backward(module, value):
    module.zero_grad()
    module(torch.full((2, 700), float(value))).sum().backward()
"""

_AVERAGE = """
def main():
    with joined_ranks() as ranks:
        calls, steps, worst = [], 0, 0.0
        module, alone = network(), network()

        def meanwhile():
            calls.append(steps)
            if steps % ranks.world == rank:
                time.sleep(0.05)  # The others are done with this step and go on: they must not write over it.

        parallel = ranks.wrap(module, meanwhile)
        for steps in range(1, 6):
            backward(parallel, ranks.rank + steps)
            mean = [torch.zeros_like(parameter) for parameter in alone.parameters()]
            for other in range(ranks.world):
                backward(alone, other + steps)
                for total, parameter in zip(mean, alone.parameters()):
                    total += parameter.grad / ranks.world
            for total, parameter in zip(mean, module.parameters()):
                worst = max(worst, float((parameter.grad - total).abs().max() / total.abs().max()))
        bits = torch.cat([parameter.grad.ravel() for parameter in module.parameters()])
        everyones = [torch.empty_like(bits) for _ in range(ranks.world)]
        dist.all_gather(everyones, bits)
        found = {"calls": calls, "worst": worst, "are_shared": [bool(rows) for rows in shared]}
        found["sums"] = [ranks.sum(1.0 + rank, number, 0.1) for number in range(4)]
        found["long_sum"] = ranks.sum(*range(40))
        links = []
        for link in pathlib.Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # that of this listing
                links.append(os.readlink(link))
        found["open"] = sum("filmloop-rows" in link for link in links)
        found["is_the_same_on_each"] = all(torch.equal(one, bits) for one in everyones)
    (out / f"{rank}.json").write_text(json.dumps(found))

main()
os._exit(0)  # As training.entry does.
"""

_END = """
with joined_ranks() as ranks:
    parallel = ranks.wrap(network(), lambda: None)
    backward(parallel, 1.0)
    if ranks.rank == 1:
        time.sleep(0.2)  # The other one waits by then.
        if changed["how"] == "ends":
            os._exit(0)
        time.sleep(3.0)
    begun_s, said = time.monotonic(), ""
    try:
        backward(parallel, 2.0)
    except TransientError as exc:
        said = exc.message
    (out / f"{rank}.json").write_text(json.dumps({"said": said, "after_s": time.monotonic() - begun_s}))
    os._exit(0)  # Nobody is left to part from.
"""


def _ranks(folder: Path, script: str, ranks: int = 2, **changed: Any) -> list[dict[str, Any]]:
    """Run it under torchrun; what each rank found."""
    (folder / "ranks.py").write_text(_BEGINNING + script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*command, str(folder / "ranks.py"), str(folder), json.dumps(changed)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:3000] + done.stderr[-1000:]
    return [json.loads(file.read_text()) for file in sorted(folder.glob("[0-9].json"))]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_of_one_host_average_in_memory_that_they_share(tmp_path: Path, ranks: int) -> None:
    found = _ranks(tmp_path, _AVERAGE, ranks)
    assert len(found) == ranks
    for of_rank in found:
        assert of_rank["are_shared"] == [True, True], "sums and gradients"
        assert of_rank["open"] == 2, "what maps it holds it: one for each"
        assert of_rank["is_the_same_on_each"]
        assert of_rank["sums"] == found[0]["sums"], "to the last bit"
        assert of_rank["sums"] == [pytest.approx([ranks * (ranks + 1) / 2, ranks * n, 0.1 * ranks]) for n in range(4)]
        assert of_rank["long_sum"] == [ranks * number for number in range(40)]
        assert of_rank["worst"] < 1e-6
        assert of_rank["calls"] == [1, 2, 3, 4, 5], "other work is done once in every backward pass"


@pytest.mark.parametrize(
    "changed",
    [
        {"rank": 0, "name": "_new_memory", "value": "lambda size: None"},
        {"rank": 1, "name": "_mapped", "value": "lambda path, size: None"},
        {
            "rank": 1,
            "name": "os",
            "value": "type('os', (), {**vars(os), 'pidfd_open': lambda pid: os.stat('/nowhere')})",
        },
    ],
    ids=["no shared memory", "not for one of them", "an end that nobody would tell"],
)
def test_where_one_rank_cannot_all_average_by_messages(tmp_path: Path, changed: dict[str, Any]) -> None:
    for of_rank in _ranks(tmp_path, _AVERAGE, **changed):
        assert (of_rank["are_shared"], of_rank["open"]) == ([False, False], 0)
        assert of_rank["is_the_same_on_each"]
        assert of_rank["sums"] == [pytest.approx([3.0, 2.0 * number, 0.2]) for number in range(4)]
        assert of_rank["worst"] < 1e-6
        assert of_rank["calls"] == [1, 2, 3, 4, 5]


def test_a_rank_that_ends_is_told_at_once(tmp_path: Path) -> None:
    begun_s = time.monotonic()
    [found] = _ranks(tmp_path, _END, how="ends")
    assert found["said"] == "The ranks lost each other: rank 1 has ended."
    assert found["after_s"] < 10.0
    assert time.monotonic() - begun_s < 60.0


def test_a_rank_that_hangs_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    first, _second = _ranks(
        tmp_path, _END, how="hangs", rank=0, name="TIMEOUT", value="__import__('datetime').timedelta(seconds=1)"
    )
    assert first["said"] == "The ranks lost each other: rank 1 did not come for 1 s."
