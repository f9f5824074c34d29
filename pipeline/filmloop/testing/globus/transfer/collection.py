"""A collection: a folder of this machine, and who may do what in it."""

from __future__ import annotations

import posixpath
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


class RefusedError(Exception):
    """The collection says no.

    Args:
        code: As the events of a task name it.
        details: In words.
        endless: The task tries again, whatever it was asked to do then.
    """

    def __init__(self, code: str, details: str, *, endless: bool = False) -> None:
        super().__init__(f"{code}: {details}")
        self.code, self.details, self.endless = code, details, endless


@dataclass(kw_only=True)
class Rule:
    """One line of an access list."""

    id: str
    principal: str
    """Identity; `*` is everybody."""
    path: str = "/"
    permissions: Literal["r", "rw"] = "rw"


@dataclass(kw_only=True)
class Collection:
    """A folder under its name at Globus."""

    id: str
    folder: str
    """The folder on the host."""
    kind: Literal["guest", "mapped"] = "guest"
    name: str = ""
    rules: list[Rule] | None = None
    """Access list; None: everybody may read and write."""
    quota_bytes: int | None = None
    policies: list[str] = field(default_factory=list)
    """Session policies that a person's login must have met; an application has none and is refused."""
    domains: list[str] = field(default_factory=list)
    """Identity providers, of which one must have logged the person in."""

    @classmethod
    def of(cls, document: dict[str, Any]) -> Collection:
        """The collection that a control request or the state folder describes."""
        rules = document.get("rules")
        known = None if rules is None else [Rule(**{"id": f"r{number}", **rule}) for number, rule in enumerate(rules)]
        return cls(**{**document, "rules": known})

    def as_json(self) -> dict[str, Any]:
        """What `of` reads."""
        return asdict(self)

    def place(self, path: str) -> Path:
        """Where a path of the collection lies on the host. [choice] `~` is the collection's root.

        Raises:
            RefusedError: it leads out.
        """
        inner = path.removeprefix("/").removeprefix("~").lstrip("/")
        normal = posixpath.normpath("/" + inner)
        if ".." in inner.split("/"):
            raise RefusedError("INVALID_PATH_NAME", f"Path not allowed: {path}")
        return Path(self.folder) / normal.lstrip("/")

    def check(self, identity: str, path: str, *, write: bool) -> None:
        """Refuse who may not.

        Raises:
            RefusedError: PERMISSION_DENIED.
        """
        if self.rules is None:
            return
        asked = posixpath.normpath("/" + path.lstrip("/~")) + "/"
        for rule in self.rules:
            below = asked.startswith(posixpath.normpath(rule.path).rstrip("/") + "/")
            if rule.principal in ("*", identity) and below and (not write or rule.permissions == "rw"):
                return
        raise RefusedError("PERMISSION_DENIED", f"Path not allowed: {path}")

    def check_room(self, size_bytes: int) -> None:
        """Refuse what does not fit.

        Raises:
            RefusedError: QUOTA_EXCEEDED.
        """
        if self.quota_bytes is None:
            return
        used = sum(path.stat().st_size for path in Path(self.folder).rglob("*") if path.is_file())
        if used + size_bytes > self.quota_bytes:
            raise RefusedError(
                "QUOTA_EXCEEDED", f"{used} of {self.quota_bytes} bytes are used, {size_bytes} more asked"
            )
