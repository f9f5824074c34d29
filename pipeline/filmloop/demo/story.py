"""The demo, act by act: a real edge service, real cycles, the real registry; only the beam is simulated."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import Field

from filmloop.bootstrap import Site, Tell, cycle_parts, open_ledger, open_registry, registry_uri, warm_worker
from filmloop.config.paths import Home
from filmloop.config.schema import SimulatorSource
from filmloop.core.documents import CycleReport, Document
from filmloop.core.errors import ConfigError, TrainingError
from filmloop.core.retry import wait_until
from filmloop.cycle import run_cycle
from filmloop.demo.cue import CuedSimulator
from filmloop.demo.plot import plot_story
from filmloop.demo.watch import TruthWatch
from filmloop.edge.service import EdgeService
from filmloop.edge.status import read_status
from filmloop.ledger import Ledger
from filmloop.local_loop import wait_for_frames
from filmloop.ports.registry import CHAMPION, Registry
from filmloop.promotion.publish import promote, rollback

DRIFT = {"line_width_bin": 4.0, "gain": 0.5, "photon_energy_bin": 58.0}
"""The beam's bandwidth doubles, the detector loses half its gain, the photon energy moves."""
_DRIFT_FRAMES = 4000
_PAUSE_S = 5.0
_SWAP_DEADLINE_S = 20.0
_START_DEADLINE_S = 60.0


class Act(Document):
    """One row of the story: what happened, and how good the live weights were afterwards."""

    at_s: float
    act: str
    version: str = Field(description="live at the edge when the act was over")
    loss: float | None = Field(description="KL divergence of the served rates from the truth, nats a frame")
    text: str


class DemoReport(Document):
    """What `filmloop demo --json` prints."""

    folder: str
    plot: str
    page: str = Field(description="the model's page in the registry UI")
    seconds: float
    acts: tuple[Act, ...]
    checks: dict[str, bool] = Field(description="what the story must show, and whether it did")
    frames_in: int
    frames_inferred: int
    frames_dropped: dict[str, int]
    swaps: int

    @property
    def ok(self) -> bool:
        """Whether the story went as told."""
        return all(self.checks.values())


def run_demo(site: Site, *, train_s: float = 25.0, tell: Tell) -> DemoReport:
    """Tell the story once, in a run folder of its own; the site's shards and champion are not touched.

    `train_s`: seconds of training in each cycle.

    Raises:
        ConfigError: the site has no simulated source.
        FilmloopError: a part of the loop failed.
    """
    section = site.config.source
    if not isinstance(section, SimulatorSource):
        raise ConfigError(
            "The demo needs the simulator: only there is the truth known.", hint="Use the local site file."
        )
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    home = Home(site.home.demo / stamp)
    uri = registry_uri(site, start=True, tell=tell)
    stage = _demo_site(site, home, uri, f"demo-{stamp}", train_s)
    source = CuedSimulator(section.model_copy(update={"drift": ()}), stage.config.frame_shape)
    watch = TruthWatch(source)
    with open_ledger(stage) as ledger:
        registry = open_registry(stage, start=False)
        service = EdgeService(
            config=stage.config, home=home, source=source, registry=lambda: open_registry(stage, start=False),
            may_expire=ledger.may_expire, on_result=watch,
        )  # fmt: skip
        story = _Story(stage, ledger, registry, source, watch, tell)
        try:
            with running(service, home):
                checks = story.tell_all()
            status = read_status(home)  # the last one: no frame is under way any more
        finally:
            plot_story(home.root / "story.png", watch.samples(), story.events)
            if (worker := warm_worker(stage)) is not None:
                worker.stop()
    report = DemoReport(
        folder=str(home.root),
        plot=str(home.root / "story.png"),
        page=registry.url,
        seconds=round(watch.now_s(), 1),
        acts=tuple(story.acts),
        checks=checks,
        frames_in=status.frames_in if status else 0,
        frames_inferred=status.frames_inferred if status else 0,
        frames_dropped=status.frames_dropped if status else {},
        swaps=status.swaps if status else 0,
    )
    report.write(home.root / "summary.json")
    return report


def _demo_site(site: Site, home: Home, uri: str, model: str, train_s: float) -> Site:
    config = site.config
    hyper = config.training.hyper.model_copy(update={"train_s": train_s})
    changed = config.model_copy(
        update={
            "registry": config.registry.model_copy(update={"uri": uri}),
            "model": config.model.model_copy(update={"registered_as": model}),
            "training": config.training.model_copy(update={"hyper": hyper, "replay_frames": 0}),
        }
    )
    return Site(file=site.file, config=changed, home=home)


@contextmanager
def running(service: EdgeService, home: Home) -> Iterator[None]:
    """The edge in a thread of this process, for the block.

    Raises:
        TransientError: it does not start.
    """
    stop = threading.Event()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            service.run(stop)
        except BaseException as exc:
            failure.append(exc)

    thread = threading.Thread(target=work, name="edge")
    thread.start()

    def taking_frames() -> bool | None:
        status = read_status(home)
        return True if failure or (status is not None and status.state == "running") else None

    try:
        wait_until(taking_frames, deadline_s=_START_DEADLINE_S, what="The start of the edge")
        yield
    finally:
        stop.set()
        thread.join()
    if failure:
        raise failure[0]


@dataclass(slots=True)
class _Story:
    site: Site
    ledger: Ledger
    registry: Registry
    source: CuedSimulator
    watch: TruthWatch
    tell: Tell
    acts: list[Act] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)

    def tell_all(self) -> dict[str, bool]:
        """The acts in their order."""
        self._event("edge starts")
        first = self._cycle("first cycle", "the first model, trained on unlabelled frames from scratch")
        if first.outcome != "promoted":
            raise TrainingError(
                f"The first model was {first.outcome}: {first.message}",
                hint="This machine is slow or busy: give it longer, `filmloop demo --seconds 60`.",
            )
        good = self._settled("1 first model", first.message)

        self.source.drift(DRIFT, over_frames=_DRIFT_FRAMES)
        self._event("beam drifts")
        self.tell("drift", "line width x2, gain x0.5, photon energy -6 bins")
        self._wait_frames(_DRIFT_FRAMES)
        bad = self._settled("2 drift", "line width x2, gain x0.5, photon energy -6 bins")

        second = self._cycle("second cycle", "fine-tuned from the champion on what the edge has just seen")
        healed = self._settled("3 retrained", second.message)

        # A challenger that has hardly been trained: from scratch, a handful of steps.
        worse = self._cycle(
            "worse challenger", "three steps from scratch: deliberately worse",
            **{"training.warm_start": False, "training.hyper.max_steps": 3, "training.hyper.warmup_steps": 0},
        )  # fmt: skip
        kept = self._settled("4 worse refused", worse.message)

        move = rollback(self.registry, self.ledger, who="demo", why="to show it")
        self._event("rollback")
        back = self._settled("5 rollback", f"version {move.from_version} -> {move.to_version}")
        promote(
            self.registry,
            self.ledger,
            version=move.from_version,
            expected=move.to_version,
            who="demo",
            why="shown enough",
        )
        self._event("forward again")
        end = self._settled("6 forward again", f"version {move.from_version} is champion again")
        champion = self.registry.get(CHAMPION)
        return {
            "first model promoted": first.outcome == "promoted",
            "drift hurts": bad > 1.25 * good,  # measured: 1.49 to 1.54 times after 600 steps
            "retraining heals": second.outcome == "promoted" and healed < 0.7 * bad,
            "worse challenger refused": worse.outcome == "refused" and kept < 0.7 * bad,
            "rollback serves the older version": back > 1.3 * healed,
            "champion at the end": champion is not None and champion.version == second.version and end < 0.7 * bad,
        }

    def _cycle(self, event: str, text: str, **overrides: object) -> CycleReport:
        site = self.site
        if overrides:
            values = site.config.as_json()
            for dotted, value in overrides.items():
                node = values
                *path, last = dotted.split(".")
                for key in path:
                    node = node[key]
                node[last] = value
            site = Site(file=site.file, config=type(site.config).model_validate(values), home=site.home)
        self.tell("cycle", f"{event}: {text}")
        wait_for_frames(site, self.ledger, edge=None, again=False, tell=self.tell)
        self._event(event)
        with self.ledger.cycle_lock() as free:
            assert free, "nobody else uses the journal of a demo"
            report = run_cycle(cycle_parts(site, self.ledger, self.registry), tell=self.tell)
        if not report.version:
            raise TrainingError(f"The {event} made no version: {report.message}")
        self._event(f"{report.outcome}: version {report.version}")
        return report

    def _settled(self, act: str, text: str) -> float:
        """Wait until the edge serves the champion, watch it for a while, and write the act down; returns its loss."""
        champion = self.registry.get(CHAMPION)
        version = champion.version if champion else ""

        def live() -> bool | None:
            status = read_status(self.site.home)
            return True if status is not None and status.version == version else None

        wait_until(live, deadline_s=_SWAP_DEADLINE_S, what=f"The swap to version {version}")
        begin_s = self.watch.now_s() + 0.5
        time.sleep(_PAUSE_S)
        loss = self.watch.loss_since(begin_s)
        self.acts.append(
            Act(
                at_s=round(self.watch.now_s(), 1),
                act=act,
                version=version,
                loss=None if math.isnan(loss) else round(loss, 2),
                text=text,
            )
        )
        self.tell("act", f"{act}: version {version} live, loss {loss:.1f} nats a frame")
        return loss

    def _wait_frames(self, frames: int) -> None:
        status = read_status(self.site.home)
        target = (status.frames_in if status else 0) + frames

        def passed() -> bool | None:
            now = read_status(self.site.home)
            return True if now is not None and now.frames_in >= target else None

        wait_until(passed, deadline_s=60, what="The drift")

    def _event(self, text: str) -> None:
        self.events.append((self.watch.now_s(), text))
