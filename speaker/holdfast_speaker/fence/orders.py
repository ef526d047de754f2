# SPDX-License-Identifier: Apache-2.0
"""Orders to the fence that do not wait for anybody's transaction.

nf_tables has one lock per host for all who change rules; a kube-proxy that writes 5,000 chains holds it for
200 ms (measured). What must not wait, the beginning of a lease above all, is therefore said by a frame with
a mark of its own: the rules for outgoing frames obey it and swallow it, in 10 us.
"""

import contextlib
import errno
import secrets
import socket
from typing import Final

ETHERTYPE: Final = 0x88B5  # IEEE 802: for local experiments
TAKE, EXTEND, QUIET = 1, 2, 3

_SO_MARK: Final = 36
_MARK_BITS: Final = 0x7FFF00FF  # not kube-proxy's and Cilium's, and setsockopt takes no bigger number
_ETHERNET: Final = bytes(12) + ETHERTYPE.to_bytes(2)
_SHORTEST: Final = 60


def new_mark() -> int:
    while not (mark := secrets.randbits(32) & _MARK_BITS):
        pass
    return mark


class Orders:
    """The socket that gives them. Without NET_RAW none is given."""

    def __init__(self) -> None:
        self.mark = new_mark()
        self._sock: socket.socket | None = None
        with contextlib.suppress(OSError):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, self.mark)

    def give(self, device: str, virtual_router_id: int, order: int) -> bool:
        """Whether something swallowed it on its way out of this NIC; look whether it was the fence."""
        if self._sock is None:
            return False
        frame = (_ETHERNET + bytes((virtual_router_id, order))).ljust(_SHORTEST, b"\0")
        try:
            self._sock.sendto(frame, (device, 0))
        except OSError as error:
            return error.errno == errno.ENOBUFS
        return False

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
