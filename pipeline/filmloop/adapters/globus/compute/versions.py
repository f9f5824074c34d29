"""Whether this side and the endpoint can work together: versions on both, compared before the first job."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass

from filmloop import __version__
from filmloop.core.errors import ConfigError

PROBE = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version(), "executable": sys.executable}
for name in ("torch", "zarr", "safetensors", "pydantic", "dill", "parsl", "globus-compute-endpoint"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = ""
try:
    import filmloop
    found["filmloop"] = filmloop.__version__
except Exception as exc:
    found.update(filmloop="", why=repr(exc))
print(json.dumps(found))
"""
"""Runs in the interpreter that is to train; any Python 3.8 or later can."""

_PYTHON = (3, 11)
_TORCH = (2, 9)
_NEEDED = ("torch", "zarr", "safetensors")


def here() -> dict[str, str]:
    """Versions on this side."""
    names = ("dill", "globus-compute-sdk", "globus-sdk")
    return {
        "python": platform.python_version(),
        "filmloop": __version__,
        **{name: importlib.metadata.version(name) for name in names},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What two sides make of each other.

    Attributes:
        problems: What cannot work, each with what to do about it.
        notes: Differences that are no problem here: the function travels as text, its arguments and results as JSON.
    """

    problems: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def raise_problems(self) -> None:
        """Raise the problems, if there are any.

        Raises:
            ConfigError: the two sides cannot work together.
        """
        if self.problems:
            raise ConfigError(
                "The endpoint cannot train: " + " ".join(text for text, _ in self.problems),
                hint=" ".join(dict.fromkeys(hint for _, hint in self.problems)),
            )


def compare(ours: Mapping[str, str], worker: Mapping[str, str], training: Mapping[str, str]) -> Comparison:
    """Compare.

    Args:
        ours: Versions on this side: `here()`.
        worker: Those of the process at the endpoint that the function runs in.
        training: Those of the interpreter that is to train, as `PROBE` prints them.
    """
    problems = [*_of_training(ours, training)]
    sdk, endpoint = ours.get("globus-compute-sdk", ""), worker.get("globus-compute-endpoint", "")
    if sdk and endpoint and _parts(sdk)[:1] != _parts(endpoint)[:1]:
        problems.append(
            (
                f"Its globus-compute-endpoint is {endpoint}, globus-compute-sdk here is {sdk}.",
                "Both sides need the same major version of Globus Compute.",
            )
        )
    notes = [
        f"{name} is {theirs} at the endpoint and {mine} here"
        for name, mine, theirs in (
            ("Python", _minor(ours.get("python", "")), _minor(worker.get("python", ""))),
            ("dill", ours.get("dill", ""), worker.get("dill", "")),
        )
        if theirs and theirs != mine
    ]
    if training.get("parsl") and worker.get("parsl") and training["parsl"] != worker["parsl"]:
        # parsl's interchange turns managers of another version away, and starts them again and again.
        notes.append(
            f"parsl is {training['parsl']} in {training.get('executable')} and {worker['parsl']} in the endpoint: "
            "workers of that environment would be turned away"
        )
    return Comparison(problems=tuple(problems), notes=tuple(notes))


def _of_training(ours: Mapping[str, str], training: Mapping[str, str]) -> list[tuple[str, str]]:
    where = training.get("executable", "its Python")
    install = (
        f"pip install 'filmloop[hpc]=={ours['filmloop']}' into an environment at the endpoint and name its python in "
        "[launcher] python."
    )
    python = training.get("python", "")
    if python and _parts(python) < _PYTHON:
        return [(f"{where} is Python {python}, filmloop needs 3.11.", install)]
    if not training.get("filmloop"):
        return [(f"{where} has no filmloop ({training.get('why', '')}).", install)]
    found = []
    if _minor(training["filmloop"]) != _minor(ours["filmloop"]):
        found.append((f"{where} has filmloop {training['filmloop']}, here it is {ours['filmloop']}.", install))
    if missing := [name for name in _NEEDED if not training.get(name)]:
        found.append((f"{where} has no {', no '.join(missing)}.", install))
    elif _parts(training["torch"]) < _TORCH:
        found.append((f"{where} has torch {training['torch']}, filmloop needs 2.9.", install))
    return found


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _parts(version: str) -> tuple[int, ...]:
    """Leading numbers of a version: (2, 13, 0) of `2.13.0+cpu`."""
    parts = []
    for word in version.partition("+")[0].split("."):
        digits = word[: len(word) - len(word.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)
