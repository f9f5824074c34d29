"""The edge service: frames in, results out, every frame staged or counted, weights swapped between two batches.

    source ─► intake ─► champion's network ─► results ─► queue ─► stager ─► sealed shards
                            ▲                    └► quality (a sample)
                     offer ─┘◄─ model watcher ◄─ registry

One thread infers, one stages, one watches the registry, one writes the status. Only blocks, batches and runtimes pass
between them.
Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from filmloop.config.paths import Home
from filmloop.config.schema import SiteConfig
from filmloop.core.documents import Accounting, PulseRange
from filmloop.core.errors import ConfigError, DataError, TransientError, VerificationError
from filmloop.core.log import Limited
from filmloop.core.types import FrameBlock
from filmloop.edge.gauges import Gauges
from filmloop.edge.intake import Arrival, Intake, sound_or_bad
from filmloop.edge.lock import only_edge
from filmloop.edge.models import ModelStore
from filmloop.edge.quality import QualityMonitor
from filmloop.edge.reporter import Reporter
from filmloop.edge.runtimes import use_threads
from filmloop.edge.stager import Batch, Stager
from filmloop.edge.swap import ModelWatcher, Offer
from filmloop.edge.tally import BAD_FRAME, QUEUE_FULL, add, note, unstaged
from filmloop.ports.registry import Registry
from filmloop.ports.runtime import InferenceRuntime
from filmloop.ports.source import FrameSource
from filmloop.staging.catalog import last_sealed
from filmloop.staging.recovery import recover
from filmloop_models.catalog import get as get_model

_log = logging.getLogger(__name__)

_REOPEN_FIRST_S, _REOPEN_CAP_S = 0.5, 30.0
_DATA_ERRORS = 5
"""So many in a row at one place: the data there will not be better at the sixth try."""
_FINISH_S = 3.0
"""Longest that the queue and the last seal may take at a stop; with everything else it stays below 5 s."""
_WAIT_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeResult:
    """What the edge makes of one batch, for a subscriber in the same process.

    Attributes:
        run_number: The run.
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


class EdgeService:
    """One edge on one state folder.

    A source with a rate of its own (`rate_hz` above 0) does not wait: if staging falls behind, batches are inferred
    and counted as unstaged. A source that is read as fast as it is taken loses nothing by waiting, so it waits.

    Args:
        config: The site.
        home: Its state folder.
        source: Where frames come from; opened and closed by `run`.
        registry: Makes a registry client, in the watcher's thread; None never looks for new weights.
        may_expire: Says of a shard id whether it may be deleted once there are more than the site keeps.
        on_result: Called with every result, in the inference thread; its time counts against the frame rate.
        stay: At the end of the data, keep taking new versions and seal requests until told to stop.
    """

    def __init__(
        self,
        *,
        config: SiteConfig,
        home: Home,
        source: FrameSource,
        registry: Callable[[], Registry] | None,
        may_expire: Callable[[str], bool] = lambda _: False,
        on_result: Callable[[EdgeResult], None] | None = None,
        stay: bool = False,
    ) -> None:
        self._config, self._home, self._source, self._stay = config, home, source, stay
        self._connect, self._may_expire, self._on_result = registry, may_expire, on_result
        self._sort_key = _sort_key_of(config.model.name)
        self._sheds = config.source.rate_hz > 0
        self._offer = Offer()
        self._runtime: InferenceRuntime | None = None
        self._quality = QualityMonitor(config.edge, config.training.holdout)
        self._shed: list[PulseRange] = []
        self._shed_run = 0
        self._trouble, self._bad = Limited(_log), Limited(_log)
        self._failed_at: tuple[int, int] | None = None
        self._data_errors = 0

    def run(self, stop: threading.Event, *, max_frames: int | None = None) -> Accounting:
        """Work until the data end, `stop` is set or `max_frames` more frames have come in.

        Returns:
            What became of every frame of the stream, earlier lives included.

        Raises:
            TransientError: another edge has this state folder.
            ConfigError: the source's frames do not have the site's shape.
            DataError: the source has no data to begin with, or none that can be read after a certain frame.
        """
        with only_edge(self._home):
            use_threads(self._config.edge.threads)
            self._prepare()
            self._reporter.write("starting")
            watcher = self._start_models()
            try:
                self._open_source(stop)
                self._stager.start()
                self._reporter.start()
                self._work(stop, max_frames)
            finally:
                if watcher is not None:
                    watcher.finish()
                self._finish(stop)
            if self._stager.failure is not None:
                raise self._stager.failure
            return add(self._gauges.taken, self._stager.kept)

    def _prepare(self) -> None:
        """Clean up after a crash and continue where the newest sealed shard ends."""
        stage, stream = self._home.stage, self._source.stream
        recover(stage, stream)
        last = last_sealed(stage, stream)
        before = Accounting() if last is None else last.manifest.accounting
        self._after = None if last is None else (last.manifest.run_number, last.manifest.last_pulse_id)
        self._intake = Intake(self._config.frame_shape, self._after)
        self._gauges = Gauges(before.model_copy(update={"frames_staged": 0}))
        self._stager = Stager(
            config=self._config,
            home=self._home,
            stream=stream,
            labelled=self._source.labelled,
            staged=before.frames_staged,
            may_expire=self._may_expire,
            gauges=self._gauges,
        )
        self._reporter = Reporter(
            config=self._config, home=self._home, stream=stream, gauges=self._gauges, stager=self._stager
        )

    def _start_models(self) -> ModelWatcher | None:
        """Load the last verified weights, if there are any, and begin to look for newer ones."""
        store, live = ModelStore(self._config, self._home), None
        try:
            remembered = store.remembered()
        except (VerificationError, TransientError) as exc:
            self._gauges.problem(f"the remembered version was not loaded: {exc.message}")
            _log.warning("the remembered version was not loaded, looking at the registry: %s", exc.message)
        else:
            if remembered is not None:
                self._runtime, digest = remembered
                live = (self._runtime.version, digest)
                self._gauges.live(self._runtime.version, self._runtime.name)
                _log.info("starting with version %s", self._runtime.version)
        if self._connect is None:
            return None
        watcher = ModelWatcher(
            store=store,
            registry=self._connect,
            offer=self._offer,
            gauges=self._gauges,
            every_s=self._config.edge.watch_every_s,
            live=live,
        )
        watcher.start()
        return watcher

    def _work(self, stop: threading.Event, max_frames: int | None) -> None:
        end = None if max_frames is None else self._gauges.taken.frames_in + max_frames
        batch_frames = self._config.edge.batch_frames
        while not stop.is_set() and self._stager.failure is None:
            wanted = batch_frames if end is None else min(batch_frames, end - self._gauges.taken.frames_in)
            if wanted <= 0:
                return
            try:
                block = self._source.read(wanted)
            except (DataError, TransientError) as exc:
                self._after_bad_read(exc, stop)
                continue
            if block is None:
                self._drained(stop)
                return
            self._take_offer()
            for part in sound_or_bad(block) if len(block) else ():
                self._handle(part, stop)

    def _drained(self, stop: threading.Event) -> None:
        """The data have ended: leave, or stay with the champion until told to stop."""
        while self._stay and not stop.is_set() and self._stager.failure is None:
            self._gauges.drained = True
            self._take_offer()
            stop.wait(_WAIT_S)

    def _handle(self, block: FrameBlock, stop: threading.Event) -> None:
        """One batch: let in, infer, tell, sample, hand to staging, count."""
        arrived_s = time.monotonic()
        arrival = self._intake.admit(block, self._gauges.taken)
        if arrival.bad_N is not None and len(arrival.bad_N):
            self._refuse(block, arrival.bad_N)
        frames, runtime = arrival.block, self._runtime
        phase_N = np.full(len(frames), np.nan, np.float32)
        if len(frames):
            rate_NCE = None
            if runtime is not None:
                rate_NCE = runtime.infer(frames.counts_NCE)
                if self._sort_key is not None:
                    phase_N = self._sort_key(rate_NCE)
            self._gauges.latency(time.monotonic() - arrived_s)
            self._tell(frames, runtime, rate_NCE, phase_N)
            if runtime is not None:
                self._sample(frames, runtime)
            self._hand_on(arrival, 0 if runtime is None else int(runtime.version), phase_N, stop)
        else:
            self._gauges.taken = arrival.whole(inferred=False)

    def _refuse(self, block: FrameBlock, bad_N: npt.NDArray[np.uint64]) -> None:
        what = (
            f"{len(bad_N)} frames refused from run {block.run_number}, pulse {bad_N[0]} on: "
            f"damaged, or not of the site's shape (theirs is {block.counts_NCE.shape[1:]})"
        )
        self._gauges.problem(what)
        self._bad.failed("%s", what)
        self._leave_out(block.run_number, bad_N, BAD_FRAME)

    def _sample(self, frames: FrameBlock, runtime: InferenceRuntime) -> None:
        unfit = self._quality.unfit
        self._gauges.quality = self._quality.watch(frames, runtime) or self._gauges.quality
        if self._quality.unfit > unfit:
            self._gauges.problem(
                f"version {runtime.version} made rates that are not finite of {self._quality.unfit} sampled frames"
            )

    def _tell(
        self,
        frames: FrameBlock,
        runtime: InferenceRuntime | None,
        rate_NCE: npt.NDArray[np.float32] | None,
        phase_N: npt.NDArray[np.float32],
    ) -> None:
        if self._on_result is not None:
            self._on_result(
                EdgeResult(
                    run_number=frames.run_number,
                    pulse_id_N=frames.pulse_id_N,
                    version="" if runtime is None else runtime.version,
                    rate_NCE=rate_NCE,
                    phase_N=phase_N,
                )
            )

    def _hand_on(self, arrival: Arrival, version: int, phase_N: npt.NDArray[np.float32], stop: threading.Event) -> None:
        """Give the batch to staging; count it either way."""
        block = arrival.block
        dropped = tuple(self._shed) if self._shed_run == block.run_number else ()
        batch = Batch(arrival=arrival, version=version, phase_N=phase_N, dropped=dropped)
        taken = arrival.whole(inferred=version > 0)
        accepted = self._put(batch, stop)
        if accepted:
            self._shed.clear()
        else:
            taken = add(taken, unstaged(len(block), QUEUE_FULL))
            self._leave_out(block.run_number, block.pulse_id_N, QUEUE_FULL)
            self._gauges.problem("staging cannot keep up: batches are inferred and not staged")
        self._gauges.taken = taken

    def _put(self, batch: Batch, stop: threading.Event) -> bool:
        if self._stager.put(batch):
            return True
        if self._sheds:
            return False
        # Whoever asks to stop waits too, but not for ever: the disk may hang.
        left_s = 1.0
        while left_s > 0 and self._stager.failure is None:
            if self._stager.put(batch, wait_s=_WAIT_S):
                return True
            left_s -= _WAIT_S if stop.is_set() else 0.0
        return False

    def _leave_out(self, run_number: int, pulse_id_N: npt.NDArray[np.uint64], reason: str) -> None:
        """Remember for the next shard's manifest which frames are not in it; their ids rise."""
        if self._shed_run != run_number:
            self._shed.clear()
            self._shed_run = run_number
        left_out = PulseRange(
            first_pulse_id=int(pulse_id_N[0]), last_pulse_id=int(pulse_id_N[-1]), frames=len(pulse_id_N), reason=reason
        )
        note(self._shed, left_out)

    def _take_offer(self) -> None:
        runtime = self._offer.take()
        if runtime is None:
            return
        self._runtime = runtime
        self._quality.reset()
        self._gauges.swaps += 1
        self._gauges.live(runtime.version, runtime.name)
        _log.info("version %s is live", runtime.version)

    def _open_source(self, stop: threading.Event) -> None:
        """Open the source behind the newest sealed frame; one that is away for now is waited for."""
        pause_s = _REOPEN_FIRST_S
        while not stop.is_set():
            try:
                self._source.open(after=self._after)
                return
            except TransientError as exc:
                self._gauges.problem(f"source: {exc.message}")
                self._trouble.failed("the source cannot be opened: %s %s", exc.message, exc.hint)
                self._reporter.write("starting")
                stop.wait(pause_s)
                pause_s = min(pause_s * 2, _REOPEN_CAP_S)

    def _after_bad_read(self, exc: DataError | TransientError, stop: threading.Event) -> None:
        """Close the source and open it again behind the last frame, as often as it takes.

        Raises:
            DataError: the data after the last frame are as damaged as at the first try.
        """
        pause_s = _REOPEN_FIRST_S
        self._source_failed(exc)
        while not stop.wait(pause_s):
            try:
                self._source.close()
                self._source.open(after=self._intake.last)
            except (DataError, TransientError) as again:
                self._source_failed(again)
                pause_s = min(pause_s * 2, _REOPEN_CAP_S)
            else:
                return

    def _source_failed(self, exc: DataError | TransientError) -> None:
        self._gauges.problem(f"source: {exc.message}")
        self._trouble.failed("the source failed, opening it again: %s %s", exc.message, exc.hint)
        if isinstance(exc, TransientError):
            return
        self._data_errors = self._data_errors + 1 if self._failed_at == self._intake.last else 1
        self._failed_at = self._intake.last
        if self._data_errors >= _DATA_ERRORS:
            raise exc

    def _finish(self, stop: threading.Event) -> None:
        """Stage what is in the queue, seal, write the last status."""
        self._source.close()
        if self._stager.ident is not None and not self._stager.finish(stop, _FINISH_S):
            _log.error(
                "the disk does not answer: staging was left behind, a restart continues after the last sealed shard"
            )
        self._reporter.finish()


def _sort_key_of(model: str) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]] | None:
    try:
        return get_model(model).sort_key
    except ValueError as exc:
        raise ConfigError(
            f"Cannot serve model {model!r}: {exc}.",
            hint="Correct [model] name in the site file; `filmloop site check`.",
        ) from exc
