# SPDX-License-Identifier: Apache-2.0
"""nf_tables in the words of netlink, by hand: messages of the netdev family (``nftables_socket`` says them).

Layouts: linux/netfilter/nf_tables.h and linux/netfilter/nfnetlink.h. Numbers are big-endian there, keys and
values are as the packet or the CPU has them.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from holdfast_speaker import netlink
from holdfast_speaker.netlink import NLM_F_DUMP, attribute

Messages = list[bytes]
Expressions = Sequence[bytes]

SUBSYSTEM: Final = 10
_NFPROTO_NETDEV: Final = 5
_NEWTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _DELCHAIN, _NEWRULE, _GETRULE, _DELRULE = 0, 2, 3, 4, 5, 6, 7, 8
_NEWSET, _NEWSETELEM, _GETSETELEM, _DELSETELEM, _GETGEN = 9, 12, 13, 14, 16
_CREATE, _APPEND = 0x400, 0x800
_NESTED: Final = 0x8000
_KEY_AT: Final = 12  # in an element, behind three headers
_ELEMENTS: Final = 400  # in one message: an attribute ends at 64 KiB

INGRESS, EGRESS = 0, 1
SET_MAP, SET_TIMEOUT, SET_DYNAMIC = 0x08, 0x10, 0x20
LINK, NETWORK, TRANSPORT = 0, 1, 2  # the headers that payload() counts from
PROTOCOL, MARK, IN_NIC, OUT_NIC, CAST = 1, 3, 4, 5, 19  # what meta() reads
_DROP, _ACCEPT, _JUMP, _GOTO, _RETURN = 0, 1, -3, -4, -5
_INVERTED: Final = 1


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _nest(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(parts))


def _message(kind: int, flags: int, *parts: bytes) -> bytes:
    head = struct.pack("!BBH", _NFPROTO_NETDEV, 0, 0)
    return netlink.request(SUBSYSTEM << 8 | kind, flags, head + b"".join(parts))


@dataclass(frozen=True, slots=True)
class Key:
    """``length`` bytes: what is looked up, or what a map has for it. The rest is only for ``nft``, so that
    it can load again what it lists (nftables: include/datatype.h, include/expression.h)."""

    length: int
    type: int
    about: bytes = b""


def _about(kind: int, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return bytes((kind, len(data))) + data


def _about_u32(kind: int, value: int) -> bytes:
    return _about(kind, struct.pack("=I", value))


def _typed(expression: int, *values: int) -> bytes:
    fields = [_about_u32(place, value) for place, value in enumerate(values)]
    return _about_u32(0, expression) + _about(1, *fields)


def _typeof(byte_order: int, expression: int, *values: int) -> bytes:
    return _about_u32(0, byte_order) + _about(3, _typed(expression, *values))


def _typed_payload(header: int, offset: int, length: int) -> bytes:
    return _typed(7, 0, 0, header + 1, offset * 8, length * 8)


def _payload_key(header: int, offset: int, length: int) -> Key:
    return Key(length, 4, _about_u32(0, 2) + _about(3, _typed_payload(header, offset, length)))


# --- objects ----------------------------------------------------------------------------------------


def new_table(table: str) -> bytes:
    """No error when it is there."""
    return _message(_NEWTABLE, _CREATE, _text(1, table))


def delete_table(table: str) -> bytes:
    return _message(_DELTABLE, 0, _text(1, table))


def new_chain(table: str, chain: str) -> bytes:
    return _message(_NEWCHAIN, _CREATE, _text(1, table), _text(3, chain))


def new_base_chain(table: str, chain: str, hook: int, priority: int, device: str) -> bytes:
    """Sees every frame that this NIC takes in (INGRESS) or gives out (EGRESS, Linux 5.16)."""
    place = _nest(4, _u32(1, hook), _u32(2, priority), _text(3, device))
    return _message(
        _NEWCHAIN, _CREATE, _text(1, table), _text(3, chain), place, _u32(5, 1), _text(7, "filter")
    )


def delete_chain(table: str, chain: str) -> bytes:
    """With its rules. EBUSY while a rule or an element elsewhere goes to it."""
    return _message(_DELCHAIN, 0, _text(1, table), _text(3, chain))


def empty_chain(table: str, chain: str) -> bytes:
    return _message(_DELRULE, 0, _text(1, table), _text(2, chain))


def new_rule(table: str, chain: str, *expressions: bytes) -> bytes:
    """Appended to its chain; each expression must hold for the next one to be looked at."""
    listed = (_nest(1, expression) for expression in expressions)
    return _message(_NEWRULE, _CREATE | _APPEND, _text(1, table), _text(2, chain), _nest(4, *listed))


def new_set(table: str, name: str, key: Key, size: int, flags: int = 0, value: Key | None = None) -> bytes:
    """With SET_MAP it has a verdict for each key, or such a value."""
    about = key.about
    if flags & SET_MAP:
        value = value or VERDICT
        about += _about(4, value.about) if about else b""
    parts = [
        _text(1, table),
        _text(2, name),
        _u32(3, flags),
        _u32(4, key.type),
        _u32(5, key.length),
        _nest(9, _u32(1, size)),
        _u32(10, 1),
        attribute(13, about),
    ]
    if value:
        parts += [_u32(6, value.type), _u32(7, value.length)]
    return _message(_NEWSET, _CREATE, *parts)


def element(key: bytes, *, goto: str = "", jump: str = "", value: bytes = b"", timeout_ms: int = 0) -> bytes:
    """In a map with what it has for the key."""
    parts = [_nest(1, attribute(1, key))]
    if goto or jump:
        parts.append(_nest(2, _verdict(_GOTO if goto else _JUMP, goto or jump)))
    if value:
        parts.append(_nest(2, attribute(1, value)))
    if timeout_ms:
        parts.append(attribute(4, struct.pack("!Q", timeout_ms)))
    return _nest(1, *parts)


def elements(keys: Sequence[bytes], *, goto: str = "", jump: str = "") -> list[bytes]:
    """Many of keys of one length; only the key differs between them."""
    if not keys:
        return []
    first = element(keys[0], goto=goto, jump=jump)
    head, tail = first[:_KEY_AT], first[_KEY_AT + len(keys[0]) :]
    return [head + key + tail for key in keys]


def add_elements(table: str, name: str, elements: Sequence[bytes]) -> Messages:
    """One that is there already stays as it is, or takes the new timeout (Linux 6.12)."""
    return _elements(_NEWSETELEM, _CREATE, table, name, elements)


def delete_elements(table: str, name: str, elements: Sequence[bytes]) -> Messages:
    """ENOENT when one is not there, or over."""
    return _elements(_DELSETELEM, 0, table, name, elements)


def _elements(kind: int, flags: int, table: str, name: str, elements: Sequence[bytes]) -> Messages:
    return [
        _message(kind, flags, _text(1, table), _text(2, name), _nest(3, *elements[at : at + _ELEMENTS]))
        for at in range(0, len(elements), _ELEMENTS)
    ]


# --- questions ---------------------------------------------------------------------------------------


def list_chains(table: str) -> bytes:
    return _message(_GETCHAIN, NLM_F_DUMP, _text(1, table))


def list_rules(table: str) -> bytes:
    return _message(_GETRULE, NLM_F_DUMP, _text(1, table))


def list_elements(table: str, name: str) -> bytes:
    return _message(_GETSETELEM, NLM_F_DUMP, _text(1, table), _text(2, name))


def get_element(table: str, name: str, key: bytes) -> bytes:
    return _message(_GETSETELEM, 0, _text(1, table), _text(2, name), _nest(3, element(key)))


def get_generation() -> bytes:
    return _message(_GETGEN, 0)


# --- expressions: what a rule is made of; all of them use register 1 -----------------------------------


def _expression(name: str, *parts: bytes) -> bytes:
    return _text(1, name) + _nest(2, *parts)


def payload(header: int, offset: int, length: int) -> bytes:
    return _expression("payload", _u32(1, 1), _u32(2, header), _u32(3, offset), _u32(4, length))


def write(header: int, offset: int, length: int) -> bytes:
    """What was last found or said stands there from now on. No checksum is set right."""
    return _expression("payload", _u32(2, header), _u32(3, offset), _u32(4, length), _u32(5, 1))


def value(data: bytes) -> bytes:
    """To be written."""
    return _expression("immediate", _u32(1, 1), _nest(2, attribute(1, data)))


def meta(what: int) -> bytes:
    return _expression("meta", _u32(1, 1), _u32(2, what))


def constant(value: int) -> bytes:
    """The next number of one number: a constant that every nft can list and load again."""
    return _expression("numgen", _u32(1, 1), _u32(2, 1), _u32(3, 0), _u32(4, value))


def masked(mask: bytes) -> bytes:
    zero = _nest(5, attribute(1, bytes(len(mask))))
    return _expression(
        "bitwise", _u32(1, 1), _u32(2, 1), _u32(3, len(mask)), _nest(4, attribute(1, mask)), zero
    )


def equal(value: bytes) -> bytes:
    return _expression("cmp", _u32(1, 1), _u32(2, 0), _nest(3, attribute(1, value)))


def unequal(value: bytes) -> bytes:
    return _expression("cmp", _u32(1, 1), _u32(2, 1), _nest(3, attribute(1, value)))


def within(name: str) -> bytes:
    return _expression("lookup", _text(1, name), _u32(2, 1))


def without(name: str) -> bytes:
    return _expression("lookup", _text(1, name), _u32(2, 1), _u32(5, _INVERTED))


def mapped(name: str) -> bytes:
    """The verdict that the map has for it; with none the next rule is looked at."""
    return _expression("lookup", _text(1, name), _u32(2, 1), _u32(3, 0))


def found(name: str) -> bytes:
    """The value that the map has for it, to be written; with none the next rule is looked at."""
    return _expression("lookup", _text(1, name), _u32(2, 1), _u32(3, 1))


def rearmed(name: str, timeout_ms: int = 0) -> bytes:
    """Its element begins its time anew, or is added."""
    timeout = attribute(6, struct.pack("!Q", timeout_ms)) if timeout_ms else b""
    return _expression("dynset", _text(1, name), _u32(3, 1), _u32(4, 1), timeout)


def _verdict(code: int, chain: str = "") -> bytes:
    return _nest(2, _u32(1, code), _text(2, chain) if chain else b"")


def _immediate(code: int, chain: str = "") -> bytes:
    return _expression("immediate", _u32(1, 0), _nest(2, _verdict(code, chain)))


def accept() -> bytes:
    return _immediate(_ACCEPT)


def drop() -> bytes:
    return _immediate(_DROP)


def jump(chain: str) -> bytes:
    """Go there, and come back unless it has a verdict."""
    return _immediate(_JUMP, chain)


def come_back() -> bytes:
    """To where it was jumped from."""
    return _immediate(_RETURN)


def goto(chain: str) -> bytes:
    return _immediate(_GOTO, chain)


CONSTANT_KEY: Final = Key(4, 4, _typeof(1, 23, 0, 1, 0))
BYTE_KEY: Final = _payload_key(TRANSPORT, 1, 1)
ORDER_KEY: Final = _payload_key(NETWORK, 0, 1)
TARGET6_KEY: Final = _payload_key(TRANSPORT, 8, 16)
IPV4_KEY: Final = Key(4, 7)
IPV6_KEY: Final = Key(16, 8)
SOURCE4_KEY: Final = Key(4, 7, _typeof(2, 7, 12, 11))  # like IPV4_KEY, for a map with MACs
SOURCE6_KEY: Final = Key(16, 8, _typeof(2, 7, 13, 8))
MAC_KEY: Final = _payload_key(LINK, 6, 6)
MAC_VALUE: Final = Key(6, 4, _typed_payload(LINK, 6, 6))  # as bytes: "ether saddr" asks for the NIC's type
VERDICT: Final = Key(16, 0xFFFFFF00, _typed(1))
