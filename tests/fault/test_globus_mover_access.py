"""The Globus mover when tokens end, consents are withdrawn and doors are shut: it says what a person must do, and goes on."""

from __future__ import annotations

import json
import tomllib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from filmloop.adapters.globus.identity import who as identity
from filmloop.adapters.globus.identity.login import log_in
from filmloop.adapters.globus.transfer.mover import GlobusMover
from filmloop.config.globus import GlobusSection
from filmloop.config.loader import load_site
from filmloop.config.schema import SiteConfig
from filmloop.core.errors import AuthError
from filmloop.testing.contracts.mover import ended
from filmloop.testing.globus.transfer import rig as transfer
from rigs.globus_auth import visit
from rigs.globus_faults import GET_TASK, Scenario, resume
from rigs.globus_mover import GlobusRig, GlobusSite, globus_rig

LOCAL = Path(__file__).parents[2] / "site_configs" / "local.toml"
POLICY = "44444444-4444-4444-8444-444444444444"
DOMAIN = "facility.example"
TOKEN = "POST /v2/oauth2/token"
HALFWAY = {"number": 1}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlobusRig]:
    with globus_rig(tmp_path_factory.mktemp("globus")) as found:
        yield found


@pytest.fixture
def application(rig: GlobusRig, tmp_path: Path, record_property: Callable[[str, object], None]) -> Iterator[Scenario]:
    """A move of an application between guest collections."""
    record_property("scenario", "Globus mover")
    rig.hosted.reset()
    with rig.site(tmp_path) as site:
        yield Scenario(site=site)
    rig.hosted.reset()


class Person(Scenario):
    """A move of a person who has logged in, to a mapped collection."""

    @property
    def config(self) -> SiteConfig:
        """The site, as `filmloop login` reads it."""
        values = tomllib.loads(LOCAL.read_text())
        values["globus"] = self.site.globus.model_dump(mode="json")
        values["mover"] = self.site.section.model_dump(mode="json")
        file = self.site.journal.parent / "site.json"
        file.write_text(json.dumps(values))
        return load_site(file)

    def log_in(self) -> None:
        """Do what `filmloop login` does."""
        assert log_in(self.config, "data", ask=visit).missing == ()

    def wants(self, **what: Any) -> None:
        """Change what the cluster's collection asks for."""
        storage = self.site.cluster.parents[1]
        transfer.serve(self.hosted, storage, collection=self.site.section.cluster.collection, **what)

    def halfway(self, mover: GlobusMover) -> dict[str, Any]:
        """Begin, and come back when the first of the files is across; the task that waits then."""
        self.fault("paused", match=HALFWAY)
        self.start(mover)
        self.until("paused")
        self.wait(lambda: bool(self.site.tasks()[0]["is_paused"]), "the pause")
        return self.site.tasks()[0]


@pytest.fixture
def person(
    rig: GlobusRig, tmp_path: Path, record_property: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Person]:
    record_property("scenario", "Globus mover")
    monkeypatch.setattr(identity, "_site", None)
    monkeypatch.setattr(identity, "_identities", {})
    rig.hosted.reset()
    globus = GlobusSection(client_id=str(uuid.uuid4()), login="user")
    with rig.site(tmp_path, globus=globus) as site:
        _map_cluster(site)
        found = Person(site=site)
        found.wants(kind="mapped")
        found.log_in()
        yield found
    rig.hosted.reset()


def _map_cluster(site: GlobusSite) -> None:
    mapped = site.section.cluster.model_copy(update={"mapped": True})
    site.section = site.section.model_copy(update={"cluster": mapped})


def refused(scenario: Scenario, mover: GlobusMover, match: str) -> AuthError:
    """What the mover says instead of an end."""
    with pytest.raises(AuthError, match=match) as caught:
        ended(mover, scenario.key)
    return caught.value


def test_a_token_that_ends_in_mid_poll_is_renewed_by_an_application(application: Scenario) -> None:
    application.fault("paused", match=HALFWAY)
    mover = application.site.make()
    handle = application.start(mover)
    application.until("paused")
    before = application.hosted.counts()[TOKEN]
    application.hosted.ask("POST", "auth/expire", {})
    application.wait(lambda: application.hosted.counts()[TOKEN] > before, "a new token")
    resume(application, application.site.tasks()[0], is_paused=False)
    assert ended(mover, handle).state == "succeeded"
    assert 401 in {line["status"] for line in application.hosted.log()}
    application.check()


def test_a_token_that_is_refused_again_and_again_is_an_error_with_a_way_out(application: Scenario) -> None:
    application.fault("expired", times=-1, match=GET_TASK)
    mover = application.site.make()
    application.start(mover)
    refused(application, mover, "401")
    assert application.fired("expired") >= 2
    application.hosted.clear_faults()
    assert application.run(mover).state == "succeeded"
    application.check()


def test_a_persons_token_that_ends_in_mid_poll_is_renewed(person: Person) -> None:
    mover = person.site.make()
    task = person.halfway(mover)
    before = person.hosted.counts()[TOKEN]
    person.hosted.ask("POST", "auth/expire", {})
    person.wait(lambda: person.hosted.counts()[TOKEN] > before, "a new token")
    resume(person, task, is_paused=False)
    assert ended(mover, person.key).state == "succeeded"
    person.check()


def test_a_refresh_token_that_was_revoked_asks_for_a_login_and_the_same_task_goes_on(person: Person) -> None:
    mover = person.site.make()
    task = person.halfway(mover)
    person.hosted.ask("POST", "auth/revoke", {})
    person.hosted.ask("POST", "auth/expire", {})
    said = refused(person, mover, "400")
    assert "filmloop login" in said.hint
    assert 401 in {line["status"] for line in person.hosted.log()}
    person.log_in()
    resume(person, task, is_paused=False)
    assert person.run(mover).state == "succeeded"
    person.check()


def test_a_consent_that_was_withdrawn_is_asked_for_by_name_and_the_move_goes_on(person: Person) -> None:
    mover = person.site.make()
    task = person.halfway(mover)
    scope = f"https://auth.globus.org/scopes/{person.site.section.cluster.collection}/data_access"
    assert person.hosted.ask("POST", "auth/withdraw", {"scope": scope})["count"] >= 1
    resume(person, task, is_paused=False)
    said = refused(person, mover, "ConsentRequired")
    assert "filmloop login" in said.hint
    assert scope in said.hint
    person.log_in()
    assert person.run(mover).state == "succeeded"
    person.check()


@pytest.mark.parametrize(
    ("asks", "option"), [({"policies": [POLICY]}, f"--policy {POLICY}"), ({"domains": [DOMAIN]}, f"--domain {DOMAIN}")]
)
def test_a_session_that_does_not_satisfy_the_facility_asks_for_a_login_of_that_kind(
    person: Person, asks: dict[str, list[str]], option: str
) -> None:
    mover = person.site.make()
    task = person.halfway(mover)
    person.wants(**asks)
    resume(person, task, is_paused=False)
    said = refused(person, mover, "policy")
    assert option in said.hint
    person.site.globus = GlobusSection(
        client_id=person.site.globus.client_id, login="user", policies=(POLICY,), domains=(DOMAIN,)
    )
    person.log_in()
    assert person.run(mover).state == "succeeded"
    person.check()


def test_access_that_is_revoked_in_mid_transfer_is_asked_for_and_when_given_the_rest_goes(
    application: Scenario,
) -> None:
    storage, collection = application.site.cluster.parents[1], application.site.section.cluster.collection
    application.fault("paused", match=HALFWAY)
    mover = application.site.make(stall_s=1.5)
    application.start(mover)
    application.until("paused")
    transfer.serve(application.hosted, storage, collection=collection, rules=[])
    resume(application, application.site.tasks()[0], is_paused=False)
    refused(application, mover, "PERMISSION_DENIED")
    application.nothing_arrived()
    transfer.serve(application.hosted, storage, collection=collection, rules=None)
    assert application.run(mover).state == "succeeded"
    application.check(tasks=2)


def test_access_that_is_revoked_between_arrival_and_renaming_loses_nothing(application: Scenario) -> None:
    storage, collection = application.site.cluster.parents[1], application.site.section.cluster.collection
    application.fault("paused", match={"number": 2})
    mover = application.site.make()
    application.start(mover)
    application.until("paused")
    reads = [{"principal": "*", "permissions": "r"}]
    application.fault("slow", seconds=1.5, match={"route": "GET /v0.10/task/<task_id>/successful_transfers"})
    resume(application, application.site.tasks()[0], is_paused=False)
    application.until("slow")
    transfer.serve(application.hosted, storage, collection=collection, rules=reads)
    said = refused(application, mover, "Denied")
    assert f"{application.site.globus.client_id}@clients.auth.globus.org" in said.hint
    transfer.serve(application.hosted, storage, collection=collection, rules=None)
    assert application.run(mover).state == "succeeded"
    application.check()
