"""What filmloop has to know about a model to train, judge, ship and roll it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

HyperValue = int | float | str | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A network that maps counts to rates.

    The module that `build` returns takes float32 counts (N, C, E) and returns float32 rates (N, C, E) >= 0: the
    expected counts of the whole frame, whose Poisson likelihood the trainer maximises.

    Attributes:
        name: Catalog name.
        summary: One sentence for people.
        build: `build((C, E), **hyper) -> nn.Module`; imports torch only when called.
        hyper: Every hyper-parameter that `build` takes, with its default.
        shape_rule: Says what is wrong with a frame shape, or '' if the network takes it.
        sort_key: Rates (N, C, E) to float32 (N,), the key that orders frames into a movie; None if there is none.
        tolerance: Largest relative RMS difference of a reduced-precision runtime from float32 that is acceptable.
    """

    name: str
    summary: str
    build: Callable[..., nn.Module]
    hyper: Mapping[str, HyperValue] = field(default_factory=dict)
    shape_rule: Callable[[tuple[int, int]], str] = lambda shape: ""
    sort_key: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]] | None = None
    tolerance: float = 0.05

    def module(self, frame_shape: tuple[int, int], hyper: Mapping[str, Any] | None = None) -> nn.Module:
        """Build the network for frames of `frame_shape` = (C, E), with `hyper` over the defaults.

        Raises:
            ValueError: the shape or a hyper-parameter does not fit; the message says which and why.
        """
        if wrong := self.shape_rule(frame_shape):
            raise ValueError(f"model {self.name!r} cannot take frames of shape {frame_shape}: {wrong}")
        given = dict(hyper or {})
        if unknown := sorted(set(given) - set(self.hyper)):
            raise ValueError(
                f"model {self.name!r} has no hyper-parameter {', '.join(unknown)}; it has {', '.join(self.hyper) or 'none'}"
            )
        return self.build(frame_shape, **{**self.hyper, **given})
