# SPDX-License-Identifier: Apache-2.0
"""ARP and ND frames, ready to send. The only importer of scapy (GPL-2.0-only; see README on licences).

scapy builds one template of each form per MAC; an address is patched into its bytes, 150 times cheaper
than building. What a template is good for, and why both forms of an announcement: semantics.md 1.1, 1.2.
"""

import socket
import struct
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Final

from holdfast_speaker.effects import Form
from holdfast_speaker.events import Link
from holdfast_speaker.ports import Neighbour, Surroundings

_BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
_EXAMPLE4: Final = "192.0.2.1"
_EXAMPLE6: Final = "2001:db8::1"
_MOST_ASKED: Final = 4096  # questions per NIC and round: beyond, neighbours are told by broadcast alone


def _scapy() -> ModuleType:
    """scapy's layers without its look at the host.

    A plain import dumps every link, address and route through packet classes (120 MiB and 7 s on a
    node with 242 links and 2,000 routes), loads an OUI table and writes caches. The two autoload
    settings are public; the other three are internals, and pinned by a test that counts links.
    """
    if "scapy.layers.inet6" in sys.modules:
        return sys.modules["scapy.layers.inet6"]
    for name, data in (("manuf", ""), ("bluetoothids", {})):
        stub = types.ModuleType(f"scapy.libs.{name}")
        stub.DATA = data  # type: ignore[attr-defined]
        sys.modules[stub.__name__] = stub
    import scapy.main

    scapy.main.SCAPY_CACHE_FOLDER = None
    from scapy.config import conf

    conf.route_autoload = conf.route6_autoload = False
    from scapy.interfaces import NetworkInterfaceDict

    reload = NetworkInterfaceDict.reload
    NetworkInterfaceDict.reload = lambda _self: None  # type: ignore[method-assign,assignment]
    try:
        import scapy.layers.inet6
    finally:
        NetworkInterfaceDict.reload = reload  # type: ignore[method-assign]
    conf.sniff_promisc = False
    conf.verb = 0
    return scapy.layers.inet6


_inet6 = _scapy()
_ARP = sys.modules["scapy.layers.l2"].ARP
_Ether = sys.modules["scapy.layers.l2"].Ether


@dataclass(frozen=True, slots=True)
class _Templates:
    """One MAC's frames for the example addresses."""

    announcement: bytes  # ARP request, target hardware address 0 (RFC 5227)
    reply: bytes  # ARP reply, target hardware address = sender's (RFC 5944 4.6)
    probe4: bytes
    ask4: bytes
    advertisement: bytes  # unsolicited NA
    probe6: bytes
    ask6: bytes


@lru_cache(maxsize=256)
def _templates(mac: str, *, forwarding: bool) -> _Templates:
    def arp(destination: str = _BROADCAST, **fields: object) -> bytes:
        return bytes(_Ether(src=mac, dst=destination, type=0x0806) / _ARP(hwsrc=mac, **fields))

    def nd(source: str, destination: str, ethernet: str, message: object) -> bytes:
        ether = _Ether(src=mac, dst=ethernet, type=0x86DD)
        return bytes(ether / _inet6.IPv6(src=source, dst=destination, hlim=255) / message)

    source_mac = _inet6.ICMPv6NDOptSrcLLAddr(lladdr=mac)
    target_mac = _inet6.ICMPv6NDOptDstLLAddr(lladdr=mac)
    none, own = "00:00:00:00:00:00", _EXAMPLE4
    return _Templates(
        announcement=arp(op=1, psrc=own, pdst=own, hwdst=none),
        reply=arp(op=2, psrc=own, pdst=own, hwdst=mac),
        probe4=arp(op=1, psrc="0.0.0.0", pdst=own, hwdst=none),  # noqa: S104 - the sender of a probe
        ask4=arp(op=1, psrc=own, pdst=own, hwdst=none),
        advertisement=nd(
            _EXAMPLE6,
            "ff02::1",
            "33:33:00:00:00:01",
            _inet6.ICMPv6ND_NA(tgt=_EXAMPLE6, R=int(forwarding), S=0, O=1) / target_mac,
        ),
        probe6=nd("::", "ff02::1:ff00:1", "33:33:ff:00:00:01", _inet6.ICMPv6ND_NS(tgt=_EXAMPLE6)),
        ask6=nd(_EXAMPLE6, _EXAMPLE6, _BROADCAST, _inet6.ICMPv6ND_NS(tgt=_EXAMPLE6) / source_mac),
    )


# --- patching -------------------------------------------------------------------------------------
# Ethernet: destination 0, source 6. ARP: sender's address 28, target's 38.
# IPv6: source 22, destination 38; ICMPv6: checksum 56, target 62.


def _patch(frame: bytes, *changes: tuple[int, bytes]) -> bytes:
    patched = bytearray(frame)
    for offset, value in changes:
        patched[offset : offset + len(value)] = value
    return bytes(patched)


def _with_checksum(frame: bytes) -> bytes:
    """ICMPv6's checksum over pseudo header and message (RFC 4443 2.3), put in at byte 56.

    The ones' complement sum of 16-bit words is the number itself modulo 0xffff.
    """
    message = frame[54:56] + b"\0\0" + frame[58:]
    pseudo = frame[22:54] + struct.pack(">II", len(message), 58)
    total = int.from_bytes(pseudo + message, "big") % 0xFFFF or 0xFFFF
    return frame[:56] + (0xFFFF - total).to_bytes(2, "big") + frame[58:]


def _solicited_node(packed: bytes) -> tuple[bytes, bytes]:
    """The multicast address of RFC 4291 2.7.1 and its MAC."""
    last = packed[13:]
    return bytes.fromhex("ff0200000000000000000001ff") + last, b"\x33\x33\xff" + last


def _announce(templates: _Templates, address: str) -> tuple[bytes, ...]:
    if ":" in address:
        own = socket.inet_pton(socket.AF_INET6, address)
        return (_with_checksum(_patch(templates.advertisement, (22, own), (62, own))),)
    own = socket.inet_aton(address)
    return (
        _patch(templates.announcement, (28, own), (38, own)),
        _patch(templates.reply, (28, own), (38, own)),
    )


def _probe(templates: _Templates, address: str) -> tuple[bytes, ...]:
    if ":" in address:
        own = socket.inet_pton(socket.AF_INET6, address)
        group, mac = _solicited_node(own)
        return (_with_checksum(_patch(templates.probe6, (0, mac), (38, group), (62, own))),)
    return (_patch(templates.probe4, (38, socket.inet_aton(address))),)


def _ask(templates: _Templates, address: str, whom: Neighbour) -> bytes:
    """ "Who has WHOM? Tell ADDRESS", to WHOM alone; its MAC unknown, to all who may be it."""
    if ":" in address:
        own, target = (socket.inet_pton(socket.AF_INET6, a) for a in (address, whom.address))
        if whom.mac is None:
            destination, mac = _solicited_node(target)
        else:
            destination, mac = target, bytes.fromhex(whom.mac.replace(":", ""))
        frame = _patch(templates.ask6, (0, mac), (22, own), (38, destination), (62, target))
        return _with_checksum(frame)
    mac = b"\xff" * 6 if whom.mac is None else bytes.fromhex(whom.mac.replace(":", ""))
    own, target = socket.inet_aton(address), socket.inet_aton(whom.address)
    return _patch(templates.ask4, (0, mac), (28, own), (38, target))


# --- the door -------------------------------------------------------------------------------------


class ScapyFrames:
    """``ports.Frames``: announcements and probes cached per NIC and address, questions made when asked."""

    def __init__(self) -> None:
        self._macs: dict[int, str] = {}
        self._forwarding: dict[int, bool] = {}
        self._prepared: dict[int, frozenset[str]] = {}
        self._virtual: dict[int, Mapping[str, str]] = {}  # address -> virtual MAC
        self._cache: dict[int, dict[tuple[Form, str], tuple[bytes, ...]]] = {}

    def see(self, links: Sequence[Link]) -> None:
        macs = {link.index: link.interface.mac for link in links}
        for index, mac in self._macs.items():
            if macs.get(index) != mac:
                self._cache.pop(index, None)
        self._macs = macs

    def prepare(
        self, index: int, addresses: frozenset[str], macs: Mapping[str, str] = {}, *, forwarding: bool
    ) -> None:
        self._prepared[index] = addresses
        if self._forwarding.get(index) != forwarding or self._virtual.get(index, {}) != macs:
            self._cache.pop(index, None)
        self._forwarding[index] = forwarding
        self._virtual[index] = macs
        cache = self._cache.setdefault(index, {})
        for key in [key for key in cache if key[1] not in addresses]:
            del cache[key]
        if index in self._macs:
            for address in addresses:
                self._made(index, "announce", address)
                self._made(index, "probe", address)

    def frames(self, index: int, form: Form, address: str, around: Surroundings) -> Sequence[bytes]:
        mac = self._macs.get(index)
        if mac is None:
            return ()
        if form != "ask":
            if self._forwarding.setdefault(index, around.forwarding) != around.forwarding:
                self._forwarding[index] = around.forwarding
                self._cache.pop(index, None)
            return self._made(index, form, address)
        templates = _templates(self._mac(index, address), forwarding=around.forwarding)
        version = ":" in address
        most = max(1, _MOST_ASKED // max(1, len(self._prepared.get(index, ()))))
        told = [*around.gateways, *around.neighbours[:most]]
        return [
            _ask(templates, address, whom)
            for whom in told
            if (":" in whom.address) == version and whom.address != address
        ]

    def _mac(self, index: int, address: str) -> str:
        return self._virtual.get(index, {}).get(address) or self._macs[index]

    def _made(self, index: int, form: Form, address: str) -> tuple[bytes, ...]:
        cache = self._cache.setdefault(index, {})
        made = cache.get((form, address))
        if made is None:
            # Nothing is said by a virtual MAC before it is ours; a probe is.
            mac = self._macs[index] if form == "probe" else self._mac(index, address)
            templates = _templates(mac, forwarding=self._forwarding.get(index, False))
            made = (_announce if form == "announce" else _probe)(templates, address)
            if address in self._prepared.get(index, ()):
                cache[form, address] = made
        return made
