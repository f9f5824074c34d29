"""`filmloop site check` says what is wrong with a live source, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filmloop.adapters.sources.zmq_raw import encode
from filmloop.bootstrap import open_site
from filmloop.checks import source as source_check
from filmloop.checks.site import check_site
from filmloop.core.finding import Finding
from filmloop.testing.live import pushing

Check = Callable[[str], Finding]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """The finding on a source; a second is long enough for one that is there."""
    monkeypatch.setattr(source_check, "FRAME_DEADLINE_S", 1.0)
    monkeypatch.setenv("FILMLOOP_HOME", str(tmp_path / "home"))
    (tmp_path / "site.toml").write_text("")

    def run(source: str) -> Finding:
        site = open_site(tmp_path / "site.toml", source=source)
        return next(finding for finding in check_site(site) if finding.item == "source")

    return run


def sending(endpoint: str, counts_NCE: np.ndarray) -> Any:
    message = encode(counts_NCE, run_number=1)
    return pushing(endpoint, lambda _: message, frames=1)


def test_a_detector_that_sends_is_well(check: Check, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/wire"
    with sending(endpoint, np.ones((1, 16, 128), np.uint8)):
        found = check(f"zeromq:{endpoint}")
    assert (found.state, found.detail) == ("ok", "stream 'zeromq' delivers frames of (16, 128)")


def test_a_sender_whose_name_is_not_known_is_told_of_by_name(check: Check) -> None:
    found = check("zeromq:tcp://no-such-detector.invalid:5555")
    assert found.state == "fail"
    assert "the name 'no-such-detector.invalid' is not known here" in found.detail
    address = check("zeromq:tcp://127.0.0.1:9")
    assert address.state == "fail"
    assert "not known" not in address.detail


def test_frames_of_another_shape_are_a_failure_that_names_both(check: Check, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/wire"
    with sending(endpoint, np.ones((1, 8, 8), np.uint8)):
        found = check(f"zeromq:{endpoint}")
    assert found.state == "fail"
    assert "frames of (8, 8), not of (16, 128)" in found.detail


def test_a_message_that_cannot_be_understood_is_told(check: Check, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/wire"
    with sending(endpoint, np.ones((1, 16, 128), np.uint8)):
        found = check(f"zeromq:{endpoint}?dialect=lclstreamer")
    assert found.state == "fail"
    assert "it has 2 parts, one of lclstreamer has one" in found.detail


@pytest.mark.parametrize("source", ["zeromq:ipc://{0}/wire?role=bind", "pvaccess:NOT:THERE?addresses=['127.0.0.1:9']"])
def test_a_detector_that_does_not_send_is_asked_after_and_nothing_is_left(
    check: Check, tmp_path: Path, source: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = check(source.format(tmp_path))
    assert found.state == "fail"
    assert "A frame from the source did not happen within 1 s" in found.detail
    assert "Is the detector sending" in found.hint
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == []
