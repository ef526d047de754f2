# SPDX-License-Identifier: Apache-2.0
"""The HMAC trailer of an advert (draft-cassen-vrrp-auth-hmac-01, keepalived 2.4.1): layout, sign, verify.

    type 1 | key id | 0 (16) | UTC seconds (32) | 2^-16 s (16) | counter (16) | HMAC-SHA256, first 16 bytes

The HMAC covers a pseudo-header {family, version, VRID, 0, source in 16 bytes}, the VRRP message with its
checksum read as 0, and this trailer with its HMAC read as 0. It covers nothing of the IP header but the
source, hence neither TTL nor destination.

Seconds, fraction and counter together are one 64-bit sequence, ordered as RFC 1982 orders serial numbers:
it wraps in 2106, and nothing happens.
"""

import hmac
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final

from holdfast_speaker.units import SECOND_US
from holdfast_speaker.vrrp.advert import TRAILER_SIZE, Advert, pdu

_HEAD: Final = Struct("!BBHIHH")
_PSEUDO: Final = Struct("!BBBx16s")
_TYPE: Final = 1
_VERSION: Final = 3
_HMAC_SIZE: Final = 16
_NO_HMAC: Final = bytes(_HMAC_SIZE)
_WRAP: Final = 1 << 64
_HALF: Final = 1 << 63
_SECONDS: Final = 32  # the bits below the seconds
_COUNTER: Final = 16  # the bits of the counter


@dataclass(frozen=True, slots=True)
class Trailer:
    """``sequence``: 64 bits, UTC in the upper 48."""

    key_id: int
    sequence: int
    hmac: bytes


def read(packed: bytes) -> Trailer | None:
    """The trailer in these bytes; None for a layout that is not known here."""
    if len(packed) != TRAILER_SIZE:
        return None
    kind, key_id, zero, seconds, fraction, counter = _HEAD.unpack_from(packed)
    if kind != _TYPE or zero:
        return None
    return Trailer(key_id, seconds << _SECONDS | fraction << _COUNTER | counter, packed[_HEAD.size :])


def signed(advert: Advert, key_id: int, key: bytes, sequence: int) -> Advert:
    """The same advert with a trailer under this key."""
    head = _head(key_id, sequence)
    return replace(advert, trailer=head + _hmac(advert, key, head))


def holds(advert: Advert, trailer: Trailer, key: bytes) -> bool:
    """Whether the advert was signed with this key, as it stands. Takes the same time for every answer."""
    return hmac.compare_digest(trailer.hmac, _hmac(advert, key, _head(trailer.key_id, trailer.sequence)))


def _head(key_id: int, sequence: int) -> bytes:
    low = sequence & (1 << _SECONDS) - 1
    return _HEAD.pack(_TYPE, key_id, 0, sequence >> _SECONDS, low >> _COUNTER, low & (1 << _COUNTER) - 1)


def _hmac(advert: Advert, key: bytes, head: bytes) -> bytes:
    pseudo = _PSEUDO.pack(advert.family, _VERSION, advert.virtual_router_id, advert.source)
    return hmac.digest(key, pseudo + pdu(advert) + head + _NO_HMAC, "sha256")[:_HMAC_SIZE]


# --- sequences ------------------------------------------------------------------------------------


def sequence_at(wall_us: int) -> int:
    """The sequence of this moment (microseconds since 1970, UTC), its counter 0."""
    return (wall_us << _SECONDS) // SECOND_US % _WRAP & -(1 << _COUNTER)


def following(sequence: int) -> int:
    return (sequence + 1) % _WRAP


def ahead_us(one: int, other: int) -> int:
    """By how much the first of two sequences is later, in microseconds; negative: it is earlier."""
    return distance(one, other) * SECOND_US >> _SECONDS


def distance(one: int, other: int) -> int:
    """Above 0 when the first is the later one (RFC 1982)."""
    return (one - other + _HALF) % _WRAP - _HALF
