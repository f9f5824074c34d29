"""What needs a GPU. `python -m pytest tests/gpu` on a machine with one, with torch, zarr, pydantic and safetensors."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("GPU NOT TESTED: PyTorch sees no CUDA device here")
