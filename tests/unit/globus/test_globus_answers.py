"""The site check and the log in, with something on the way that answers in the place of Globus."""

from __future__ import annotations

import pytest

from filmloop.adapters.globus.checks.collections import check_collections
from filmloop.adapters.globus.checks.identity import check_identity
from filmloop.adapters.globus.identity.login import log_in
from filmloop.core.errors import TransientError
from rigs.globus_auth import Globus, visit
from rigs.globus_way import Way

BODIES = [b"<html>back soon</html>", b"", b"[]"]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("login", ["client", "user"])
def test_an_answer_that_is_none_of_auths_is_a_finding_of_the_check(
    globus: Globus, way: Way, monkeypatch: pytest.MonkeyPatch, login: str, body: bytes
) -> None:
    site = globus.site(login)
    if login == "user":
        log_in(site, "data", ask=visit)
    way.body = body
    monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_AUTH", way.url)
    (found, *_) = check_identity(site)
    assert (found.state, "Globus Auth answered what is no answer" in found.detail) == ("fail", True)
    assert found.hint
    if login == "client":
        with pytest.raises(TransientError, match="Globus Auth answered what is no answer"):
            log_in(site, "data", ask=visit)


@pytest.mark.parametrize("body", BODIES)
def test_an_answer_that_is_none_of_transfers_is_a_finding_of_the_check(
    globus: Globus, way: Way, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    way.body = body
    monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_TRANSFER", way.url)
    findings = list(check_collections(globus.site("client", mapped=False)))
    assert [finding.state for finding in findings] == ["fail", "fail"]
    assert all("Globus Transfer answered what is no answer" in finding.detail for finding in findings)
