"""Bundles with real networks in them: for tests of whatever loads and runs weights. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file as save_torch

from filmloop import bundle as names
from filmloop.core.documents import ModelChoice, TrainJob
from filmloop.core.fsio import atomic_write_bytes
from filmloop.testing.bundles import seal_bundle, small_report
from filmloop.training.export import export_onnx
from filmloop_models.catalog import get

GOLDEN_FRAMES = 8


def make_model_bundle(
    folder: Path,
    *,
    frame_shape: tuple[int, int] = (16, 128),
    seed: int = 0,
    model: str = "mixer",
    hyper: Mapping[str, int | float | str | bool] | None = None,
    onnx: bool = False,
    golden_NCE: npt.NDArray[np.uint8] | None = None,
) -> Path:
    """Write a valid bundle with an untrained network into `folder` and return that; its weights follow from `seed`.

    With `onnx` also the file that other runtimes than PyTorch load, which takes 0.1 s more. `golden_NCE` are the frames of
    the golden pair; by which eight-bit integers set their ranges: by default 8 that are all alike, of 0.2 counts a bin.
    """
    folder.mkdir(parents=True)
    choice = ModelChoice(name=model, frame_shape=frame_shape, hyper=dict(hyper or {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = get(model).module(frame_shape, choice.hyper).eval()
    # Untrained networks of this kind all start at nearly the same flat rate: spread the weights apart.
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.from_numpy(rng.normal(0.0, 0.05, parameter.shape).astype(np.float32)))
        counts_NCE = rng.poisson(0.2, (GOLDEN_FRAMES, *frame_shape)).astype(np.uint8)
        counts_NCE = counts_NCE if golden_NCE is None else golden_NCE
        rate_NCE = module(torch.from_numpy(counts_NCE.astype(np.float32))).numpy()
    save_torch({name: value.contiguous() for name, value in module.state_dict().items()}, folder / names.WEIGHTS)
    save_numpy({"counts_NCE": counts_NCE, "rate_NCE": rate_NCE}, folder / names.GOLDEN)
    if onnx:
        export_onnx(module, frame_shape, folder / names.ONNX)
    reports = {"challenger": small_report("challenger", (50.0, 51.0, 52.0))}
    names.Evaluation(reports=reports).write(folder / names.EVALUATION)
    atomic_write_bytes(folder / names.METRICS, b'{"step": 0, "loss": 1.0}\n')
    job_id = f"job-{seed}"
    TrainJob(job_id=job_id, model=choice, fresh=(), output_dir=str(folder), seed=seed).write(folder / names.JOB)
    seal_bundle(folder, choice, job_id=job_id, seed=seed)
    return folder
