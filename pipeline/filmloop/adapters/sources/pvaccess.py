"""Frames of an EPICS pvAccess channel with NTNDArray, as areaDetector's NDPluginPva serves them.

An update is one frame, `dimension` (E, C), or a stack of N, `dimension` (E, C, N): the first dimension varies fastest, so
it is numpy's last axis. Updates are pulled from the client's queue by the reader itself; an update that found the queue full
replaced the newest one, which a gap in `uniqueId` shows. A lost connection comes back by itself.
Sources: https://docs.epics-controls.org/en/latest/pv-access/Normative-Types-Specification.html (NTNDArray),
https://epics-base.github.io/p4p/. Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from p4p.client.raw import Context, Disconnected, Subscription

from filmloop.adapters.sources.live import LiveSource, Malformed
from filmloop.adapters.sources.ntnd import pixels, pulse_id_of
from filmloop.config.sources import PvAccessSource
from filmloop.core.types import FrameBlock


class PvAccessFrameSource(LiveSource):
    """Every update of one channel, in the order of its arrival.

    Args:
        section: The site's `[source]`.
        frame_shape: (C, E) of the site; frames of another shape come flagged `BAD`.
    """

    def __init__(self, section: PvAccessSource, frame_shape: tuple[int, int]) -> None:
        super().__init__(stream=section.stream, frame_shape=frame_shape, alarm_after_s=section.alarm_after_s)
        self._section = section
        self._max_bytes = int(section.max_update_mb * 1e6)
        self._context: Context | None = None
        self._updates: Subscription | None = None
        self._arrived = threading.Event()
        self._unique_id: int | None = None

    def close(self) -> None:
        """Drop what waits and leave the network; may be called twice."""
        super().close()
        if self._updates is not None:
            self._updates.close()
        if self._context is not None:
            self._context.close()
        self._updates = self._context = None

    def _connect(self) -> None:
        section = self._section
        self._unique_id = None
        self._arrived.clear()
        # Of this client alone: the environment stays as it is for the rest of the process.
        conf = {"EPICS_PVA_ADDR_LIST": " ".join(section.addresses), "EPICS_PVA_AUTO_ADDR_LIST": "NO"}
        self._context = Context("pva", nt=False, **({"conf": conf, "useenv": False} if section.addresses else {}))
        self._updates = self._context.monitor(
            section.channel,
            self._arrived.set,
            request=f"record[queueSize={section.queue_updates}]field()",
        )

    def _receive(self, timeout_s: float) -> Sequence[FrameBlock]:
        assert self._updates is not None
        update = self._updates.pop()
        if update is None:
            # Cleared before the second look: an update in between sets it again.
            self._arrived.clear()
            update = self._updates.pop()
        if update is None and self._arrived.wait(timeout_s):
            update = self._updates.pop()
        if update is None:
            return ()
        if isinstance(update, Disconnected):
            self._counts["disconnects"] += 1
            self._unique_id = None
            return ()
        if isinstance(update, Exception):
            raise Malformed(f"{self._section.channel}: {update!r}")
        return self._frames(update)

    def _frames(self, update: Any) -> Sequence[FrameBlock]:
        run = self._section.run_number
        try:
            if update.value is None:
                return ()  # a channel that has had no frame yet
            self._count_gap(update)
            raw = pixels(update, self._max_bytes)
            raw_NCE = raw[None] if raw.ndim == 2 else raw
            pulse_id_N = self._pulse_ids(update, len(raw_NCE) if raw_NCE.ndim == 3 else 1)
        except (AttributeError, KeyError, TypeError) as exc:
            raise Malformed(f"{self._section.channel} is no NTNDArray: {exc!r}") from exc
        if raw_NCE.ndim != 3:
            return (self._bad_block(run, pulse_id_N, f"an array of {raw.ndim} dimensions, not 2 or 3"),)
        return (self._block(run, pulse_id_N, raw_NCE),)

    def _pulse_ids(self, update: Any, frames: int) -> npt.NDArray[np.uint64]:
        """One number is that of the first frame, and the others follow; else one a frame."""
        section = self._section
        found = pulse_id_of(update, section.pulse_id, section.pulse_id_attribute)
        if found.size and int(found.max()) * section.pulse_id_step + frames > 2**64:
            raise Malformed(f"its pulse id {found.max()} times {section.pulse_id_step} is beyond 64 bits")
        found = found * np.uint64(section.pulse_id_step)
        if found.ndim == 0:
            return np.arange(frames, dtype=np.uint64) + found
        if len(found) != frames:
            raise Malformed(f"{len(found)} pulse ids for {frames} frames")
        return found

    def _count_gap(self, update: Any) -> None:
        """Updates between the last one and this: `uniqueId` counts an areaDetector's arrays."""
        found = update.get("uniqueId")
        before, self._unique_id = self._unique_id, int(found) if found is not None else None
        if self._section.pulse_id == "uniqueId" or self._unique_id is None or before is None:
            # There a stack steps by its frames, and the edge counts pulse ids that are missing.
            return
        if (missed := self._unique_id - before - 1) > 0:
            self._problem("missed_updates", missed, f"{missed} updates were overwritten before they were read")
