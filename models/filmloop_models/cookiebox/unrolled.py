"""A network that knows the sinusoids: a few accelerated rounds of expectation-maximisation, unrolled and learned.

A frame is explained as a non-negative sum of streaked lines of every phase and centre on a grid. Each round compares
the counts with the rates so far, n / r, asks every line of the grid how much it is under-drawn (the mean g of that
ratio along the line) and multiplies its weight by a power of g. Power 1 is the round of Richardson and Lucy (Lucy, Astron.
J. 79, 1974; Shepp and Vardi, IEEE Trans. Med. Imaging 1, 1982), which never lowers the Poisson likelihood but
converges slowly; higher powers make neighbours compete and three rounds go a long way. Unrolling after Gregor and LeCun,
Learning Fast Approximations of Sparse Coding, 2010.

What is learned has a meaning and fits on a page: kick, widths, background, where lines lie, channel gains.

Shape suffixes: N frames, C channels, E energy bins, S phases between two channels, J centres, F = S J lines that start at
one channel, X = C E bins, L = C F lines, in channel-major order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_STRIDE = 8.0
"""Adam moves a number by about the learning rate a step. These few have further to go than a weight: they are scaled up."""

_LEAST_G, _LEAST_WEIGHT = 1e-3, 1e-12
"""No line falls faster or lower: it may come back, and no number becomes denormal, which costs a hundred times the time."""
_FOLDS = 2


class Unrolled(nn.Module):
    """Counts to rates by `len(powers)` rounds; 45 parameters at 16x128.

    Turning the ring of channels by one turns the rates by one, to rounding, while the learned channel gains are equal.

    Args:
        frame_shape: (C, E), C a multiple of 4.
        phases: Phases of the grid around the ring; rounded up to a multiple of C.
        centres: Centres of the grid.
        centre_step_bin: Distance of two centres.
        centre_bin: Middle of the centres.
        kick_bin: Amplitude of the streaking before training.
        width_bin: Width of a line, 1 sigma, before training.
        powers: Power of g in each round. The last should be 1: it sets the brightness right.
    """

    centre_J: Tensor

    def __init__(
        self,
        frame_shape: tuple[int, int],
        *,
        phases: int,
        centres: int,
        centre_step_bin: float,
        centre_bin: float,
        kick_bin: float,
        width_bin: float,
        powers: Sequence[int],
    ) -> None:
        super().__init__()
        self.channels, self.bins = frame_shape
        self.between = -(-phases // self.channels)
        self.powers = tuple(powers)
        self._kick_bin, self._width_bin = kick_bin, width_bin
        from_middle_J = (torch.arange(centres, dtype=torch.float32) - (centres - 1) / 2) * centre_step_bin
        self.register_buffer("centre_J", centre_bin + from_middle_J, persistent=False)
        self.kick = nn.Parameter(torch.zeros(1))
        self.width = nn.Parameter(torch.zeros(2))
        self.background = nn.Parameter(torch.zeros(2))
        self.place_J = nn.Parameter(-0.5 * (from_middle_J / 10.0) ** 2 / _STRIDE)
        self.gain_C = nn.Parameter(torch.zeros(self.channels))

    def forward(self, counts_NCE: Tensor) -> Tensor:
        """Rates (N, C, E)."""
        looking_XL, drawing_LX, start_L, start_X = self._grid()
        gain_X = self._gains().repeat_interleave(self.bins)
        n_NX = counts_NCE.reshape(-1, self.channels * self.bins)
        total_N1 = n_NX.sum(dim=1, keepdim=True)
        flat, share = (_STRIDE * self.background).exp().unbind()
        background_N1 = 0.003 * flat + total_N1 * (0.03 / n_NX.shape[1] * share)
        weight_NL = total_N1 * start_L
        rate_NX = total_N1 * start_X * gain_X + background_N1
        for power in self.powers:
            g_NL = _ring_product(n_NX / rate_NX * gain_X, looking_XL).clamp(min=_LEAST_G)
            plain_NL = weight_NL * g_NL
            if power > 1:
                sharp_NL = plain_NL * _power(g_NL, power - 1)
                # As many hits as the plain round explains: powers above 1 would not keep their number.
                hits_N1, sharp_N1 = plain_NL.sum(dim=1, keepdim=True), sharp_NL.sum(dim=1, keepdim=True)
                plain_NL = sharp_NL * (hits_N1 / sharp_N1.clamp(min=_LEAST_WEIGHT))
            weight_NL = plain_NL.clamp(min=_LEAST_WEIGHT)
            rate_NX = _ring_product(weight_NL, drawing_LX).clamp(min=0.0) * gain_X + background_N1
        return rate_NX.reshape(counts_NCE.shape)

    def _gains(self) -> Tensor:
        return (_STRIDE * (self.gain_C - self.gain_C.mean())).exp()

    def _grid(self) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """The lines as two ring products, counts to lines and lines to rates, and the weights and rates to start from."""
        width_2 = self._width_bin * (_STRIDE * self.width).exp()
        looking_CEF, drawing_CEF = self._lines(width_2[0]), self._lines(width_2[1])
        start_F = torch.softmax(_STRIDE * self.place_J, 0).repeat(self.between) / (self.between * self.channels)
        start_E = (drawing_CEF * start_F).sum(dim=(0, 2))
        # Drawing goes from lines to channels: the ring runs the other way.
        backward_CFE = torch.cat([drawing_CEF[:1], drawing_CEF[1:].flip(0)]).transpose(1, 2)
        return (
            _ring_matrices(looking_CEF),
            _ring_matrices(backward_CFE),
            start_F.repeat(self.channels),
            start_E.repeat(self.channels),
        )

    def _lines(self, width_bin: Tensor) -> Tensor:
        """The lines between channel 0 and 1, one count each in the whole frame, (C, E, F)."""
        theta_C = 2 * math.pi / self.channels * torch.arange(self.channels, device=width_bin.device)
        phase_S = 2 * math.pi / (self.channels * self.between) * torch.arange(self.between, device=width_bin.device)
        kick = self._kick_bin * (_STRIDE / 4 * self.kick).exp()
        track_CSJ = self.centre_J + (kick * torch.cos(theta_C[:, None] - phase_S))[..., None]
        energy_E = torch.arange(self.bins, device=width_bin.device)
        z_CEF = (energy_E[:, None] - track_CSJ.flatten(1)[:, None]) / width_bin
        # Beyond 8.5 sigma nothing falls further, see _LEAST_G.
        return (-0.5 * (z_CEF * z_CEF).clamp(max=72.0)).exp() / (width_bin * math.sqrt(2 * math.pi) * self.channels)


def _ring_matrices(kernel_CAB: Tensor) -> list[Tensor]:
    """The matrices of a product that is the same all around a ring: input a at place p adds kernel[p - q] a to place q.

    Sums and differences of opposite places do not mix, so two products of half the size replace one; the sums are a
    ring again. Folded twice, a product costs 3/8 of the operations, and the matrices 3/8 of the memory.
    """
    matrices = []
    for _ in range(_FOLDS):
        half = len(kernel_CAB) // 2
        low, high = kernel_CAB[:half], kernel_CAB[half:]
        difference = (low - high) / 2
        matrices.append(_blocks(torch.cat([difference, -difference]), half))
        kernel_CAB = (low + high) / 2
    matrices.append(_blocks(kernel_CAB, len(kernel_CAB)))
    return matrices


def _blocks(kernel_CAB: Tensor, places: int) -> Tensor:
    place = torch.arange(places, device=kernel_CAB.device)
    apart = (place[:, None] - place) % len(kernel_CAB)
    _, inputs, outputs = kernel_CAB.shape
    return kernel_CAB[apart].transpose(1, 2).reshape(places * inputs, places * outputs)


def _ring_product(value: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    first, *rest = matrices
    if not rest:
        return value @ first
    low, high = value.chunk(2, dim=1)
    difference = (low - high) @ first
    same = _ring_product(low + high, rest)
    return torch.cat([same + difference, same - difference], dim=1)


def _power(value: Tensor, power: int) -> Tensor:
    """By squaring: a logarithm costs more than the product with the grid."""
    half = value if power < 2 else _power(value, power // 2)
    if power < 2:
        return half
    return half * half * value if power % 2 else half * half
