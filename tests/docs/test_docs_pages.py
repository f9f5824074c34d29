"""What the pages say exists: commands, options, make targets, files; nothing of where they were written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from filmloop.cli import reference
from filmloop.config.loader import load_site
from filmloop.config.options import parse_sets

CHECKOUT = Path(__file__).parents[2]
PAGES = sorted(
    [*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md"), *(CHECKOUT / "models").rglob("*.md")],
    key=lambda page: page.as_posix(),
)
NAMES = [page.relative_to(CHECKOUT).as_posix() for page in PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = reference.commands()


def fences(text: str, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text) if found == language]


def shell_lines(text: str) -> list[str]:
    joined = "\n".join(fences(text, "sh")).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def make(*argv: str) -> str:
    """What `make` prints as if typed in a shell: `make test` leaves word for makes below it in the environment."""
    environ = {
        key: value
        for key, value in os.environ.items()
        if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    }
    return subprocess.run(["make", *argv], cwd=CHECKOUT, env=environ, capture_output=True, text=True, check=True).stdout


def inline_commands(text: str) -> list[str]:
    """`filmloop ...` in running text; the first of its words that are commands and options."""
    outside = FENCE.sub("", text)
    return re.findall(r"`(filmloop [^`]+)`", outside)


def call_of(words: list[str]) -> list[str] | None:
    """What follows `filmloop` on a shell line that calls it, also behind VAR=value or sudo; None if it does not."""
    called = [i for i, word in enumerate(words) if word.endswith("/bin/filmloop")]
    plain = [i for i, word in enumerate(words) if word == "filmloop" and all("=" in before for before in words[:i])]
    return words[min(called + plain) + 1 :] if called or plain else None


def check_call(rest: list[str]) -> None:
    """A command exists, has these options, takes that many arguments, and `--set` names keys of the site file."""
    if rest and rest[0] in ("--version", "--help"):
        return
    name = next((" ".join(rest[:n]) for n in (2, 1) if " ".join(rest[:n]) in COMMANDS), None)
    assert name, f"no command {' '.join(rest[:2])!r}"
    params = COMMANDS[name].params
    options = {opt: param for param in params for opt in param.opts if param.param_type_name == "option"}
    arguments, sets, left = [], [], rest[len(name.split()) :]
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            arguments.append(word)
            continue
        assert word in options, f"filmloop {name} has no option {word}"
        if not options[word].is_flag:
            assert left, f"{word} of filmloop {name} has no value"
            value = left.pop(0)
            if word == "--set":
                sets.append(value)
    room = sum(param.param_type_name == "argument" for param in params)
    assert len(arguments) <= room, f"filmloop {name} takes {room} arguments, not {arguments}"
    if sets:
        load_site(CHECKOUT / "site_configs/local.toml", overrides=parse_sets(sets))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_that_a_page_shows_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    for line in shell_lines(text):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, line
        elif (rest := call_of(words)) is not None:
            check_call(rest)
    groups = [[name.split()[0]] for name in COMMANDS if " " in name]
    for command in inline_commands(text):
        # A group alone (`filmloop models`) is a name, not a call.
        if (rest := shlex.split(command)[1:]) not in groups:
            check_call(rest)
    for target in re.findall(r"`make ([a-z]+)", FENCE.sub("", text)):
        assert target in targets, f"make {target}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_relative_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_site_file_fragment_of_a_page_is_one(page: Path, tmp_path: Path) -> None:
    for number, text in enumerate(fences(page.read_text(encoding="utf-8"), "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(text, encoding="utf-8")
        load_site(file)


def test_every_page_of_docs_is_linked_from_another() -> None:
    linked = set()
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8")):
            linked.add((page.parent / target).resolve())
    docs = CHECKOUT / "docs"
    alone = [page.name for page in docs.rglob("*.md") if page not in linked and page != docs / "README.md"]
    assert alone == []


def test_decision_records_are_short_and_numbered_in_a_row() -> None:
    records = sorted((CHECKOUT / "docs/decisions").glob("0*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        text = record.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 40, record.name
        for part in ("**Context.**", "**Decision.**", "**Consequences.**", "**What would change our mind.**"):
            assert part in text, f"{record.name}: {part}"


@pytest.mark.parametrize("target", ["retrain", "demo", "edge", "ui", "status", "check"])
def test_make_passes_options_on_to_the_command(target: str) -> None:
    shown = make("--dry-run", "--old-file=.venv/.local", target, "SITE=x.toml", "ARGS=--seconds 40 --json").splitlines()
    assert shown[-1].endswith("--site x.toml --seconds 40 --json")


def test_make_help_says_how_options_are_passed_on() -> None:
    shown = make("help")
    assert 'make demo ARGS="--seconds 40"' in shown
