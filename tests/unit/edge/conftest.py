from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from filmloop.testing.models import make_model_bundle

SHAPE = (16, 32)


class Compiled(torch.nn.Module):
    """As torch.compile's module: it passes calls on, and refuses to tell its length."""

    def __init__(self, module):
        super().__init__()
        self.inner = module

    def __len__(self):
        raise TypeError("has no len()")

    def forward(self, counts):
        return self.inner(counts)


class RecordingEngine:
    """A CPU in place of the GPU. A capture records operations on the tensors as they lie in memory, as CUDA's does:
    what is replayed reads their present content, and knows nothing of tensors that took another's name since."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        self.captures = self.tunings = 0

    def pinned(self, shape, dtype):
        return torch.zeros(shape, dtype=dtype)

    def stream(self):
        return None

    def on(self, stream):
        return nullcontext()

    def pool(self):
        return None

    def tuned(self, module):
        self.tunings += 1
        return Compiled(module)

    def capture(self, work, stream, pool):
        self.captures += 1
        return torch.no_grad()(make_fx(lambda: work())())

    def done(self, stream):
        return lambda: None


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return make_model_bundle(tmp_path_factory.mktemp("bundles") / "bundle", frame_shape=SHAPE, onnx=True)


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory):
    return make_model_bundle(tmp_path_factory.mktemp("bundles") / "other", frame_shape=SHAPE, seed=1, onnx=True)
