from __future__ import annotations

import time

import pytest

from filmloop.core.errors import TransientError
from filmloop.core.retry import wait_until


def test_waiting_returns_what_was_found_even_when_it_is_false() -> None:
    answers = iter([None, None, 0])
    assert wait_until(lambda: next(answers), deadline_s=10, what="zero", first_s=0.001) == 0


def test_waiting_ends_at_its_deadline_and_says_for_what() -> None:
    began_s = time.monotonic()
    with pytest.raises(TransientError, match="the server") as caught:
        wait_until(lambda: None, deadline_s=0.2, what="the server", hint="start it", first_s=0.05, cap_s=60.0)
    assert 0.2 <= time.monotonic() - began_s < 2.0
    assert caught.value.hint == "start it"
