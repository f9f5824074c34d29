"""Where `torch.distributed.checkpoint` puts what it stores: a safetensors file of each rank, and no pickle.

Both classes fill in its interface for storage: a save calls `write_data` on every rank and then `finish` on the first, a
load calls `read_metadata` and `read_data` on every rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from filmloop.core.fsio import atomic_write_bytes, sha256_bytes

T = TypeVar("T")


class Place(TypedDict):
    """Where a tensor is stored, and what it is: `float32`, [16, 128]."""

    part: str
    dtype: str
    shape: list[int]


class _Stored(NamedTuple):
    part: str
    sha256: str


class _AsPlanned:
    """What both sides of the interface leave as DCP planned it; each is made for one checkpoint, in a folder that it is told."""

    def reset(self, checkpoint_id: object = None) -> None:
        """There is no other checkpoint to turn to."""

    def prepare_local_plan(self, plan: Any) -> Any:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """As they are."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: object) -> bool:
        """None is found by its name."""
        return False


class PartWriter(_AsPlanned, StorageWriter):
    """Writes this rank's tensors to one file, durably.

    Args:
        folder: The checkpoint's; made if need be.
        rank: This one.
        seal: Called on the first rank when all have written, with the place of every tensor and the SHA-256 of every part.
    """

    def __init__(self, folder: Path, rank: int, seal: Callable[[dict[str, Place], dict[str, str]], None]) -> None:
        self._path, self._seal = folder / f"part-{rank}.safetensors", seal

    def set_up_storage_writer(self, is_coordinator: bool, *_args: Any, **_kwargs: Any) -> None:
        """Nothing is missing."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the tensors of `plan`: whole ones, each on one rank."""
        tensors = {item.index.fqn: _tensor(planner.resolve_data(item)) for item in plan.items}
        if not tensors:  # fewer of them than ranks
            return _done([])
        data = save(tensors)
        atomic_write_bytes(self._path, data)
        stored = _Stored(self._path.name, sha256_bytes(data))
        return _done([WriteResult(item.index, tensors[item.index.fqn].nbytes, stored) for item in plan.items])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Have the checkpoint sealed."""
        stored = {result.index.fqn: result.storage_data for of_rank in results for result in of_rank}
        places = {name: _place(metadata.state_dict_metadata[name], at.part) for name, at in stored.items()}
        self._seal(places, {at.part: at.sha256 for at in stored.values()})


class PartReader(_AsPlanned, StorageReader):
    """Reads tensors from the files that they are in.

    Args:
        folder: The checkpoint's.
        places: Of all tensors.
    """

    def __init__(self, folder: Path, places: Mapping[str, Place]) -> None:
        self._folder, self._places = folder, places

    def empty(self) -> dict[str, Tensor]:
        """A tensor for each that is stored, on the CPU, to be read into."""
        return {name: torch.empty(at["shape"], dtype=_dtype(at)) for name, at in self._places.items()}

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        """What is stored."""
        return Metadata({name: _stored(at) for name, at in self._places.items()})

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the tensors of `plan`, file by file."""
        by_part = defaultdict(list)
        for item in plan.items:
            by_part[self._places[item.storage_index.fqn]["part"]].append(item)
        for part, items in by_part.items():
            with safe_open(self._folder / part, "pt") as file:
                for item in items:
                    target = planner.resolve_tensor(item)
                    target.detach().copy_(file.get_tensor(item.storage_index.fqn))
                    planner.commit_tensor(item, target)
        return _done(None)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_args: Any, **_kwargs: Any) -> None:
        """Nothing depends on who this is."""


def _tensor(data: object) -> Tensor:
    assert isinstance(data, Tensor), "all that is no tensor is in the outline"
    return data.contiguous()


def _place(stored: object, part: str) -> Place:
    assert isinstance(stored, TensorStorageMetadata)
    return Place(part=part, dtype=str(stored.properties.dtype).removeprefix("torch."), shape=list(stored.size))


def _dtype(place: Place) -> torch.dtype:
    dtype = getattr(torch, place["dtype"])
    assert isinstance(dtype, torch.dtype)
    return dtype


def _stored(place: Place) -> TensorStorageMetadata:
    size = torch.Size(place["shape"])
    chunk = ChunkStorageMetadata(offsets=torch.Size([0] * len(size)), sizes=size)
    return TensorStorageMetadata(TensorProperties(dtype=_dtype(place)), size, [chunk])


def _done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future
