"""What the command line shows is whole words, and as much as there is room for."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from filmloop.cli import output
from filmloop.cli.output import brief, fitting

LINE = "train: step 1,120  67 s  loss 0.60539  5,648 frames/s  learning rate 0.00584"


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (80, LINE),
        (60, "train: step 1,120  67 s  loss 0.60539  5,648 frames/s"),
        (40, "train: step 1,120  67 s  loss 0.60539"),
        (20, "train: step 1,120"),
        (5, "train: step 1,120"),
    ],
)
def test_a_live_line_loses_whole_columns_from_its_end(width: int, shown: str) -> None:
    assert fitting(LINE, width) == shown


def test_on_a_narrow_terminal_the_live_line_of_a_training_is_whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(output, "err", Console(file=screen, force_terminal=True, width=60, soft_wrap=True))
    with output.Progress() as tell:
        tell("train", "starting the ranks")
        tell("train", LINE.removeprefix("train: "))
        tell._live._live.refresh()  # type: ignore[union-attr]
    live = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "loss 0.60539  5,648 frames/s" in live
    assert "learn" not in live
    assert "…" not in live


def test_a_long_json_document_is_told_by_its_keys() -> None:
    value = {"schema_version": 1, "site": "local", "training": {"seed": 1, "min_frames": 2}, "channels": [1, 2, 3],
             "rest": {str(number): number for number in range(100)}}  # fmt: skip
    text = json.dumps(value)
    assert brief(text) == (
        'schema_version: 1, site: "local", training: 2 keys, channels: 3 values, rest: 100 keys  '
        f"({len(text):,} characters of JSON; all with --json)"
    )
    assert len(brief(json.dumps(value | {str(number): number for number in range(5000)}))) < 200
    secret = json.dumps({"a": 1, "sha256": "0" * 300, "b": 2})
    assert brief(secret) == f"a: 1, ...  ({len(secret)} characters of JSON; all with --json)"
    listed = json.dumps([{"a": 1}] + ["x" * 10] * 20)
    assert brief(listed).startswith('1 key, "xxxxxxxxxx", ')


@pytest.mark.parametrize("text", ["", "7", '{"a": 1}', "a reason in words " * 20, "{" * 300, json.dumps("x" * 300)])
def test_other_text_is_told_as_it_is(text: str) -> None:
    assert brief(text) == text
