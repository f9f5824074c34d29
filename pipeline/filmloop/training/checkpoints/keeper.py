"""Saves the state of training while it goes on, and finds the newest that is whole."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from filmloop.core.documents import TrainJob
from filmloop.core.errors import FilmloopError
from filmloop.core.fsio import disk_errors, fsync_dir, translate_os_error
from filmloop.training.checkpoints import sealed
from filmloop.training.checkpoints.outline import outlined, restored
from filmloop.training.checkpoints.storage import PartReader, PartWriter, Place
from filmloop.training.failure import explained
from filmloop.training.ranks import Ranks

CHECKPOINTS = "checkpoints"
_KEPT = 2
"""The newest and the one before it, in case the newest is damaged later."""
_FAREWELL_S = 20.0
"""So long a checkpoint that is being written is waited for by a rank that ends; one whose ranks are dead never is whole."""

# One rank by itself is no oversight.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class Checkpoints:
    """The checkpoints of one job. Every rank has one; `latest` and `save` are called by all of them together.

    Args:
        folder: The run folder, which all ranks see.
        job: Whose state it is.
        ranks: Who trains together.
    """

    def __init__(self, folder: Path, job: TrainJob, ranks: Ranks) -> None:
        self._folder, self._job, self._ranks = folder / CHECKPOINTS, job, ranks
        self._number = 0
        self._saving: futures.Future[Any] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the one before is still being written, as far as this rank knows."""
        return self._saving is not None and not self._saving.done()

    def latest(self) -> dict[str, Any] | None:
        """The newest state of this job that is whole, on every rank, its tensors on the CPU; None if there is none.

        What killed ranks left half done is removed, and so is what is damaged: the next one takes its place.

        Raises:
            TransientError: the disk refuses.
        """
        self._number = int(self._ranks.of_first(self._cleared() if self._ranks.is_first else 0))
        if not self._number:
            return None
        folder = self._numbered(self._number)
        with disk_errors(folder):
            document = sealed.read(folder)
        reader = PartReader(folder, document["tensors"])
        tensors = reader.empty()
        with _in_words(folder):
            load(
                tensors,
                storage_reader=reader,
                planner=DefaultLoadPlanner(flatten_state_dict=False),
                process_group=self._ranks.beside,
                no_dist=self._ranks.world == 1,
            )
        state = restored(document["state"], tensors)
        assert isinstance(state, dict)
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Have a copy of `state` (tensors, numbers, text, lists, dicts) written; returns before it is.

        Args:
            state: The same on every rank.

        Raises:
            TransientError: the disk refused the one before; those before that are intact.
        """
        self.finish()
        self._number += 1
        folder = self._numbered(self._number)
        outline, tensors = outlined(state)

        def seal(places: dict[str, Place], sums: dict[str, str]) -> None:
            sealed.seal(folder, self._job, outline, places, sums)
            for made in (self._folder, self._folder.parent):
                fsync_dir(made)
            self._forget_old()

        answer = async_save(
            tensors,
            storage_writer=PartWriter(folder, self._ranks.rank, seal),
            planner=DefaultSavePlanner(flatten_state_dict=False, enable_plan_caching=True),
            process_group=self._ranks.beside,
            async_stager=_Copies(),
            no_dist=self._ranks.world == 1,
        )
        assert isinstance(answer, futures.Future)
        self._saving = answer

    def finish(self) -> None:
        """Wait until the newest state is on the disk.

        Raises:
            TransientError: the disk refuses; the checkpoint before that is intact.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            with _in_words(self._folder):
                saving.result()

    def close(self) -> None:
        """Let the checkpoint that is being written become whole, if it can; say nothing of a disk that refuses."""
        if self._saving is not None:
            futures.wait([self._saving], _FAREWELL_S)

    def _numbered(self, number: int) -> Path:
        return self._folder / f"{number:06d}"

    def _numbers(self) -> list[int]:
        """Of all that are there, whole or not, the newest first."""
        return sorted((int(path.name) for path in self._folder.glob("*") if path.name.isdigit()), reverse=True)

    def _cleared(self) -> int:
        """Remove all but the newest that is whole and what is older; its number, 0 if there is none."""
        for number in self._numbers():
            if sealed.is_of(self._numbered(number), self._job):
                return number
            self._remove(number)
        return 0

    def _forget_old(self) -> None:
        for number in self._numbers():
            if number <= self._number - _KEPT:
                self._remove(number)

    def _remove(self, number: int) -> None:
        folder = self._numbered(number)
        with disk_errors(folder):
            if not folder.is_dir():
                folder.unlink()
                return
            (folder / sealed.SUMS).unlink(missing_ok=True)  # what is cut off here must not look damaged
            shutil.rmtree(folder)


class _Copies(AsyncStager):
    """The tensors on the CPU, sharing no memory with the ones in training, which change in place."""

    _synchronize_after_execute = False

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Tensor]:
        """A copy."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state_dict.items()}

    def synchronize_staging(self) -> None:
        """The copy is made at once."""
        return

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    """Raise what kept the ranks from it, the first of what they have to say, as an error of our own."""
    try:
        yield
    except CheckpointException as exc:
        cause, _ = exc.failures[min(exc.failures)]
        if isinstance(cause, OSError):
            raise translate_os_error(cause, folder) from exc
        if isinstance(cause, FilmloopError) or not isinstance(cause, Exception):
            raise cause from exc
        raise explained(cause) from exc
