"""How far a prediction is from the truth, where there is a truth.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX_SHIFT = 3
"""Largest displacement, in bins, that is tried. The public sets have one bin (CookieSimSlim) and less (CookieNetAE)."""


def mse_after_gain_and_shift(
    prediction_NCE: npt.NDArray[np.floating],
    label_NCE: npt.NDArray[np.floating],
    *,
    gain: float | None = None,
    shift: int | None = None,
) -> tuple[float, float, int]:
    """Mean squared error of `gain * prediction`, moved up by `shift` bins, to the label.

    Labels of the public sets have units of their own, and their counts lie a bin off. Both are properties of the
    data, not of a model: they are fitted here, once for the whole set. Bins that the shift empties count as 0.

    Args:
        prediction_NCE: Rates, or whatever is proportional to them.
        label_NCE: Truth of the same shape.
        gain: None fits it by least squares.
        shift: None tries all within `MAX_SHIFT` bins and takes the best.

    Returns:
        (mse, gain, shift)

    Raises:
        ValueError: the shapes differ.
    """
    if prediction_NCE.shape != label_NCE.shape:
        raise ValueError(f"prediction {prediction_NCE.shape} and label {label_NCE.shape} differ in shape")
    label = np.asarray(label_NCE, np.float32)
    label_square = _dot(label, label)
    best = (float("inf"), 0.0, 0)
    for bins in range(-MAX_SHIFT, MAX_SHIFT + 1) if shift is None else (shift,):
        moved = shifted(np.asarray(prediction_NCE, np.float32), bins)
        square, cross = _dot(moved, moved), _dot(moved, label)
        factor = (cross / square if square > 0 else 0.0) if gain is None else gain
        mse = (label_square - 2 * factor * cross + factor**2 * square) / max(label.size, 1)
        best = min(best, (mse, factor, bins))
    return best


def shifted(frames_NCE: npt.NDArray[np.float32], bins: int) -> npt.NDArray[np.float32]:
    """The frames moved up by `bins` energy bins; emptied bins are 0."""
    if bins == 0:
        return frames_NCE
    moved = np.zeros_like(frames_NCE)
    if bins > 0:
        moved[..., bins:] = frames_NCE[..., :-bins]
    else:
        moved[..., :bins] = frames_NCE[..., -bins:]
    return moved


def _dot(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Sum of products; float32 within a frame, float64 over frames."""
    per_frame = np.einsum("nij,nij->n", a, b)
    return float(per_frame.sum(dtype=np.float64))
