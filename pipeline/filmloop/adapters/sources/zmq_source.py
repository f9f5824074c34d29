"""Frames pushed over ZeroMQ: PUSH at the senders, PULL here, so that no message goes twice and a full queue makes them wait.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq
from zmq.utils.monitor import recv_monitor_message

from filmloop.adapters.sources import zmq_raw
from filmloop.adapters.sources.hits import dense_counts, flat_bins, padded_hits, ragged_counts
from filmloop.adapters.sources.live import LiveSource, Malformed
from filmloop.config.sources import ZeroMqSource
from filmloop.core.errors import ConfigError, TransientError
from filmloop.core.types import BAD, MAX_RUN, FrameBlock

_TCP = "tcp://"


class ZeroMqFrameSource(LiveSource):
    """Whatever the senders push, in the order of its arrival. Counts of raw uint8 messages are never copied here.

    Args:
        section: The site's `[source]`.
        frame_shape: (C, E) of the site; frames of another shape come flagged `BAD`.
    """

    def __init__(self, section: ZeroMqSource, frame_shape: tuple[int, int]) -> None:
        super().__init__(stream=section.stream, frame_shape=frame_shape, alarm_after_s=section.alarm_after_s)
        self._section = section
        self._max_bytes = int(section.max_message_mb * 1e6)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._watch: zmq.Socket[bytes] | None = None
        self._files: list[tuple[Path, int]] = []
        if section.dialect == "lclstreamer":
            from filmloop.adapters.sources import zmq_hdf5

            self._hdf5 = zmq_hdf5

    def close(self) -> None:
        """Drop what waits and leave the network; may be called twice."""
        super().close()
        if self._socket is not None:
            self._socket.disable_monitor()
        if self._context is not None:
            self._context.destroy(linger=0)
        self._context = self._socket = self._watch = None
        for path, inode in self._files:
            # ZeroMQ leaves it. Not ours any more if another process listens there by now.
            if path.exists() and path.stat().st_ino == inode:
                path.unlink()
        self._files.clear()

    def _connect(self) -> None:
        section = self._section
        self._context = zmq.Context()
        self._socket = pull = self._context.socket(zmq.PULL)
        pull.setsockopt(zmq.RCVHWM, section.queue_messages)
        # A part beyond it never gets memory: ZeroMQ hangs up on its sender.
        pull.setsockopt(zmq.MAXMSGSIZE, self._max_bytes)
        self._watch = pull.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        for endpoint in section.endpoints:
            try:
                (pull.bind if section.role == "bind" else pull.connect)(endpoint)
                if section.role == "bind" and (path := Path(endpoint.removeprefix("ipc://"))).is_socket():
                    self._files.append((path, path.stat().st_ino))
            except zmq.ZMQError as exc:
                self.close()
                kind = TransientError if exc.errno == zmq.EADDRINUSE else ConfigError
                raise kind(
                    f"Cannot {section.role} {endpoint}: {exc}.",
                    hint="Mend [source] endpoints and role: connect to a sender that listens, or bind an address of ours.",
                ) from exc

        if section.role == "connect":
            threading.Thread(target=self._look_names_up, name="zmq-names", daemon=True).start()

    def _look_names_up(self) -> None:
        """ZeroMQ goes on for ever trying to reach a name that there is not, and says nothing. Beside it: this may take seconds."""
        for endpoint in self._section.endpoints:
            if not endpoint.startswith(_TCP):
                continue
            host = endpoint.removeprefix(_TCP).rpartition(";")[2].rpartition(":")[0].strip("[]")
            try:
                socket.getaddrinfo(host, None)
            except (OSError, UnicodeError) as exc:
                self._why_silent = f"the name {host!r} is not known here ({getattr(exc, 'strerror', None) or exc})"

    def _receive(self, timeout_s: float) -> Sequence[FrameBlock]:
        assert self._socket is not None
        self._count_disconnects()
        if not self._socket.poll(int(timeout_s * 1e3)):
            return ()
        parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        if self._section.dialect == "raw":
            return self._raw([part.buffer for part in parts])
        if len(parts) != 1:
            raise Malformed(f"it has {len(parts)} parts, one of lclstreamer has one")
        return self._hdf5_events(parts[0].buffer)

    def _count_disconnects(self) -> None:
        assert self._watch is not None
        while self._watch.poll(0):
            recv_monitor_message(self._watch)
            self._counts["disconnects"] += 1

    def _raw(self, parts: Sequence[memoryview]) -> Sequence[FrameBlock]:
        message = zmq_raw.decode(parts, max_bytes=self._max_bytes)
        if message.offset_N is None:
            block = self._block(message.run_number, message.pulse_id_N, message.payload)
        elif message.frame_shape != self.frame_shape:
            what = f"hits of frames of {message.frame_shape}, not of {self.frame_shape}"
            block = self._bad_block(message.run_number, message.pulse_id_N, what)
        else:
            block = self._flat_hits(message.run_number, message.pulse_id_N, message.payload, message.offset_N)
        if message.flags_N is not None:
            block.flags_N[:] |= message.flags_N
        return (block,)

    def _hdf5_events(self, image: memoryview) -> Sequence[FrameBlock]:
        section = self._section
        batch = self._hdf5.decode(
            image,
            section.fields,
            form=section.form,
            pulse_id_scale=section.pulse_id_scale,
            max_bytes=self._max_bytes,
        )
        if batch.refused:
            self._problem("refused_frames", batch.refused, f"{batch.refused} events have no pulse id")
        kept = slice(None) if batch.kept_N is None else batch.kept_N
        if section.form == "counts":
            assert batch.counts is not None
            block = self._block(section.run_number, batch.pulse_id_N, batch.counts[kept])
        else:
            block = self._hit_events(batch, kept)
        return self._by_run(block, None if batch.run_N is None else batch.run_N[kept])

    def _hit_events(self, batch: Any, kept: slice | npt.NDArray[np.bool_]) -> FrameBlock:
        run, id_N = self._section.run_number, batch.pulse_id_N
        if batch.hit_offset_N is not None:
            if batch.kept_N is not None:
                raise Malformed("its hits are flat, and events have no pulse id")
            return self._flat_hits(run, id_N, batch.hits, batch.hit_offset_N)
        try:
            counted_N = None if batch.hit_count_N is None else batch.hit_count_N[kept]
            bin_K, count_N, bad_N = padded_hits(batch.hits[kept], counted_N, self.frame_shape)
        except ValueError as exc:
            return self._bad_block(run, id_N, str(exc))
        counts_NCE, flags_N = self._counted(bin_K, count_N)
        flags_N[bad_N] = BAD
        return self._sound_or_bad(run, id_N, counts_NCE, flags_N)

    def _flat_hits(
        self, run: int, id_N: npt.NDArray[np.uint64], hits: npt.NDArray[Any], offset_N: npt.NDArray[Any]
    ) -> FrameBlock:
        try:
            count_N = ragged_counts(offset_N, len(hits))
            counts_NCE, flags_N = self._counted(flat_bins(hits, self.frame_shape), count_N)
        except ValueError as exc:
            return self._bad_block(run, id_N, str(exc))
        return self._sound_or_bad(run, id_N, counts_NCE, flags_N)

    def _counted(
        self, bin_K: npt.NDArray[np.int64], count_N: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Counts and flags of frames of hits, after a look at what they would take: an empty frame has no hit to send."""
        size_bytes = len(count_N) * self.frame_shape[0] * self.frame_shape[1]
        if size_bytes > self._max_bytes:
            what = f"{len(count_N)} frames of hits would take {size_bytes / 1e6:.0f} MB as counts"
            raise Malformed(f"{what}; max_message_mb forbids it")
        return dense_counts(bin_K, count_N, self.frame_shape)

    def _by_run(self, block: FrameBlock, run_N: npt.NDArray[Any] | None) -> Sequence[FrameBlock]:
        """The block in parts of one run each."""
        if run_N is None or not len(block):
            return (block,)
        if run_N.ndim != 1 or run_N.dtype.kind not in "ui" or run_N.min() < 0:
            raise Malformed(f"its run numbers are {run_N.dtype} {run_N.shape}, not whole numbers (N,) from 0 up")
        if run_N.max() > MAX_RUN:
            raise Malformed(f"one of its run numbers is {run_N.max()}, the highest is {MAX_RUN}")
        edges = [0, *(np.flatnonzero(run_N[1:] != run_N[:-1]) + 1).tolist(), len(block)]
        return [
            FrameBlock(
                run_number=int(run_N[start]),
                pulse_id_N=block.pulse_id_N[start:stop],
                counts_NCE=block.counts_NCE[start:stop],
                flags_N=block.flags_N[start:stop],
            )
            for start, stop in pairwise(edges)
        ]
