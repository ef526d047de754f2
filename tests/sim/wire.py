# SPDX-License-Identifier: Apache-2.0
"""Frames of the simulated segment that the speaker's doors build in real life: ARP and ND."""

from ipaddress import IPv4Address, ip_address

_BROADCAST = b"\xff" * 6


def packed(address: str) -> bytes:
    return ip_address(address).packed


def is_ipv4(address: str) -> bool:
    return isinstance(ip_address(address), IPv4Address)


def claim(address: str, mac: bytes) -> bytes:
    """An announcement, or the answer to a probe: ``mac`` has ``address``."""
    if is_ipv4(address):
        return _arp(1, mac, packed(address), packed(address))
    option = b"\x02\x01" + mac
    return _nd(136, mac, packed(address), packed("ff02::1"), b"\x20\0\0\0" + packed(address) + option)


def probe(address: str, mac: bytes) -> bytes:
    """Who has ``address``? asked by nobody in particular."""
    if is_ipv4(address):
        return _arp(1, mac, b"\0" * 4, packed(address))
    return _nd(135, mac, b"\0" * 16, packed("ff02::1"), b"\0\0\0\0" + packed(address))


def _arp(operation: int, mac: bytes, sender: bytes, target: bytes) -> bytes:
    head = b"\x00\x01\x08\x00\x06\x04" + operation.to_bytes(2, "big")
    return _BROADCAST + mac + b"\x08\x06" + head + mac + sender + b"\0" * 6 + target


def _nd(kind: int, mac: bytes, source: bytes, group: bytes, body: bytes) -> bytes:
    message = bytes((kind, 0, 0, 0)) + body
    total = sum(
        int.from_bytes(data[at : at + 2], "big")
        for data in (source + group, len(message).to_bytes(4, "big") + (58).to_bytes(4, "big"), message)
        for at in range(0, len(data), 2)
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    message = message[:2] + (0xFFFF - total).to_bytes(2, "big") + message[4:]
    header = b"\x60\0\0\0" + len(message).to_bytes(2, "big") + b"\x3a\xff" + source + group
    return b"\x33\x33\0\0\0\x01" + mac + b"\x86\xdd" + header + message


def is_question(frame: bytes) -> bool:
    """A unicast ARP request or NS: somebody wants to know whether another host is there."""
    arp = frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1"
    solicitation = frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 135
    return not frame[0] & 1 and (arp or solicitation)


def answer(question: bytes, mac: bytes) -> bytes:
    """What the host with this MAC answers."""
    if question[12:14] == b"\x08\x06":
        frame = _arp(2, mac, question[38:42], question[28:32])
    else:
        target, asker = question[62:78], question[22:38]
        frame = _nd(136, mac, target, asker, b"\x60\0\0\0" + target + b"\x02\x01" + mac)
    return question[6:12] + frame[6:]
