# SPDX-License-Identifier: Apache-2.0
"""Frames made by hand, byte by byte, and a small switch with two stations to send them from."""

import socket
import struct
from ipaddress import IPv6Address

from tests.rig.api import socket_in
from tests.rig.network import Cable, Segment, mac_of, netns_path
from tests.rig.run import Run
from tests.rig.wire import Wire

V4, V6 = "192.0.2.100", "fd00:192:0:2::100"
MAC = "02:11:22:33:44:55"


class Wired:
    """Stations east and west on a switch, a recorder at both ports, and hands to make frames."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.segment = Segment(run)
        self.sockets: dict[str, socket.socket] = {}
        self.cables: dict[str, Cable] = {}
        self.macs: dict[str, str] = {}
        for number, name in enumerate(("east", "west"), 11):
            netns = run.add_namespace(name)
            self.cables[name] = self.segment.connect(name, number, port=name, careful=False)
            self.macs[name] = mac_of(netns.name, "eth0")
            sock = socket_in(netns_path(netns.name), socket.AF_PACKET, socket.SOCK_RAW)
            sock.bind(("eth0", 0))
            self.sockets[name] = sock

    def record(self) -> Wire:
        return Wire(self.segment, ["east", "west"], addresses=[V4, V6], macs=[MAC])

    def send(self, name: str, *frames: bytes) -> None:
        for frame in frames:
            self.sockets[name].send(frame.ljust(60, b"\0"))

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()


def raw(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ethernet(source: str, destination: str, kind: int, body: bytes) -> bytes:
    return raw(destination) + raw(source) + kind.to_bytes(2, "big") + body


def arp(operation: int, source: str, said: str, sender: str, *, target: str = "192.0.2.1") -> bytes:
    """A question (1) or an answer (2), to everybody."""
    head = bytes.fromhex("00010800060400") + bytes([operation])
    body = head + raw(said) + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)
    return ethernet(source, "ff:ff:ff:ff:ff:ff", 0x0806, body)


def ipv4(source: str, sender: str, *, to: str, protocol: int = 1) -> bytes:
    """With its checksum: a switch with br_netfilter drops what has none."""
    addresses = socket.inet_aton(sender) + socket.inet_aton("192.0.2.1")
    head = bytes([0x45, 0, 0, 20, 0, 0, 0, 0, 64, protocol])
    checksum = 0xFFFF - sum(struct.unpack("!9H", head + addresses)) % 0xFFFF
    return ethernet(source, to, 0x0800, head + checksum.to_bytes(2, "big") + addresses)


def ipv6(source: str, sender: str, *, to: str, protocol: int = 17, body: bytes = b"") -> bytes:
    head = bytes.fromhex("60000000") + len(body).to_bytes(2, "big") + bytes([protocol, 255])
    addresses = IPv6Address(sender).packed + IPv6Address("ff02::1").packed
    return ethernet(source, to, 0x86DD, head + addresses + body)


def neighbour(kind: int, source: str, said: str, sender: str, target: str) -> bytes:
    """A solicitation (135), or an advertisement (136) that nobody asked for and that overrides."""
    option = bytes([2 if kind == 136 else 1, 1]) + raw(said)
    flags = bytes([0x20 if kind == 136 else 0, 0, 0, 0])
    body = bytes([kind, 0, 0, 0]) + flags + IPv6Address(target).packed + option
    pseudo = IPv6Address(sender).packed + IPv6Address("ff02::1").packed
    words = struct.unpack(f"!{(len(pseudo) + len(body)) // 2}H", pseudo + body)
    checksum = 0xFFFF - (sum(words) + len(body) + 58) % 0xFFFF
    body = body[:2] + checksum.to_bytes(2, "big") + body[4:]
    return ipv6(source, sender, to="33:33:00:00:00:01", protocol=58, body=body)
