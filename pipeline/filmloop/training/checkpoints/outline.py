"""A state, cut into its tensors, which `torch.distributed.checkpoint` stores, and an outline of all the rest, which is JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_TENSOR, _DICT = "tensor", "dict"


def outlined(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """The outline of `state` (tensors, numbers, text, lists, dicts), and its tensors by the names that the outline gives them.

    Raises:
        TypeError: something else is in it.
    """
    tensors: dict[str, Tensor] = {}
    return _outline(state, "state", tensors), tensors


def restored(outline: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state again; tuples have become lists."""
    if isinstance(outline, list):
        return [restored(item, tensors) for item in outline]
    if isinstance(outline, dict):
        if _TENSOR in outline:
            return tensors[outline[_TENSOR]]
        return {key: restored(item, tensors) for key, item in outline[_DICT]}
    return outline


def _outline(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, dict):  # as pairs: keys may be numbers, as in an optimiser's state
        return {_DICT: [[key, _outline(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_outline(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which no checkpoint holds")
