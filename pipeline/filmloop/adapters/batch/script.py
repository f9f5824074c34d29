"""The batch script: directives, environment, then the supervisor takes the shell's place."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from string import Template

from filmloop.adapters.batch.dialect import Dialect
from filmloop.config.launchers import BatchLauncher
from filmloop.core.errors import ConfigError

_SCRIPT = Template("""\
#!/bin/bash$login
$directives

# Written by filmloop for $name; submitted again by hand it does nothing but say so, unless it is the latest attempt.
exec >>$log 2>&1
set -e
$environment
# exec: signals to the batch shell reach the supervisor.
exec $python -m filmloop.adapters.batch.supervise $folder $token $job_variable
""")
START_S = 60.0
"""Between the start of the batch script and the start of the deadline: modules, interpreters on a cold disk."""
_PLAIN = re.compile(r"[A-Za-z0-9_./+=@:,-]+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def time_limit_s(section: BatchLauncher, deadline_s: float) -> float:
    """What the batch system is told: room for the deadline, for the save before the limit, and to start."""
    return section.time_limit_s or deadline_s + section.save_before_s + START_S


def render(dialect: Dialect, section: BatchLauncher, *, folder: Path, name: str, token: str, limit_s: float) -> str:
    """The script of an attempt.

    Raises:
        ConfigError: the path of the run folder, or a variable's name, would not survive the directives or the shell.
    """
    if not _PLAIN.fullmatch(str(folder)):
        raise ConfigError(
            f"{folder} has characters that batch scripts cannot take.",
            hint="Point FILMLOOP_HOME at a path of letters, digits and _ . / + = @ : , -",
            ids={"path": str(folder)},
        )
    if bad := [key for key in section.env if not _NAME.fullmatch(key)]:
        raise ConfigError(f"[launcher.env] {bad[0]!r} is no name of an environment variable.")
    environment = [
        *(f"module load {shlex.quote(name)}" for name in section.modules),
        *section.setup,
        *(f"export {key}={shlex.quote(value)}" for key, value in section.env.items()),
    ]
    return _SCRIPT.substitute(
        # Environment modules are a function of the login shell.
        login=" -l" if section.modules else "",
        directives="\n".join(dialect.directives(name=name, folder=folder, time_limit_s=limit_s)),
        environment="\n".join(environment),
        name=name,
        folder=folder,
        log=folder / "run.log",
        python=shlex.quote(section.python or sys.executable),
        token=token,
        job_variable=dialect.job_variable,
    )
