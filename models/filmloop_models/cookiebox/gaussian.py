"""The simplest denoiser that deserves the name: a Gaussian blur with its two widths tuned to the data.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from filmloop_models.cookiebox.score import mse_after_gain_and_shift
from filmloop_models.cookiebox.thinning import RATE_FLOOR, ThinnedFrames, thin

# Where the search starts: the coarse grid spans what 16 and 128 channels need.
_ENERGY_GRID = (0.7, 1.2, 2.0, 3.5)
_CHANNEL_GRID = (0.0, 0.35, 0.7, 1.4, 2.8)
_NEWTON_STEPS, _NEWTON_CLOSE = 50, 1e-6


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
        fit = _LineFit.of(thin(counts_NCE, keep=keep, seed=seed))
        sigma_energy, sigma_channel = _search(lambda energy, channel: fit(energy, channel)[0])
        _, gain, background = fit(sigma_energy, sigma_channel)
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


@dataclass(slots=True, kw_only=True)
class _LineFit:
    """The best `gain * blurred + background` for any two widths.

    A blur keeps the sum, so its likelihood is that of the bins with counts and one number for all the others: only those
    bins are looked at. Channels come first, so that neither blur has to move an axis.

    Attributes:
        input_CNE: What the blur sees.
        lit: Places with counts to foretell, in the order of `input_CNE`.
        target: Their counts.
        share: Of all counts that is to be foretold.
        input_sum: Of all bins.
        along_energy: The width of the last blur along energy, and its result.
    """

    input_CNE: npt.NDArray[np.float32]
    lit: npt.NDArray[np.intp]
    target: npt.NDArray[np.float32]
    share: float
    input_sum: float
    along_energy: tuple[float, npt.NDArray[np.float32]] | None = None

    @classmethod
    def of(cls, split: ThinnedFrames) -> _LineFit:
        input_CNE, target_CNE = (
            np.ascontiguousarray(part.transpose(1, 0, 2)) for part in (split.input_NCE, split.target_NCE)
        )
        lit = np.flatnonzero(target_CNE)
        return cls(
            input_CNE=input_CNE,
            lit=lit,
            target=target_CNE.reshape(-1)[lit].astype(np.float32),
            share=1 - split.keep,
            input_sum=max(float(input_CNE.sum(dtype=np.float64)), 1e-12),
        )

    def __call__(self, sigma_energy: float, sigma_channel: float) -> tuple[float, float, float]:
        """(nll, gain, background)."""
        if self.along_energy is None or self.along_energy[0] != sigma_energy:
            self.along_energy = sigma_energy, _along_energy(self.input_CNE, sigma_energy)
        blurred = _around_ring(self.along_energy[1], sigma_channel).reshape(-1)[self.lit]
        size, total = self.input_CNE.size, float(self.target.sum())
        flat = _flat_share(blurred / np.float32(self.input_sum), 1 / size, self.target)
        gain = (1 - flat) * total / (self.share * self.input_sum)
        background = flat * total / (self.share * size)
        rate = np.maximum(self.share * (gain * blurred.astype(np.float64) + background), RATE_FLOOR)
        return total - float(np.dot(self.target, np.log(rate))), gain, background


def _flat_share(density: npt.NDArray[np.float32], flat: float, target: npt.NDArray[np.float32]) -> float:
    """Share w of the flat part that makes `target` counts likeliest under the density `(1 - w) * density + w * flat`.

    Two non-negative components of a Poisson rate whose sizes are free foretell, at their best, as many counts as there
    are: one number is left to be found, and the likelihood is concave in it. Newton's steps, kept between the shares
    that are known to be too small and too large, settle it to 1e-6; expectation-maximisation takes hundreds of rounds.
    """
    low, high, share = 0.0, 1.0, 0.05
    apart = flat - density
    for _ in range(_NEWTON_STEPS):
        slope_per_count = apart / (density + np.float32(share) * apart)
        weighted = target * slope_per_count
        slope, curvature = float(weighted.sum(dtype=np.float64)), float(np.dot(weighted, slope_per_count))
        low, high = (share, high) if slope > 0 else (low, share)
        step = slope / max(curvature, 1e-300)
        following = share + step
        if not low < following < high:  # beyond what is known
            following = (low + high) / 2
        if abs(following - share) < _NEWTON_CLOSE:
            break
        share = following
    return share


def _blur(frames_NCE: npt.NDArray[np.float32], sigma_energy: float, sigma_channel: float) -> npt.NDArray[np.float32]:
    blurred_NCE = _along_energy(frames_NCE, sigma_energy)
    if _is_blurred(sigma_channel):
        by_channel = np.ascontiguousarray(blurred_NCE.transpose(1, 0, 2))
        blurred_NCE = np.ascontiguousarray(_around_ring(by_channel, sigma_channel).transpose(1, 0, 2))
    return blurred_NCE


def _along_energy(frames: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float32]:
    """Blurred along the last axis; a count near the edge is kept inside."""
    bins = frames.shape[-1]
    energy = np.arange(bins)
    kernel_EE = np.exp(-0.5 * ((energy[:, None] - energy) / sigma) ** 2)
    kernel_EE /= kernel_EE.sum(axis=1, keepdims=True)
    # Plain 2-D products: one call each instead of one per frame.
    blurred: npt.NDArray[np.float32] = (frames.reshape(-1, bins) @ kernel_EE.astype(np.float32)).reshape(frames.shape)
    return blurred


def _around_ring(frames_CNE: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float32]:
    """Blurred around the ring of channels, the first axis."""
    if not _is_blurred(sigma):
        return frames_CNE
    channels = len(frames_CNE)
    ring = np.arange(channels)
    apart = np.minimum(ring, channels - ring)
    kernel_C = np.exp(-0.5 * (apart / sigma) ** 2)
    kernel_CC = (kernel_C / kernel_C.sum())[(ring[:, None] - ring) % channels].astype(np.float32)
    blurred: npt.NDArray[np.float32] = (kernel_CC @ frames_CNE.reshape(channels, -1)).reshape(frames_CNE.shape)
    return blurred


def _is_blurred(sigma_channel: float) -> bool:
    return sigma_channel > 0.1  # below, the neighbour's share is 1e-22
