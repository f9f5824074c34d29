"""The other end of the ZeroMQ source: what a facility runs beside its detector. Also a command, to try a site out:

    python -m filmloop.adapters.sources.zmq_send tcp://127.0.0.1:5555 --dialect raw --rate 10000 --frames 100000

Shape suffixes: N frames, C channels, E energy bins, K hits.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import zmq

from filmloop.adapters.sources.zmq_raw import encode

CODECS = ("none", "gzip", "gzip_with_shuffle", "bitshuffle_with_lz4", "bitshuffle_with_zstd", "zstd", "zfp")
"""Names as in lclstreamer's `compression`, and plain zstd. zfp wants floats."""


class Sender:
    """Pushes messages; waits where the receiver's queue is full.

    Args:
        endpoint: The address.
        bind: Listen there, for a receiver with role = connect; else connect to one with role = bind.
        queue_messages: Messages that may wait here.
    """

    def __init__(self, endpoint: str, *, bind: bool = True, queue_messages: int = 64) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, queue_messages)
        (self._socket.bind if bind else self._socket.connect)(endpoint)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT) if bind else endpoint

    def send(self, parts: Sequence[Any], timeout_s: float = 60.0) -> bool:
        """Push one message without a copy of large parts; False if the queue stayed full. Leave the arrays as they are."""
        end_s = time.monotonic() + timeout_s
        while self._socket.poll(max(0, int((end_s - time.monotonic()) * 1e3)), zmq.POLLOUT):
            # A receiver may have gone since the poll: a send that waits would then wait for the next one.
            with suppress(zmq.Again):
                self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
                return True
        return False

    def close(self, linger_s: float = 30.0) -> None:
        """Wait until all is sent, at most so long."""
        self._context.destroy(linger=int(linger_s * 1e3))


def hdf5_image(arrays: Mapping[str, npt.NDArray[Any]], codec: str = "none") -> bytes:
    """A batch of events as lclstreamer writes it: one chunk an event, every array packed with the codec.

    Args:
        arrays: HDF5 path and array with a row an event.
        codec: One of `CODECS`; what it cannot pack (zfp: integers of 8 or 16 bits) is stored as it is.
    """
    image = BytesIO()
    with h5py.File(image, "w") as file:
        for path, values in arrays.items():
            packed = codec != "zfp" or values.dtype.kind == "f"
            # One chunk an event, as lclstreamer does it.
            file.create_dataset(
                path, data=values, chunks=(1, *values.shape[1:]), **(_options(codec) if packed else {})
            )  # fmt: skip
    return image.getvalue()


def _options(codec: str) -> Mapping[str, Any]:
    import hdf5plugin

    return {
        "none": {},
        "gzip": {"compression": "gzip", "compression_opts": 3},
        "gzip_with_shuffle": {"compression": "gzip", "compression_opts": 3, "shuffle": True},
        "bitshuffle_with_lz4": {"compression": hdf5plugin.Bitshuffle(cname="lz4")},
        "bitshuffle_with_zstd": {"compression": hdf5plugin.Bitshuffle(cname="zstd", clevel=3)},
        "zstd": {"compression": hdf5plugin.Zstd()},
        "zfp": {"compression": hdf5plugin.Zfp(reversible=True)},
    }[codec]


def messages(counts_NCE: npt.NDArray[Any], *, dialect: str, codec: str, run_number: int, first: int) -> Sequence[Any]:
    """The parts of one message with consecutive pulse ids from `first`."""
    if dialect == "raw":
        return encode(counts_NCE, run_number=run_number, first_pulse_id=first)
    id_N = np.arange(first, first + len(counts_NCE), dtype=np.uint64)
    counts = counts_NCE.astype(np.float32) if codec == "zfp" else counts_NCE
    return [hdf5_image({"/timestamp": id_N, "/counts": counts}, codec)]


def main() -> None:
    """Push simulated frames."""
    from filmloop_models.cookiebox.conditions import Conditions
    from filmloop_models.cookiebox.simulator import CookieBoxSimulator

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("endpoint")
    parser.add_argument("--connect", action="store_true", help="connect to a receiver that listens")
    parser.add_argument("--dialect", choices=("raw", "lclstreamer"), default="raw")
    parser.add_argument("--codec", choices=CODECS, default="none", help="packing of lclstreamer messages")
    parser.add_argument("--rate", type=float, default=0.0, help="frames a second; 0: as fast as they are taken")
    parser.add_argument("--frames", type=int, default=0, help="end after so many; 0: never")
    parser.add_argument("--first", type=int, default=0, help="pulse id of the first frame")
    parser.add_argument("--batch", type=int, default=512, help="frames a message")
    parser.add_argument("--pool", type=int, default=4096, help="frames that are drawn, then sent again and again")
    parser.add_argument("--shape", type=int, nargs=2, default=(16, 128), help="channels and energy bins")
    parser.add_argument("--resend", action="store_true", help="pack the pool once; pulse ids repeat, for rates alone")
    parser.add_argument("--run", type=int, default=1, help="run number")
    args = parser.parse_args()
    pool_NCE = CookieBoxSimulator(Conditions(), seed=1, frame_shape=tuple(args.shape)).frames(0, args.pool).counts_NCE

    def message(sent: int) -> Sequence[Any]:
        start, left = sent % args.pool, args.frames - sent if args.frames else args.batch
        part_NCE = pool_NCE[start : start + min(args.batch, left)]
        first = args.first + (start if args.resend else sent)
        return messages(part_NCE, dialect=args.dialect, codec=args.codec, run_number=args.run, first=first)

    if args.resend:
        message = functools.cache(message)
    sender = Sender(args.endpoint, bind=not args.connect)
    sent, begin_s = 0, time.monotonic()
    while not args.frames or sent < args.frames:
        packed = message(sent % args.pool if args.resend else sent)
        while not sender.send(packed):
            pass
        sent += min(args.batch, args.pool - sent % args.pool, args.frames - sent if args.frames else args.batch)
        if args.rate:
            time.sleep(max(0.0, begin_s + sent / args.rate - time.monotonic()))
    sender.close()


if __name__ == "__main__":
    main()
