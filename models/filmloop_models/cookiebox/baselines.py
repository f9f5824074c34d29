"""Classical baselines, reported beside every network: a tuned Gaussian blur and a template pursuit.

Both learn without labels: `tune(counts_NCE, keep=..., seed=...)`; `rate(counts_NCE)` predicts as a network does.
"""

from filmloop_models.cookiebox.gaussian import TunedGaussian
from filmloop_models.cookiebox.pursuit import TemplatePursuit

__all__ = ["TemplatePursuit", "TunedGaussian"]
