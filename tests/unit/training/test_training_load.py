from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from filmloop.bundle import GOLDEN, WEIGHTS, load_golden
from filmloop.core.documents import ModelChoice, WeightsRef
from filmloop.core.errors import ConfigError, TrainingError, VerificationError
from filmloop.testing.models import make_model_bundle
from filmloop.training.load import build_module, load_module, verified_base, verified_bundle
