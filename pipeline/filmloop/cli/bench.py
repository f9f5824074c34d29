"""`filmloop bench`: what this machine does, each figure beside a named peer in the same run."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from filmloop.cli.options import AsJson
from filmloop.cli.output import err, out, print_line, set_up_logs
from filmloop.core.errors import ConfigError

app = typer.Typer(
    help="Measure this machine beside named peers; see benchmarks/results for ours.", no_args_is_help=True
)

Quick = Annotated[bool, typer.Option("--quick", help="Seconds, to see that it works; its numbers mean nothing.")]
Folder = Annotated[
    Path | None, typer.Option("--folder", help="Where to write: a disk, not a tmpfs. Default: the system's temp.")
]
Seconds = Annotated[float, typer.Option(help="How long to measure.", min=0.1)]


@app.command()
def edge(
    seconds: Seconds = 60.0,
    runtime: Annotated[str, typer.Option(help="A value of edge.runtime.")] = "auto",
    ring_mb: Annotated[float, typer.Option(help="The value of edge.ring_mb.", min=1.0)] = 128.0,
    folder: Folder = None,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """Source, inference and staging at full speed; nothing may be lost."""
    from filmloop.bench import edge as bench

    def measure(where: Path) -> dict[str, Any]:
        return bench.measure(3.0 if quick else seconds, where, runtime=runtime, ring_mb=ring_mb)

    _report("edge", measure, folder, quick, json)


@app.command()
def latency(seconds: Seconds = 15.0, folder: Folder = None, quick: Quick = False, json: AsJson = False) -> None:
    """From a frame's arrival to its result, at 1,000, 10,000 and 50,000 frames a second."""
    from filmloop.bench import latency as bench

    _report("latency", lambda where: bench.measure(0.5 if quick else seconds, where), folder, quick, json)


@app.command()
def swap(
    swaps: Annotated[int, typer.Option(help="How many.", min=1)] = 1000,
    rate_hz: Annotated[
        float, typer.Option(help="Frames a second meanwhile; 0 is as fast as it can.", min=0)
    ] = 100_000.0,
    folder: Folder = None,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """Swaps of the weights while frames come: lost, mixed, and what the latency notices."""
    from filmloop.bench import swap as bench

    _report("swap", lambda where: bench.measure(10 if quick else swaps, where, rate_hz=rate_hz), folder, quick, json)


@app.command()
def soak(
    seconds: Seconds = 600.0,
    rate_hz: Annotated[
        float, typer.Option(help="Frames a second: some 80 % of what `bench edge` says.", min=0)
    ] = 150_000.0,
    folder: Folder = None,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """Minutes at a steady rate: nothing lost, no memory that grows."""
    from filmloop.bench import soak as bench

    _report("soak", lambda where: bench.measure(4.0 if quick else seconds, where, rate_hz=rate_hz), folder, quick, json)


@app.command()
def stage(
    rounds: Annotated[int, typer.Option(help="How often each writer writes.", min=1)] = 9,
    frames: Annotated[int, typer.Option(help="Frames of a shard.", min=1)] = 131072,
    folder: Folder = None,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """Sealing shards, beside zarr-python, tensorstore and h5py with the same codec."""
    from filmloop.bench import stage as bench

    size = (1, 4096) if quick else (rounds, frames)
    _report("stage", lambda where: bench.measure(*size, where), folder, quick, json)


@app.command()
def sources(seconds: Seconds = 5.0, quick: Quick = False, json: AsJson = False) -> None:
    """Every kind of source, beside the bare library that it is built on."""
    from filmloop.bench import sources as bench

    _report("sources", lambda _: bench.measure(0.3 if quick else seconds), None, quick, json)


@app.command()
def inference(
    model: Annotated[str, typer.Option(help="mixer, unrolled or cookienet.")] = "mixer",
    seconds: Seconds = 60.0,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """Every runtime that this machine has, beside ONNX Runtime and eager PyTorch."""
    from filmloop.bench import inference as bench

    _report("inference", lambda _: bench.measure(model, 2.0 if quick else seconds), None, quick, json)


@app.command()
def warmstart(
    seeds: Annotated[int, typer.Option(help="Of frames, weights and batches.", min=1)] = 5,
    steps: Annotated[int, typer.Option(help="Of the longest plan from scratch.", min=1)] = 8000,
    frames: Annotated[int, typer.Option(help="Of each of the five conditions.", min=256)] = 8192,
    folder: Folder = None,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """Steps that the right ancestor saves against converged scratch, and a return without training."""
    from filmloop.bench import warmstart as bench

    size = (1, 16, 2048) if quick else (seeds, steps, frames)
    _report("warmstart", lambda where: bench.measure(*size, where), folder, quick, json)


@app.command()
def cycle(
    warm: Annotated[int, typer.Option(help="Warm cycles; the median counts.", min=1)] = 3,
    folder: Folder = None,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """What a cycle costs beside its training, cold and warm, and how long a drift hurts."""
    from filmloop.bench import cycle as bench

    def measure(where: Path) -> dict[str, Any]:
        return bench.measure(where, warm=1 if quick else warm, quick=quick)

    _report("cycle", measure, folder, quick, json, packages=bench.PACKAGES)


@app.command()
def drift(
    seeds: Annotated[int, typer.Option(help="Seeds of the simulator, each with its own reference.", min=1)] = 5,
    quiet_windows: Annotated[int, typer.Option(help="Windows without a drift, over all seeds.", min=1)] = 1000,
    steps: Annotated[int, typer.Option(help="Training steps of the network that is watched.", min=1)] = 600,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """How soon a drift is seen and named, how often there is an alarm without one, what gain correction brings back."""
    from filmloop.bench import drift as bench

    seeds, quiet_windows, steps = (1, 5, 20) if quick else (seeds, quiet_windows, steps)

    def measure(_: Path) -> dict[str, Any]:
        return bench.measure(seeds=seeds, quiet_windows=quiet_windows, steps=steps)

    _report("drift", measure, None, quick, json)


@app.command()
def train(
    model: Annotated[str, typer.Option(help="A catalog name.")] = "mixer",
    rounds: Annotated[int, typer.Option(help="How often with one and with two processes.", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="Steps of each.", min=1)] = 500,
    folder: Folder = None,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """Training with one process and with two, its step in parts, and how long it waits for frames."""
    from filmloop.bench import train as bench

    size = (1, 40, 0.2) if quick else (rounds, steps, 5.0)
    frames = 2000 if quick else bench.EPOCH_FRAMES
    _report("train", lambda where: bench.measure(model, *size, where, frames=frames), folder, quick, json)


@app.command()
def model(
    name: Annotated[str, typer.Option(help="Catalog name of the network.")] = "unrolled",
    steps: Annotated[
        int, typer.Option(help="Training steps of the network; the mixer has ten times as many.", min=1)
    ] = 150,
    frames: Annotated[int, typer.Option(help="Frames to train on.", min=500)] = 10_000,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """A network against mixer, Gaussian and pursuit on simulated frames: trained without labels, scored on the truth."""
    from filmloop.bench import model as bench

    size, test_frames = ((2, 500), 24) if quick else ((steps, frames), 1000)
    _report("model", lambda where: bench.measure(name, *size, where, test_frames=test_frames), None, quick, json)


@app.command()
def globus(
    shards: Annotated[int, typer.Option(help="New shards of a cycle.", min=1)] = 12,
    cycles: Annotated[int, typer.Option(help="Their mean counts.", min=1)] = 3,
    poll_s: Annotated[float, typer.Option(help="How often a task is looked at.", min=0.01)] = 0.5,
    folder: Folder = None,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """Requests, bytes and tasks of a cycle at Globus Transfer, emulated, beside one task for each file."""
    from filmloop.bench import globus as bench

    def measure(where: Path) -> dict[str, Any]:
        size = (1, 1, 0.05) if quick else (shards, cycles, poll_s)
        return bench.measure(where, shards=size[0], cycles=size[1], poll_s=size[2])

    _report("globus", measure, folder, quick, json, packages=bench.PACKAGES)


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    try:
        made = tempfile.TemporaryDirectory(prefix="filmloop-bench-", dir=folder)
    except OSError as exc:
        raise ConfigError(
            f"Nothing can be written to {folder or tempfile.gettempdir()}: {os.strerror(exc.errno or 0).lower()}.",
            hint="Name a folder on a local disk that you may write with --folder.",
        ) from exc
    with made as name:
        yield Path(name)


def _report(
    benchmark: str,
    measure: Callable[[Path], dict[str, Any]],
    folder: Path | None,
    quick: bool,
    json: bool,
    packages: Sequence[str] | None = None,
) -> None:
    """Measure, and print one JSON line, or the same for people."""
    from filmloop.bench.report import PACKAGES, Machine

    set_up_logs(quiet=True)
    machine = Machine()
    if not json:
        err.print(f"measuring {benchmark}; quiet the machine meanwhile", markup=False)
    try:
        with _scratch(folder) as where:
            values = measure(where)
    except ImportError as exc:
        raise ConfigError(
            f"A peer of this benchmark is not installed: {exc}.", hint="pip install -c constraints.txt -e '.[bench]'"
        ) from exc
    command = shlex.join(["filmloop", *sys.argv[1:]])
    line = machine.report(benchmark, values, command=command, quick=quick, packages=packages or PACKAGES)
    if json:
        print_line(line)
        return
    for name, value in _flat(line):
        out.print(f"{name:<36} {value}", markup=False)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, item in enumerate(value):
                yield from _flat(item, f"{prefix}{name}.{number}.")
        else:
            yield f"{prefix}{name}", value
