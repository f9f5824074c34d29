"""The classical answer: find the sinusoids one after another, and fit all of them together.

The brightest line in what is still unexplained is found by correlation with all centres and phases at once (matching
pursuit, Mallat and Zhang, IEEE Trans. Signal Process. 41, 1993; by FFT along energy), then all lines so far are fitted
to the counts, and so on until the brightest one is too faint to believe. It knows the physics that a network has to
learn, and needs about fifty times the time of one.

Shape suffixes: N frames, C channels, E energy bins, P lines of a frame, K (amplitude, centre, x, y), F frequencies,
A phases.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from filmloop_models.cookiebox.lines import Fit, Floats, LineModel
from filmloop_models.cookiebox.thinning import thin

_ROUNDS, _POLISH = 3, 10
"""Rounds of fitting after each new line, and at the end: twice as many change the error by less than 1 %."""

_BATCH_BINS = 2**18
"""Bins worked on at once (128 frames of 16x128): the correlations of a batch stay near the processor."""

_SCAN_FRAMES = 100
_KICK_STEP = 3.0
_THRESHOLDS = (0.01, 0.02, 0.04, 0.07, 0.12, 0.2)
"""Of the mean number of hits a frame."""
_WIDTH_FACTORS = (1.0, 1.12, 1.25)
"""Lines fitted to few counts follow their noise and look too narrow: by 12 % at 50 hits a frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplatePursuit:
    """Denoises a frame by explaining it as a few streaked lines on a flat background.

    Attributes:
        kick_bin: Amplitude of the streaking kick, the same for all lines.
        width_bin: Width of a line, 1 sigma.
        threshold_hits: A line with fewer expected hits in the whole frame is not believed.
        background: Flat rate a bin.
        channel_factor_C: Brightness of each channel, 1 on average; () means that all are equal.
        max_lines: Lines a frame at most.
    """

    kick_bin: float = 32.0
    width_bin: float = 1.5
    threshold_hits: float = 20.0
    background: float = 0.003
    channel_factor_C: tuple[float, ...] = ()
    max_lines: int = 10

    @classmethod
    def tune(
        cls, counts_NCE: npt.NDArray[np.integer], *, keep: float = 0.75, seed: int = 0, max_frames: int = 200
    ) -> TemplatePursuit:
        """Learn everything from frames that are not held out, without labels.

        Kick: the one whose templates correlate best, then the median radius of freely fitted lines. Width and
        background: what the fitted lines leave. Threshold, and a last word on the width: the best thinned Poisson
        likelihood. About 4 CPU-seconds for 200 frames of 16x128.

        Args:
            counts_NCE: Frames; `max_frames` of them, evenly spread, are used.
            keep: Share of counts that the pursuit sees when the threshold is judged; use the value of the evaluation.
            seed: Of the split.
            max_frames: More take longer and change little.
        """
        counts = np.asarray(counts_NCE[:: max(1, len(counts_NCE) // max_frames)][:max_frames], np.float32)
        hits = float(counts.sum(dtype=np.float64)) / max(len(counts), 1)
        if hits == 0:
            return cls()
        mean_C = counts.mean(axis=(0, 2), dtype=np.float64)
        best = cls(
            width_bin=2.0,
            threshold_hits=0.05 * hits,
            background=0.03 * hits / counts[0].size,
            channel_factor_C=tuple(float(factor) for factor in mean_C / mean_C.mean()),
        )
        best = replace(best, kick_bin=_scan_kick(best, counts[:_SCAN_FRAMES]))
        for _ in range(2):
            best = best._measured(counts)
        split = thin(counts.astype(np.int64), keep=keep, seed=seed)

        def nll(pursuit: TemplatePursuit) -> float:
            return split.nll(pursuit.rate(split.input_NCE))

        best = min((replace(best, threshold_hits=share * hits) for share in _THRESHOLDS), key=nll)
        return min((replace(best, width_bin=best.width_bin * factor) for factor in _WIDTH_FACTORS), key=nll)

    def rate(self, counts_NCE: npt.NDArray[np.number]) -> Floats:
        """Rates (N, C, E) float32 of counts, which may be scaled: `a / keep` of a thinned frame."""
        model = self._model(counts_NCE.shape[1])
        bins = counts_NCE.shape[2]
        rate_NCE = np.empty(counts_NCE.shape, np.float32)
        for part in _batches(counts_NCE.shape):
            rate_NCE[part] = model.draw(self._explain(counts_NCE[part]).line_NPK, bins)
        return rate_NCE

    def lines(self, counts_NCE: npt.NDArray[np.number]) -> Floats:
        """The lines of every frame, float32 (N, max_lines, 4): amplitude (counts a channel), centre, x, y (bins).

        Brightest first; amplitude 0 where there is no line. Phase is `arctan2(y, x)`.
        """
        line_NPK = np.zeros((len(counts_NCE), self.max_lines, 4), np.float32)
        for part in _batches(counts_NCE.shape):
            found_NPK = self._explain(counts_NCE[part]).line_NPK
            line_NPK[part, : found_NPK.shape[1]] = found_NPK
        return line_NPK

    def _model(self, channels: int) -> LineModel:
        factor_C = np.array(self.channel_factor_C or (1.0,) * channels, np.float32)
        if len(factor_C) != channels:
            raise ValueError(f"tuned for {len(factor_C)} channels, but the frames have {channels}")
        return LineModel(
            kick_bin=self.kick_bin, width_bin=self.width_bin, background=self.background, factor_C=factor_C
        )

    def _explain(self, counts_NCE: npt.NDArray[np.number]) -> Fit:
        """Find and fit the lines of one batch."""
        counts = np.asarray(counts_NCE, np.float32)
        frames, channels, bins = counts.shape
        model = self._model(channels)
        search = _Search(model, bins)
        faintest = self.threshold_hits / channels
        line_NPK = np.zeros((frames, self.max_lines, 4), np.float32)
        rate_NCE = np.full(counts.shape, self.background, np.float32)
        active_N = np.arange(frames)
        for line in range(self.max_lines):
            line_NPK[active_N, line, 0] = 2 * faintest
            line_NPK[active_N, line, 1:] = search.brightest(counts[active_N], rate_NCE[active_N])
            so_far = model.fit(counts[active_N], line_NPK[active_N, : line + 1], rounds=_ROUNDS).line_NPK
            line_NPK[active_N, : line + 1] = so_far
            believed_N = so_far[:, line, 0] >= faintest
            line_NPK[active_N[~believed_N], line] = 0
            active_N = active_N[believed_N]
            if not len(active_N):
                break
            rate_NCE[active_N] = model.draw(so_far[believed_N], bins)
        line_NPK = _prune(line_NPK, faintest)
        line_NPK = _prune(model.fit(counts, line_NPK, rounds=_POLISH).line_NPK, faintest)
        return model.fit(counts, line_NPK, rounds=_ROUNDS)

    def _measured(self, counts: Floats) -> TemplatePursuit:
        """The same pursuit with kick, width and background as its own lines show them."""
        model = self._model(counts.shape[1])
        fits = []
        for part in _batches(counts.shape):
            line_NPK = self._explain(counts[part]).line_NPK
            fits.append((len(counts[part]), model.fit(counts[part], line_NPK, rounds=_ROUNDS, free_kick=True)))
        weight = [frames for frames, _ in fits]
        line_MK = np.concatenate([fit.line_NPK.reshape(-1, 4) for _, fit in fits])
        bright_MK = line_MK[line_MK[:, 0] > 2 * self.threshold_hits / counts.shape[1]]
        radius_M = np.hypot(bright_MK[:, 2], bright_MK[:, 3])
        return replace(
            self,
            kick_bin=float(np.median(radius_M)) if len(radius_M) else self.kick_bin,
            width_bin=float(np.average([fit.width_bin for _, fit in fits], weights=weight)),
            background=max(float(np.average([fit.background for _, fit in fits], weights=weight)), 1e-5),
        )


class _Search:
    """Correlation of frames with lines of all centres and phases, by FFT along energy."""

    def __init__(self, model: LineModel, bins: int) -> None:
        # Lines that leave the frame must not come back in at the other end: pad by the kick.
        size = int(np.ceil(bins + model.kick_bin + 4 * model.width_bin))
        frequency_F = np.fft.rfftfreq(size)
        phases = int(np.clip(np.ceil(2 * np.pi * model.kick_bin / (1.5 * model.width_bin)), 16, 256))
        phase_A = 2 * np.pi * np.arange(phases) / phases
        self.kick_AK = (model.kick_bin * np.stack([np.cos(phase_A), np.sin(phase_A)], axis=1)).astype(np.float32)
        shift_CA = model.basis[:, 1:] @ self.kick_AK.T
        line_F = np.exp(-2 * (np.pi * frequency_F * model.width_bin) ** 2)
        template_FCA = np.exp(2j * np.pi * frequency_F[:, None, None] * shift_CA) * line_F[:, None, None]
        self.template_FCA = (template_FCA * model.factor_C[:, None]).astype(np.complex64)
        self.size, self.bins = size, bins

    def correlate(self, residual_NCE: Floats) -> Floats:
        """(N, A, E): how well a line of each phase and centre explains the residual."""
        spectrum_NCF = np.fft.rfft(residual_NCE, self.size, axis=2).astype(np.complex64)
        product_FNA = np.matmul(spectrum_NCF.transpose(2, 0, 1), self.template_FCA)
        correlation_NAE = np.fft.irfft(product_FNA.transpose(1, 2, 0), self.size, axis=2)
        return correlation_NAE[..., : self.bins].astype(np.float32, copy=False)

    def brightest(self, counts_NCE: Floats, rate_NCE: Floats) -> Floats:
        """(N, 3): centre, x and y of the best line in what `rate_NCE` leaves unexplained.

        The residual is divided by its Poisson spread, or the noise of bright lines would pass for faint ones; 0.3
        counts keep an empty surrounding from counting too much.
        """
        residual_NCE = (counts_NCE - rate_NCE) / np.sqrt(rate_NCE + np.float32(0.3))
        correlation_NX = self.correlate(residual_NCE).reshape(len(counts_NCE), -1)
        phase_N, centre_N = np.divmod(correlation_NX.argmax(axis=1), self.bins)
        return np.concatenate([centre_N[:, None].astype(np.float32), self.kick_AK[phase_N]], axis=1)


def _scan_kick(pursuit: TemplatePursuit, counts: Floats) -> float:
    """The kick whose templates correlate best with the counts, within `_KICK_STEP` / 2 bins."""
    bins = counts.shape[2]

    def correlation(kick_bin: float) -> float:
        search = _Search(replace(pursuit, kick_bin=kick_bin)._model(counts.shape[1]), bins)
        best = [search.correlate(counts[part]).max(axis=(1, 2)) for part in _batches(counts.shape)]
        return float(np.concatenate(best).mean())

    return max((float(kick) for kick in np.arange(0, bins / 2, _KICK_STEP)), key=correlation)


def _prune(line_NPK: Floats, faintest: float) -> Floats:
    """Brightest lines first, those below `faintest` gone, no more columns than needed."""
    amplitude_NP = np.where(line_NPK[..., 0] >= faintest, line_NPK[..., 0], 0)
    order_NP = np.argsort(-amplitude_NP, axis=1)[:, : max(1, int((amplitude_NP > 0).sum(axis=1).max(initial=1)))]
    kept_NPK = np.take_along_axis(line_NPK, order_NP[..., None], axis=1)
    kept_NPK[..., 0] = np.take_along_axis(amplitude_NP, order_NP, axis=1)
    return kept_NPK


def _batches(shape: tuple[int, ...]) -> list[slice]:
    step = max(1, _BATCH_BINS // (shape[1] * shape[2]))
    return [slice(start, start + step) for start in range(0, shape[0], step)]
