"""Transfer's controls for whoever started `hosted`."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from filmloop.testing.globus.hosted import Hosted


def serve(hosted: Hosted, folder: Path, *, collection: str = "", **fields: Any) -> str:
    """Make a folder a collection, or change one; `fields` are those of `Collection`. Returns its id."""
    folder.mkdir(parents=True, exist_ok=True)
    name = collection or str(uuid.uuid4())
    hosted.ask("POST", "collections", {"id": name, "folder": str(folder), "name": folder.name, **fields})
    return name


def behave(hosted: Hosted, **settings: Any) -> None:
    """Change any of Transfer's `Settings`."""
    hosted.ask("POST", "transfer", settings)


def tasks(hosted: Hosted) -> list[dict[str, Any]]:
    """Every task with all that is known of it, in the order of submission."""
    return list(hosted.ask("GET", "tasks"))


def change(hosted: Hosted, task_id: str, **what: Any) -> None:
    """What an operator or a fresh login does to a task: `is_paused=False`, `status="ACTIVE"`, `cancel="why"`."""
    hosted.ask("POST", f"tasks/{task_id}", what)
