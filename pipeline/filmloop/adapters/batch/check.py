"""Whether training could be submitted from here: what `filmloop site check` says about a batch launcher."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filmloop.adapters.batch.dialect import Dialect
from filmloop.adapters.batch.script import render, time_limit_s
from filmloop.config.launchers import BatchLauncher
from filmloop.core.counted import counted
from filmloop.core.errors import FilmloopError, TransientError
from filmloop.core.finding import Finding

_ONE_MACHINE = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "ramfs", "overlay")
_IMPORT_S = 120.0
_IMPORTS = "import filmloop, torch, zarr; print(f'filmloop {filmloop.__version__}, torch {torch.__version__}')"


def _finding(item: str, detail: str, hint: str = "", *, fatal: bool = True) -> Finding:
    return Finding(item=item, state="ok" if not hint else "fail" if fatal else "warn", detail=detail, hint=hint)


def check_batch(dialect: Dialect, section: BatchLauncher, *, runs: Path, deadline_s: float) -> Iterator[Finding]:
    """Yield what was found, cheap things first; `runs` is where run folders will lie."""
    yield _keys(section)
    yield _commands(dialect)
    yield _folder(runs, section)
    yield _python(section)
    if all(shutil.which(name) for name in dialect.commands):
        yield _asked(dialect, section, runs, deadline_s)


def _keys(section: BatchLauncher) -> Finding:
    missing = [key for key in section.needs if not getattr(section, key, "")]
    if missing:
        return _finding(
            "job keys",
            f"[launcher] {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} empty",
            hint=f"This site's queues refuse a job without. Set {', '.join(missing)} in [launcher] of the site file.",
        )
    return _finding(
        "job keys",
        f"{counted(section.nodes, 'node')} of {counted(section.processes_per_node, 'rank')}, "
        f"account {section.account or 'left to the batch system'}",
    )


def _commands(dialect: Dialect) -> Finding:
    missing = [name for name in dialect.commands if shutil.which(name) is None]
    if missing:
        return _finding(
            "job commands",
            f"not on the PATH: {', '.join(missing)}",
            hint=f"Run filmloop on a machine that submits to {dialect.name}, such as a login node of the cluster.",
        )
    return _finding("job commands", f"{dialect.name}: {', '.join(dialect.commands)}")


def _folder(runs: Path, section: BatchLauncher) -> Finding:
    existing = next(path for path in (runs, *runs.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return _finding(
            "run folder",
            f"{existing} is not writable",
            hint="Set home in the site file, or FILMLOOP_HOME, to a folder on the cluster's file system.",
        )
    kind = _file_system(existing)
    if kind in _ONE_MACHINE:
        return _finding(
            "run folder",
            f"{runs} lies on {kind}, which other machines do not see",
            hint="Set home in the site file, or FILMLOOP_HOME, to a folder that this machine and all nodes share.",
            fatal=False,
        )
    return _finding(
        "run folder",
        f"{runs} on {kind}; {'the node has' if section.nodes == 1 else f'{section.nodes} nodes have'} to see it under this path",
    )


def _file_system(path: Path) -> str:
    """Type of the file system below `path`, of /proc/mounts; '' if unknown."""
    best, kind = "", ""
    for line in Path("/proc/mounts").read_text(errors="replace").splitlines():
        _, mount, found, *_ = line.split(" ")
        inside = path == Path(mount) or Path(mount) in path.resolve().parents
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def _python(section: BatchLauncher) -> Finding:
    python = section.python or sys.executable
    hint = (
        "Make a virtual environment on the cluster, pip install 'filmloop[hpc]' there, and set [launcher] python to it."
    )
    if shutil.which(python) is None:
        return _finding("job python", f"{python} is not there, or not executable", hint=hint)
    try:
        done = subprocess.run([python, "-c", _IMPORTS], capture_output=True, text=True, timeout=_IMPORT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return _finding("job python", f"{python}: {exc}", hint=hint)
    if done.returncode != 0:
        said = done.stderr.strip().rpartition("\n")[2]
        # Modules of the site may be what is missing here: the job loads them first.
        return _finding("job python", f"{python}: {said}", hint=hint, fatal=not (section.modules or section.setup))
    return _finding("job python", f"{python}: {done.stdout.strip()}")


def _asked(dialect: Dialect, section: BatchLauncher, runs: Path, deadline_s: float) -> Finding:
    """Have the batch system judge the very script, where it can; nothing is submitted."""
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch, "batch.sh")
        try:
            limit_s = time_limit_s(section, deadline_s)
            script.write_text(
                render(dialect, section, folder=runs / "check", name="fl-check", token="check", limit_s=limit_s)
            )
            said = dialect.test(script)
        except TransientError as exc:
            return _finding("job queue", exc.message, hint=exc.hint, fatal=False)
        except FilmloopError as exc:
            return _finding("job queue", exc.message, hint=exc.hint)
    return _finding("job queue", said or f"{dialect.name} cannot be asked without submitting")
