"""What filmloop has to know about a model to train, judge, ship and roll it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from filmloop_models.rules import HyperValue, Rule

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class SortKey:
    """A number per frame that orders frames into a movie, from a few linear sums over each channel's energies.

    The sums are part of the network's graph wherever it runs, so that rates need not leave the device to be sorted: a
    frame is 8 kB of rates and, with two sums, 128 bytes of moments.

    Attributes:
        weights: `weights(E)` gives float32 (E, K), the K sums over E energy bins. Whole numbers up to 256 in size are
            exact in bfloat16; centre them, for products are rounded in proportion to their size.
        of_moments: Moments (N, C, K) to the key, float32 (N,); NaN for frames that have none.
    """

    weights: Callable[[int], npt.NDArray[np.float32]]
    of_moments: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]

    def __call__(self, rate_NCE: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The key of rates or counts (N, C, E), float32 (N,)."""
        return self.of_moments(rate_NCE.astype("float32", copy=False) @ self.weights(rate_NCE.shape[-1]))


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
        hyper_rules: For a hyper-parameter by name: says what its value must be, or '' if it is that (`filmloop_models.rules`).
            One without a rule is left to `build`.
        shape_rule: Says what is wrong with a frame shape, or '' if the network takes it.
        sort_key: The key that orders frames into a movie, from rates; None if there is none.
        tolerance: Largest relative RMS difference of a reduced-precision runtime from float32 that is acceptable.
    """

    name: str
    summary: str
    build: Callable[..., nn.Module]
    hyper: Mapping[str, HyperValue] = field(default_factory=dict)
    hyper_rules: Mapping[str, Rule] = field(default_factory=dict)
    shape_rule: Callable[[tuple[int, int]], str] = lambda shape: ""
    sort_key: SortKey | None = None
    tolerance: float = 0.05

    def checked(self, frame_shape: tuple[int, int], hyper: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All that `build` takes beside `frame_shape` (C, E): `hyper` over the defaults. Nothing is built.

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
        for name, rule in self.hyper_rules.items():
            if name in given and (wrong := rule(given[name])):
                raise ValueError(f"model {self.name!r} cannot have {name} = {given[name]!r}: it {wrong}")
        return {**self.hyper, **given}

    def module(self, frame_shape: tuple[int, int], hyper: Mapping[str, Any] | None = None) -> nn.Module:
        """Build the network for frames of `frame_shape` = (C, E), with `hyper` over the defaults.

        Raises:
            ValueError: the shape or a hyper-parameter does not fit; the message says which and why.
        """
        values = self.checked(frame_shape, hyper)
        try:
            return self.build(frame_shape, **values)
        except Exception as exc:
            # What has no rule is a matter between whoever wrote `build` and whoever gave the values.
            said = str(exc) if isinstance(exc, ValueError) else f"{type(exc).__name__}: {exc}"
            raise ValueError(f"model {self.name!r} cannot be built with {values}: {said}") from exc
