from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from filmloop.core.documents import ShardRef
from filmloop.testing.training import simulated_counts, staged_frames


@pytest.fixture(scope="session")
def shard(tmp_path_factory: pytest.TempPathFactory) -> ShardRef:
    """600 simulated frames, sealed; tests read them only."""
    return staged_frames(tmp_path_factory.mktemp("stage"), simulated_counts(600))


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """The entry sets a signal handler and a log handler of its process; tests share one process."""
    import logging

    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    root = logging.getLogger("filmloop")
    log = (root.handlers[:], root.level, root.propagate)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)
    root.handlers[:], root.level, root.propagate = log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The run folder of a job."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"
