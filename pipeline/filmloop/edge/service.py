"""The edge service: frames in, results out, every frame staged or counted, weights swapped between two batches.

    source ──► ring ──► inference ──► ring ──► staging ──► sealed shards
                           ▲
                 registry ─┘ the next version, proven aside

Each stage is a loop of its own over one ring of shared memory (`filmloop.edge.ring`): in a process, so that it can be
killed and started anew while the others go on, or in a thread, for a caller that wants the results.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from filmloop.config.paths import Home
from filmloop.config.schema import SiteConfig
from filmloop.core.documents import Accounting
from filmloop.core.errors import ConfigError
from filmloop.edge.control import take_look
from filmloop.edge.drift import DriftMonitor
from filmloop.edge.hosts import Host, ProcessHost, ThreadHost
from filmloop.edge.lock import only_edge
from filmloop.edge.models import ModelStore
from filmloop.edge.reporter import Reporter, accounting_of
from filmloop.edge.ring import CAME_WITH, SEATS, UNSTAGED, FrameRing, RingLayout
from filmloop.edge.runtimes.machine import has_gpu_driver
from filmloop.edge.stages.base import Stage
from filmloop.edge.stages.inference import EdgeResult as EdgeResult
from filmloop.edge.stages.inference import InferenceStage
from filmloop.edge.stages.source import SourceStage
from filmloop.edge.stages.staging import StagingStage
from filmloop.edge.supervisor import Supervisor
from filmloop.edge.tally import NO_MODEL, STOPPED
from filmloop.ports.registry import Registry
from filmloop.ports.source import FrameSource
from filmloop.staging.catalog import last_sealed
from filmloop.staging.recovery import recover
from filmloop_models.catalog import get as get_model


class EdgeService:
    """One edge on one state folder.

    A live source does not wait: if staging falls behind, frames are inferred and counted as unstaged, and if there is
    no room at all, counted and let go. A source that is read as fast as it is taken loses nothing by waiting, so it
    waits.

    Args:
        config: The site.
        home: Its state folder.
        source: Where frames come from; opened and closed by its stage.
        registry: Makes a registry client, in the watcher's thread; None never looks for new weights.
        may_expire: Says of a shard id whether it may be deleted once there are more than the site keeps.
        on_result: Called with every result, in the inference thread; its time counts against the frame rate. Stages
            are threads then.
        stay: At the end of the data, keep taking new versions and seal requests until told to stop.
        stage_argv: Command that runs one stage in a process, with what it needs to know from `spec`; without it stages
            are threads.
        spec: For `stage_argv`: plain JSON that the stages read from the ring.
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
        stage_argv: Sequence[str] = (),
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        self._config, self._home, self._source, self._stay = config, home, source, stay
        self._connect, self._may_expire, self._on_result = registry, may_expire, on_result
        in_processes = config.edge.isolation == "processes" and on_result is None
        self._argv, self._spec = (tuple(stage_argv) if in_processes else ()), dict(spec or {})
        if self._argv and platform.machine() not in ("x86_64", "AMD64"):
            raise ConfigError(
                f"Stages in processes of their own need the memory order of x86-64; this is {platform.machine()}.",
                hint='Set [edge] isolation = "threads" in the site file.',
            )
        _check_model(config.model.name)

    def run(
        self, stop: threading.Event, *, max_frames: int | None = None, begun: Callable[[], None] = lambda: None
    ) -> Accounting:
        """Work until the data end, `stop` is set or `max_frames` more frames have come in.

        `begun` is called once this is the only edge of the state folder.

        Returns:
            What became of every frame of the stream, earlier lives included.

        Raises:
            TransientError: another edge has this state folder.
            ConfigError: the source's frames do not have the site's shape.
            DataError: the source has no data to begin with, or none that can be read after a certain frame.
        """
        with only_edge(self._home):
            begun()
            ring = FrameRing.new(RingLayout.of(self._config, labelled=self._source.labelled))
            try:
                frames_in = self._continue_where_it_ended(ring)
                until = None if max_frames is None else frames_in + max_frames
                standby = self._has_standby()
                ring.spec.write({**self._spec, "until": until, "stay": self._stay, "standby": standby})
                supervisor = Supervisor(
                    ring,
                    self._hosts(ring, until, standby=standby),
                    stall_after_s=self._config.edge.stall_after_s,
                    live=self._config.source.live,
                )
                reporter = Reporter(
                    config=self._config, home=self._home, stream=self._source.stream, ring=ring, supervisor=supervisor
                )
                reporter.write("starting")
                reporter.start()
                try:
                    supervisor.run(stop)
                finally:
                    reporter.finish()
                return accounting_of(ring)
            finally:
                ring.close()

    def _hosts(self, ring: FrameRing, until: int | None, *, standby: bool) -> list[Host]:
        if self._argv:
            seats = SEATS if standby else SEATS[:1]
            return [ProcessHost(place, ring, self._argv) for place in ("staging", *seats, "source")]
        live = self._config.source.live

        def source() -> Stage:
            return SourceStage(ring, self._source, self._config.edge, live=live, until=until, stay=self._stay)

        def inference() -> Stage:
            return InferenceStage(
                ring,
                self._config,
                store=ModelStore(self._config, self._home, dense=self._on_result is not None),
                registry=self._connect,
                on_result=self._on_result,
                drift=DriftMonitor(self._config.drift, self._home.edge_drift),
                asked=partial(take_look, self._home),
            )

        def staging() -> Stage:
            return StagingStage(
                ring,
                self._config,
                home=self._home,
                stream=self._source.stream,
                live=live,
                may_expire=self._may_expire,
            )

        makers: dict[str, Callable[[], Stage]] = {"staging": staging, "inference": inference, "source": source}
        return [ThreadHost(role, make) for role, make in makers.items()]

    def _has_standby(self) -> bool:
        """Whether new weights are prepared in a process of their own: where there will be any, and no GPU to share."""
        edge = self._config.edge
        on_gpu = edge.runtime == "cuda" or (edge.runtime == "auto" and has_gpu_driver())
        return bool(self._argv) and edge.standby and bool(self._spec.get("with_registry")) and not on_gpu

    def _continue_where_it_ended(self, ring: FrameRing) -> int:
        """Clean up after a crash and set the stages' counts to where the newest sealed shard ends."""
        recover(self._home.stage, self._source.stream)
        last = last_sealed(self._home.stage, self._source.stream)
        before = Accounting() if last is None else last.manifest.accounting
        came = {
            "frames_in": before.frames_in, "missing": before.frames_missing,
            "out_of_order": before.frames_out_of_order,
        }  # fmt: skip
        came |= {name: before.frames_dropped.get(name, 0) for name in CAME_WITH if name not in came}
        run_number, last_id = (-1, 0) if last is None else (last.manifest.run_number, last.manifest.last_pulse_id)
        source = ring.source.read()
        ring.source.write({**source, **came, "run_number": run_number, "last_pulse_id": last_id})
        counted = {"inferred": before.frames_inferred, "no_model": before.frames_dropped.get(NO_MODEL, 0)}
        stopped = before.frames_dropped.get(STOPPED, 0)
        ring.inference.write({**ring.inference.read(), **counted, "stopped": stopped})
        staging = ring.staging.read()
        unstaged = {name: before.frames_unstaged.get(name, 0) - came.get(name, 0) for name in UNSTAGED}
        ring.staging.write(
            {
                **staging, **counted, **unstaged, "not_inferred": stopped,
                "appended": before.frames_staged, "sealed": before.frames_staged,
            }
        )  # fmt: skip
        return before.frames_in


def _check_model(name: str) -> None:
    try:
        get_model(name)
    except ValueError as exc:
        raise ConfigError(
            f"Cannot serve model {name!r}: {exc}.",
            hint="Correct [model] name in the site file; `filmloop site check`.",
        ) from exc
