"""Runs at the endpoint, sent as text: what the cluster's side says of the folder and of the queue.

Any Python 3.8 or later can run it; it needs nothing else. The queue is asked, never given a job.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import subprocess
import time
from typing import Any


def look(request: dict[str, Any]) -> dict[str, Any]:
    """All answers.

    Args:
        request: `folder`, the cluster's host_path; `file` below it and the `sha256` that it has to have; `queue`, the
            words of a command for the queue, and what it is to be given on standard input, `script`; `options` of a
            training at `endpoint`; `lock`, what to `do` with the lock at a `path` within `wait_s`: `hold` or `try` it.
    """
    return {
        "folder": folder(request["folder"]),
        "file": file(request),
        "queue": queue(request),
        "template": template(request),
        "lock": lock(request["lock"]),
    }


def folder(path: str) -> dict[str, Any]:
    """Whether this account can work in the folder, and how much room there is; '' is none."""
    if not path:
        return {"wrong": ""}
    if not os.path.isdir(path):
        return {"wrong": f"{path} is no folder there", "user": _user()}
    if not os.access(path, os.W_OK | os.X_OK):
        return {"wrong": f"{path} cannot be written by {_user()}", "user": _user()}
    room = os.statvfs(path)
    return {"wrong": "", "user": _user(), "free_bytes": room.f_bavail * room.f_frsize}


def file(request: dict[str, Any]) -> dict[str, Any]:
    """Whether a file that was sent through the collection is the one below the folder, and whose it is."""
    if not request["file"]:
        return {"wrong": "", "owner": ""}
    path = os.path.join(request["folder"], request["file"])
    try:
        with open(path, "rb") as opened:
            found, owner = hashlib.sha256(opened.read()).hexdigest(), _user(os.fstat(opened.fileno()).st_uid)
    except OSError as exc:
        return {"wrong": f"{exc.strerror}: {path}", "owner": ""}
    return {"wrong": "" if found == request["sha256"] else f"{path} has other bytes than were sent", "owner": owner}


def queue(request: dict[str, Any]) -> dict[str, Any]:
    """What the queue says to the command."""
    if not request["queue"]:
        return {"code": 0, "said": ""}
    try:
        done = subprocess.run(
            request["queue"], input=request["script"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=50, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        return {"code": 127, "said": str(exc)}
    return {"code": done.returncode, "said": done.stdout[-2000:]}


def template(request: dict[str, Any]) -> dict[str, Any]:
    """What the endpoint would make of the options of a training, as it does when a job comes; nothing is started."""
    config = _configuration(request["endpoint"])
    if not config or not request["options"]:
        return {"wrong": "", "seen": False}
    try:
        _load(config, request["options"])
    except Exception as exc:
        return {"wrong": getattr(exc, "message", "") or str(exc), "seen": True}
    return {"wrong": "", "seen": True}


def lock(asked: dict[str, Any]) -> dict[str, Any]:
    """Hold a lock until another host has tried it, or try it once another holds it: see `_hold` and `_try`."""
    if not asked.get("path"):
        return {}
    do = {"hold": _hold, "try": _try}[asked["do"]]
    return {"host": socket.gethostname(), **do(asked["path"], time.monotonic() + asked["wait_s"])}


def _hold(path: str, end: float) -> dict[str, Any]:
    """Whether it was `tried` meanwhile, or what is `wrong` with the lock."""
    try:
        with open(path, "a") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                open(path + ".held", "w").close()
            return {"wrong": "", "tried": _comes(path + ".tried", end)}
    except OSError as exc:
        return {"wrong": f"{exc.strerror}: {path}", "errno": exc.errno, "tried": False}


def _try(path: str, end: float) -> dict[str, Any]:
    """Whether the holder was `found`, and the lock `locked` by it."""
    if not _comes(path + ".held", end):
        return {"wrong": "", "found": False, "locked": False}
    try:
        with open(path, "a") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return {"wrong": "", "found": True, "locked": False}
    except BlockingIOError:
        return {"wrong": "", "found": True, "locked": True}
    except OSError as exc:
        return {"wrong": f"{exc.strerror}: {path}", "found": True, "locked": False}
    finally:
        with contextlib.suppress(OSError):
            open(path + ".tried", "w").close()


def _comes(path: str, end: float) -> bool:
    """Whether a file is there in time."""
    while not os.path.exists(path):
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _configuration(endpoint: str) -> str:
    """The folder of an endpoint of this account; '' if it is another's, as a facility's is."""
    root = os.environ.get("GLOBUS_COMPUTE_USER_DIR") or os.path.expanduser("~/.globus_compute")
    for name in sorted(os.listdir(root)) if os.path.isdir(root) else []:
        try:
            with open(os.path.join(root, name, "endpoint.json")) as opened:
                if json.load(opened)["endpoint_id"] == endpoint:
                    return os.path.join(root, name)
        except (OSError, ValueError, KeyError):
            continue
    return ""


def _load(folder: str, options: dict[str, Any]) -> None:
    import pathlib
    import pwd

    from globus_compute_endpoint.endpoint.config import utils
    from globus_compute_endpoint.endpoint.config.config import CoreEndpointConfig
    from globus_compute_endpoint.endpoint.identity_mapper import MappedPosixIdentity

    place = pathlib.Path(folder)
    text = place / "user_config_template.yaml.j2"
    rendered = utils.render_config_user_template(
        CoreEndpointConfig(),
        utils.load_user_config_template(text),
        text,
        MappedPosixIdentity(pwd.getpwuid(os.getuid()), [], None),
        utils.load_user_config_schema(place / "user_config_schema.json"),
        options,
        {},
    )
    engine = getattr(utils.load_config_yaml(rendered), "engine", None)
    if engine is not None:
        engine.shutdown()


def _user(uid: int | None = None) -> str:
    import pwd

    number = os.getuid() if uid is None else uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def program(request: dict[str, Any]) -> str:
    """The text that runs at the endpoint and prints the answers as one line."""
    import inspect
    import sys

    text = inspect.getsource(sys.modules[__name__])
    return f"{text}\n\nprint(json.dumps(look(json.loads({json.dumps(request)!r}))))\n"
