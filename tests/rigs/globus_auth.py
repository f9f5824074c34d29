"""Globus Auth for tests: the emulated services, a site that uses them, and a person at a browser."""

from __future__ import annotations

import json
import re
import tomllib
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from filmloop.adapters.globus.identity import who as identity
from filmloop.config.loader import load_site
from filmloop.config.schema import SiteConfig
from filmloop.testing.globus.hosted import Hosted, hosted

LOCAL = Path(__file__).parents[2] / "site_configs" / "local.toml"
SECRET = "a-secret-that-nobody-may-read"
MAPPED = "22222222-2222-4222-8222-222222222222"
GUEST = "33333333-3333-4333-8333-333333333333"
DATA_ACCESS = f"https://auth.globus.org/scopes/{MAPPED}/data_access"


@dataclass(frozen=True, slots=True, kw_only=True)
class Globus:
    """The services, and clients that no other test uses."""

    hosted: Hosted
    home: Path
    folder: Path
    client_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    weights_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def control(self, action: str, **values: Any) -> Any:
        """One of Auth's own controls: lasts, secret, person, expire, revoke, withdraw, guest."""
        return self.hosted.ask("POST", f"auth/{action}", values)

    def held(self) -> dict[str, Any]:
        """What Auth has given out."""
        return dict(self.hosted.ask("GET", "auth/state"))

    def site_file(self, login: str = "user", *, mapped: bool = True, weights: bool = False, **globus: Any) -> Path:
        """A site whose mover and launcher are Globus'."""
        values = tomllib.loads(LOCAL.read_text())
        identities = {"client_id": self.client_id, "login": login}
        if weights:
            globus["weights"] = {"client_id": self.weights_id, "login": "client"}
        values |= {
            "home": str(self.folder / "state"),
            "globus": identities | globus,
            "mover": {
                "kind": "globus",
                "edge": {"collection": GUEST, "path": "/"},
                "cluster": {"collection": MAPPED, "path": "/filmloop", "host_path": "/lus/filmloop", "mapped": mapped},
            },
            "launcher": {"kind": "globus", "endpoint": str(uuid.uuid4())},
        }
        file = self.folder / "site.json"
        file.write_text(json.dumps(values))
        return file

    def site(self, login: str = "user", **more: Any) -> SiteConfig:
        """The same, read."""
        return load_site(self.site_file(login, **more))

    def tokens_file(self, client_id: str = "") -> Path:
        """Where the SDK keeps the tokens of a client."""
        name = f"{self.hosted.environ['GLOBUS_SDK_ENVIRONMENT']}-tokens.json"
        return self.home / ".globus" / "app" / (client_id or self.client_id) / "filmloop" / name


def leaks(hosted: Hosted, *places: str | Path, also: Iterable[str] = ()) -> list[str]:
    """Where a secret can be read that the services gave out or an application has: `name: beginning of the secret`.

    Args:
        hosted: The services.
        places: Texts, and folders or files to look through.
        also: Secrets of other applications.
    """
    secrets = [SECRET, *also, *hosted.ask("GET", "auth/state")["issued"]]
    texts: dict[str, bytes] = {}
    for i, place in enumerate(places):
        if isinstance(place, str):
            texts[f"text {i}"] = place.encode()
            continue
        for file in (place, *place.rglob("*")):
            if file.is_file():
                texts[str(file)] = file.read_bytes()
    return [f"{name}: {secret[:6]}" for name, text in texts.items() for secret in secrets if secret.encode() in text]


def visit(url: str) -> str:
    """What a person does: follow the address, log in, agree, read the code from the page."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as page:
        text = page.read().decode()
    found = re.search(r"<code>(.*?)</code>", text)
    assert found, text
    return found[1]


@pytest.fixture(scope="session")
def _auth_services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    with hosted(tmp_path_factory.mktemp("globus-auth")) as services:
        yield services


@pytest.fixture
def globus(_auth_services: Hosted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Globus]:
    """The services, with nothing broken; this process and its children speak to them, from a home of their own."""
    home = tmp_path / "person"
    home.mkdir()
    for name, value in (_auth_services.environ | {"HOME": str(home)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FILMLOOP_GLOBUS_SECRET", SECRET)
    monkeypatch.setenv("FILMLOOP_GLOBUS_WEIGHTS_SECRET", SECRET + "-of-weights")
    monkeypatch.setattr(identity, "_site", None)
    monkeypatch.setattr(identity, "_identities", {})
    yield Globus(hosted=_auth_services, home=home, folder=tmp_path)
    _auth_services.reset()
    _auth_services.ask("POST", "auth/lasts", {"seconds": 172_800})
