"""What is made of answers that are none of Globus Compute's: the unmodified SDK, with something else on the way."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator

import pytest

from filmloop.adapters.globus.compute.client import Compute
from filmloop.config.globus import GlobusLauncher as LauncherSection
from filmloop.core.errors import TransientError
from rigs.globus_auth import Globus

ENDPOINT = "0c9a0d5e-8d14-4a6f-9a36-0f5e2f0f1f11"
FUNCTION = "5f0b3c52-6a55-4b64-9a0e-4f7f1f0f1f12"
VERSIONS = json.dumps({"min_sdk_version": "1.0.0", "min_ep_version": "1.0.0"}).encode()


class Way:
    """A proxy between the SDK and the service: it answers all requests by itself, with `status` and `body`."""

    def __init__(self) -> None:
        self.status, self.body, self.asked = 200, b"", list[str]()
        self.then: list[int] = []
        way = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                is_hello = "/v2/version" in self.path
                if not is_hello:
                    way.asked.append(self.path)
                body = VERSIONS if is_hello else way.body
                self.send_response(200 if is_hello else way.then.pop(0) if way.then else way.status)
                self.send_header("Content-Type", "application/json" if is_hello else "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True


@pytest.fixture
def way(globus: Globus, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    found = Way()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{found.server.server_port}")
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


@pytest.fixture
def compute(globus: Globus, way: Way) -> Compute:
    return Compute(LauncherSection(endpoint=ENDPOINT, request_timeout_s=5.0), globus.site("client").globus)


ASKED: dict[str, Callable[[Compute], object]] = {
    "a task": lambda compute: compute.ask("t1"),
    "the endpoint": lambda compute: compute.is_online(),
    "a task group": lambda compute: compute.tasks_of("g1"),
    "a submission": lambda compute: compute.submit(FUNCTION, {"do": "look"}, options={}),
    "a registration": lambda compute: compute.register(),
}


@pytest.mark.parametrize("body", [b"<html>back soon</html>", b"", b"[]", b'{"status": '])
@pytest.mark.parametrize("what", ASKED)
def test_an_answer_that_is_none_of_the_services_may_pass(compute: Compute, way: Way, what: str, body: bytes) -> None:
    way.body = body
    with pytest.raises(TransientError, match="Globus Compute answered what is no answer"):
        ASKED[what](compute)
    assert way.asked


def test_a_token_that_is_refused_at_the_last_repeat_is_renewed_and_used(compute: Compute, way: Way) -> None:
    way.body, way.then = b'{"status": "waiting-for-nodes"}', [503, 401]
    assert compute.ask("t1").state == "pending"
    assert len(way.asked) == 3
