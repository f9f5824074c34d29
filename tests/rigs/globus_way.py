"""Something on the way to Globus that answers in its place, as a proxy does that has no way to it."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from rigs.globus_auth import Globus

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
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def way(globus: Globus, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    found = Way()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("http_proxy", found.url)
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()
