from __future__ import annotations

import time

import pytest

from filmloop.core.errors import DataError, TransientError
from filmloop.core.retry import retrying, wait_until


def test_waiting_returns_what_was_found_even_when_it_is_false() -> None:
    answers = iter([None, None, 0])
    assert wait_until(lambda: next(answers), deadline_s=10, what="zero", first_s=0.001) == 0


def test_waiting_ends_at_its_deadline_and_says_for_what() -> None:
    began_s = time.monotonic()
    with pytest.raises(TransientError, match="the server") as caught:
        wait_until(lambda: None, deadline_s=0.2, what="the server", hint="start it", first_s=0.05, cap_s=60.0)
    assert 0.2 <= time.monotonic() - began_s < 2.0
    assert caught.value.hint == "start it"


def test_a_passing_error_is_tried_again() -> None:
    calls = []

    def third_time() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise TransientError("away")
        return "there"

    assert retrying(third_time, attempts=4, first_s=0.0) == "there"
    assert len(calls) == 3


def test_the_last_error_is_raised_when_all_attempts_fail() -> None:
    calls = []

    def never() -> None:
        calls.append(1)
        raise TransientError(f"away {len(calls)}")

    with pytest.raises(TransientError, match="away 3"):
        retrying(never, attempts=3, first_s=0.0)


def test_an_error_that_stays_is_not_tried_again() -> None:
    calls = []

    def damaged() -> None:
        calls.append(1)
        raise DataError("damaged")

    with pytest.raises(DataError):
        retrying(damaged, first_s=0.0)
    assert len(calls) == 1
