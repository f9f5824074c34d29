"""A deletion. [choice] A folder without `recursive`, or an absent path without `ignore_missing`, is tried for ever."""

from __future__ import annotations

import shutil
from typing import Any

from filmloop.testing.globus.transfer.collection import RefusedError
from filmloop.testing.globus.transfer.work import Work


class DeleteWork(Work):
    """Deletes what a deletion names."""

    def files(self) -> list[dict[str, Any]]:
        """The paths that are still to be deleted."""
        asked = self.task.asked["DATA"]
        with self.hub.lock:
            self.task.files = len(asked)
        return [item for item in asked if item["path"] not in self.task.done]

    def name_of(self, file: dict[str, Any]) -> str:
        """Its path."""
        return str(file["path"])

    def handle(self, file: dict[str, Any]) -> None:
        """Delete one path."""
        collection = self.service.collections[self.task.asked["endpoint"]]
        place = collection.place(file["path"])
        collection.check(self.task.owner, file["path"], write=True)
        if place.is_dir() and not place.is_symlink():
            if not self.task.asked.get("recursive"):
                raise RefusedError("IS_A_DIRECTORY", file["path"])
            shutil.rmtree(place)
        elif place.exists() or place.is_symlink():
            place.unlink()
        elif not self.task.asked.get("ignore_missing"):
            raise RefusedError("FILE_NOT_FOUND", file["path"])
        with self.hub.lock:
            self.task.done.append(file["path"])
