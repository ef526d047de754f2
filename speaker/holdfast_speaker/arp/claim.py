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
_SOLICITED: Final = 0x40
_MULTICAST: Final = 0xFF  # the first byte of such an address
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


def is_answer(frame: bytes) -> bool:
    """An ARP reply or a neighbour advertisement; a question proves nothing. Never raises."""
    if frame[12:14] == b"\x08\x06":
        return frame[20:22] == b"\0\2"
    return (
        frame[12:14] == b"\x86\xdd"
        and frame[20:21] == bytes((_ICMPV6,))
        and frame[_ND_START : _ND_START + 1] == bytes((_NA,))
    )


def target(frame: bytes) -> bytes | None:
    """The address that a frame with a claim in it asks for; None: it asks for none."""
    if frame[12:14] == b"\x08\x06":
        asks = frame[21] == 1 and frame[38:42] != frame[28:32]
        return frame[38:42] if asks else None
    return frame[62:78] if frame[_ND_START] == _NS else None


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
    """What a kernel would discard is no claim either (RFC 4861 7.1.1, 7.1.2)."""
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
    if frame[_ND_START + 8] == _MULTICAST or not _has_whole_options(frame, end):
        return None
    source = frame[22:38]
    if kind == _NS:
        if not any(source):
            return None
        return Claim(source, _link_layer(frame, end, _SOURCE_LINK_LAYER) or frame[6:12])
    if frame[38] == _MULTICAST and frame[_ND_START + 4] & _SOLICITED:
        return None
    target = frame[_ND_START + 8 : _ND_START + 24]
    return Claim(target, _link_layer(frame, end, _TARGET_LINK_LAYER) or frame[6:12])


def _sum(data: bytes) -> int:
    """The ones' complement sum of 16-bit words; an odd last byte counts as the high one (RFC 1071)."""
    return int.from_bytes(data if len(data) % 2 == 0 else data + b"\0") % 0xFFFF


def _has_whole_options(frame: bytes, end: int) -> bool:
    """Whether the options fill the message exactly, none of length 0."""
    at = _ND_START + _ND_LEAST
    while at + 8 <= end and frame[at + 1]:
        at += frame[at + 1] * 8
    return at == end


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
