"""Alias moves: promote, roll back, set the challenger. Compare-and-set, each with a line in the audit trail.

One move is: take the alias lock, look at the alias, write the intent, move the alias, confirm. After a crash between
intent and confirmation `settle` asks the registry whether the move happened. A registry has no compare-and-set of its
own, so the lock is what keeps two of our processes apart; a move made outside filmloop (in the MLflow UI) is seen by
the next call and recorded as such.
"""

from __future__ import annotations

import logging

from filmloop.core.clock import utc_now
from filmloop.core.documents import AliasMove
from filmloop.core.errors import ConfigError, TransientError
from filmloop.ports.audit import AuditTrail
from filmloop.ports.registry import CHALLENGER, CHAMPION, Registry, not_there

OUTSIDE = "someone outside filmloop"
"""`who` of a move that filmloop found but did not make."""

_WHOLE_HISTORY = 1_000_000
"""Moves a rollback looks back at: at one every ten minutes, 19 years."""

_log = logging.getLogger(__name__)


def promote(
    registry: Registry,
    trail: AuditTrail,
    *,
    version: str,
    expected: str,
    who: str,
    why: str,
    cycle_id: str = "",
) -> AliasMove:
    """Make `version` the champion if the champion is still `expected` ('' for none); returns the move.

    Promoting the champion again changes nothing and returns the move that made it champion.

    Raises:
        TransientError: the champion is neither `expected` nor `version`, or the registry is away.
        DataError: there is no such version.
    """
    with trail.alias_lock():
        current = _settle(registry, trail)
        if current == version:
            return _move_to(registry, trail, CHAMPION, version)
        if current != expected:
            raise TransientError(
                f"The champion of {registry.model} is {_named(current)}, not {_named(expected)} as expected: "
                "it was moved meanwhile, so the comparison no longer holds.",
                hint="`filmloop models history` shows who moved it; the next cycle compares with the new champion.",
                ids={"version": version, "expected": expected, "champion": current},
            )
        return _move(registry, trail, CHAMPION, current, version, who=who, why=why, cycle_id=cycle_id)


def rollback(registry: Registry, trail: AuditTrail, *, who: str, why: str, to: str | None = None) -> AliasMove:
    """Make the champion before this one the champion again, or the version `to`.

    Rolling back twice goes two champions back. A version that the registry no longer has is passed over. `to` may be an
    alias, too, and is the version that it points at.

    Raises:
        ConfigError: there is no earlier champion, or `to` is the champion already.
        DataError: there is no version `to`, or there was never a champion.
        TransientError: the registry is away.
    """
    with trail.alias_lock():
        current = _settle(registry, trail)
        if to is None:
            to = _previous(registry, trail, current)
        elif (to := _current(registry, to) or to) == current:
            raise ConfigError(
                f"Version {to} of {registry.model} is the champion already.",
                hint="`filmloop models list` shows the others.",
                ids={"version": to},
            )
        return _move(registry, trail, CHAMPION, current, to, who=who, why=why)


def set_challenger(
    registry: Registry, trail: AuditTrail, *, version: str, who: str, why: str, cycle_id: str = ""
) -> AliasMove:
    """Point `challenger` at `version`; a challenger that is set already stays as it is.

    Raises:
        DataError: there is no such version.
        TransientError: the registry is away.
    """
    with trail.alias_lock():
        _settle(registry, trail)
        current = _current(registry, CHALLENGER)
        if current == version:
            return _move_to(registry, trail, CHALLENGER, version)
        return _move(registry, trail, CHALLENGER, current, version, who=who, why=why, cycle_id=cycle_id)


def settle(registry: Registry, trail: AuditTrail) -> str:
    """Finish or drop the moves that a crash left pending, and record a champion that was moved outside filmloop.

    Returns the champion's version, '' for none.

    Raises:
        TransientError: the registry is away; nothing was settled that it could not vouch for.
    """
    with trail.alias_lock():
        return _settle(registry, trail)


def _settle(registry: Registry, trail: AuditTrail) -> str:
    """As `settle`, under the lock; returns the champion's version, '' for none."""
    for move_id, move in trail.pending_moves():
        if move.model != registry.model:
            continue
        if _current(registry, move.alias) == move.to_version:
            trail.end_move(move_id)
            _log.info("Move of %s to version %s had reached the registry: confirmed.", move.alias, move.to_version)
        else:
            trail.drop_move(move_id)
            _log.info("Move of %s to version %s never reached the registry.", move.alias, move.to_version)
    known = trail.moves(registry.model, CHAMPION, limit=1)
    recorded, found = known[0].to_version if known else "", _current(registry, CHAMPION)
    if found != recorded:
        _log.warning("%s: champion is %s, the trail says %s.", registry.model, _named(found), _named(recorded))
        seen = _line(registry, CHAMPION, recorded, found, who=OUTSIDE, why="found so in the registry; not moved by us")
        trail.end_move(trail.begin_move(seen))
    return found


def _move(
    registry: Registry,
    trail: AuditTrail,
    alias: str,
    current: str,
    version: str,
    *,
    who: str,
    why: str,
    cycle_id: str = "",
) -> AliasMove:
    """Intent, move, confirmation. If the registry fails in between, the intent stays for `settle` to judge."""
    if registry.get(version) is None:
        raise not_there(registry, version)
    move = _line(registry, alias, current, version, who=who, why=why, cycle_id=cycle_id)
    move_id = trail.begin_move(move)
    registry.set_alias(alias, version)
    trail.end_move(move_id)
    _log.info("%s of %s: %s -> %s (%s)", alias, registry.model, _named(current), _named(version), why)
    return move


def _line(
    registry: Registry, alias: str, current: str, version: str, *, who: str, why: str, cycle_id: str = ""
) -> AliasMove:
    return AliasMove(
        utc=utc_now(),
        model=registry.model,
        alias=alias,
        from_version=current,
        to_version=version,
        who=who,
        why=why,
        cycle_id=cycle_id,
    )


def _move_to(registry: Registry, trail: AuditTrail, alias: str, version: str) -> AliasMove:
    """The newest recorded move of `alias` to `version`, where it stands; a challenger set by hand has no record."""
    for move in trail.moves(registry.model, alias, limit=1):
        if move.to_version == version:
            return move
    return _line(registry, alias, version, version, who=OUTSIDE, why="found so in the registry; not moved by us")


def _previous(registry: Registry, trail: AuditTrail, current: str) -> str:
    """The champion before `current` that the registry still has.

    A move to a version that was champion earlier counts as going back to it: what came after it is forgotten, so that
    repeated rollbacks walk back instead of swinging between two versions.
    """
    champions: list[str] = []
    for move in reversed(trail.moves(registry.model, CHAMPION, limit=_WHOLE_HISTORY)):
        if move.to_version in champions:
            del champions[champions.index(move.to_version) + 1 :]
        else:
            champions.append(move.to_version)
    for version in reversed(champions[:-1]):
        if version and registry.get(version) is not None:
            return version
    if not current:
        raise not_there(registry, CHAMPION)
    raise ConfigError(
        f"There was no champion of {registry.model} before {_named(current)}.",
        hint="`filmloop models list` shows all versions; `filmloop models rollback --to VERSION` takes any of them.",
        ids={"model": registry.model, "champion": current},
    )


def _current(registry: Registry, alias: str) -> str:
    """Version that `alias` points at, '' for none."""
    found = registry.get(alias)
    return found.version if found else ""


def _named(version: str) -> str:
    return f"version {version}" if version else "no version"
