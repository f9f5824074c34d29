"""Who this process is at Globus, as far as a message needs it: which command helps, whose access is missing."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filmloop.config.globus import GlobusSection

Role = Literal["data", "weights"]
SECRETS: dict[Role, str] = {"data": "FILMLOOP_GLOBUS_SECRET", "weights": "FILMLOOP_GLOBUS_WEIGHTS_SECRET"}
"""Environment variables that hold an application's secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who acts in a role. The secret is not among it."""

    role: Role
    """Where it is described: `weights` without a client_id of its own is `data`."""
    client_id: str
    login: Literal["client", "user"]

    @property
    def secret_name(self) -> str:
        """Environment variable of the application's secret."""
        return SECRETS[self.role]

    @property
    def principal(self) -> str:
        """Whom a collection's permissions have to name."""
        return f"{self.client_id}@clients.auth.globus.org" if self.login == "client" else "the person who logged in"


def identity_of(section: GlobusSection, role: Role) -> Identity:
    """Who acts in `role`."""
    if role == "weights" and section.weights.client_id:
        return Identity(role="weights", client_id=section.weights.client_id, login=section.weights.login)
    return Identity(role="data", client_id=section.client_id, login=section.login)


_identities: dict[Role, Identity] = {}
_site: Path | None = None


def remember_site(file: Path) -> None:
    """From now on messages name this site file."""
    global _site
    _site = file


def remember_identity(role: Role, identity: Identity) -> None:
    """From now on messages about `role` know who it is."""
    _identities[role] = identity


def remembered(role: Role) -> Identity:
    """Who it is; before anybody has opened an app, a person."""
    return _identities.get(role) or Identity(role=role, client_id="", login="user")


def login_command(role: Role = "data", *options: str) -> str:
    """The exact command by which a person makes up for what is missing."""
    site = _site or os.environ.get("FILMLOOP_SITE") or "SITE.toml"
    words = ["filmloop", "login", "--site", str(site)]
    if remembered(role).role == "weights":
        words += ["--role", "weights"]
    return shlex.join([*words, *options])


def access_hint(role: Role, options: tuple[str, ...] = ()) -> str:
    """What to do where a login, a consent or a session is missing."""
    who = remembered(role)
    if who.login == "client":
        return (
            f"An application cannot log in as a person does: share the folder as a guest collection with "
            f'{who.principal}, or set login = "user" and run `filmloop login`.'
        )
    return f"Run `{login_command(role, *options)}` on a terminal; the loop goes on from there."
