# SPDX-License-Identifier: Apache-2.0
"""VRRPv3 adverts, from whole Ethernet frames and back (RFC 9568 5).

Both IPv4 checksum forms are understood: the RFC's (the VRRP message alone) and keepalived's (with the
pseudo-header, as in IPv6). A ones' complement sum is the big-endian number modulo 65,535, which Python
computes in C.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from struct import Struct
from typing import Final, Literal

from holdfast_speaker.vrrp.timing import CENTISECOND_US

Family = Literal[4, 6]

PROTOCOL: Final = 112
GROUP4: Final = bytes((224, 0, 0, 18))
GROUP6: Final = bytes.fromhex("ff020000000000000000000000000012")
MAC4: Final = bytes.fromhex("01005e000012")
MAC6: Final = bytes.fromhex("333300000012")
MAX_ADDRESSES: Final = 255
MAX_INTERVAL_US: Final = 0xFFF * CENTISECOND_US

_ETHERNET: Final = 14
_IPV4: Final = Struct("!BBHHHBBH4s4s")
_IPV6: Final = Struct("!IHBB16s16s")
_VRRP: Final = Struct("!BBBBHH")
_VERSION_TYPE: Final = 0x31
_CONTROL: Final = 0xC0  # DSCP CS6, network control


class Discard(StrEnum):
    """Why a frame on the VRRP socket changed nothing. The words are the labels of a counter."""

    GARBAGE = "garbage"
    VLAN = "vlan"
    FRAGMENT = "fragment"
    HEADER = "header"
    TTL = "ttl"
    SHORT = "short"
    TRAILING = "trailing"
    VERSION = "version"
    TYPE = "type"
    COUNT_ZERO = "count_zero"
    INTERVAL_ZERO = "interval_zero"
    CHECKSUM = "checksum"
    SOURCE_NOT_LINK_LOCAL = "source_not_link_local"
    OWN_SOURCE = "own_source"
    OFF_SUBNET = "off_subnet"
    NOT_HEARD = "not_heard"


@dataclass(frozen=True, slots=True)
class Advert:
    """A valid advert. ``source`` and ``listed`` are packed; ``priority`` 0 says "I stop"."""

    family: Family
    source: bytes
    virtual_router_id: int
    priority: int
    interval_us: int
    listed: bytes
    rfc_checksum: bool = False

    def addresses(self) -> tuple[bytes, ...]:
        """The listed addresses, each packed, in the order of the packet."""
        size = 4 if self.family == 4 else 16
        return tuple(self.listed[at : at + size] for at in range(0, len(self.listed), size))


def parse(frame: bytes) -> Advert | Discard:
    """The advert in a whole Ethernet frame, or why it is none. Never raises, whatever the bytes."""
    kind = frame[12:14]
    if kind == b"\x08\x00":
        return _parse4(frame)
    if kind == b"\x86\xdd":
        return _parse6(frame)
    return Discard.VLAN if kind in (b"\x81\x00", b"\x88\xa8") else Discard.GARBAGE


def _parse4(frame: bytes) -> Advert | Discard:
    if len(frame) < _ETHERNET + _IPV4.size:
        return Discard.SHORT
    first, _, total, _, fragment, ttl, protocol, _, source, group = _IPV4.unpack_from(frame, _ETHERNET)
    start = _ETHERNET + (first & 0x0F) * 4
    end = _ETHERNET + total
    if protocol != PROTOCOL or first >> 4 != 4:
        return Discard.GARBAGE
    if start < _ETHERNET + _IPV4.size or end < start:
        return Discard.HEADER
    if end > len(frame):
        return Discard.SHORT
    if fragment & 0x3FFF:
        return Discard.FRAGMENT
    if int.from_bytes(frame[_ETHERNET:start]) % 0xFFFF:
        return Discard.HEADER
    if ttl != 255:
        return Discard.TTL
    return _message(frame[start:end], 4, source, group)


def _parse6(frame: bytes) -> Advert | Discard:
    start = _ETHERNET + _IPV6.size
    if len(frame) < start:
        return Discard.SHORT
    first, length, protocol, hops, source, group = _IPV6.unpack_from(frame, _ETHERNET)
    if protocol != PROTOCOL or first >> 28 != 6:
        return Discard.GARBAGE
    if start + length > len(frame):
        return Discard.SHORT
    if hops != 255:
        return Discard.TTL
    if source[0] != 0xFE or source[1] & 0xC0 != 0x80:
        return Discard.SOURCE_NOT_LINK_LOCAL
    return _message(frame[start : start + length], 6, source, group)


def _message(message: bytes, family: Family, source: bytes, group: bytes) -> Advert | Discard:
    if len(message) < _VRRP.size:
        return Discard.SHORT
    version, virtual_router_id, priority, count, interval, _ = _VRRP.unpack_from(message)
    if version >> 4 != 3:
        return Discard.VERSION
    if version & 0x0F != 1:
        return Discard.TYPE
    if not count:
        return Discard.COUNT_ZERO  # erratum 8299
    interval &= 0x0FFF
    if not interval:
        return Discard.INTERVAL_ZERO  # erratum 8301; keepalived steps down for it [semantics V13]
    size = _VRRP.size + count * (4 if family == 4 else 16)
    if len(message) != size:
        return Discard.SHORT if len(message) < size else Discard.TRAILING
    plain = int.from_bytes(message) % 0xFFFF
    rfc_checksum = False
    if (plain + int.from_bytes(source + group) + PROTOCOL + size) % 0xFFFF:
        if plain or family == 6:
            return Discard.CHECKSUM
        rfc_checksum = True
    return Advert(
        family,
        source,
        virtual_router_id,
        priority,
        interval * CENTISECOND_US,
        message[_VRRP.size :],
        rfc_checksum,
    )


def fitting(family: Family, mtu: int) -> int:
    """How many addresses one advert lists at most: 8 bits count them, and it is never a fragment."""
    room = mtu - _VRRP.size - (_IPV4.size if family == 4 else _IPV6.size)
    return max(1, min(MAX_ADDRESSES, room // (4 if family == 4 else 16)))


def link_local(virtual_router_id: int) -> bytes:
    """fe80::200:5eff:fe00:2XX, from the virtual router MAC of RFC 9568 7.3.

    An IPv6 advert lists a link-local address first (5.2.9). Nobody binds this one: it only stands there.
    """
    return bytes.fromhex("fe8000000000000002005efffe0002") + bytes((virtual_router_id,))


def build(advert: Advert, mac: bytes) -> bytes:
    """The whole Ethernet frame of an advert that leaves from the NIC with this MAC."""
    count = len(advert.listed) // (4 if advert.family == 4 else 16)
    head = (_VERSION_TYPE, advert.virtual_router_id, advert.priority, count)
    interval = advert.interval_us // CENTISECOND_US
    size = _VRRP.size + len(advert.listed)
    group = GROUP4 if advert.family == 4 else GROUP6
    total = int.from_bytes(_VRRP.pack(*head, interval, 0) + advert.listed)
    if not advert.rfc_checksum or advert.family == 6:
        total += int.from_bytes(advert.source + group) + PROTOCOL + size
    message = _VRRP.pack(*head, interval, 0xFFFF - total % 0xFFFF) + advert.listed
    if advert.family == 6:
        header = _IPV6.pack(6 << 28 | _CONTROL << 20, size, PROTOCOL, 255, advert.source, group)
        return b"".join((MAC6, mac, b"\x86\xdd", header, message))
    fields = (0x45, _CONTROL, _IPV4.size + size, 0, 0, 255, PROTOCOL)
    zero = int.from_bytes(_IPV4.pack(*fields, 0, advert.source, group)) % 0xFFFF
    header = _IPV4.pack(*fields, 0xFFFF - zero, advert.source, group)
    return b"".join((MAC4, mac, b"\x08\x00", header, message))


def listing(family: Family, virtual_router_id: int, addresses: Sequence[bytes], mtu: int) -> bytes:
    """What an advert lists: sorted, as many as fit; IPv6 begins with the link-local address."""
    room = fitting(family, mtu)
    if family == 4:
        return b"".join(sorted(addresses)[:room])
    return b"".join([link_local(virtual_router_id), *sorted(addresses)[: room - 1]])
