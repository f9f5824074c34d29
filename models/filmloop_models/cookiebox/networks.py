"""Networks that turn the counts of a frame into the rates behind them.

All take float32 counts (N, C, E) and return float32 rates (N, C, E) > 0 through a softplus. The output bias starts at
-3, a rate of 0.05 a bin: from a bias of 0 the Poisson likelihood spends most of its steps on learning that frames are
nearly empty (at 50 hits a frame, six times the error after equal time).

Shape suffixes: N frames, C channels (angles), E energy bins, d features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import softplus

OUTPUT_BIAS = -3.0


class Mixer(nn.Module):
    """Mixes energies and angles in turn: each is a small dense problem, so a frame costs 1.8 MFLOP at 16x128.

    Every channel's spectrum becomes `features` numbers; in each of `depth` blocks an MLP across the channels
    (the streaking sinusoid ties them) and one within each channel are added. After Tolstikhin et al., MLP-Mixer,
    arXiv 2105.01601, without normalisation layers.
    """

    def __init__(self, frame_shape: tuple[int, int], *, features: int, angle_features: int, depth: int) -> None:
        super().__init__()
        channels, bins = frame_shape
        self.read = nn.Linear(bins, features)
        self.angles = nn.ModuleList(_mlp(channels, angle_features) for _ in range(depth))
        self.energies = nn.ModuleList(_mlp(features, 2 * features) for _ in range(depth))
        self.write = nn.Linear(features, bins)
        _start_nearly_empty(self.write)

    def forward(self, counts_NCE: torch.Tensor) -> torch.Tensor:
        """Rates (N, C, E)."""
        z_NCd = self.read(counts_NCE)
        for angle, energy in zip(self.angles, self.energies, strict=True):
            z_NCd = z_NCd + angle(z_NCd.transpose(1, 2)).transpose(1, 2)
            z_NCd = z_NCd + energy(z_NCd)
        return softplus(self.write(z_NCd))


class CookieNet(nn.Module):
    """The published CookieNetAE graph for 128 channels, without its final ReLU.

    Four 3x3 convolutions with three 2x2 max-pools, back by three 2x2 transposed convolutions and a 3x3 one.
    The published ReLU on the output starts dead (all zero, no gradient) for most seeds; softplus takes its place.
    The published graph for 16 channels turns 16 rows into 2 and is not used: this one keeps every shape whose sides
    are multiples of 8. Public code: github.com/AISDC/CookieNetAE; 208,641 parameters.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        down: list[nn.Module] = []
        for before, after in zip((1, *widths[:-1]), widths, strict=True):
            down += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.encoder = nn.Sequential(*down[:-1])
        up: list[nn.Module] = []
        for before, after in zip((widths[-1], *widths[:0:-1]), widths[:0:-1], strict=False):
            up += [nn.ConvTranspose2d(before, after, 2, stride=2), nn.ReLU()]
        self.decoder = nn.Sequential(*up, nn.ConvTranspose2d(widths[1], widths[0], 3, padding=1), nn.ReLU())
        self.write = nn.Conv2d(widths[0], 1, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        _start_nearly_empty(self.write)

    def forward(self, counts_NCE: torch.Tensor) -> torch.Tensor:
        """Rates (N, C, E)."""
        z = self.decoder(self.encoder(counts_NCE.unsqueeze(1)))
        return softplus(self.write(z)).squeeze(1)


def _start_nearly_empty(layer: nn.Linear | nn.Conv2d) -> None:
    if layer.bias is not None:
        nn.init.constant_(layer.bias, OUTPUT_BIAS)


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
