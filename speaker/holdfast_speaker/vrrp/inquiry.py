# SPDX-License-Identifier: Apache-2.0
"""Do you hear the Active? A Backup's question to the other candidates, and their answers (semantics R4.7).

Protocol 112 like the adverts, but unicast and of types that RFC 9568 leaves free (2: question, 3: answer),
which every other implementation discards. The priority field is ``hears``, 1 or 0; count, interval and
list are empty. Like adverts they are believed only with TTL 255, so none comes from another segment.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Final

from holdfast_speaker.vrrp.advert import PROTOCOL, Discard, Family, unwrap, wrap

QUESTION: Final = 2
ANSWER: Final = 3

_VRRP: Final = Struct("!BBBBHH")
_PLAIN_IPV4: Final = 0x45  # a header without options


@dataclass(frozen=True, slots=True)
class Inquiry:
    """``hears`` in an answer: the sender has heard an Active within 1.5 intervals, or is it.

    In a question: he has heard anybody at all since he began to ask, so it is not he who is deaf. Or the
    sender has found that out about another Active, who can't hear the one asked.
    """

    kind: int
    family: Family
    source: bytes
    target: bytes
    virtual_router_id: int
    hears: bool = False


def parse(frame: bytes) -> Inquiry | None:
    """The question or answer in a whole Ethernet frame; None: something else, or garbage. Never raises."""
    found = unwrap(frame)
    if isinstance(found, Discard):
        return None
    message, family, source, target = found
    if len(message) != _VRRP.size or (family == 4 and frame[14] != _PLAIN_IPV4):
        return None
    version, virtual_router_id, hears, count, _, _ = _VRRP.unpack(message)
    kind = version & 0x0F
    if version >> 4 != 3 or kind not in (QUESTION, ANSWER) or count:
        return None
    if (int.from_bytes(message) + _pseudo(source, target)) % 0xFFFF:
        return None
    return Inquiry(kind, family, source, target, virtual_router_id, hears == 1)


def is_answer(frame: bytes) -> bool:
    """Whether the type is an answer's; the rest of it is for ``parse`` to judge. Never raises."""
    kind = frame[12:14]
    at = 34 if kind == b"\x08\x00" else 54
    over_ip = kind == b"\x08\x00" or (kind == b"\x86\xdd" and frame[20:21] == bytes((PROTOCOL,)))
    return over_ip and frame[at : at + 1] == bytes((3 << 4 | ANSWER,))


def build(inquiry: Inquiry, *, mac: bytes, to_mac: bytes) -> bytes:
    """The whole Ethernet frame, from the NIC with ``mac`` to the candidate's."""
    head = (3 << 4 | inquiry.kind, inquiry.virtual_router_id, int(inquiry.hears), 0, 0)
    total = int.from_bytes(_VRRP.pack(*head, 0)) + _pseudo(inquiry.source, inquiry.target)
    message = _VRRP.pack(*head, 0xFFFF - total % 0xFFFF)
    return wrap(message, inquiry.family, inquiry.source, inquiry.target, mac=mac, to_mac=to_mac)


def _pseudo(source: bytes, target: bytes) -> int:
    return int.from_bytes(source + target) + PROTOCOL + _VRRP.size
