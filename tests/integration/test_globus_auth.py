"""Tokens over days, and what takes them away: the unmodified SDK before the emulated Globus Auth."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import globus_sdk
import pytest
from globus_sdk.transport import RetryConfig

from filmloop.adapters.globus.errors import globus_errors
from filmloop.adapters.globus.identity.auth import open_app
from filmloop.adapters.globus.identity.login import log_in
from filmloop.adapters.globus.identity.who import remember_site
from filmloop.config.globus import Collection, GlobusSection
from filmloop.core.errors import AuthError, ConfigError, FilmloopError, TransientError
from rigs.globus_auth import DATA_ACCESS, GUEST, MAPPED, SECRET, Globus, visit

COMPUTE = "funcx_service"
TRANSFER_ALL = "urn:globus:auth:scope:transfer.api.globus.org:all"


def asking(globus: Globus, section: GlobusSection) -> Callable[[], object]:
    """What a poll does: one request to a service that wants a token."""
    client = globus_sdk.ComputeClientV2(
        app=open_app(section), base_url=globus.hosted.url, retry_config=RetryConfig(max_sleep=0.1)
    )

    def ask() -> object:
        with globus_errors("Asking where the task stands"):
            return client.get_endpoints()

    return ask


@pytest.fixture(params=["client", "user"])
def section(request: pytest.FixtureRequest, globus: Globus) -> GlobusSection:
    """An application, or a person who has logged in."""
    site = globus.site(request.param)
    if request.param == "user":
        log_in(site, "data", ask=visit)
    return site.globus


def test_tokens_that_end_in_the_middle_of_polling_are_renewed_silently(globus: Globus, section: GlobusSection) -> None:
    globus.control("lasts", seconds=61)  # the SDK renews a minute before the end: after one second here
    ask = asking(globus, section)
    globus.control("expire")
    before = globus.hosted.counts().get("POST /v2/oauth2/token", 0)
    begun = time.monotonic()
    while time.monotonic() - begun < 3.2:
        ask()
        time.sleep(0.1)
    renewed = globus.hosted.counts()["POST /v2/oauth2/token"] - before
    assert 2 <= renewed <= 5


def test_a_token_that_the_service_no_longer_takes_is_renewed_silently(globus: Globus, section: GlobusSection) -> None:
    ask = asking(globus, section)
    ask()
    for _ in range(3):
        globus.control("expire")
        ask()


def test_a_loop_that_slept_for_days_goes_on_without_a_person(globus: Globus, section: GlobusSection) -> None:
    asking(globus, section)()
    file = globus.tokens_file()
    held = json.loads(file.read_text())
    for token in held["data"]["DEFAULT"].values():
        token["expires_at_seconds"] -= 5 * 86_400
    file.write_text(json.dumps(held))
    globus.control("expire")
    asking(globus, section)()
    renewed = json.loads(file.read_text())["data"]["DEFAULT"][COMPUTE]
    assert renewed["expires_at_seconds"] > time.time() + 86_400
    assert (renewed.get("refresh_token") is not None) == (section.login == "user")


def test_a_revoked_refresh_token_names_the_command_that_helps(globus: Globus) -> None:
    site = globus.site()
    remember_site(globus.folder / "site.json")
    log_in(site, "data", ask=visit)
    ask = asking(globus, site.globus)
    ask()
    globus.control("revoke")
    globus.control("expire")
    before = globus.hosted.counts()["POST /v2/oauth2/token"]
    with pytest.raises(AuthError, match="invalid_grant") as caught:
        ask()
    assert f"`filmloop login --site {globus.folder}/site.json`" in caught.value.hint
    assert globus.hosted.counts()["POST /v2/oauth2/token"] - before <= 2
    log_in(site, "data", ask=visit)
    asking(globus, site.globus)()


def test_a_secret_that_was_replaced_is_told(globus: Globus) -> None:
    section = globus.site("client").globus
    globus.control("secret", client_id=globus.client_id, secret="another")
    with pytest.raises(AuthError, match="invalid_client") as caught:
        asking(globus, section)()
    assert "FILMLOOP_GLOBUS_SECRET" in caught.value.hint
    assert SECRET not in str(caught.value.as_dict())


def test_a_consent_that_a_person_has_to_give_is_named_in_the_command(globus: Globus) -> None:
    site = globus.site()
    log_in(site, "data", ask=visit)
    ask = asking(globus, site.globus)
    scope = f"{TRANSFER_ALL}[*{DATA_ACCESS}]"
    globus.hosted.fault("consent_required", match={"resource_server": COMPUTE}, required_scopes=[scope])
    with pytest.raises(AuthError, match="ConsentRequired") as caught:
        ask()
    assert f"--scope '{scope}'" in caught.value.hint
    assert caught.value.ids["http_status"] == "403"
    assert caught.value.ids["request_id"]
    assert not caught.value.retryable
    assert globus.hosted.fired("consent_required") == 1
    ask()


def test_an_application_gives_itself_the_consent(globus: Globus) -> None:
    ask = asking(globus, globus.site("client").globus)
    scope = f"{TRANSFER_ALL}[*{DATA_ACCESS}]"
    globus.hosted.fault("consent_required", match={"resource_server": COMPUTE}, required_scopes=[scope])
    ask()
    assert globus.hosted.fired("consent_required") == 1
    assert (globus.client_id, DATA_ACCESS) in {
        (consent["effective_identity"], consent["scope_name"]) for consent in globus.held()["consents"]
    }


def test_a_session_policy_is_named_in_the_command_and_never_asked_for_in_a_loop(
    globus: Globus, section: GlobusSection
) -> None:
    ask = asking(globus, section)
    ask()
    globus.hosted.fault(
        "session_required",
        times=-1,
        match={"resource_server": COMPUTE},
        session_required_policies=[GUEST],
        session_required_single_domain=["alcf.anl.gov"],
        session_required_mfa=True,
    )
    begun = time.monotonic()
    with pytest.raises(AuthError, match="authentication policy") as caught:
        ask()
    assert time.monotonic() - begun < 5
    assert 1 <= globus.hosted.fired("session_required") <= 2
    if section.login == "user":
        assert f"--policy {GUEST} --domain alcf.anl.gov --mfa" in caught.value.hint
    else:
        assert f"{globus.client_id}@clients.auth.globus.org" in caught.value.hint


def test_a_process_that_nobody_sits_at_never_prompts(globus: Globus, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_prompt(*_args: object) -> str:
        raise AssertionError("it prompted")

    monkeypatch.setattr("builtins.input", no_prompt)
    app = open_app(globus.site("user").globus)
    for _ in range(2):
        with pytest.raises(AuthError, match="nobody is logged in"):
            asking(globus, globus.site("user").globus)()
    with pytest.raises(AuthError, match="asks for a login"):
        app.login()
    assert "POST /v2/oauth2/token" not in globus.hosted.counts()


def test_opening_an_app_asks_nothing_of_anybody(globus: Globus, section: GlobusSection) -> None:
    globus.hosted.reset()
    open_app(section)
    assert globus.hosted.counts() == {}


def test_data_access_of_a_guest_collection_is_a_wrong_key_of_the_site_file(globus: Globus) -> None:
    globus.control("guest", collections=[GUEST])
    site = globus.site("client")
    edge = Collection(collection=GUEST, mapped=True)
    wrong = site.model_copy(update={"mover": site.mover.model_copy(update={"edge": edge})})
    with pytest.raises(ConfigError, match="not a known scope") as caught:
        log_in(wrong, "data", ask=visit)
    assert "mapped = false" in caught.value.hint


def test_weights_have_an_identity_of_their_own_or_the_one_of_data(globus: Globus) -> None:
    own = globus.site("client", weights=True).globus
    assert str(open_app(own, "weights").client_id) == globus.weights_id
    assert str(open_app(own, "data").client_id) == globus.client_id
    shared = globus.site("client").globus
    assert str(open_app(shared, "weights").client_id) == globus.client_id


def test_threads_with_apps_of_their_own_share_one_file(globus: Globus, section: GlobusSection) -> None:
    globus.control("lasts", seconds=61)
    failed: list[FilmloopError] = []

    def poll() -> None:
        ask = asking(globus, section)
        for _ in range(15):
            try:
                ask()
            except FilmloopError as exc:
                failed.append(exc)
            time.sleep(0.1)

    threads = [threading.Thread(target=poll) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert set(json.loads(globus.tokens_file().read_text())["data"]["DEFAULT"]) >= {COMPUTE}


def test_an_environment_that_globus_has_not_is_told(globus: Globus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOBUS_SDK_ENVIRONMENT", "nowhere")
    monkeypatch.delenv("GLOBUS_SDK_SERVICE_URL_AUTH")
    with pytest.raises(ConfigError, match="GLOBUS_SDK_ENVIRONMENT"):
        open_app(globus.site("client").globus)


def test_a_site_file_without_a_client_says_where_to_get_one() -> None:
    with pytest.raises(ConfigError, match="names no client_id") as caught:
        open_app(GlobusSection())
    assert "https://app.globus.org/settings/developers" in caught.value.hint


def test_the_consent_of_mapped_collections_is_asked_for_and_no_other(globus: Globus) -> None:
    from filmloop.adapters.globus.identity.auth import data_access

    mapped, guest = Collection(collection=MAPPED, mapped=True), Collection(collection=GUEST)
    assert str(data_access(mapped, guest)) == f"{TRANSFER_ALL}[*{DATA_ACCESS}]"
    assert str(data_access(guest)) == TRANSFER_ALL


def test_an_application_needs_no_home_for_its_tokens_and_a_person_does(
    globus: Globus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/dev/null/nowhere")
    ask = asking(globus, globus.site("client").globus)
    ask()
    globus.control("expire")
    ask()
    with pytest.raises(FilmloopError, match="/dev/null/nowhere"):
        open_app(globus.site("user").globus)


def test_a_full_disk_takes_no_token_from_an_application(
    globus: Globus, make_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = make_disk("64k")
    monkeypatch.setenv("HOME", str(disk))
    ask = asking(globus, globus.site("client").globus)
    with suppress(OSError):
        (disk / "full").write_bytes(bytes(1 << 20))
    for _ in range(2):
        ask()
        globus.control("expire")


def test_a_token_service_that_hangs_is_not_waited_for_long(globus: Globus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOBUS_SDK_HTTP_TIMEOUT", "0.3")
    globus.hosted.fault("slow", times=-1, match={"route": "POST /v2/oauth2/token"}, seconds=2.0)
    begun = time.monotonic()
    with pytest.raises(TransientError, match="did not answer in time"):
        asking(globus, globus.site("client").globus)()
    assert time.monotonic() - begun < 15
    assert globus.hosted.fired("slow") >= 2
