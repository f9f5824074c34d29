"""No secret in logs, state, representations, tracebacks or core dumps."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from filmloop.adapters.globus.identity.login import log_in
from rigs.globus_auth import SECRET, Globus, leaks, visit

DAY = """
import gc, logging, sys, traceback
from pathlib import Path
import globus_sdk
from globus_sdk.transport import RetryConfig
from rigs.globus_auth import visit
from filmloop.adapters.globus.identity.auth import open_app
from filmloop.adapters.globus.errors import globus_errors
from filmloop.adapters.globus.identity.login import log_in, log_out, who_is
from filmloop.config.loader import load_site
from filmloop.core.errors import FilmloopError
from filmloop.testing.globus.hosted import Hosted

logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
hosted, site = Hosted(url=sys.argv[1], state=Path(".")), load_site(Path(sys.argv[2]))
retry = RetryConfig(max_retries=2, max_sleep=0.1)

def tell(call):
    try:
        print("works", call())
    except FilmloopError as exc:
        print("".join(traceback.TracebackException.from_exception(exc, capture_locals=True).format()))
        print(repr(exc), str(exc), exc.as_dict(), repr(exc.__cause__), str(exc.__cause__))

def ask():
    with globus_errors("Asking"):
        return client.get_endpoints().data

tell(lambda: log_in(site, "data", ask=visit))
app = open_app(site.globus)
client = globus_sdk.ComputeClientV2(app=app, base_url=hosted.url, retry_config=retry)
tell(ask)
hosted.ask("POST", "auth/expire", {})
tell(ask)
hosted.fault("cut", times=5)
tell(ask)
hosted.clear_faults()
hosted.fault("refuse", status=403, code="PermissionDenied", match={"route": "GET /v2/endpoints"})
tell(ask)
tell(lambda: who_is(site, "data"))
hosted.ask("POST", "auth/revoke", {})
hosted.ask("POST", "auth/expire", {})
tell(ask)
tell(lambda: who_is(site, "data"))
for thing in gc.get_objects():
    module = str(type(thing).__module__)
    if module.startswith("filmloop") or isinstance(thing, (globus_sdk.GlobusApp, globus_sdk.BaseClient)):
        print(repr(thing))
print(repr(vars(site)), "the day is over")
"""

CRASH = """
import os, resource, sys
from pathlib import Path
import globus_sdk
from filmloop.adapters.globus.identity.auth import open_app
from filmloop.bootstrap import open_site
from filmloop.config.loader import load_site

secret = os.environ["FILMLOOP_GLOBUS_SECRET"]
if sys.argv[2] == "ours":
    app = open_app(load_site(Path(sys.argv[1])).globus)
if sys.argv[2] == "child":
    open_site(Path(sys.argv[1]))
    os.execv(sys.executable, [sys.executable, "-c", "import os; os.abort()"])
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
os.abort()
"""


@pytest.mark.parametrize("login", ["client", "user"])
def test_a_day_with_everything_that_goes_wrong_tells_no_secret(globus: Globus, login: str) -> None:
    site = globus.site_file(login)
    done = subprocess.run(
        [sys.executable, "-c", DAY, globus.hosted.url, str(site)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "the day is over" in done.stdout, done.stdout[-2000:] + done.stderr
    for seen in ("DEBUG:globus_sdk", "works", "cannot be reached", "PermissionDenied", "self ="):
        assert seen in done.stdout, seen
    assert ("invalid_grant" in done.stdout) == (login == "user")
    assert len(globus.held()["issued"]) > 5
    assert leaks(globus.hosted, done.stdout, done.stderr, globus.folder / "state") == []


def test_the_commands_tell_no_secret_and_keep_none_in_the_state_folder(globus: Globus) -> None:
    site = globus.site()
    log_in(site, "data", ask=visit)
    told = [
        subprocess.run(
            [sys.executable, "-m", "filmloop.cli", command, "--site", str(globus.folder / "site.json"), "--json"],
            env=os.environ | {"FILMLOOP_LOG": "debug"}, capture_output=True, text=True, timeout=60,
        )
        for command in ("whoami", "status", "logout")
    ]  # fmt: skip
    assert [done.returncode for done in told][0::2] == [0, 0], told
    assert leaks(globus.hosted, *[done.stdout + done.stderr for done in told], globus.folder) == []


def test_the_file_of_tokens_is_the_one_place_where_they_are(globus: Globus) -> None:
    log_in(globus.site(), "data", ask=visit)
    places = {found.partition(": ")[0] for found in leaks(globus.hosted, globus.folder)}
    assert places == {str(globus.tokens_file())}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="core dumps as Linux writes them")
def test_a_process_that_holds_the_secret_leaves_no_core_dump_nor_do_its_children(
    globus: Globus, tmp_path: Path
) -> None:
    site = globus.site_file("client")

    def crash(whose: str) -> tuple[bool, list[bytes]]:
        folder = tmp_path / whose
        folder.mkdir()
        done = subprocess.Popen(
            [sys.executable, "-c", CRASH, str(site), whose], cwd=folder, preexec_fn=_as_large_as_may_be
        )
        _pid, status = os.waitpid(done.pid, 0)
        done.returncode = status
        assert os.WIFSIGNALED(status)
        return os.WCOREDUMP(status), [file.read_bytes() for file in folder.iterdir()]

    dumped, files = crash("bare")
    if not dumped:
        pytest.skip("CORE DUMPS NOT TESTED: this machine writes none")
    assert not files or any(SECRET.encode() in data for data in files)
    assert crash("ours") == (False, [])
    assert crash("child") == (False, [])


def _as_large_as_may_be() -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
