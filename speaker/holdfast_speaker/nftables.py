# SPDX-License-Identifier: Apache-2.0
"""nf_tables over netlink, by hand: messages of the netdev family and transactions of them.

Not libnftables: it reads the chains and sets of the whole host (a kube-proxy's too) before each command,
and aborts the process on what it does not understand. Layouts: linux/netfilter/nf_tables.h and
linux/netfilter/nfnetlink.h. Numbers are big-endian there, keys are as the packet or the CPU has them.
"""

import errno
import logging
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from holdfast_speaker import netlink
from holdfast_speaker.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, attribute, attributes

log = logging.getLogger(__name__)

Messages = list[bytes]
Expressions = Sequence[bytes]

_NETLINK_NETFILTER: Final = 12
_SUBSYSTEM: Final = 10
_NFPROTO_NETDEV: Final = 5
_BATCH_BEGIN, _BATCH_END = 16, 17
_NEWTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _DELCHAIN, _NEWRULE, _GETRULE, _DELRULE = 0, 2, 3, 4, 5, 6, 7, 8
_NEWSET, _NEWSETELEM, _GETSETELEM, _DELSETELEM, _GETGEN = 9, 12, 13, 14, 16
_CREATE, _APPEND = 0x400, 0x800
_NESTED, _MULTI = 0x8000, 0x2
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_SO_SNDBUFFORCE: Final = 32
_BUFFER: Final = 8 << 20  # one transaction is one datagram; 255 routers and 8,192 addresses are 3 MiB
_READ: Final = 1 << 16
_KEY_AT: Final = 12  # in an element, behind three headers
_ELEMENTS: Final = 400  # in one message: an attribute ends at 64 KiB
_ANSWER_SECONDS: Final = 2
_DUMPS: Final = 3
_HIGHEST: Final = 1 << 30  # sequence numbers begin again

INGRESS, EGRESS = 0, 1
SET_MAP, SET_TIMEOUT, SET_DYNAMIC = 0x08, 0x10, 0x20
LINK, NETWORK, TRANSPORT = 0, 1, 2  # the headers that payload() counts from
PROTOCOL, MARK, IN_NIC, OUT_NIC = 1, 3, 4, 5  # what meta() reads
_VERDICT_TYPE: Final = 0xFFFFFF00
_DROP, _ACCEPT, _JUMP, _GOTO = 0, 1, -3, -4
_HEADER: Final = struct.Struct("=IHHII")


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _nest(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(parts))


def _message(kind: int, flags: int, *parts: bytes) -> bytes:
    head = struct.pack("!BBH", _NFPROTO_NETDEV, 0, 0)
    return netlink.request(_SUBSYSTEM << 8 | kind, flags, head + b"".join(parts))


@dataclass(frozen=True, slots=True)
class Key:
    """``length`` bytes. The rest is only for ``nft``, so that it can load again what it lists
    (nftables: include/datatype.h, include/expression.h)."""

    length: int
    type: int
    about: bytes = b""


def _about(kind: int, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return bytes((kind, len(data))) + data


def _about_u32(kind: int, value: int) -> bytes:
    return _about(kind, struct.pack("=I", value))


def _typeof(byte_order: int, expression: int, *values: int) -> bytes:
    fields = [_about_u32(place, value) for place, value in enumerate(values)]
    return _about_u32(0, byte_order) + _about(3, _about_u32(0, expression), _about(1, *fields))


def _payload_key(header: int, offset: int, length: int) -> Key:
    about = _typeof(2, 7, 0, 0, header + 1, offset * 8, length * 8)
    return Key(length, 4, about + _about(4, _about_u32(0, 1), _about(1)))


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


def new_set(table: str, name: str, key: Key, size: int, flags: int = 0) -> bytes:
    """With SET_MAP its data are verdicts."""
    parts = [
        _text(1, table),
        _text(2, name),
        _u32(3, flags),
        _u32(4, key.type),
        _u32(5, key.length),
        _nest(9, _u32(1, size)),
        _u32(10, 1),
        attribute(13, key.about),
    ]
    if flags & SET_MAP:
        parts += [_u32(6, _VERDICT_TYPE), _u32(7, 16)]
    return _message(_NEWSET, _CREATE, *parts)


def element(key: bytes, *, goto: str = "", timeout_ms: int = 0) -> bytes:
    parts = [_nest(1, attribute(1, key))]
    if goto:
        parts.append(_nest(2, _verdict(_GOTO, goto)))
    if timeout_ms:
        parts.append(attribute(4, struct.pack("!Q", timeout_ms)))
    return _nest(1, *parts)


def elements(keys: Sequence[bytes], *, goto: str = "") -> list[bytes]:
    """Many of keys of one length; only the key differs between them."""
    if not keys:
        return []
    first = element(keys[0], goto=goto)
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


# --- expressions: what a rule is made of; all of them use register 1 -----------------------------------


def _expression(name: str, *parts: bytes) -> bytes:
    return _text(1, name) + _nest(2, *parts)


def payload(header: int, offset: int, length: int) -> bytes:
    return _expression("payload", _u32(1, 1), _u32(2, header), _u32(3, offset), _u32(4, length))


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


def mapped(name: str) -> bytes:
    """The verdict that the map has for it; with none the next rule is looked at."""
    return _expression("lookup", _text(1, name), _u32(2, 1), _u32(3, 0))


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


def goto(chain: str) -> bytes:
    return _immediate(_GOTO, chain)


CONSTANT_KEY: Final = Key(4, 4, _typeof(1, 23, 0, 1, 0))
BYTE_KEY: Final = _payload_key(TRANSPORT, 1, 1)
ORDER_KEY: Final = _payload_key(NETWORK, 0, 1)
TARGET6_KEY: Final = _payload_key(TRANSPORT, 8, 16)
IPV4_KEY: Final = Key(4, 7)
IPV6_KEY: Final = Key(16, 8)


# --- talking to the kernel ---------------------------------------------------------------------------


class Nftables:
    """One socket in the network namespace of the thread that made it. Raises OSError only when made."""

    def __init__(self) -> None:
        self._sequence = 0
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        try:
            self._sock.bind((0, 0))
            self._sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
            netlink.enlarge(self._sock, _BUFFER)
            self._sock.settimeout(_ANSWER_SECONDS)
        except OSError:
            self._sock.close()
            raise

    def close(self) -> None:
        self._sock.close()

    def commit(self, messages: Sequence[bytes]) -> int:
        """All of it or nothing: 0, or the errno of the first message that was refused."""
        data = self._numbered((_edge(_BATCH_BEGIN), *messages, _edge(_BATCH_END)), confirmed=len(messages))
        first = self._sequence - len(messages) - 1
        last = self._sequence - 1
        code, place = 0, 0
        try:
            self._sock.send(data)
            for kind, _, sequence, body in self._answers():
                if kind != _NLMSG_ERROR or not first <= sequence <= last:
                    continue
                (refusal,) = struct.unpack_from("=i", body)
                if refusal and not code:
                    code, place = -refusal, sequence - first
                if sequence == last or (refusal and sequence == first):
                    break
        except OSError as error:
            return error.errno or errno.ETIMEDOUT
        if code:
            log.debug("message %d of %d: %s", place, len(messages), errno.errorcode.get(code, code))
        return code

    def chains(self, table: str) -> frozenset[str] | None:
        """The names of its chains; None when it cannot be known now."""
        found = self._dump(_message(_GETCHAIN, NLM_F_DUMP, _text(1, table)))
        if found is None:
            return None
        return frozenset(_string(chain[3]) for chain in found if _string(chain[1]) == table)

    def rules(self, table: str) -> int | None:
        """How many rules it has; None when it cannot be known now."""
        found = self._dump(_message(_GETRULE, NLM_F_DUMP, _text(1, table)))
        return None if found is None else sum(_string(rule[1]) == table for rule in found)

    def generation(self) -> int:
        """Changes with every transaction of anybody on this host. 0: it cannot be known now."""
        found = self._ask(_message(_GETGEN, 0))
        return int.from_bytes(found[0].get(1, b"")) if found else 0

    def contains(self, table: str, name: str, key: bytes) -> bool:
        """Whether the set has it, and its time is not over."""
        return bool(
            self._ask(_message(_GETSETELEM, 0, _text(1, table), _text(2, name), _nest(3, element(key))))
        )

    # --- inside ---------------------------------------------------------------------------------

    def _numbered(self, messages: Sequence[bytes], confirmed: int = -1) -> bytes:
        """One datagram. The message at ``confirmed`` is answered in any case, the others when refused."""
        if self._sequence > _HIGHEST:
            self._sequence = 0
        parts: list[bytes] = []
        for place, message in enumerate(messages):
            self._sequence += 1
            length, kind, flags, _, _ = _HEADER.unpack_from(message)
            flags |= NLM_F_ACK if place == confirmed else 0
            parts += (_HEADER.pack(length, kind, flags, self._sequence, 0), message[16:])
        return b"".join(parts)

    def _answers(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Type, flags, sequence number and body of each message that comes. Raises OSError."""
        while True:
            yield from netlink.messages(self._sock.recv(_READ))

    def _dump(self, message: bytes) -> list[dict[int, bytes]] | None:
        """All there is. A host that changes its rules all the time may never hold still: None."""
        for _ in range(_DUMPS):
            found = self._ask(message)
            if found is not None:
                return found
        return None

    def _ask(self, message: bytes) -> list[dict[int, bytes]] | None:
        """The attributes of each object in the answer; None when it is refused or interrupted."""
        found: list[dict[int, bytes]] = []
        whole = True
        try:
            self._sock.send(self._numbered((message,)))
            for kind, flags, sequence, body in self._answers():
                if sequence != self._sequence:
                    continue
                whole = whole and not flags & NLM_F_DUMP_INTR
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    return found if whole and struct.unpack_from("=i", body)[0] == 0 else None
                found.append(dict(attributes(body, 4, len(body))))
                if not flags & _MULTI:
                    return found
        except OSError as error:
            log.debug("nf_tables does not answer: %s", error)
        return None


def _edge(kind: int) -> bytes:
    return netlink.request(kind, 0, struct.pack("!BBH", 0, 0, _SUBSYSTEM))


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
