# SPDX-License-Identifier: Apache-2.0
"""A client's ARP and ND cache: what it may learn from, and what it said of an address at any time.

``with Caches(run, {"client": ["192.0.2.100"]}) as caches: ...; caches.history("client", "192.0.2.100")``.
"""

import select
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise
from typing import Final

from tests.rig.api import socket_in
from tests.rig.network import neighbour, netns_path
from tests.rig.run import RigError, Run, command

NIC: Final = "eth0"
_NETLINK_ROUTE: Final = 0
_GROUP_NEIGHBOURS: Final = 1 << 2  # RTNLGRP_NEIGH
_NEWNEIGH, _DELNEIGH = 28, 29
_NLMSG: Final = struct.Struct("=IHHII")
_NDMSG: Final = struct.Struct("=BBHiHBB")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NDA_DST, _NDA_LLADDR = 1, 2
_UNKNOWN: Final = 0x01 | 0x20  # NUD_INCOMPLETE, NUD_FAILED: the entry has no MAC
_SO_RCVBUFFORCE: Final = 33


def pin(namespace: str, address: str, mac: str) -> None:
    """A static entry: nothing on the wire changes it."""
    entry = [address, "lladdr", mac, "nud", "permanent", "dev", NIC]
    command("ip", "-n", namespace, "neighbour", "replace", *entry)


def heed_no_announcement(namespace: str) -> None:
    """No ARP frame whose sender and target address are one, and no advertisement that nobody asked for."""
    settings = [f"net.ipv4.conf.{NIC}.drop_gratuitous_arp=1", f"net.ipv6.conf.{NIC}.drop_unsolicited_na=1"]
    command("ip", "netns", "exec", namespace, "sysctl", "-q", "-w", *settings)


def forget(namespace: str) -> None:
    """Empties the cache; static entries stay."""
    command("ip", "-n", namespace, "neighbour", "flush", "dev", NIC, check=False)


def cached(namespace: str, address: str) -> str | None:
    """The MAC that the cache has for the address now, or None."""
    words = neighbour(namespace, address).split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else None


@dataclass(frozen=True, slots=True)
class Entry:
    """From ``at`` on (monotonic) the cache had this MAC; None: no MAC."""

    at: float
    mac: str | None


class Caches:
    """Follows the caches of some of the run's namespaces, for some addresses, from the kernel's own news."""

    def __init__(self, run: Run, wanted: Mapping[str, Sequence[str]]) -> None:
        self._wanted = {
            name: {ip_address(a).packed: a for a in addresses} for name, addresses in wanted.items()
        }
        self._namespaces = {name: run.namespace_name(name) for name in wanted}
        self._history: dict[tuple[str, str], list[Entry]] = {}

    def __enter__(self) -> "Caches":
        self._sockets: dict[socket.socket, str] = {}
        for name, namespace in self._namespaces.items():
            sock = socket_in(netns_path(namespace), socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 20)
            sock.bind((0, _GROUP_NEIGHBOURS))
            self._sockets[sock] = name
            for address in self._wanted[name].values():
                first = Entry(time.monotonic(), cached(namespace, address))
                self._history[name, address] = [first]
        self._end, self._ended = socket.socketpair()
        self._failure: OSError | None = None
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()
        self._reader.join(5)
        for sock in (*self._sockets, self._ended):
            sock.close()
        if self._failure is not None:
            raise RigError(f"news of a cache was missed: {self._failure}")

    def history(self, name: str, address: str) -> list[Entry]:
        """What the cache said of the address from the beginning on, every change in order."""
        return list(self._history[name, address])

    def at(self, name: str, address: str, moment: float) -> str | None:
        """What it said then."""
        before = [entry for entry in self.history(name, address) if entry.at <= moment]
        return before[-1].mac if before else None

    def changes(self, name: str, address: str, *, since: float = 0.0) -> list[Entry]:
        """When it came to another MAC than the last one it knew; losing it is none."""
        known = [entry for entry in self.history(name, address) if entry.mac is not None]
        return [new for old, new in pairwise(known) if new.mac != old.mac and new.at >= since]

    def _follow(self) -> None:
        while True:
            readable, _, _ = select.select([*self._sockets, self._ended], [], [])
            for sock in readable:
                if sock is self._ended:
                    continue
                try:
                    self._take(self._sockets[sock], sock.recv(1 << 16))
                except OSError as error:  # ENOBUFS: it can't be told any more what was when
                    self._failure = error
                    return
            if readable == [self._ended]:
                return

    def _take(self, name: str, news: bytes) -> None:
        now = time.monotonic()
        while len(news) >= _NLMSG.size:
            length, kind, *_ = _NLMSG.unpack_from(news)
            if kind in (_NEWNEIGH, _DELNEIGH):
                self._note(name, kind, news[_NLMSG.size : length], now)
            news = news[(length + 3) & ~3 :]

    def _note(self, name: str, kind: int, message: bytes, now: float) -> None:
        state = _NDMSG.unpack_from(message)[4]
        said = _attributes(message[_NDMSG.size :])
        address = self._wanted[name].get(said.get(_NDA_DST, b""))
        if address is None:
            return
        gone = kind == _DELNEIGH or state & _UNKNOWN or _NDA_LLADDR not in said
        mac = None if gone else said[_NDA_LLADDR].hex(":")
        entries = self._history[name, address]
        if entries[-1].mac != mac:
            entries.append(Entry(now, mac))


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        found[kind] = data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
    return found
