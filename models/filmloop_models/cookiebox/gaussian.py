"""The simplest denoiser that deserves the name: a Gaussian blur with its two widths tuned to the data.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from filmloop_models.cookiebox.score import mse_after_gain_and_shift
from filmloop_models.cookiebox.thinning import ThinnedFrames, thin

# Where the search starts: the coarse grid spans what 16 and 128 channels need.
_ENERGY_GRID = (0.7, 1.2, 2.0, 3.5)
_CHANNEL_GRID = (0.0, 0.35, 0.7, 1.4, 2.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedGaussian:
    """Rate = gain * (counts blurred along energy and around the channels) + background.

    Attributes:
        sigma_energy: Width along energy, bins; the blur ends at the edges and keeps the sum inside.
        sigma_channel: Width around the ring of channels, in channels; 0 is no blur.
        gain: Factor; close to 1 for rates in counts.
        background: Constant rate a bin.
    """

    sigma_energy: float = 1.25
    sigma_channel: float = 0.0
    gain: float = 1.0
    background: float = 0.0

    @classmethod
    def tune(cls, counts_NCE: npt.NDArray[np.integer], *, keep: float = 0.75, seed: int = 0) -> TunedGaussian:
        """Tune all four numbers by the thinned Poisson likelihood: no label is needed.

        Args:
            counts_NCE: Frames that are not held out; 500 to 1,000 are enough, more take longer.
            keep: Share of counts that the blur sees; use the value of the evaluation.
            seed: Of the split.
        """
        split = thin(counts_NCE, keep=keep, seed=seed)

        def loss(sigma_energy: float, sigma_channel: float) -> float:
            return _fit_line(split, _blur(split.input_NCE, sigma_energy, sigma_channel))[0]

        sigma_energy, sigma_channel = _search(loss)
        _, gain, background = _fit_line(split, _blur(split.input_NCE, sigma_energy, sigma_channel))
        return cls(sigma_energy=sigma_energy, sigma_channel=sigma_channel, gain=gain, background=background)

    @classmethod
    def tune_to_labels(cls, counts_NCE: npt.NDArray[np.integer], label_NCE: npt.NDArray[np.floating]) -> TunedGaussian:
        """Tune the widths and the gain by the squared error to labels, at the best integer shift.

        The background is 0. `rate` then has the label's units and is not shifted.
        """
        counts = np.asarray(counts_NCE, np.float32)
        shift = mse_after_gain_and_shift(_blur(counts, 1.5, 0.0), label_NCE)[2]

        def loss(sigma_energy: float, sigma_channel: float) -> float:
            return mse_after_gain_and_shift(_blur(counts, sigma_energy, sigma_channel), label_NCE, shift=shift)[0]

        sigma_energy, sigma_channel = _search(loss)
        gain = mse_after_gain_and_shift(_blur(counts, sigma_energy, sigma_channel), label_NCE, shift=shift)[1]
        return cls(sigma_energy=sigma_energy, sigma_channel=sigma_channel, gain=gain)

    def rate(self, counts_NCE: npt.NDArray[np.number]) -> npt.NDArray[np.float32]:
        """Rates (N, C, E) float32 of counts, which may be scaled: `a / keep` of a thinned frame."""
        blurred = _blur(np.asarray(counts_NCE, np.float32), self.sigma_energy, self.sigma_channel)
        return np.float32(self.gain) * blurred + np.float32(self.background)


def _search(loss: Callable[[float, float], float]) -> tuple[float, float]:
    """Grid, then halving steps around the best point, down to 2 % in energy and 0.01 channels."""
    best = min((loss(energy, channel), energy, channel) for energy in _ENERGY_GRID for channel in _CHANNEL_GRID)
    ratio, step = 1.3, 0.2
    while ratio > 1.02 or step > 0.01:
        _, energy, channel = best
        around = [(energy * ratio, channel), (energy / ratio, channel), (energy, channel + step)]
        around += [(energy, max(channel - step, 0.0))] if channel > 0 else []
        better = min((loss(*point), *point) for point in around)
        if better[0] < best[0]:
            best = better
        else:
            ratio, step = ratio**0.5, step / 2
    return best[1], best[2]


def _fit_line(split: ThinnedFrames, blurred_NCE: npt.NDArray[np.float32]) -> tuple[float, float, float]:
    """(nll, gain, background) of the best `gain * blurred + background`.

    Two non-negative components of a Poisson rate: expectation-maximisation climbs without a step size
    (Shepp and Vardi, IEEE Trans. Med. Imaging 1, 1982). 30 rounds settle the likelihood to 1e-5.
    """
    share = 1 - split.keep
    lit = np.flatnonzero(split.target_NCE)
    target = split.target_NCE.reshape(-1)[lit].astype(np.float64)
    blurred = blurred_NCE.reshape(-1)[lit].astype(np.float64)
    blurred_sum = max(float(blurred_NCE.sum(dtype=np.float64)), 1e-12)
    gain, background = 0.95, 0.05 * float(target.sum()) / (share * blurred_NCE.size) + 1e-12
    for _ in range(30):
        ratio = target / (share * (gain * blurred + background))
        gain *= float(np.dot(ratio, blurred)) / blurred_sum
        background *= float(ratio.sum()) / blurred_NCE.size
    nll = split.nll(np.float32(gain) * blurred_NCE + np.float32(background))
    return nll, gain, background


def _blur(frames_NCE: npt.NDArray[np.float32], sigma_energy: float, sigma_channel: float) -> npt.NDArray[np.float32]:
    frames, channels, bins = frames_NCE.shape
    energy = np.arange(bins)
    kernel_EE = np.exp(-0.5 * ((energy[:, None] - energy) / sigma_energy) ** 2)
    kernel_EE /= kernel_EE.sum(axis=1, keepdims=True)  # a count near the edge is kept inside
    # Plain 2-D products: one call each instead of one per frame.
    blurred = (frames_NCE.reshape(-1, bins) @ kernel_EE.astype(np.float32)).reshape(frames_NCE.shape)
    if sigma_channel > 0.1:  # below, the neighbour's share is 1e-22
        ring = np.arange(channels)
        apart = np.minimum(ring, channels - ring)
        kernel_C = np.exp(-0.5 * (apart / sigma_channel) ** 2)
        kernel_CC = (kernel_C / kernel_C.sum())[(ring[:, None] - ring) % channels].astype(np.float32)
        by_channel = blurred.transpose(1, 0, 2).reshape(channels, -1)
        blurred = (kernel_CC @ by_channel).reshape(channels, frames, bins).transpose(1, 0, 2)
    return np.ascontiguousarray(blurred)
