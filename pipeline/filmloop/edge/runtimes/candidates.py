"""A bundle and a machine: the runtimes that may serve the one on the other, made and proven.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from filmloop.bundle import ONNX, load_golden
from filmloop.config.schema import EdgeSection
from filmloop.core.documents import ModelChoice
from filmloop.core.fsio import canonical_json, sha256_bytes
from filmloop.edge.runtimes.checks import check_finite, check_golden
from filmloop.edge.runtimes.machine import cores, cpu_model, gpu_name
from filmloop.edge.runtimes.make import make_runtime, tolerance_of
from filmloop.ports.runtime import KEYS_ONLY, InferenceRuntime, Wanted
from filmloop_models import catalog

PROBE_FRAMES = 16
"""A batch that is made to probe a runtime: nothing is tuned for it."""
_PACKAGES = ("torch", "onnxruntime", "openvino", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """A bundle and where it is to serve.

    Attributes:
        bundle: Folder of the verified bundle.
        version: Registry version of its weights.
        model: What the bundle's result says of its network.
        edge: Settings of the edge.
        wanted: What it asks of every batch.
    """

    bundle: Path
    version: str
    model: ModelChoice
    edge: EdgeSection
    wanted: Wanted = KEYS_ONLY

    def made(self, name: str, batch_frames: int) -> InferenceRuntime:
        """The runtime of that name, unchecked; see `make_runtime`."""
        return make_runtime(
            name,
            self.bundle,
            version=self.version,
            frame_shape=self.model.frame_shape,
            batch_frames=batch_frames,
            threads=self.edge.threads,
            tune=self.edge.tune and batch_frames > PROBE_FRAMES,
        )

    def proven(self, name: str, batch_frames: int) -> tuple[InferenceRuntime, float]:
        """The runtime of that name, checked on extremes and on its golden pair; and its relative RMS difference.

        Raises:
            ConfigError: this machine does not have it.
            VerificationError: it does not make of the golden counts what it should.
        """
        spec, (counts_NCE, golden_NCE) = catalog.get(self.model.name), load_golden(self.bundle)
        runtime = self.made(name, batch_frames)
        try:
            check_finite(runtime, self.model.frame_shape, batch_frames, self.wanted)
            tolerance = tolerance_of(name, model=spec.tolerance, full=self.edge.golden_tolerance)
            difference = check_golden(
                runtime, counts_NCE, golden_NCE, tolerance=tolerance, sort_key=spec.sort_key, wanted=self.wanted
            )
        except BaseException:
            runtime.close()
            raise
        return runtime, difference

    def key(self) -> str:
        """Digest of everything that the choice depends on but the weights."""
        versions = {}
        for package in _PACKAGES:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        depends = {
            "cpu": cpu_model(),
            "cores": cores(),
            "gpu": gpu_name(),
            "packages": versions,
            "model": self.model.as_json(),
            "tolerance": catalog.get(self.model.name).tolerance,
            "onnx": (self.bundle / ONNX).exists(),
            "edge": self.edge.model_dump(
                mode="json", include={"threads", "latency_budget_ms", "batch_frames", "golden_tolerance", "tune"}
            ),
        }
        return sha256_bytes(canonical_json(depends))
