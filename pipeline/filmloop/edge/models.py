"""The verified bundles of one edge: brought in, proven, kept by version, and the one to start from remembered."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from filmloop.bundle import load_golden, verify_bundle
from filmloop.config.paths import Home
from filmloop.config.schema import SiteConfig
from filmloop.core.clock import utc_now
from filmloop.core.documents import Document, TrainResult, VersionInfo
from filmloop.core.errors import DataError, TransientError, VerificationError
from filmloop.core.fsio import disk_errors, publish_dir
from filmloop.edge.gentle import AT_ONCE, Pace
from filmloop.edge.quality import SCORED_FRAMES
from filmloop.edge.runtimes.candidates import Candidates
from filmloop.edge.runtimes.choose import RuntimeChoice, runtime_for
from filmloop.edge.runtimes.make import tolerance_of
from filmloop.ports.registry import Registry
from filmloop.ports.runtime import InferenceRuntime, Wanted
from filmloop_models.catalog import get as get_model

_log = logging.getLogger(__name__)

KEEP_BUNDLES = 4
"""Verified bundles that stay on disk: a roll back to one of them needs no download."""


class Live(Document):
    """Which verified bundle the edge starts from when the registry is away."""

    version: str
    bundle_digest: str
    since_utc: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """A version that was verified, loaded and tried.

    Attributes:
        runtime: Serves it.
        digest: Of its bundle.
        counts_NCE: uint8 (N, C, E), the golden frames.
        golden_NCE: float32 (N, C, E), what training made of them.
        tolerance: Largest relative RMS difference from them that this runtime may have.
        choice: How the runtime was chosen, for the status.
    """

    runtime: InferenceRuntime
    digest: str
    counts_NCE: npt.NDArray[np.uint8]
    golden_NCE: npt.NDArray[np.float32]
    tolerance: float
    choice: RuntimeChoice | None = None


class ModelStore:
    """Bundles below `home.edge_models`, one folder a version.

    Args:
        config: The site.
        home: Its state folder.
        dense: Whether somebody wants the rates of every frame.
        place: Who brings bundles in here: two may at the same time.

    Attributes:
        wanted: What is asked of every batch; a version is tried on this way.
    """

    def __init__(self, config: SiteConfig, home: Home, *, dense: bool = False, place: str = "inference") -> None:
        self._config = config
        self.wanted = Wanted(dense=dense, surprise=config.staging.stages_surprising)
        self._weights = home.weights
        self._folder, self._live = home.edge_models, home.edge / "live.json"
        self._incoming = f".incoming-{place}-"
        for left in self._folder.glob(f"{self._incoming}*"):
            shutil.rmtree(left, ignore_errors=True)
        self._choices = home.edge / "runtime.json"

    def fetch(self, registry: Registry, info: VersionInfo, pace: Pace = AT_ONCE) -> Proven:
        """A runtime for a registered version, from the bundle on this machine or else from the registry.

        Raises:
            VerificationError: it is not fit to be loaded.
            TransientError: the registry or the disk is away.
            DataError: the registry has no bundle of it.
        """
        if not info.version.isdigit() or not info.bundle_digest:
            raise VerificationError(
                f"Version {info.version} of {info.name} carries no bundle digest: filmloop did not register it.",
                hint="Move the alias to a version of filmloop's: `filmloop models rollback`.",
                ids={"version": info.version},
            )
        kept = self._folder / info.version
        if kept.is_dir():
            try:
                return self.prove(kept, version=info.version, digest=info.bundle_digest, pace=pace)
            except VerificationError as exc:
                _log.info("the kept bundle of version %s is of no use, fetching it again: %s", info.version, exc)
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            # Its own each time: a download that nobody waits for any more may still be under way.
            incoming = Path(tempfile.mkdtemp(prefix=self._incoming, dir=self._folder))
        try:
            bundle = self._bring(registry, info, incoming / info.version)
            proven = self.prove(bundle, version=info.version, digest=info.bundle_digest, pace=pace)
            try:
                publish_dir(bundle, kept)
            except BaseException:
                proven.runtime.close()
                raise
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return proven

    def _bring(self, registry: Registry, info: VersionInfo, target: Path) -> Path:
        """The bundle as `target`: by hard links where a cycle on this machine keeps it, else from the registry."""
        here = self._weights / info.name / info.version
        try:
            verify_bundle(here, digest=info.bundle_digest)
            shutil.copytree(here, target, copy_function=os.link)
        except (DataError, OSError) as exc:
            _log.debug("version %s comes from the registry: %s", info.version, exc)
            shutil.rmtree(target, ignore_errors=True)
            return registry.download(info.version, target)
        return target

    def prove(self, folder: Path, *, version: str, digest: str, pace: Pace = AT_ONCE) -> Proven:
        """Verify a bundle, load it into the site's runtime, try it on extreme frames, compare it with its golden pair.

        Raises:
            VerificationError: anything is not as it should be.
        """
        result = verify_bundle(folder, digest=digest)
        self._check_kind(result, version)
        counts_NCE, golden_NCE = load_golden(folder)
        if counts_NCE.shape[1:] != self._config.frame_shape or not len(counts_NCE):
            raise VerificationError(
                f"The golden pair of version {version} has frames of shape {counts_NCE.shape[1:]}.",
                ids={"version": version},
            )
        candidates = Candidates(
            bundle=folder, version=version, model=result.model, edge=self._config.edge, wanted=self.wanted
        )
        try:
            # What the running quality will ask for is compiled here, not between two batches of frames.
            scored_NCE = np.zeros((SCORED_FRAMES, *self._config.frame_shape), np.float32)
            runtime, choice = runtime_for(
                candidates, self._choices, pace=pace, warm_up=lambda runtime: runtime.infer(scored_NCE)
            )
        except (VerificationError, TransientError):
            raise
        except Exception as exc:
            # A network of somebody else's may fail in any way; here that is one thing, a version not to be used.
            raise VerificationError(
                f"Version {version} cannot be loaded: {type(exc).__name__}: {exc}", ids={"version": version}
            ) from exc
        return Proven(
            runtime=runtime,
            digest=digest,
            counts_NCE=counts_NCE,
            golden_NCE=golden_NCE,
            tolerance=tolerance_of(
                runtime.name, model=get_model(result.model.name).tolerance, full=self._config.edge.golden_tolerance
            ),
            choice=choice,
        )

    def remember(self, version: str, digest: str) -> None:
        """Start from this version after a restart; forget all but the newest bundles.

        Raises:
            TransientError: the disk refuses.
        """
        Live(version=version, bundle_digest=digest, since_utc=utc_now()).write(self._live)
        with disk_errors(self._folder):
            os.utime(self._folder / version)
            kept = sorted(
                (path for path in self._folder.iterdir() if path.name.isdigit()),
                key=lambda path: path.stat().st_mtime_ns,
                reverse=True,
            )
        for path in kept[KEEP_BUNDLES:]:
            shutil.rmtree(path, ignore_errors=True)

    def remembered(self) -> Proven | None:
        """The version that was live last; None if there was none.

        Raises:
            VerificationError: its bundle is no longer what it was.
            TransientError: the disk refuses.
        """
        try:
            with disk_errors(self._live):
                if not self._live.exists():
                    return None
                live = Live.read(self._live)
                return self.prove(self._folder / live.version, version=live.version, digest=live.bundle_digest)
        except VerificationError:
            raise
        except DataError as exc:
            raise VerificationError(exc.message, hint=exc.hint, ids=exc.ids) from exc

    def _check_kind(self, result: TrainResult, version: str) -> None:
        wanted, shape = self._config.model.name, self._config.frame_shape
        if result.model.name != wanted or result.model.frame_shape != shape:
            raise VerificationError(
                f"Version {version} is a {result.model.name} for frames of shape {result.model.frame_shape}; "
                f"this site wants {wanted} for {shape}.",
                hint="See [model] and [frame] of the site file.",
                ids={"version": version},
            )
