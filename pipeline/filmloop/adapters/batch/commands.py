"""Running a batch system's commands, with its refusals translated."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from filmloop.core.errors import ConfigError, TransientError


def call(
    command: Sequence[str],
    *,
    timeout_s: float,
    pass_fds: tuple[int, ...] = (),
    environ: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its exit code; `environ` goes on top of this process's environment.

    Raises:
        ConfigError: it is not installed here.
        TransientError: it took longer than `timeout_s`.
    """
    if shutil.which(command[0]) is None:
        raise ConfigError(
            f"{command[0]} is not on the PATH of this machine.",
            hint="Run filmloop where the batch system's commands are: a login node. `filmloop site check` tests them.",
        )
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            pass_fds=pass_fds,
            env={**os.environ, **(environ or {})},
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise TransientError(
            f"{command[0]} did not answer within {timeout_s:.0f} s.",
            hint="The batch system is slow or away; the next call goes on.",
        ) from exc


def refusal(done: subprocess.CompletedProcess[str], *, passing: Sequence[str]) -> ConfigError | TransientError:
    """The error that a failed command means: one of `passing` in its words passes by itself, the rest does not."""
    said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}, without a word"
    text = f"{done.args[0]}: {said}"
    if any(words in said.lower() for words in passing):
        return TransientError(text, hint="The batch system is away or full; the next call goes on.")
    return ConfigError(text, hint="Mend [launcher] in the site file; `filmloop site check` asks again.")
