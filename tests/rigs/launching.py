"""An endpoint that trains: short functions beside the training, with the template of an own endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from filmloop.adapters.globus.launcher import GlobusLauncher
from filmloop.config.globus import GlobusLauncher as LauncherSection
from filmloop.config.globus import GlobusSection
from filmloop.testing.globus.hosted import Hosted
from rigs.broker import Broker
from rigs.endpoint import CLIENT_ID, SECRET, Endpoint, endpoint

TEMPLATE = Path(__file__).parents[2] / "site_configs/endpoints/user_config_template.yaml.j2"
_PULSE: dict[str, Any] = {"heartbeat_period": 5, "idle_heartbeats": 100}
THREADS = {"engine": "threads", "workers": 8, **_PULSE}
CONTROL = {"engine": "control", "workers": 2, **_PULSE}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSite:
    """What a test gets."""

    broker: Broker
    hosted: Hosted
    endpoint: Endpoint

    def launcher(
        self, journal: Path, *, command: Sequence[str] = (), grace_s: float = 0.5, **keys: Any
    ) -> GlobusLauncher:
        """A launcher, as after a restart of its caller; `keys` are the section's."""
        words = {
            "endpoint": self.endpoint.id, "options": THREADS, "control": CONTROL,
            "poll_s": 0.1, "queue_wait_s": 60.0, "silent_s": 30.0, "request_timeout_s": 10.0, **keys,
        }  # fmt: skip
        return GlobusLauncher(
            section=LauncherSection(**words),
            globus=GlobusSection(client_id=CLIENT_ID),
            journal=journal,
            command=command,
            grace_s=grace_s,
        )


@pytest.fixture(scope="session")
def _training_endpoint(_hosted: Hosted) -> Iterator[Endpoint]:
    with endpoint(_hosted, template=TEMPLATE.read_text()) as found:
        yield found


@pytest.fixture
def training(
    _broker: Broker, _hosted: Hosted, _training_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TrainingSite]:
    """Services, a broker and an endpoint that is online; the launcher's identity owns it."""
    for name, value in _training_endpoint.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FILMLOOP_GLOBUS_SECRET", SECRET)
    yield TrainingSite(broker=_broker, hosted=_hosted, endpoint=_training_endpoint)
    _hosted.reset()
    _broker.restore()
    _training_endpoint.restore()
