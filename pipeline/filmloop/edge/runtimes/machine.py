"""What this machine has, as far as a choice of a runtime depends on it; without PyTorch, which takes seconds to load."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""NVIDIA's driver, AMD's, and either of them below Windows."""


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name for people."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def has_gpu_driver() -> bool:
    """Whether it is worth asking PyTorch for a GPU."""
    return any(map(os.path.exists, _GPU_DEVICES))


def gpu_name() -> str:
    """What PyTorch calls the GPU that it would use; '' without one."""
    if not has_gpu_driver():
        return ""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
