# SPDX-License-Identifier: Apache-2.0
"""rtnetlink by hand where it is hot: batches of requests, dumps, and the "look now" socket.

pyroute2 decodes 1,000 addresses in 70 ms of one blocked loop (measured); this reads them in slices of
one datagram, about 4 us an address, and lets the loop run in between. Layouts: rtnetlink(7),
linux/rtnetlink.h, linux/if_addr.h, linux/if_link.h, linux/neighbour.h.
"""

import asyncio
import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Final

from holdfast_speaker import bpf

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
_RTM_NEWROUTE: Final = 24
RTM_GETROUTE: Final = 26
RTM_GETNEIGH: Final = 30

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP: Final = 0x300
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_DUMP_INTR: Final = 0x10
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3

_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_GET_STRICT_CHK: Final = 12
_SO_RCVBUFFORCE: Final = 33
_GROUPS: Final = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR

_IFA_PROTO: Final = 11
_RTA_DST, _RTA_IIF = 1, 3
_RTN_LOCAL: Final = b"\x02"
_ANSWER_SECONDS: Final = 2
_LOCAL_SECONDS: Final = 0.05
_LOCAL_PAUSE_SECONDS: Final = 0.0002
_BATCH: Final = 64  # acks of one batch fit the default receive buffer many times over
_DUMP_RETRIES: Final = 3

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")


def request(kind: int, flags: int, body: bytes) -> bytes:
    """One netlink message; its sequence number is put in when it is sent."""
    return _HEADER.pack(16 + len(body), kind, NLM_F_REQUEST | flags, 0, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Type (without the nested and byte-order bits) and value of each attribute in ``data[start:end]``."""
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4 or start + length > end:
            return
        yield kind & 0x3FFF, data[start + 4 : start + length]
        start += (length + 3) & ~3


def enlarge(sock: socket.socket, size: int) -> None:
    """A receive buffer of ``size`` bytes, beyond net.core.rmem_max where NET_ADMIN allows it."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


class Requests:
    """A blocking socket for batches of changes. Not for dumps."""

    def __init__(self) -> None:
        self._sequence = 0
        self._sock: socket.socket | None = None

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _open(self) -> socket.socket:
        if self._sock is None:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            sock.bind((0, 0))
            sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            sock.settimeout(_ANSWER_SECONDS)
            self._sock = sock
        return self._sock

    def send(self, wanted: Sequence[bytes]) -> list[int]:
        """The kernel's errno for each message, 0 for done. Never raises; no answer is ETIMEDOUT."""
        answers: list[int] = []
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            try:
                answers += self._exchange(self._open(), batch)
            except OSError as error:
                code = errno.ETIMEDOUT if isinstance(error, TimeoutError) else error.errno or errno.EIO
                answers += [code] * (len(wanted) - len(answers))
                self.close()
                break
        return answers

    def _exchange(self, sock: socket.socket, batch: Sequence[bytes]) -> list[int]:
        first = self._sequence + 1
        data = bytearray()
        for message in batch:
            self._sequence = (self._sequence + 1) & 0x7FFFFFFF
            data += message[:8] + self._sequence.to_bytes(4, _NATIVE) + message[12:]
        sock.send(data)
        answers = [errno.ETIMEDOUT] * len(batch)
        missing = len(batch)
        while missing:
            answer = sock.recv(65536)
            for kind, _, sequence, body in messages(answer):
                place = sequence - first
                if kind == _NLMSG_ERROR and 0 <= place < len(batch):
                    answers[place] = -struct.unpack_from("=i", body)[0]
                    missing -= 1
        return answers


_NATIVE: Final = "little" if socket.htons(1) != 1 else "big"


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of each message in a datagram."""
    start = 0
    while start + 16 <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, start)
        if length < 16:
            return
        yield kind, flags, sequence, data[start + 16 : start + length]
        start += (length + 3) & ~3


async def dump(kind: int, body: bytes) -> list[bytes]:
    """The bodies of one whole dump, read slice by slice so that timers run in between.

    Repeated while the kernel says it changed underneath (NLM_F_DUMP_INTR). Raises OSError.
    """
    for _ in range(_DUMP_RETRIES):
        bodies: list[bytes] = []
        whole = True
        async for slice_, consistent in _dump_once(kind, body):
            bodies += slice_
            whole = whole and consistent
        if whole:
            break
    return bodies


async def _dump_once(kind: int, body: bytes) -> AsyncIterator[tuple[list[bytes], bool]]:
    loop = asyncio.get_running_loop()
    with contextlib.closing(_dump_socket()) as sock:
        sock.setblocking(False)
        sock.send(request(kind, NLM_F_DUMP, body))
        while True:
            async with asyncio.timeout(_ANSWER_SECONDS):  # wait_for of Python 3.11 may swallow a cancellation
                data = await loop.sock_recv(sock, 65536)
            found, consistent, done = _slice(kind, data)
            yield found, consistent
            if done:
                return
            await asyncio.sleep(0)


def dump_now(kind: int, body: bytes) -> list[bytes]:
    """As ``dump``, but blocking: for small dumps that a decision waits for."""
    bodies: list[bytes] = []
    with contextlib.closing(_dump_socket()) as sock:
        sock.settimeout(_ANSWER_SECONDS)
        sock.send(request(kind, NLM_F_DUMP, body))
        done = False
        while not done:
            found, _, done = _slice(kind, sock.recv(65536))
            bodies += found
    return bodies


def await_local(wanted: Iterable[tuple[int, bytes]], at_most_s: float = _LOCAL_SECONDS) -> bool:
    """Wait until what comes in on these NICs for these IPv6 addresses is delivered here; False: not in time.

    Linux acknowledges a new address before it receives for it: a kernel thread makes its route, 0 to 10 ms
    later on a busy machine. Who is told of the address earlier loses packets. So it blocks.
    """
    until = time.monotonic() + at_most_s
    with contextlib.closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)) as sock:
        sock.settimeout(at_most_s)
        for index, address in wanted:
            body = bytes((socket.AF_INET6, 128, *bytes(10)))  # rtmsg
            body += attribute(_RTA_DST, address) + attribute(_RTA_IIF, struct.pack("=i", index))
            query = request(RTM_GETROUTE, 0, body)
            while not _is_local(sock, query):
                if time.monotonic() > until:
                    return False
                time.sleep(_LOCAL_PAUSE_SECONDS)
    return True


def _is_local(sock: socket.socket, query: bytes) -> bool:
    try:
        sock.send(query)
        answer = sock.recv(65536)
    except OSError:
        return False
    return any(kind == _RTM_NEWROUTE and body[7:8] == _RTN_LOCAL for kind, _, _, body in messages(answer))


def _dump_socket() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    sock.bind((0, 0))
    with contextlib.suppress(OSError):  # before Linux 4.20: everything is dumped, filters are ignored
        sock.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
    return sock


def _slice(kind: int, data: bytes) -> tuple[list[bytes], bool, bool]:
    """One datagram of a dump: its bodies, whether the kernel calls it consistent, whether it is the last."""
    found: list[bytes] = []
    consistent = True
    for answer, flags, _, content in messages(data):
        consistent = consistent and not flags & NLM_F_DUMP_INTR
        if answer == _NLMSG_DONE:
            return found, consistent, True
        if answer == _NLMSG_ERROR:
            code = -struct.unpack_from("=i", content)[0]
            raise OSError(code, f"netlink dump {kind}: {errno.errorcode.get(code, code)}")
        found.append(content)
    return found, consistent, False


class Monitor:
    """Tells that links or addresses changed, and on which NICs; what changed is read by a dump.

    The kernel itself drops the news about our own marked addresses coming and being refreshed (a
    refresh of 1,000 would wake us 1,000 times); that one of ours went is let through.
    """

    def __init__(self, mark: int, buffer_bytes: int) -> None:
        self._sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        enlarge(self._sock, buffer_bytes)
        bpf.attach(self._sock, _not_our_refresh(mark))
        self._sock.bind((0, _GROUPS))

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def drain(self, limit: int = 1024) -> tuple[set[int], bool]:
        """The NICs spoken of, and whether news was lost (ENOBUFS: look at everything)."""
        indexes: set[int] = set()
        lost = False
        for _ in range(limit):
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                lost = True
                continue
            for _kind, _, _, body in messages(data):
                if len(body) >= 8:  # ifinfomsg and ifaddrmsg both have the index at byte 4
                    indexes.add(struct.unpack_from("=i", body, 4)[0])
        return indexes, lost


def _not_our_refresh(mark: int) -> bpf.Program:
    """Socket filter: everything but RTM_NEWADDR that carries IFA_PROTO ``mark``."""
    return bpf.assemble(
        bpf.load_half(4),
        bpf.jump_unless(socket.htons(RTM_NEWADDR), "keep"),
        bpf.load_constant(16 + 8),
        bpf.set_index(_IFA_PROTO),
        bpf.load_ancillary(bpf.NETLINK_ATTRIBUTE),
        bpf.jump_if(0, "keep"),
        bpf.index_from_accumulator(),
        bpf.load_byte_indexed(4),
        bpf.jump_if(mark, "drop"),
        "keep",
        bpf.give(0xFFFFFFFF),
        "drop",
        bpf.give(0),
    )


def why_not(code: int) -> str:
    """The kernel's errno for an address, in words for whoever reads the fault."""
    match code:
        case errno.EEXIST:
            return "the NIC has this address already, and not from Holdfast: remove it there"
        case errno.ENODEV:
            return "the NIC is gone"
        case errno.EPERM:
            return "not permitted: the speaker needs the capability NET_ADMIN"
        case errno.ETIMEDOUT:
            return "the kernel did not answer in time"
        case errno.EACCES:
            return "IPv6 is switched off on the NIC (net.ipv6.conf.*.disable_ipv6)"
        case errno.EINVAL:
            return "refused as invalid: an IPv6 address needs a NIC with an MTU of 1,280 bytes or more"
        case _:
            return os.strerror(code)
