from __future__ import annotations

import pickle

import pytest

from filmloop.core import errors
from filmloop.core.errors import FilmloopError

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FilmloopError)]

# Exit codes are an interface: cron lines and systemd units act on them.
EXPECTED = {
    "FilmloopError": (70, False),
    "ConfigError": (2, False),
    "TransientError": (3, True),
    "TerminatedError": (75, True),
    "AuthError": (4, False),
    "DataError": (5, False),
    "VerificationError": (5, False),
    "CancelledError": (7, False),
    "TrainingError": (6, False),
}


def test_every_error_has_its_exit_code_and_verdict_on_retrying() -> None:
    assert {kind.__name__: (kind.exit_code, kind.retryable) for kind in ALL} == EXPECTED


@pytest.mark.parametrize("kind", ALL)
def test_an_error_survives_pickling_whole(kind: type[FilmloopError]) -> None:
    error = kind("what happened", hint="`filmloop status`", ids={"cycle_id": "c1"})
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.as_dict() == error.as_dict()
    assert str(again) == "what happened"


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn = {}
    for line in errors.__doc__.splitlines():
        words = line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()
        if words and words[0].endswith("Error") and len(words) > 1 and words[1].isdigit():
            drawn[words[0]] = int(words[1])
    assert drawn == {name: code for name, (code, _) in EXPECTED.items()}


def test_json_form_holds_all_that_a_script_needs() -> None:
    assert errors.DataError("m", hint="h", ids={"path": "p"}).as_dict() == {
        "error": "DataError",
        "message": "m",
        "hint": "h",
        "ids": {"path": "p"},
        "retryable": False,
        "exit_code": 5,
    }
