"""The other end of the pvAccess source: a channel with NTNDArray on this machine alone. Also a command, to try a site out:

    python -m filmloop.adapters.sources.pva_serve TEST:Image --port 15076 --rate 100 --stack 64

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from p4p import Value
from p4p.nt import NTNDArray
from p4p.server import Server
from p4p.server.raw import SharedPV

_MEMBERS = {
    "int8": "byteValue", "int16": "shortValue", "int32": "intValue", "int64": "longValue", "uint8": "ubyteValue",
    "uint16": "ushortValue", "uint32": "uintValue", "uint64": "ulongValue", "float32": "floatValue",
    "float64": "doubleValue",
}  # fmt: skip


class NtndServer:
    """Serves one channel on loopback.

    Args:
        channel: Its name.
        port: UDP port for name requests; 0 takes a free one.

    Attributes:
        address: What a site's `[source] addresses` says to find it.
    """

    def __init__(self, channel: str, port: int = 0) -> None:
        self._pv = SharedPV(initial=Value(NTNDArray.buildType()))
        loopback = {
            "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
            "EPICS_PVAS_BEACON_ADDR_LIST": "127.0.0.1",
            "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
            "EPICS_PVAS_SERVER_PORT": "0",
            "EPICS_PVAS_BROADCAST_PORT": str(port),
        }
        self._server = Server(providers=[{channel: self._pv}], conf=loopback, useenv=False)
        self.address = f"127.0.0.1:{self._server.conf()['EPICS_PVAS_BROADCAST_PORT']}"

    def post(self, array: npt.NDArray[Any], unique_id: int, **fields: Any) -> None:
        """Publish an array with numpy's order of axes; keyword arguments replace fields of the NTNDArray."""
        self._pv.post(Value(NTNDArray.buildType(), {**ntnd(array, unique_id), **fields}))

    def close(self) -> None:
        """Stop serving."""
        self._server.stop()


def ntnd(array: npt.NDArray[Any], unique_id: int) -> Mapping[str, Any]:
    """The fields of an NTNDArray, as areaDetector fills them."""
    return {
        "value": (_MEMBERS[array.dtype.name], array.reshape(-1)),
        # Said each time: a channel keeps what an update does not name.
        "codec": {"name": ""},
        "uniqueId": unique_id,
        "compressedSize": array.nbytes,
        "uncompressedSize": array.nbytes,
        "dimension": [
            {"size": size, "offset": 0, "fullSize": size, "binning": 1, "reverse": False}
            for size in reversed(array.shape)
        ],
    }


def main() -> None:
    """Publish simulated frames."""
    from filmloop_models.cookiebox.conditions import Conditions
    from filmloop_models.cookiebox.simulator import CookieBoxSimulator

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("channel")
    parser.add_argument("--port", type=int, default=0, help="UDP port for name requests; 0: a free one")
    parser.add_argument("--rate", type=float, default=100.0, help="updates a second")
    parser.add_argument("--stack", type=int, default=1, help="frames an update")
    parser.add_argument("--updates", type=int, default=0, help="end after so many; 0: never")
    parser.add_argument("--shape", type=int, nargs=2, default=(16, 128), help="channels and energy bins")
    args = parser.parse_args()
    pool_NCE = CookieBoxSimulator(Conditions(), seed=1, frame_shape=tuple(args.shape)).frames(0, args.stack).counts_NCE
    server = NtndServer(args.channel, args.port)
    print(server.address, flush=True)
    begin_s, sent = time.monotonic(), 0
    while not args.updates or sent < args.updates:
        server.post(pool_NCE[0] if args.stack == 1 else pool_NCE, sent * args.stack)
        sent += 1
        time.sleep(max(0.0, begin_s + sent / args.rate - time.monotonic()))
    server.close()


if __name__ == "__main__":
    main()
