"""`filmloop login`, `whoami`, `logout`: the real command, the unmodified SDK, the emulated Globus Auth."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from filmloop.adapters.globus.identity.login import Asked, log_in, who_is
from filmloop.core.errors import AuthError, ConfigError, TransientError
from rigs.globus_auth import DATA_ACCESS, SECRET, Globus, visit

POLICY = "44444444-4444-4444-8444-444444444444"
FILMLOOP = [sys.executable, "-m", "filmloop.cli"]


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FILMLOOP, *words],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def on_terminal(words: list[str], answer: Any) -> tuple[int, str, str]:
    """Run a command with a terminal as stdin and stderr; `answer` gets the address and says what is typed."""
    master, slave = pty.openpty()
    process = subprocess.Popen([*FILMLOOP, *words], stdin=slave, stderr=slave, stdout=subprocess.PIPE, text=True)
    os.close(slave)
    shown, typed = "", False
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    shown += os.read(master, 65536).decode()
                except OSError:  # the other end is closed
                    break
            elif process.poll() is not None:
                break
            found = re.search(r"(http://\S+)\s", shown)
            if found and "code here" in shown and not typed:
                typed = True
                os.write(master, (answer(found[1]) + "\n").encode())
        assert process.stdout
        out = process.stdout.read()
        return process.wait(30), out, shown
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
        os.close(master)


def test_a_person_logs_in_on_a_terminal_and_is_then_known_and_forgotten(globus: Globus) -> None:
    site = str(globus.site_file(policies=[POLICY], domains=["alcf.anl.gov"]))
    before = run("whoami", "--site", site, "--json")
    assert before.returncode == 4
    assert (
        "the scope urn:globus:auth:scope:transfer.api.globus.org:all"
        in json.loads(before.stdout)["roles"][0]["missing"]
    )

    code, out, shown = on_terminal(["login", "--site", site, "--json"], visit)
    assert code == 0, shown
    assert stat.S_IMODE(globus.tokens_file().stat().st_mode) == 0o600
    (who,) = json.loads(out)["roles"]
    assert who["identity"] == "operator@facility.example"
    assert set(who["tokens"]) == {"auth.globus.org", "transfer.api.globus.org", "funcx_service"}
    assert all(token["renews"] for token in who["tokens"].values())
    assert globus.held()["sessions"][-1]["policies"] == [POLICY]
    assert globus.held()["sessions"][-1]["domains"] == ["alcf.anl.gov"]
    assert DATA_ACCESS in [consent["scope_name"] for consent in globus.held()["consents"]]

    told = run("whoami", "--site", site)
    assert told.returncode == 0, told.stderr
    assert "operator@facility.example (a person who logged in" in told.stdout
    assert "48.0 h left, renewed by itself" in told.stdout

    mine = set(json.loads(globus.tokens_file().read_text())["data"]["DEFAULT"]["funcx_service"].values())
    assert mine & set(globus.held()["refresh_tokens"])
    gone = run("logout", "--site", site, "--json")
    assert json.loads(gone.stdout) == {"tokens": {"data": "revoked"}}
    assert not globus.tokens_file().exists()
    assert not mine & set(globus.held()["refresh_tokens"])
    assert not mine & {token["value"] for token in globus.held()["access_tokens"]}


def test_a_wrong_code_is_said_to_be_wrong(globus: Globus) -> None:
    code, _out, shown = on_terminal(["login", "--site", str(globus.site_file())], lambda _url: "not-the-code")
    assert code == 4
    assert "invalid_grant" in shown
    assert "filmloop login --site" in shown
    assert not globus.tokens_file().exists()


def test_a_login_without_a_terminal_never_waits(globus: Globus) -> None:
    asked = run("login", "--site", str(globus.site_file()))
    assert asked.returncode == 4
    assert "needs a terminal" in asked.stderr


def test_an_application_needs_no_login_and_its_secret_is_tried(globus: Globus) -> None:
    site = str(globus.site_file("client", mapped=False, weights=True))
    tried = run("login", "--site", site, "--json")
    assert tried.returncode == 0, tried.stderr
    assert "needs no login; its secret works" in tried.stderr
    known = json.loads(run("whoami", "--site", site, "--json").stdout)["roles"]
    assert [(who["role"], who["identity"]) for who in known] == [
        ("data", f"{globus.client_id}@clients.auth.globus.org"),
        ("weights", f"{globus.weights_id}@clients.auth.globus.org"),
    ]
    globus.control("secret", client_id=globus.client_id, secret="a new one")
    refused = run("whoami", "--site", site, "--role", "data")
    assert refused.returncode == 4
    assert f"Is FILMLOOP_GLOBUS_SECRET the secret of the client {globus.client_id}?" in refused.stdout
    both = run("whoami", "--site", site, "--json")
    assert both.returncode == 4
    assert [bool(who["missing"]) for who in json.loads(both.stdout)["roles"]] == [True, False]
    assert SECRET not in refused.stderr + refused.stdout
    gone = run("logout", "--site", site, "--role", "weights")
    assert gone.stdout == "weights: tokens revoked and removed\n"
    assert not globus.tokens_file(globus.weights_id).exists()
    assert globus.tokens_file().exists()


def test_without_its_secret_an_application_says_which_variable_is_missing(globus: Globus) -> None:
    refused = run("whoami", "--site", str(globus.site_file("client")), FILMLOOP_GLOBUS_SECRET="")
    assert refused.returncode == 4
    assert "FILMLOOP_GLOBUS_SECRET is not in the environment" in refused.stdout


def test_a_site_without_globus_has_nobody_to_log_in(globus: Globus) -> None:
    local = Path(__file__).parents[2] / "site_configs" / "local.toml"
    refused = run("login", "--site", str(local))
    assert refused.returncode == ConfigError.exit_code
    assert "uses no Globus" in refused.stderr


def test_what_a_service_asked_for_is_asked_of_the_login(globus: Globus) -> None:
    site = globus.site()
    collection = "https://auth.globus.org/scopes/55555555-5555-4555-8555-555555555555/data_access"
    scope = f"urn:globus:auth:scope:transfer.api.globus.org:all[*{collection}]"
    urls: list[str] = []

    def ask(url: str) -> str:
        urls.append(url)
        return visit(url)

    log_in(site, "data", ask=ask, asked=Asked(scopes=(scope,), policies=(POLICY,), mfa=True, identities=(POLICY,)))
    assert f"session_required_policies={POLICY}" in urls[0]
    assert "session_required_mfa=True" in urls[0]
    assert "prompt=login" in urls[0]
    assert {collection, DATA_ACCESS} <= {consent["scope_name"] for consent in globus.held()["consents"]}


def test_a_consent_that_was_withdrawn_is_missed_by_name(globus: Globus) -> None:
    site = globus.site()
    assert log_in(site, "data", ask=visit).missing == ()
    assert globus.control("withdraw", scope=DATA_ACCESS)["count"] >= 1
    assert who_is(site, "data").missing[0] == f"the consent {DATA_ACCESS}"


def test_somebody_else_does_not_take_over_a_login(globus: Globus) -> None:
    site = globus.site()
    log_in(site, "data", ask=visit)
    other = "bbbbbbbb-0000-4000-8000-000000000002"
    globus.control("person", sub=other, username="other@facility.example", name="Other", email="")
    with pytest.raises(AuthError, match="another person") as caught:
        log_in(site, "data", ask=lambda url: visit(f"{url}&as={other}"))
    assert "filmloop logout" in caught.value.hint
    assert who_is(site, "data").identity == "operator@facility.example"


def test_a_logout_while_globus_is_away_keeps_what_is_not_revoked(
    globus: Globus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filmloop.adapters.globus.identity.login import log_out

    site = globus.site()
    log_in(site, "data", ask=visit)
    globus.hosted.fault("refuse", times=-1, status=400, match={"route": "POST /v2/oauth2/token/revoke"})
    with pytest.raises((AuthError, TransientError)):
        log_out(site, "data")
    assert globus.hosted.fired("refuse") == 1
    assert globus.tokens_file().exists()
    globus.hosted.clear_faults()
    assert log_out(site, "data") == "revoked"
    assert log_out(site, "data") == "none"


def test_a_file_that_others_can_read_is_refused_and_still_revoked(globus: Globus) -> None:
    from filmloop.adapters.globus.identity.login import log_out

    site = globus.site()
    log_in(site, "data", ask=visit)
    globus.tokens_file().chmod(0o644)
    with pytest.raises(AuthError, match="others can read it"):
        who_is(site, "data")
    assert log_out(site, "data") == "revoked"


def test_a_damaged_file_is_said_to_be_damaged_and_logout_removes_it(globus: Globus) -> None:
    from filmloop.adapters.globus.identity.login import log_out

    site = globus.site()
    log_in(site, "data", ask=visit)
    globus.tokens_file().write_text(globus.tokens_file().read_text()[:-40])
    with pytest.raises(AuthError, match="damaged") as caught:
        who_is(site, "data")
    assert "filmloop logout" in caught.value.hint
    gone = run("logout", "--site", str(globus.site_file()))
    assert "removed, but not revoked: revoke them at https://app.globus.org/settings/consents" in gone.stdout
    assert not globus.tokens_file().exists()
    assert log_out(site, "data") == "none"


def test_a_logout_without_the_secret_says_that_nothing_was_revoked(globus: Globus) -> None:
    site = globus.site_file("client", mapped=False)
    assert run("login", "--site", str(site)).returncode == 0
    assert globus.held()["access_tokens"]
    gone = run("logout", "--site", str(site), FILMLOOP_GLOBUS_SECRET="")
    assert "data: tokens removed, but not revoked: they end within two days; with FILMLOOP_GLOBUS_SECRET" in gone.stdout
    assert not globus.tokens_file().exists()
    again = run("logout", "--site", str(site), "--json", FILMLOOP_GLOBUS_SECRET="")
    assert json.loads(again.stdout) == {"tokens": {"data": "none"}}
