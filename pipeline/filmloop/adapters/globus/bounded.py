"""Requests that keep a deadline of ours: the SDK waits for no answer, and makes no repeat, beyond it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from globus_sdk.transport import (
    RequestsTransport,
    RetryCheckCollection,
    RetryCheckResult,
    RetryConfig,
    RetryContext,
)

_SHORTEST_S = 0.1
"""Of a request that is sent although no time is left: an answer that is there already is taken."""


def _unbounded() -> float:
    return float("inf")


def _untold(what: str) -> None:
    """Nobody is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What is left of a deadline, and who hears of a service that does not answer.

    Attributes:
        left_s: Seconds that a request and its repeats may take in all, asked anew before each.
        unanswered: Called each time that no answer came, before the SDK repeats the request.
    """

    left_s: Callable[[], float] = _unbounded
    unanswered: Callable[[str], None] = _untold


UNBOUNDED = Bounds()


class BoundedTransport(RequestsTransport):
    """The SDK's transport; a request waits for its answer `timeout_s`, or so long as is left if that is less.

    The wait is the sockets': for a connection to each address of the service, then for each part of the answer.
    """

    def __init__(self, timeout_s: float | None, bounds: Bounds) -> None:
        self._timeout_s, self._bounds = timeout_s, bounds
        super().__init__(http_timeout=timeout_s)

    @property
    def http_timeout(self) -> float | None:
        """Of the next request; None waits for ever."""
        shortest_s = max(min(self._timeout_s or float("inf"), self._bounds.left_s()), _SHORTEST_S)
        return shortest_s if shortest_s < float("inf") else None

    @http_timeout.setter
    def http_timeout(self, value: float | None) -> None:
        self._timeout_s = value


def bounded_retries(repeats: int, bounds: Bounds) -> RetryConfig:
    """The SDK's repeats, as long as time is left for them."""

    def in_time(ctx: RetryContext) -> RetryCheckResult:
        if ctx.exception is not None:
            bounds.unanswered(type(ctx.exception).__name__)
        return RetryCheckResult.no_decision if bounds.left_s() > 0 else RetryCheckResult.do_not_retry

    def pause_s(ctx: RetryContext) -> float:
        # As the SDK's own, which is not public: what the service asks for, else longer each time.
        wanted_s = ctx.backoff if ctx.backoff is not None else (0.25 + 0.5 * random.random()) * 2**ctx.attempt
        return max(0.0, min(wanted_s, bounds.left_s()))

    checks = RetryCheckCollection()
    checks.register_check(in_time)
    return RetryConfig(max_retries=repeats, backoff=pause_s, checks=checks)
