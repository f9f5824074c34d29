"""The second stage: the champion's network on every frame, and the swap to the next one between two batches.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import gc
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from filmloop.config.schema import SiteConfig
from filmloop.core.clock import utc_now
from filmloop.core.errors import TransientError, VerificationError
from filmloop.core.types import FrameBlock
from filmloop.edge.drift import DriftMonitor
from filmloop.edge.gain import Corrected, behind
from filmloop.edge.gentle import AT_ONCE, Pace
from filmloop.edge.latency import Latency
from filmloop.edge.models import ModelStore, Proven
from filmloop.edge.quality import QualityMonitor
from filmloop.edge.ring import NOT_INFERRED, FrameRing
from filmloop.edge.runtimes import check_served
from filmloop.edge.runtimes.make import require
from filmloop.edge.stages.base import Stage
from filmloop.edge.stages.batching import Batching
from filmloop.edge.swap import ModelWatcher, Offer
from filmloop.ports.registry import Registry
from filmloop.ports.runtime import InferenceRuntime, Pending
from filmloop_models.catalog import get as get_model

_log = logging.getLogger(__name__)

_TELL_EVERY_S = 0.2
_UNINFERRED_FRAMES = 4096
_SERVED_FRAMES = 16
"""Golden frames that are served at a swap: the watcher has tried them all. 16 take 1 ms, 64 took 3 to 19 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeResult:
    """What the edge makes of one batch, for a subscriber in the same process.

    Attributes:
        run_number: The run of the first frame.
        pulse_id_N: uint64 (N,).
        version: Registry version that made it, '' without a model.
        rate_NCE: float32 (N, C, E) rates; None without a model. Valid during the call: copy what you keep.
        phase_N: float32 (N,), the sort key; NaN without a model or a key.
    """

    run_number: int
    pulse_id_N: npt.NDArray[np.uint64]
    version: str
    rate_NCE: npt.NDArray[np.float32] | None
    phase_N: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Frames under way, at their places in the ring."""

    places: slice
    runtime: InferenceRuntime
    pending: Pending


class InferenceStage(Stage):
    """Infers what the source put into the ring.

    Args:
        ring: The ring.
        config: The site.
        store: Where bundles are kept and proven, for what is wanted of every batch.
        registry: Makes a registry client, in the watcher's thread; None never looks for new weights.
        on_result: Called with every result, in this stage's thread; its time counts against the frame rate. Rates are
            among it if `store.wanted` has them.
        asked: Whether somebody asked for a look at the registry since the last call.
        drift: Looks at the scored frames, and says how to correct gains; None: nobody looks.
        place: Where it sits at the ring.
    """

    def __init__(
        self,
        ring: FrameRing,
        config: SiteConfig,
        *,
        store: ModelStore,
        registry: Callable[[], Registry] | None,
        on_result: Callable[[EdgeResult], None] | None = None,
        drift: DriftMonitor | None = None,
        asked: Callable[[], bool] = lambda: False,
        place: str = "inference",
    ) -> None:
        super().__init__(place, ring)
        self._drift, self._asked = drift, asked
        self._config, self._store, self._connect, self._on_result = config, store, registry, on_result
        self._sort_key = get_model(config.model.name).sort_key
        self._wanted = store.wanted
        # Staging works on whole chunks, but must notice in time that too much waits.
        self._wake_frames = max(1, min(config.staging.frames_per_chunk, int(config.edge.shed_at * ring.frames) // 4))
        self._offer = Offer(wake=ring.bells[place].ring)
        self._runtime: InferenceRuntime | None = None
        self._quality = self._new_quality()
        self._latency, self._batching = Latency(), Batching(dense=self._wanted.dense)
        self._under_way: deque[_Batch] = deque()
        self._leaving: list[InferenceRuntime] = []
        self._totals = ring.inference.read()
        self._started = self._totals["done"]
        self._told_s = 0.0

    def run(self) -> None:
        """Work until the source has ended and all its frames are inferred.

        Raises:
            ConfigError: the runtime that the site names is not to be had here.
        """
        self._load_remembered()
        watcher = self._watch()
        self._settle()
        try:
            self._work()
        finally:
            if watcher is not None:
                watcher.finish()
            if self._drift is not None:
                self._drift.finish()
        self._end()

    def _end(self) -> None:
        self._totals["ended"] = 1
        self.ring.inference.write(self._totals)
        self._tell(at_once=True)
        self.ring.bells["staging"].ring()

    def _settle(self) -> None:
        """What was loaded stays: a full collection would look at all of it, 60 ms in which no batch is begun."""
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    def _is_relieved(self) -> bool:
        """Whether somebody else is ready to go on behind the frames of this stage."""
        return False

    def _work(self) -> bool:
        """Two batches are under way at a time: while one is computed, the other one's results are put away.

        Returns:
            Whether the source has ended and everything is inferred, not merely this stage relieved.
        """
        ring = self.ring
        while not self._is_relieved():
            self._take_offer()
            ended = ring.source.get("ended")
            head = ring.source.get("head")
            if self.hurried and not self._under_way and self._started < head:
                self._put_uninferred(self.ring.span(self._started, head), NOT_INFERRED)
            while self._started < head and self._has_lane():
                self._start(head)
            if self._under_way:
                self._finish(self._under_way.popleft())
            elif self._started == head:
                if ended:
                    return True
                self.wait()
            self._tell()
        while self._under_way:
            self._finish(self._under_way.popleft())
        return False

    def _has_lane(self) -> bool:
        return self._runtime is None or len(self._under_way) < self._runtime.lanes

    def _start(self, head: int) -> None:
        """Begin with the next batch; without a model there is nothing to begin."""
        ring, runtime, waiting = self.ring, self._runtime, head - self._started
        if runtime is None:
            self._put_uninferred(ring.span(self._started, self._started + min(waiting, _UNINFERRED_FRAMES)), 0)
            return
        places = ring.span(self._started, self._started + self._batching.frames(waiting, runtime))
        self._started += places.stop - places.start
        wanted = self._wanted
        pending = runtime.start(ring.counts_FCE[places], dense=wanted.dense, surprise=wanted.surprise)
        self._under_way.append(_Batch(places=places, runtime=runtime, pending=pending))

    def _finish(self, batch: _Batch) -> None:
        ring, places = self.ring, batch.places
        result = batch.pending.result()
        ring.version_F[places] = int(batch.runtime.version)
        ring.phase_F[places] = result.phase_N
        ring.surprise_F[places] = np.nan if result.surprise_N is None else result.surprise_N
        self._totals["inferred"] += places.stop - places.start
        self._latency.add(time.monotonic_ns() - int(ring.arrived_ns_F[places.start]))
        if self._on_result is not None:
            self._on_result(self._result(places, batch.runtime.version, result.rate_NCE))
        # Only the weights that are live are judged; the copy is made while the places are still ours.
        judged = batch.runtime is self._runtime
        if judged:
            self._quality.take(self._block(places))
        self._commit(places)
        if judged:
            self._judge(batch.runtime)
        elif self._leaving:
            self._retire()

    def _put_uninferred(self, places: slice, mark: int) -> None:
        """Frames without a model are staged all the same; those of an overdue stop go no further."""
        ring = self.ring
        ring.version_F[places], ring.phase_F[places], ring.surprise_F[places] = mark, np.nan, np.nan
        self._started += places.stop - places.start
        self._totals["no_model" if mark == 0 else "stopped"] += places.stop - places.start
        if self._on_result is not None and mark == 0:
            self._on_result(self._result(places, "", None))
        self._commit(places)

    def _commit(self, places: slice) -> None:
        """Everything about these frames is in the ring: from here on they are staging's."""
        before = self._totals["done"]
        self._totals["done"] = before + places.stop - places.start
        self.ring.inference.write(self._totals)
        if self._totals["done"] // self._wake_frames != before // self._wake_frames:
            self.ring.bells["staging"].ring()
        self.beat()

    def _result(self, places: slice, version: str, rate_NCE: npt.NDArray[np.float32] | None) -> EdgeResult:
        ring = self.ring
        return EdgeResult(
            run_number=int(ring.run_number_F[places.start]),
            pulse_id_N=ring.pulse_id_F[places].copy(),
            version=version,
            rate_NCE=rate_NCE,
            phase_N=ring.phase_F[places].copy(),
        )

    def _block(self, places: slice) -> FrameBlock:
        ring = self.ring
        return FrameBlock(
            run_number=int(ring.run_number_F[places.start]),
            pulse_id_N=ring.pulse_id_F[places],
            counts_NCE=ring.counts_FCE[places],
            flags_N=ring.flags_F[places],
        )

    def _judge(self, runtime: InferenceRuntime) -> None:
        """The running quality, from a few frames a batch."""
        unfit = self._quality.unfit
        quality = self._quality.score(runtime)
        if quality is not None:
            self.news.say(quality=quality.as_json())
            self._look_at_drift()
        if self._quality.unfit > unfit:
            self.news.problem(
                f"version {runtime.version} made rates that are not finite of {self._quality.unfit} sampled frames"
            )

    def _look_at_drift(self) -> None:
        """Tell what the scored frames say, and correct gains from the next batch on."""
        if self._drift is None or self._runtime is None:
            return
        report = self._drift.report()
        self.news.say(drift=report and report.as_json())
        serving, gain = self._runtime, self._drift.gain
        base = behind(serving)
        if gain != (serving.gain if isinstance(serving, Corrected) else None):
            self._runtime = base if gain is None else Corrected(base, gain, self._sort_key)

    def _new_quality(self) -> QualityMonitor:
        observe = None if self._drift is None else self._drift.observe
        config = self._config
        return QualityMonitor(config.edge, config.training.holdout, config.frame_shape, observe=observe)

    def _load_remembered(self) -> bool:
        """Load the last verified weights, if there are any; says whether."""
        if self._config.edge.runtime != "auto":
            require(self._config.edge.runtime)
        try:
            remembered = self._store.remembered()
            if remembered is not None:
                self._check(remembered)
        except (VerificationError, TransientError) as exc:
            self.news.problem(f"the remembered version was not loaded: {exc.message}")
            _log.warning("the remembered version was not loaded, looking at the registry: %s", exc.message)
            remembered = None
        if remembered is None:
            # A former life of this stage may have told of one.
            self.news.say(version="", bundle_digest="")
            return False
        self._runtime = remembered.runtime
        self._offer.accept(remembered)
        self._say_live(remembered)
        _log.info("starting with version %s on %s", self._runtime.version, self._runtime.name)
        return True

    def _watch(self, pace: Pace = AT_ONCE) -> ModelWatcher | None:
        """Begin to look for versions other than the one that serves."""
        if self._connect is None:
            return None
        watcher = ModelWatcher(
            store=self._store,
            registry=self._connect,
            offer=self._offer,
            news=self.news,
            every_s=self._config.edge.watch_every_s,
            asked=self._asked,
            pace=pace,
        )
        watcher.start()
        return watcher

    def _take_offer(self) -> None:
        """Swap, if there is something to swap to and it serves what it should on the very path of the frames."""
        offered = self._offer.take()
        if offered is None:
            return
        try:
            self._check(offered)
        except VerificationError as exc:
            self._refuse(offered, exc)
            return
        # What is under way stays the former version's: every batch carries its runtime.
        before, self._runtime = self._runtime, offered.runtime
        self._offer.accept(offered)
        if before is not None:
            self._leaving.append(behind(before))
            self._retire()
        self._quality.reset()
        self.news.more("swaps")
        self._say_live(offered)
        _log.info("version %s is live on %s", offered.runtime.version, offered.runtime.name)

    def _refuse(self, offered: Proven, exc: VerificationError) -> None:
        self.news.more("swaps_refused")
        self.news.problem(f"version {offered.runtime.version} refused: {exc.message}")
        _log.error("version %s refused at the swap: %s %s", offered.runtime.version, exc.message, exc.hint)
        self._offer.refuse(offered)

    def _retire(self) -> None:
        """Let go of former runtimes whose last batch is finished."""
        for runtime in [
            each for each in self._leaving if all(behind(batch.runtime) is not each for batch in self._under_way)
        ]:
            self._leaving.remove(runtime)
            self._offer.retire(runtime)

    def _check(self, proven: Proven) -> None:
        """See that it serves what it should on the very path of the frames, which wait: a few golden frames will do.

        Raises:
            VerificationError: it does not.
        """
        version = proven.runtime.version
        try:
            check_served(
                proven.runtime,
                proven.counts_NCE[:_SERVED_FRAMES],
                proven.golden_NCE[:_SERVED_FRAMES],
                tolerance=proven.tolerance,
                sort_key=self._sort_key,
                wanted=self._wanted,
            )
        except VerificationError:
            raise
        except Exception as exc:
            # Vendor code fails in ways that no list covers; here that is one thing, a version not to be used.
            raise VerificationError(
                f"Version {version} cannot be served: {type(exc).__name__}: {exc}", ids={"version": version}
            ) from exc

    def _say_live(self, live: Proven, *, relieves: bool = False) -> None:
        if self._drift is not None:
            self._drift.switch(live.runtime.version, live.digest, relieves=relieves)
        self._look_at_drift()
        self._tell_version(live)

    def _tell_version(self, live: Proven) -> None:
        self.news.say(
            version=live.runtime.version, bundle_digest=live.digest, runtime=live.runtime.name,
            version_since_utc=utc_now(), quality=None,
            choice=live.choice and live.choice.model_dump(mode="json", exclude={"key"}),
        )  # fmt: skip

    def _tell(self, *, at_once: bool = False) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s < _TELL_EVERY_S and not at_once:
            return
        self._told_s = now_s
        self._batching.note(self._totals["inferred"], now_s)
        p50_ms, p99_ms, p999_ms = self._latency.percentiles_ms()
        seen = self._quality.input_statistics()
        self.news.say(
            latency_p50_ms=p50_ms,
            latency_p99_ms=p99_ms,
            latency_p999_ms=p999_ms,
            latency_counts={str(bucket): count for bucket, count in enumerate(self._latency.counts) if count},
            input=seen and seen.as_json(),
        )
        self._latency.tick()
