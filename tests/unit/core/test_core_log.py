from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from filmloop.core import log


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    root = logging.getLogger("filmloop")
    before = root.handlers[:], root.level, root.propagate
    root.handlers = []
    yield logging.getLogger("filmloop.test")
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level, root.propagate = before


def test_lines_carry_the_ids_of_their_blocks(logger: logging.Logger, tmp_path: Path) -> None:
    log.configure(file=tmp_path / "log" / "f.log")
    with log.log_context(cycle_id="c1"):
        with log.log_context(shard_id="s1"):
            logger.info("inner")
        logger.info("outer")
    logger.info("none")
    lines = (tmp_path / "log" / "f.log").read_text().splitlines()
    assert [line.split(": ", 1)[-1] if "=" not in line else line.split(":", 3)[-1] for line in lines] == [
        " cycle_id=c1 shard_id=s1 inner",
        " cycle_id=c1 outer",
        "none",
    ]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO ", line) for line in lines)


def test_logs_go_to_stderr_and_stdout_stays_free(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    logger.info("hello %d", 5)
    out, err = capsys.readouterr()
    assert (out, "hello 5" in err) == ("", True)


def test_configuring_again_replaces_the_former_handler(logger: logging.Logger, tmp_path: Path) -> None:
    log.configure(file=tmp_path / "one")
    log.configure(file=tmp_path / "two")
    logger.info("once")
    assert (tmp_path / "one").read_text() == ""
    assert (tmp_path / "two").read_text().count("once") == 1


def test_a_repeated_error_is_logged_once_and_its_end_once(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    limited = log.Limited(logger, every_s=600.0)
    with caplog.at_level(logging.INFO, logger="filmloop.test"):
        limited.worked("back")
        for _ in range(100):
            limited.failed("away: %s", "server")
        limited.worked("back")
        limited.worked("back")
        limited.failed("away: %s", "again")
    assert caplog.messages == ["away: server", "back (after 100 failures)", "away: again"]


def test_a_lasting_error_is_repeated_after_its_time(logger: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    limited = log.Limited(logger, every_s=0.0)
    with caplog.at_level(logging.INFO, logger="filmloop.test"):
        limited.failed("away")
        limited.failed("away")
    assert caplog.messages == ["away", "away"]
