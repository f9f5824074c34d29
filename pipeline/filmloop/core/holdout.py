"""Which frames are held out: decided by a hash of the pulse id, so that every part agrees without talking.

A frame is held out for ever: no model trains on it, so champion and challenger are compared on the same unseen frames.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The splitmix64 finaliser (Steele, Lea and Flood, OOPSLA 2014): a fast, well mixed hash of 64-bit integers."""
    with np.errstate(over="ignore"):
        z = x + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def held_out(pulse_id_N: npt.NDArray[np.uint64], permille: int) -> npt.NDArray[np.bool_]:
    """True (N,) for frames that are never trained on; `permille` of 1000 on average."""
    return splitmix64(pulse_id_N.astype(np.uint64)) % np.uint64(1000) < np.uint64(permille)
