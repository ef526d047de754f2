# SPDX-License-Identifier: Apache-2.0
"""Packet sockets: one to hear and one to send per NIC, plus the multicast memberships.

Hearing sits before the host's firewall (AF_PACKET, ETH_P_ALL), so no rule of the host can deafen a
speaker; a filter in the kernel lets through only ARP, VRRP and neighbour solicitations and
advertisements that came in untagged for this host, and answers to others, as to its virtual MACs.
Needs NET_RAW; NET_ADMIN for the big buffers.
"""

import contextlib
import errno
import logging
import select
import socket
import struct
from collections.abc import Iterable
from typing import Final

from holdfast_speaker import bpf
from holdfast_speaker.netlink import enlarge

log = logging.getLogger(__name__)

_ETH_P_ALL: Final = 0x0003
_SOL_PACKET: Final = 263
_PACKET_ADD_MEMBERSHIP: Final = 1
_PACKET_MR_MULTICAST: Final = 0
_PACKET_IGNORE_OUTGOING: Final = 23
_SO_SNDBUFFORCE: Final = 32
_SO_PRIORITY: Final = 12
_SO_MARK: Final = 36
_CONTROL: Final = 7  # TC_PRIO_CONTROL: adverts overtake the host's own traffic in its queues
_OTHER_HOST, _OUTGOING = 3, 4  # sll_pkttype
_BUFFER: Final = 4 << 20
_LONGEST: Final = 2048  # an advert of 255 addresses is 1,042 bytes long
_GROUP_MACS: Final = (bytes.fromhex("01005e000012"), bytes.fromhex("333300000012"))
_GROUP4: Final = socket.inet_pton(socket.AF_INET, "224.0.0.18")
_GROUP6: Final = socket.inet_pton(socket.AF_INET6, "ff02::12")

HEARD: Final = bpf.assemble(
    bpf.load_ancillary(bpf.VLAN_TAG_PRESENT),
    bpf.jump_if(0, "untagged"),
    bpf.load_ancillary(bpf.VLAN_TAG),
    bpf.mask(0x0FFF),
    bpf.jump_unless(0, "drop"),  # VLAN 0 is only a priority (802.1Q)
    "untagged",
    bpf.load_ancillary(bpf.PACKET_TYPE),
    bpf.jump_if_at_least(_OUTGOING, "drop"),
    bpf.jump_if(_OTHER_HOST, "other"),
    bpf.load_half(12),
    bpf.jump_if(0x0806, "keep"),
    bpf.jump_if(0x0800, "ipv4"),
    bpf.jump_unless(0x86DD, "drop"),
    bpf.load_byte(20),
    bpf.jump_if(112, "keep"),
    bpf.jump_unless(58, "drop"),
    bpf.load_byte(54),
    bpf.jump_if(135, "keep"),
    bpf.jump_if(136, "keep"),
    bpf.give(0),
    "ipv4",
    bpf.load_byte(23),
    bpf.jump_if(112, "keep"),
    bpf.give(0),
    "other",  # to a virtual MAC of ours, perhaps: only whether it is answered is of interest
    bpf.load_half(12),
    bpf.jump_if(0x0806, "arp"),
    bpf.jump_unless(0x86DD, "drop"),
    bpf.load_byte(20),
    bpf.jump_unless(58, "drop"),
    bpf.load_byte(54),
    bpf.jump_if(136, "keep"),
    bpf.give(0),
    "arp",
    bpf.load_half(20),
    bpf.jump_if(2, "keep"),
    "drop",
    bpf.give(0),
    "keep",
    bpf.give(_LONGEST),
)


class Link:
    """``ports.Wire`` on the kernel's packet sockets. What leaves carries ``mark`` (SO_MARK), if not 0."""

    def __init__(self, mark: int = 0) -> None:
        self._mark = mark
        self._held_back: set[int] = set()
        self._ready = select.epoll()
        self._ears: dict[int, socket.socket] = {}
        self._by_fd: dict[int, int] = {}
        self._groups: dict[int, list[socket.socket]] = {}
        self._mouths: dict[int, socket.socket] = {}
        self._wanted: frozenset[int] = frozenset()
        self._said: dict[int, str] = {}

    def fileno(self) -> int:
        return self._ready.fileno()

    def close(self) -> None:
        self.hear(frozenset())
        for sock in self._mouths.values():
            sock.close()
        self._mouths.clear()
        self._ready.close()

    def hear(self, indexes: frozenset[int]) -> None:
        """Listen on exactly these NICs; one that cannot be opened is tried again by ``mend``."""
        self._wanted = indexes
        for index in set(self._ears) - indexes:
            self._deafen(index)
        for index in set(self._mouths) - indexes:
            self._mouths.pop(index).close()
        self._held_back &= indexes
        self.mend()

    def mend(self) -> None:
        for index in sorted(self._wanted - self._ears.keys()):
            try:
                self._open(index)
                self._said.pop(index, None)
            except OSError as error:
                if self._said.get(index) != str(error):
                    self._said[index] = str(error)
                    log.warning("interface index %d cannot be heard: %s", index, error)
        for index in self._ears:
            self._join(index)

    def drain(self, limit: int) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        for fd, _ in self._ready.poll(0):
            index = self._by_fd.get(fd)
            if index is None:
                continue
            sock = self._ears[index]
            while len(found) < limit:
                try:
                    found.append((index, sock.recv(_LONGEST)))
                except BlockingIOError:
                    break
                except OSError as error:
                    self._trouble(index, sock, error)
                    break
        return found

    def send(self, index: int, frames: Iterable[bytes]) -> int:
        sent = 0
        self._held_back.discard(index)
        try:
            sock = self._mouths.get(index) or self._open_mouth(index)
            for frame in frames:
                sock.send(frame)
                sent += 1
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self._held_back.add(index)
            if error.errno in (errno.ENXIO, errno.ENODEV) and index in self._mouths:
                self._mouths.pop(index).close()
        return sent

    def held_back(self, index: int) -> bool:
        """Whether the last ``send`` on this NIC ended at a frame that the kernel dropped (ENOBUFS).

        An egress hook did, such as a fence that is shut; or the NIC's queue is full.
        """
        return index in self._held_back

    # --- opening ------------------------------------------------------------------------------

    def _open(self, index: int) -> None:
        name = socket.if_indextoname(index)
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            bpf.attach(sock, HEARD)  # before the bind: nothing unfiltered is ever queued
            with contextlib.suppress(OSError):
                sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            enlarge(sock, _BUFFER)
            sock.bind((name, _ETH_P_ALL))
            for mac in _GROUP_MACS:
                member = struct.pack("=iHH8s", index, _PACKET_MR_MULTICAST, len(mac), mac)
                sock.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, member)
            self._ready.register(sock.fileno(), select.EPOLLIN)
        except OSError:
            sock.close()
            raise
        self._ears[index] = sock
        self._by_fd[sock.fileno()] = index
        self._groups[index] = [
            socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)
        ]

    def _join(self, index: int) -> None:
        """Real IGMP and MLD reports, so that a snooping switch forwards. Again is harmless.

        A NIC without IPv6 refuses the second one, for as long as it stays so.
        """
        ipv4, ipv6 = self._groups[index]
        with contextlib.suppress(OSError):
            ipv4.setsockopt(
                socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("=4s4si", _GROUP4, bytes(4), index)
            )
        with contextlib.suppress(OSError):
            ipv6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, struct.pack("=16si", _GROUP6, index))

    def _open_mouth(self, index: int) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            if self._mark:  # without it nothing of ours passes a fence: rather no socket at all
                sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, struct.pack("=I", self._mark))
            sock.bind((socket.if_indextoname(index), 0))
        except OSError:
            sock.close()
            raise
        for option, value in ((_SO_PRIORITY, _CONTROL), (_SO_SNDBUFFORCE, _BUFFER)):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, option, value)
        self._mouths[index] = sock
        return sock

    # --- trouble ------------------------------------------------------------------------------

    def _trouble(self, index: int, sock: socket.socket, error: OSError) -> None:
        """ENETDOWN comes once when a NIC goes down or away; only then is the socket of no more use."""
        try:
            gone = socket.if_indextoname(index) != sock.getsockname()[0]
        except OSError:
            gone = True
        if gone or error.errno != errno.ENETDOWN:
            self._deafen(index)

    def _deafen(self, index: int) -> None:
        sock = self._ears.pop(index)
        del self._by_fd[sock.fileno()]
        with contextlib.suppress(OSError):
            self._ready.unregister(sock.fileno())
        sock.close()
        for group in self._groups.pop(index):
            group.close()
