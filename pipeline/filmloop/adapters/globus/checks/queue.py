"""How a queue is asked whether it would take a job, without giving it one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Options = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A command for the endpoint's host, and its standard input."""

    words: tuple[str, ...]
    script: str = ""


def question_for(options: Options) -> Question | None:
    """What to ask for these options of our own template; None for others, and where nothing is queued."""
    if options.get("engine") == "slurm":
        return _slurm(options)
    if options.get("engine") == "pbs":
        return Question(words=("qstat", "-Q", "-f", str(options.get("queue", ""))))
    return None


def judge(options: Options, code: int, said: str) -> tuple[bool, str]:
    """Whether the queue would take the job, and its own words."""
    words = " ".join(said.split())[-400:]
    if code == 127:
        return False, f"the endpoint's host has no such command: {words}"
    if code != 0:
        return False, words or f"exit code {code}"
    if options.get("engine") == "pbs":
        return _pbs(options, said)
    return True, words


def _slurm(options: Options) -> Question:
    lines = [
        f"#SBATCH --{name}={options[key]}"
        for key, name in (
            ("account", "account"), ("qos", "qos"), ("partition", "partition"), ("constraint", "constraint"),
            ("gpus_per_node", "gpus-per-node"), ("cpus_per_node", "cpus-per-task"), ("nodes_per_block", "nodes"),
            ("walltime", "time"),
        )
        if options.get(key)
    ]  # fmt: skip
    if options.get("exclusive", True):
        lines.append("#SBATCH --exclusive")
    more = str(options.get("scheduler_options", ""))
    script = "\n".join(("#!/bin/bash", *lines, "#SBATCH --ntasks-per-node=1", more, "exit 0", ""))
    return Question(words=("sbatch", "--test-only"), script=script)


def _pbs(options: Options, said: str) -> tuple[bool, str]:
    """A queue by its attributes; PBS judges accounts when it is given a job, and not before."""
    found = dict(re.findall(r"^\s*([\w.]+) = (.*)$", said, re.MULTILINE))
    for key in ("enabled", "started"):
        if found.get(key, "True") != "True":
            return False, f"queue {options.get('queue')}: {key} = {found[key]}"
    for resource, key, unset, size in (
        ("walltime", "walltime", "0", _seconds),
        ("nodect", "nodes_per_block", "1", int),
    ):
        wanted = str(options.get(key, unset))
        least, most = (found.get(f"resources_{bound}.{resource}", wanted).strip() for bound in ("min", "max"))
        if not size(least) <= size(wanted) <= size(most):
            limit = f"at least {least}" if size(wanted) < size(least) else f"at most {most}"
            return False, f"queue {options.get('queue')} takes {key} of {limit}, [launcher.options] says {wanted}"
    return True, f"queue {options.get('queue')} takes such jobs; the account shows with the first one"


def _seconds(text: str) -> int:
    """Of HH:MM:SS; PBS also prints seconds alone."""
    seconds = 0
    for part in text.split(":"):
        seconds = 60 * seconds + int(part)
    return seconds
