# SPDX-License-Identifier: Apache-2.0
"""Who says that he has an address: ARP with a sender address, neighbour advertisements, solicitations.

A probe (ARP sender 0, NS from ::) claims nothing: the other candidates probe too, and must not scare us.
"""

from dataclasses import dataclass
from typing import Final

_ARP_IPV4_OVER_ETHERNET: Final = b"\x00\x01\x08\x00\x06\x04"
_ETHERNET: Final = 14
_ICMPV6: Final = 58
_NS: Final = 135
_NA: Final = 136
_ND_START: Final = _ETHERNET + 40
_ND_LEAST: Final = 24
_SOURCE_LINK_LAYER: Final = 1
_TARGET_LINK_LAYER: Final = 2
_MAX_OPTIONS: Final = 8


@dataclass(frozen=True, slots=True)
class Claim:
    """``mac`` says it has ``address`` (packed, 4 or 16 bytes)."""

    address: bytes
    mac: bytes


def parse(frame: bytes) -> Claim | None:
    """The claim in a whole Ethernet frame, or None: not ARP or ND, a probe, or garbage. Never raises."""
    kind = frame[12:14]
    if kind == b"\x08\x06":
        return _parse_arp(frame)
    if kind == b"\x86\xdd":
        return _parse_nd(frame)
    return None


def _parse_arp(frame: bytes) -> Claim | None:
    if len(frame) < _ETHERNET + 28 or frame[14:20] != _ARP_IPV4_OVER_ETHERNET:
        return None
    if frame[20] or frame[21] not in (1, 2):
        return None
    mac, sender = frame[22:28], frame[28:32]
    if sender == b"\0\0\0\0" or mac[0] & 1:
        return None
    return Claim(sender, mac)


def _parse_nd(frame: bytes) -> Claim | None:
    if len(frame) < _ND_START + _ND_LEAST or frame[20] != _ICMPV6 or frame[21] != 255 or frame[14] >> 4 != 6:
        return None
    end = _ND_START + int.from_bytes(frame[18:20])
    if end > len(frame) or end < _ND_START + _ND_LEAST or frame[_ND_START + 1]:
        return None
    kind = frame[_ND_START]
    if kind not in (_NS, _NA):
        return None
    if (_sum(frame[22:end]) + _ICMPV6 + end - _ND_START) % 0xFFFF:
        return None
    source = frame[22:38]
    if kind == _NS:
        if not any(source):
            return None
        return Claim(source, _link_layer(frame, end, _SOURCE_LINK_LAYER) or frame[6:12])
    target = frame[_ND_START + 8 : _ND_START + 24]
    return Claim(target, _link_layer(frame, end, _TARGET_LINK_LAYER) or frame[6:12])


def _sum(data: bytes) -> int:
    """The ones' complement sum of 16-bit words; an odd last byte counts as the high one (RFC 1071)."""
    return int.from_bytes(data if len(data) % 2 == 0 else data + b"\0") % 0xFFFF


def _link_layer(frame: bytes, end: int, wanted: int) -> bytes | None:
    at = _ND_START + _ND_LEAST
    for _ in range(_MAX_OPTIONS):
        if at + 8 > end:
            return None
        kind, length = frame[at], frame[at + 1] * 8
        if not length or at + length > end:
            return None
        if kind == wanted and length == 8:
            return frame[at + 2 : at + 8]
        at += length
    return None
