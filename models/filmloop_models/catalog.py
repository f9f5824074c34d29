"""Which models there are: by catalog name, or by `package.module:SPEC` for one that lives elsewhere."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from filmloop_models.cookiebox.physics import streaking_phase
from filmloop_models.rules import number, text, whole
from filmloop_models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn


_FAR_BIN = 10_000.0
"""Farther than any detector has bins, and no number overflows."""


def names() -> tuple[str, ...]:
    """Catalog names, the lean default first."""
    return tuple(_CATALOG)


def get(name: str) -> ModelSpec:
    """The specification of a model. Nothing is built, and torch is not imported.

    Args:
        name: A catalog name, or `package.module:ATTRIBUTE` of a `ModelSpec` that can be imported.

    Raises:
        ValueError: there is no such model; the message names near matches, or says why the import failed.
    """
    if ":" in name:
        return _imported(name)
    if name in _CATALOG:
        return _CATALOG[name]
    near = difflib.get_close_matches(name, _CATALOG, n=2, cutoff=0.4)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"no model {name!r}: {guess}The catalog has {', '.join(names())}; or give package.module:SPEC")


def _imported(name: str) -> ModelSpec:
    module_name, _, attribute = name.partition(":")
    try:
        spec = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ValueError(f"no model {name!r}: {exc}") from exc
    except Exception as exc:  # it is the site's own code: a slip in it is not one of this package
        raise ValueError(f"no model {name!r}: {type(exc).__name__}: {exc}") from exc
    if not isinstance(spec, ModelSpec):
        raise ValueError(f"no model {name!r}: it is a {type(spec).__name__}, not a ModelSpec")
    return spec


def _build_mixer(frame_shape: tuple[int, int], *, features: int, angle_features: int, depth: int) -> nn.Module:
    from filmloop_models.cookiebox.networks import Mixer

    return Mixer(frame_shape, features=features, angle_features=angle_features, depth=depth)


def _build_cookienet(frame_shape: tuple[int, int]) -> nn.Module:
    from filmloop_models.cookiebox.networks import CookieNet

    return CookieNet()


def _build_unrolled(frame_shape: tuple[int, int], *, powers: str, **hyper: float) -> nn.Module:
    from filmloop_models.cookiebox.unrolled import Unrolled

    return Unrolled(
        frame_shape,
        phases=int(hyper["phases"]),
        centres=int(hyper["centres"]),
        centre_step_bin=hyper["centre_step_bin"],
        centre_bin=hyper["centre_bin"],
        kick_bin=hyper["kick_bin"],
        width_bin=hyper["width_bin"],
        powers=[int(power) for power in powers.split(",")],
    )


def _multiples_of_4_channels(frame_shape: tuple[int, int]) -> str:
    return "" if frame_shape[0] % 4 == 0 else "its ring is folded twice: the number of channels must be a multiple of 4"


def _multiples_of_8(frame_shape: tuple[int, int]) -> str:
    return "" if all(side % 8 == 0 for side in frame_shape) else "three 2x2 pools need both sides to be multiples of 8"


def _128_by_128(frame_shape: tuple[int, int]) -> str:
    return "" if frame_shape == (128, 128) else "it is the published network for (128, 128); use cookienet"


_CATALOG: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="mixer",
            summary="Lean default: mixes energies and angles in turn; 52k parameters and 1.8 MFLOP a frame at 16x128.",
            build=_build_mixer,
            hyper={"features": 64, "angle_features": 32, "depth": 2},
            hyper_rules={"features": whole(1), "angle_features": whole(1), "depth": whole(0)},
            sort_key=streaking_phase,
        ),
        ModelSpec(
            name="unrolled",
            summary="Knows the sinusoids: three rounds of expectation-maximisation; 45 parameters, 14 MFLOP at 16x128.",
            build=_build_unrolled,
            hyper={
                "phases": 64,
                "centres": 24,
                "centre_step_bin": 2.0,
                "centre_bin": 64.0,
                "kick_bin": 32.0,
                "width_bin": 1.8,
                "powers": "2,6,1",
            },
            hyper_rules={
                "phases": whole(1),
                "centres": whole(1),
                "centre_step_bin": number(-_FAR_BIN, _FAR_BIN),
                "centre_bin": number(-_FAR_BIN, _FAR_BIN),
                "kick_bin": number(-_FAR_BIN, _FAR_BIN),
                "width_bin": number(0.01, _FAR_BIN),
                "powers": text(
                    r" *0*[1-9]\d*( *, *0*[1-9]\d*)* *", "must be whole numbers from 1, one a round, such as 2,6,1"
                ),
            },
            shape_rule=_multiples_of_4_channels,
            sort_key=streaking_phase,
        ),
        ModelSpec(
            name="cookienet",
            summary="The published CookieNetAE graph without its dead final ReLU; 209k parameters, 55 MFLOP at 16x128.",
            build=_build_cookienet,
            shape_rule=_multiples_of_8,
            sort_key=streaking_phase,
        ),
        ModelSpec(
            name="cookienet128",
            summary="The same graph at the published frame shape 128x128; 442 MFLOP a frame.",
            build=_build_cookienet,
            shape_rule=_128_by_128,
            sort_key=streaking_phase,
        ),
    )
}
