"""Who the site is at Globus, and whether Globus agrees that it may do what it needs."""

from __future__ import annotations

from collections.abc import Iterator

from filmloop.adapters.globus.identity.login import Who, roles_of, who_is
from filmloop.adapters.globus.identity.who import Role
from filmloop.config.schema import SiteConfig
from filmloop.core.counted import counted
from filmloop.core.errors import FilmloopError
from filmloop.core.finding import Finding

_ITEMS: dict[Role, tuple[str, str]] = {
    "data": ("identity", "consents"),
    "weights": ("weights identity", "weights consents"),
}


def check_identity(config: SiteConfig) -> Iterator[Finding]:
    """Ask Globus who each identity is and what it may do; two findings each."""
    for role in roles_of(config):
        item, consents = _ITEMS[role]
        try:
            who = who_is(config, role)
        except FilmloopError as exc:
            yield Finding(item=item, state="fail", detail=exc.message, hint=exc.hint)
            continue
        kind = "the application" if who.login == "client" else "a person,"
        if who.identity:
            yield Finding(item=item, state="ok", detail=f"{kind} {who.identity}")
        yield _consents(who, consents)
    if config.mover.kind == "globus" and len(roles_of(config)) == 1:
        yield Finding(
            item="weights identity", state="ok",
            detail="the same: data that wait can hold weights up; [globus.weights] may name a second application",
        )  # fmt: skip


def _consents(who: Who, item: str) -> Finding:
    if who.missing:
        *lacks, hint = who.missing
        return Finding(item=item, state="fail", detail=f"lacks {', '.join(lacks)}", hint=hint)
    lasts_s = min((token.lasts_s for token in who.tokens.values()), default=0)
    renewed = all(token.renews for token in who.tokens.values())
    how = "renewed without a person" if renewed else f"end in {lasts_s / 3600:.0f} h, and are not renewed"
    return Finding(item=item, state="ok", detail=f"tokens of {counted(len(who.tokens), 'service')}, {how}")
