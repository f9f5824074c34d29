"""Generated pages are current; the page about JSON says what the code prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from filmloop.adapters.globus.identity.login import TokenFacts, Who
from filmloop.cli import reference
from filmloop.config.loader import load_site
from filmloop.config.schema import SiteConfig
from filmloop.core import errors
from filmloop.core.documents import CycleReport, Verdict
from filmloop.demo.story import DemoReport
from filmloop.edge.status import EdgeStatus
from filmloop.testing.models import make_model_bundle
from filmloop.zoo.recall import Candidate, Recall

CHECKOUT = Path(__file__).parents[2]
JSON_PAGE = CHECKOUT / "docs/reference/json.md"


@pytest.mark.parametrize("path", sorted(reference.pages()))
def test_a_generated_page_is_what_the_code_says(path: str) -> None:
    assert (CHECKOUT / path).read_text(encoding="utf-8") == reference.pages()[path], (
        f"{path} is out of date: python -m filmloop.cli.reference"
    )


def sections(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for title, node in ((schema["title"], schema), *schema["$defs"].items()):
        yield from ((f"{title}.{key}", below) for key, below in node.get("properties", {}).items())


def test_every_key_of_a_site_file_is_described() -> None:
    """A key that holds a section is described by that section."""
    undescribed = [
        name
        for name, node in sections(SiteConfig.model_json_schema())
        if "description" not in node and "$ref" not in node and "discriminator" not in node
    ]
    assert undescribed == []


def test_the_config_page_has_every_key() -> None:
    page = (CHECKOUT / "docs/reference/config.md").read_text(encoding="utf-8")
    missing = [
        name
        for name, node in sections(SiteConfig.model_json_schema())
        if "$ref" not in node and "discriminator" not in node and f"| `{name.split('.')[-1]}` |" not in page
    ]
    assert missing == []


def test_the_errors_page_has_every_error_and_its_exit_code() -> None:
    page = reference.errors_page()
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(classes) == 9
    for cls in classes:
        assert f"| `{cls.__name__}` | {cls.exit_code} |" in page  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", sorted((CHECKOUT / "site_configs").glob("*.toml")), ids=lambda path: path.name)
def test_a_site_file_of_the_checkout_loads(path: Path) -> None:
    assert load_site(path).site == path.stem


def keys(heading: str, *, table: int = 0) -> set[str]:
    """The keys in the first column of a table below a heading of the page."""
    body = JSON_PAGE.read_text(encoding="utf-8").split(f"## `{heading}`", 1)[1].split("\n## ", 1)[0]
    tables = body.split("| key | meaning |\n|---|---|\n")[1:]
    rows = [line for line in tables[table].split("\n\n")[0].splitlines() if line.startswith("|")]
    return {key for row in rows for key in re.findall(r"`([a-z0-9_]+)`", row.split(" | ")[0])}


def test_the_keys_of_retrain_and_its_gate_are_those_of_the_report() -> None:
    assert keys("filmloop retrain --json") == set(CycleReport.model_fields)
    assert keys("filmloop retrain --json", table=1) == set(Verdict.model_fields)


def test_the_keys_of_the_zoo_are_those_of_what_it_finds() -> None:
    assert keys("filmloop models zoo --json") == set(Recall.model_fields)
    assert keys("filmloop models zoo --json", table=1) == set(Candidate.model_fields)


def test_the_page_names_every_outcome_that_retrain_can_print() -> None:
    # `failed` is an error, printed as one.
    page = JSON_PAGE.read_text(encoding="utf-8")
    for outcome in set(get_args(CycleReport.model_fields["outcome"].annotation)) - {"failed"}:
        assert f"`{outcome}`" in page


def test_the_keys_of_demo_are_those_of_its_report() -> None:
    assert keys("filmloop demo --json") == set(DemoReport.model_fields)


def test_the_keys_of_a_site_check_are_those_it_prints(tmp_path: Path, filmloop: Any) -> None:
    said = filmloop(tmp_path / "home").json("site", "check")
    assert keys("filmloop site check --json") == set(said)
    assert set(said["items"][0]) == {"item", "state", "detail", "hint"}


def test_the_keys_of_whoami_are_those_it_knows() -> None:
    assert keys("filmloop whoami --json") == {field.name for field in fields(Who)}
    page = JSON_PAGE.read_text(encoding="utf-8")
    assert all(f"`{field.name}`" in page for field in fields(TokenFacts))


def test_the_keys_of_status_are_those_it_prints(tmp_path: Path, filmloop: Any) -> None:
    assert keys("filmloop status --json") == set(filmloop(tmp_path / "home").json("status"))
    assert keys("filmloop status --json", table=1) == {"alive", *EdgeStatus.model_fields}


def test_the_keys_of_evaluate_are_those_it_prints(tmp_path: Path, filmloop: Any) -> None:
    run = filmloop(tmp_path / "home")
    frames, bundle = tmp_path / "frames.h5", make_model_bundle(tmp_path / "bundle")
    # 600 frames: some 60 are held out, and the pursuit has little to tune on.
    run.run("simulate", str(frames), "--frames", "600")
    printed = run.json("evaluate", "--data", str(frames), "--model", str(bundle))
    assert keys("filmloop evaluate --json") == set(printed)
    assert json.dumps(printed)
