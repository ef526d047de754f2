# SPDX-License-Identifier: Apache-2.0
"""nf_tables over netlink: transactions, and what there is.

Not libnftables: it reads the chains and sets of the whole host (a kube-proxy's too) before each command,
and aborts the process on what it does not understand. Layout: linux/netfilter/nfnetlink.h.
"""

import errno
import logging
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from holdfast_speaker import netlink
from holdfast_speaker.fence import nftables as nft
from holdfast_speaker.netlink import NLM_F_ACK, NLM_F_DUMP_INTR, attributes

log = logging.getLogger(__name__)

_NETLINK_NETFILTER: Final = 12
_BATCH_BEGIN, _BATCH_END = 16, 17
_MULTI: Final = 0x2
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_SO_SNDBUFFORCE: Final = 32
_BUFFER: Final = 8 << 20  # one transaction is one datagram; 255 routers and 8,192 addresses are 3 MiB
_READ: Final = 1 << 16
_ANSWER_SECONDS: Final = 2
_DUMPS: Final = 3
_HIGHEST: Final = 1 << 30  # sequence numbers begin again
_HEADER: Final = struct.Struct("=IHHII")


class Nftables:
    """One socket in the network namespace of the thread that made it. Raises OSError only when made."""

    def __init__(self) -> None:
        self._sequence = 0
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        try:
            self._sock.bind((0, 0))
            self._sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
            netlink.enlarge(self._sock, _BUFFER)
            self._sock.settimeout(_ANSWER_SECONDS)
        except OSError:
            self._sock.close()
            raise

    def close(self) -> None:
        self._sock.close()

    def commit(self, messages: Sequence[bytes]) -> int:
        """All of it or nothing: 0, or the errno of the first message that was refused."""
        data = self._numbered((_edge(_BATCH_BEGIN), *messages, _edge(_BATCH_END)), confirmed=len(messages))
        first = self._sequence - len(messages) - 1
        last = self._sequence - 1
        code, place = 0, 0
        try:
            self._sock.send(data)
            for kind, _, sequence, body in self._answers():
                if kind != _NLMSG_ERROR or not first <= sequence <= last:
                    continue
                (refusal,) = struct.unpack_from("=i", body)
                if refusal and not code:
                    code, place = -refusal, sequence - first
                if sequence == last or (refusal and sequence == first):
                    break
        except OSError as error:
            return error.errno or errno.ETIMEDOUT
        if code:
            log.debug("message %d of %d: %s", place, len(messages), errno.errorcode.get(code, code))
        return code

    def chains(self, table: str) -> frozenset[str] | None:
        """The names of its chains; None when it cannot be known now."""
        found = self._dump(nft.list_chains(table))
        if found is None:
            return None
        return frozenset(_string(chain[3]) for chain in found if _string(chain[1]) == table)

    def rules(self, table: str) -> int | None:
        """How many rules it has; None when it cannot be known now."""
        found = self._dump(nft.list_rules(table))
        return None if found is None else sum(_string(rule[1]) == table for rule in found)

    def generation(self) -> int:
        """Changes with every transaction of anybody on this host. 0: it cannot be known now."""
        found = self._ask(nft.get_generation())
        return int.from_bytes(found[0].get(1, b"")) if found else 0

    def contains(self, table: str, name: str, key: bytes) -> bool:
        """Whether the set has it, and its time is not over."""
        return bool(self._ask(nft.get_element(table, name, key)))

    def members(self, table: str, name: str) -> frozenset[bytes] | None:
        """The keys in the set whose time is not over; None when it cannot be known now."""
        found = self._dump(nft.list_elements(table, name))
        return None if found is None else frozenset(key for part in found for key in _keys(part.get(3, b"")))

    # --- inside ---------------------------------------------------------------------------------

    def _numbered(self, messages: Sequence[bytes], confirmed: int = -1) -> bytes:
        """One datagram. The message at ``confirmed`` is answered in any case, the others when refused."""
        if self._sequence > _HIGHEST:
            self._sequence = 0
        parts: list[bytes] = []
        for place, message in enumerate(messages):
            self._sequence += 1
            length, kind, flags, _, _ = _HEADER.unpack_from(message)
            flags |= NLM_F_ACK if place == confirmed else 0
            parts += (_HEADER.pack(length, kind, flags, self._sequence, 0), message[16:])
        return b"".join(parts)

    def _answers(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Type, flags, sequence number and body of each message that comes. Raises OSError."""
        while True:
            yield from netlink.messages(self._sock.recv(_READ))

    def _dump(self, message: bytes) -> list[dict[int, bytes]] | None:
        """All there is. A host that changes its rules all the time may never hold still: None."""
        for _ in range(_DUMPS):
            found = self._ask(message)
            if found is not None:
                return found
        return None

    def _ask(self, message: bytes) -> list[dict[int, bytes]] | None:
        """The attributes of each object in the answer; None when it is refused or interrupted."""
        found: list[dict[int, bytes]] = []
        whole = True
        try:
            self._sock.send(self._numbered((message,)))
            for kind, flags, sequence, body in self._answers():
                if sequence != self._sequence:
                    continue
                whole = whole and not flags & NLM_F_DUMP_INTR
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    return found if whole and struct.unpack_from("=i", body)[0] == 0 else None
                found.append(dict(attributes(body, 4, len(body))))
                if not flags & _MULTI:
                    return found
        except OSError as error:
            log.debug("nf_tables does not answer: %s", error)
        return None


def _edge(kind: int) -> bytes:
    return netlink.request(kind, 0, struct.pack("!BBH", 0, 0, nft.SUBSYSTEM))


def _keys(elements: bytes) -> Iterator[bytes]:
    """NFTA_LIST_ELEM of NFTA_SET_ELEM_KEY of NFTA_DATA_VALUE."""
    for _, element in attributes(elements, 0, len(elements)):
        key = dict(attributes(element, 0, len(element)))[1]
        yield dict(attributes(key, 0, len(key)))[1]


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
