"""What runs the network on the frames, by the name in the site file.

`make` builds one, `choose` finds the fastest here, `checks` says whether it may serve; each runtime has a module.
Names are looked up when they are first used: `cuda` runs where there is torch and nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filmloop.edge.runtimes.candidates import Candidates
    from filmloop.edge.runtimes.checks import check_finite, check_golden, check_served
    from filmloop.edge.runtimes.choose import RuntimeChoice, runtime_for
    from filmloop.edge.runtimes.make import make_runtime
    from filmloop.edge.runtimes.torch_cpu import TorchRuntime, use_threads

_MODULES = {
    "check_finite": "checks",
    "check_golden": "checks",
    "check_served": "checks",
    "Candidates": "candidates",
    "RuntimeChoice": "choose",
    "runtime_for": "choose",
    "make_runtime": "make",
    "TorchRuntime": "torch_cpu",
    "use_threads": "torch_cpu",
}

__all__ = [
    "Candidates",
    "RuntimeChoice",
    "TorchRuntime",
    "check_finite",
    "check_golden",
    "check_served",
    "make_runtime",
    "runtime_for",
    "use_threads",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
