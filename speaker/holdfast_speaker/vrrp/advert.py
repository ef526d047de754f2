# SPDX-License-Identifier: Apache-2.0
"""VRRPv3 adverts, from whole Ethernet frames and back (RFC 9568 5).

Both IPv4 checksum forms are understood: the RFC's (the VRRP message alone) and keepalived's (with the
pseudo-header, as in IPv6). A ones' complement sum is the big-endian number modulo 65,535, which Python
computes in C.

What may follow the addresses is an HMAC trailer of exactly 28 bytes (``trailer.py``). As in keepalived,
the IPv4 checksum leaves it out and the IPv6 one, which there the kernel writes, takes it in.
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
TRAILER_SIZE: Final = 28

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
    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "unknown_key"
    BAD_MAC = "bad_mac"
    STALE = "stale"
    REPLAYED = "replayed"


@dataclass(frozen=True, slots=True)
class Advert:
    """A valid advert. ``source`` and ``listed`` are packed; ``priority`` 0 says "I stop".

    ``trailer``: the 28 bytes after the addresses as they came, not judged here. ``reserved``: the four bits
    before the interval, which mean nothing but are under the HMAC.
    """

    family: Family
    source: bytes
    virtual_router_id: int
    priority: int
    interval_us: int
    listed: bytes
    rfc_checksum: bool = False
    trailer: bytes = b""
    reserved: int = 0

    def addresses(self) -> tuple[bytes, ...]:
        """The listed addresses, each packed, in the order of the packet."""
        size = 4 if self.family == 4 else 16
        return tuple(self.listed[at : at + size] for at in range(0, len(self.listed), size))


def parse(frame: bytes) -> Advert | Discard:
    """The advert in a whole Ethernet frame, or why it is none. Never raises, whatever the bytes."""
    found = unwrap(frame)
    return found if isinstance(found, Discard) else _message(*found)


def unwrap(frame: bytes) -> tuple[bytes, Family, bytes, bytes] | Discard:
    """Message, family, source and target of a VRRP packet from this segment, of any type."""
    kind = frame[12:14]
    if kind == b"\x08\x00":
        return _unwrap4(frame)
    if kind == b"\x86\xdd":
        return _unwrap6(frame)
    return Discard.VLAN if kind in (b"\x81\x00", b"\x88\xa8") else Discard.GARBAGE


def _unwrap4(frame: bytes) -> tuple[bytes, Family, bytes, bytes] | Discard:
    if len(frame) < _ETHERNET + _IPV4.size:
        return Discard.SHORT
    first, _, total, _, fragment, ttl, protocol, _, source, target = _IPV4.unpack_from(frame, _ETHERNET)
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
    return frame[start:end], 4, source, target


def _unwrap6(frame: bytes) -> tuple[bytes, Family, bytes, bytes] | Discard:
    start = _ETHERNET + _IPV6.size
    if len(frame) < start:
        return Discard.SHORT
    first, length, protocol, hops, source, target = _IPV6.unpack_from(frame, _ETHERNET)
    if protocol != PROTOCOL or first >> 28 != 6:
        return Discard.GARBAGE
    if start + length > len(frame):
        return Discard.SHORT
    if hops != 255:
        return Discard.TTL
    if source[0] != 0xFE or source[1] & 0xC0 != 0x80:
        return Discard.SOURCE_NOT_LINK_LOCAL
    return frame[start : start + length], 6, source, target


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
    reserved, interval = interval >> 12, interval & 0x0FFF
    if not interval:
        return Discard.INTERVAL_ZERO  # erratum 8301; keepalived steps down for it [semantics V13]
    size = _VRRP.size + count * (4 if family == 4 else 16)
    extra = len(message) - size
    if extra not in (0, TRAILER_SIZE):
        return Discard.SHORT if extra < 0 else Discard.TRAILING
    trailer = message[size:]
    summed = message if family == 6 else message[:size]
    plain = int.from_bytes(summed) % 0xFFFF
    rfc_checksum = False
    if (plain + int.from_bytes(source + group) + PROTOCOL + len(summed)) % 0xFFFF:
        if plain or family == 6:
            return Discard.CHECKSUM
        rfc_checksum = True
    return Advert(
        family,
        source,
        virtual_router_id,
        priority,
        interval * CENTISECOND_US,
        message[_VRRP.size : size],
        rfc_checksum,
        trailer,
        reserved,
    )


def fitting(family: Family, mtu: int, *, signed: bool = False) -> int:
    """How many addresses one advert lists at most: 8 bits count them, and it is never a fragment."""
    room = mtu - _VRRP.size - (_IPV4.size if family == 4 else _IPV6.size) - (TRAILER_SIZE if signed else 0)
    return max(1, min(MAX_ADDRESSES, room // (4 if family == 4 else 16)))


def link_local(virtual_router_id: int) -> bytes:
    """fe80::200:5eff:fe00:2XX, from the virtual router MAC of RFC 9568 7.3.

    An IPv6 advert lists a link-local address first (5.2.9). Nobody binds this one: it only stands there.
    """
    return bytes.fromhex("fe8000000000000002005efffe0002") + bytes((virtual_router_id,))


def pdu(advert: Advert, checksum: int = 0) -> bytes:
    """The VRRP message itself, without its trailer. With checksum 0 it is what the HMAC covers."""
    count = len(advert.listed) // (4 if advert.family == 4 else 16)
    interval = advert.reserved << 12 | advert.interval_us // CENTISECOND_US
    head = (_VERSION_TYPE, advert.virtual_router_id, advert.priority, count)
    return _VRRP.pack(*head, interval, checksum) + advert.listed


def build(advert: Advert, mac: bytes) -> bytes:
    """The whole Ethernet frame of an advert that leaves from the NIC with this MAC."""
    summed = pdu(advert)
    if advert.family == 6:
        summed += advert.trailer
    group = GROUP4 if advert.family == 4 else GROUP6
    total = int.from_bytes(summed)
    if not advert.rfc_checksum or advert.family == 6:
        total += int.from_bytes(advert.source + group) + PROTOCOL + len(summed)
    payload = pdu(advert, 0xFFFF - total % 0xFFFF) + advert.trailer
    to_mac = MAC4 if advert.family == 4 else MAC6
    return wrap(payload, advert.family, advert.source, group, mac=mac, to_mac=to_mac)


def wrap(payload: bytes, family: Family, source: bytes, target: bytes, *, mac: bytes, to_mac: bytes) -> bytes:
    """The whole Ethernet frame of a VRRP packet of any type."""
    if family == 6:
        header = _IPV6.pack(6 << 28 | _CONTROL << 20, len(payload), PROTOCOL, 255, source, target)
        return b"".join((to_mac, mac, b"\x86\xdd", header, payload))
    fields = (0x45, _CONTROL, _IPV4.size + len(payload), 0, 0, 255, PROTOCOL)
    zero = int.from_bytes(_IPV4.pack(*fields, 0, source, target)) % 0xFFFF
    header = _IPV4.pack(*fields, 0xFFFF - zero, source, target)
    return b"".join((to_mac, mac, b"\x08\x00", header, payload))


def listing(
    family: Family, virtual_router_id: int, addresses: Sequence[bytes], mtu: int, *, signed: bool = False
) -> bytes:
    """What an advert lists: sorted, as many as fit; IPv6 begins with the link-local address."""
    room = fitting(family, mtu, signed=signed)
    if family == 4:
        return b"".join(sorted(addresses)[:room])
    return b"".join([link_local(virtual_router_id), *sorted(addresses)[: room - 1]])
