"""Verified files get their names at the far side, step by step; each step may be repeated."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

from filmloop.adapters.globus.transfer.client import Entry, Missing, Taken, Transfer
from filmloop.adapters.globus.transfer.patience import Ask
from filmloop.adapters.globus.transfer.renames import Step
from filmloop.adapters.globus.transfer.side import Side, incoming
from filmloop.core.errors import TransientError


class LostError(TransientError):
    """A file that had arrived is gone: it has to be sent again."""


class FarSide:
    """The receiving collection, looked at once and changed by renames.

    Args:
        side: The folder.
        key: The move; its files lie below `incoming(key)`.
        ask: Sends a request.
    """

    def __init__(self, side: Side, key: str, ask: Ask) -> None:
        self._side, self._incoming, self._ask = side, incoming(key), ask
        self._seen: dict[str, Mapping[str, Entry] | None] = {}

    def listing(self, folder: str) -> Mapping[str, Entry] | None:
        """What is in a folder below the root, as it was at the first look; None if there is none."""
        if folder not in self._seen:
            self._seen[folder] = self._ask(lambda t: t.listing(self._side.collection, self._side.path(folder)))
        return self._seen[folder]

    def take(self, step: Step, sizes: Mapping[str, int]) -> None:
        """Do one step; one that was done before is found to be done.

        Args:
            step: What to do.
            sizes: Size of each file that goes to a path.

        Raises:
            LostError: what was to be renamed is at neither place, or the folder for it is gone.
            TransientError: something else has the name, and does not make way.
        """
        if step.kind == "mkdir":
            self._mkdir(step.path)
        elif step.kind == "rename":
            self._rename_in(step.path, sizes)
        elif self._stat(f"{self._incoming}/{step.path}") is not None:
            self._set_aside(step.path)
            self._rename_in(step.path, sizes)
        else:
            self._confirm(step.path, sizes)

    def _rename_in(self, path: str, sizes: Mapping[str, int]) -> None:
        obstacle = self._rename(f"{self._incoming}/{path}", path)
        if obstacle is Taken:
            self._set_aside(path)
            obstacle = self._rename(f"{self._incoming}/{path}", path)
        if obstacle is Taken:
            raise TransientError(
                f"{path} cannot be replaced at the cluster: something has the name and does not make way.",
                hint=f"Does something else write to {self._side.path(path)}? The next call goes on.",
            )
        if obstacle is Missing:
            self._confirm(path, sizes)

    def _set_aside(self, path: str) -> None:
        self._rename(path, f"{self._incoming}/.replaced-{secrets.token_hex(4)}")

    def _rename(self, old: str, new: str) -> type[Exception] | None:
        """Rename; what stood in the way, if anything did."""
        side = self._side
        return self._obstacle(lambda t: t.rename(side.collection, side.path(old), side.path(new)))

    def _mkdir(self, path: str) -> None:
        if self._obstacle(lambda t: t.mkdir(self._side.collection, self._side.path(path))) is Missing:
            raise LostError(
                f"The folder for {path} was at the cluster and is there no more.",
                hint="Does something else clean up there? The files are sent again.",
            )

    def _obstacle(self, do: Callable[[Transfer], None]) -> type[Exception] | None:
        def send(transfer: Transfer) -> type[Exception] | None:
            try:
                do(transfer)
            except (Missing, Taken) as answer:
                return type(answer)
            return None

        return self._ask(send)

    def _confirm(self, path: str, sizes: Mapping[str, int]) -> None:
        """A rename found nothing to rename: its answer was lost and it is done, or the file is gone."""
        entry = self._stat(path)
        if entry is None or (path in sizes and (entry.is_folder or entry.size_bytes != sizes[path])):
            raise LostError(
                f"{path} arrived at the cluster and is there no more.",
                hint=f"Does something else clean up {self._side.path(self._incoming)}? It is sent again.",
            )

    def _stat(self, path: str) -> Entry | None:
        return self._ask(lambda t: t.stat(self._side.collection, self._side.path(path)))
