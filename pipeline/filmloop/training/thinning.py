"""Poisson thinning of a training batch, on whatever device the counts are on.

Every hit of a frame goes to the kept part A with probability p, else to the rest B. Given the rate, A and B are then
independent Poisson frames, so predicting B from A can be learned without a label. The draw of a hit hashes (draw of its
frame, bin, number of the hit in its bin): how a global batch is cut into ranks changes nothing.

Only the bins with hits are touched, a tenth of them, and hits are hashed with 32 bits: 1.5 ms for 128 frames of 16 x 128
on one core, less than `torch.binomial` takes, which cannot be keyed by frame; forward and backward pass of the mixer
take 12 ms.
Shape suffixes: N frames, C channels, E energy bins, L lit bins, H hits.
"""

from __future__ import annotations

import torch
from torch import Tensor

# splitmix64's constants (Steele, Lea and Flood, OOPSLA 2014) as the signed integers that torch has.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
# The 32-bit mixer with the least bias that hash-prospector found (C. Wellons, github.com/skeeto/hash-prospector, 2023).
_MIX32_1, _MIX32_2 = 0x21F0AAAD, 0xD35A2D97 - (1 << 32)


def _shift_right(x: Tensor, bits: int, width: int = 64) -> Tensor:
    """Logical shift: torch's own keeps the sign."""
    return (x >> bits) & ((1 << (width - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """splitmix64 of int64 `x`, bit for bit what `core.holdout.splitmix64` makes of the same bits."""
    z = x + _GAMMA
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def mix32(x: Tensor) -> Tensor:
    """A hash of int32 `x`."""
    x = (x ^ _shift_right(x, 16, 32)) * _MIX32_1
    x = (x ^ _shift_right(x, 15, 32)) * _MIX32_2
    return x ^ _shift_right(x, 15, 32)


def thin(counts_NCE: Tensor, keep_N: Tensor, draw_N: Tensor) -> tuple[Tensor, Tensor]:
    """Split counts into a kept part and the rest.

    Args:
        counts_NCE: uint8 counts.
        keep_N: float32, the share p of each frame that is kept, to one in 2^31.
        draw_N: int64, any number; the same number splits the same frame the same way.

    Returns:
        Kept part A and rest B, both float32 (N, C, E); A + B are the counts.
    """
    flat, bins = counts_NCE.reshape(-1), counts_NCE[0].numel()
    lit_L = flat.nonzero().squeeze(1)
    count_L = flat.take(lit_L).int()
    frame_L = torch.div(lit_L, bins, rounding_mode="floor")
    # A hash is any int32: a frame keeps its hits below this.
    threshold_L = ((keep_N.double() - 0.5) * (1 << 32)).clamp_max((1 << 31) - 1).int().index_select(0, frame_L)
    # Hit h of all hits is number h - first_L of its bin, so first_L is taken off here and h is added below. The bins of
    # one frame are 256 apart; which 32 bits of 64 a frame begins at is as random as its draw.
    first_L = count_L.cumsum(0, dtype=torch.int32) - count_L
    base_L = mix64(draw_N).int().index_select(0, frame_L) + (lit_L - frame_L * bins).int() * 256 - first_L
    bin_H = torch.repeat_interleave(count_L)
    hash_H = mix32(base_L.index_select(0, bin_H) + torch.arange(len(bin_H), device=flat.device, dtype=torch.int32))
    is_kept_H = hash_H < threshold_L.index_select(0, bin_H)
    kept_L = torch.zeros(len(lit_L), device=flat.device).index_add_(0, bin_H, is_kept_H.float())
    kept, rest = torch.zeros(2, len(flat), device=flat.device)
    kept.index_copy_(0, lit_L, kept_L)
    rest.index_copy_(0, lit_L, count_L - kept_L)
    return kept.view_as(counts_NCE), rest.view_as(counts_NCE)
