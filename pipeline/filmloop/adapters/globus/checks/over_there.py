"""Runs at the endpoint, sent as text: what the cluster's side says of the folder and of the queue.

Any Python 3.8 or later can run it; it needs nothing else. The queue is asked, never given a job.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from typing import Any


def look(request: dict[str, Any]) -> dict[str, Any]:
    """All answers.

    Args:
        request: `folder`, the cluster's host_path; `file` below it and the `sha256` that it has to have; `queue`, the
            words of a command for the queue, and what it is to be given on standard input, `script`; `options` of a
            training at `endpoint`.
    """
    return {
        "folder": folder(request["folder"]),
        "file": file(request),
        "queue": queue(request),
        "template": template(request),
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
