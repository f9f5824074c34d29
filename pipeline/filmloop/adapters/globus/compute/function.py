"""The function that Globus Compute carries to the endpoint, by its source: it needs nothing there but Python itself.

The SDK takes the text of `run` alone, so all imports are inside, and no name of this module is used in it.
"""

from typing import Any


def run(request: "dict[str, Any]") -> "dict[str, Any]":
    """Start filmloop's own program at the endpoint, hand it the request, give its answer back.

    The program gets a session of its own. It is told this process's id and dies with it: see `task`. A function that
    raises loses its class on the way home, so nothing is raised.

    Args:
        request: `do`, `python`, `patience_s` and what the program wants. For `do = "versions"` the program is `probe`,
            which needs no filmloop there.

    Returns:
        `answer` of the program, or why there is `none`, its `exit_code` and what it `said`; and about this `worker`.
    """
    import importlib.metadata
    import json
    import os
    import platform
    import signal
    import socket
    import subprocess
    import sys

    worker = {"python": platform.python_version(), "executable": sys.executable, "host": socket.gethostname()}
    for name in ("dill", "parsl", "globus-compute-endpoint", "globus-compute-sdk"):
        try:
            worker[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            worker[name] = ""
    python = request["python"] or sys.executable
    if request["do"] == "versions":
        program = [python, "-c", request["probe"]]
    else:
        program = [python, "-m", "filmloop.adapters.globus.compute.task", str(os.getpid())]
    try:
        process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # `-m` would look into the worker's folder first, which is anybody's.
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
    except OSError as exc:
        return {"none": f"{python} cannot be started: {exc}", "exit_code": 127, "said": "", "worker": worker}
    none = ""
    try:
        out, err = process.communicate(json.dumps(request).encode(), timeout=request["patience_s"])
    except subprocess.TimeoutExpired:
        none = f"no answer within {request['patience_s']:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if none:
        out, err = process.communicate()
    last = out.decode(errors="replace").strip().rpartition("\n")[2]
    if not none and len(last) > 1000000:
        none = f"an answer of {len(last)} characters"
    try:
        answer = json.loads(last) if not none else None
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return {"answer": answer, "worker": worker}
    said = err.decode(errors="replace").strip()[-2000:]
    return {
        "none": none or f"no answer, exit code {process.returncode}",
        "exit_code": process.returncode,
        "said": said,
        "worker": worker,
    }
