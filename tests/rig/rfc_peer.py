# SPDX-License-Identifier: Apache-2.0
"""A VRRPv3 peer that knows RFC 9568's IPv4 checksum only: over the VRRP message, without a pseudo-header.

``python -m tests.rig.rfc_peer DEVICE SOURCE VRID PRIORITY INTERVAL_MS ADDRESS`` elects, and binds nothing.
Each change of state is a line of JSON, with how many adverts it had heard in either form by then; a SIGTERM
makes it resign. ``advert`` builds frames from scratch, wrong ones too: it judges the speaker's own codec.
"""

import json
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

_ETH_P_IP: Final = 0x0800
_VRRP: Final = 112
_GROUP4: Final = socket.inet_aton("224.0.0.18")
_GROUP6: Final = socket.inet_pton(socket.AF_INET6, "ff02::12")


def _sum16(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of whole 16-bit words."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def advert(
    mac: bytes,
    source: str,
    virtual_router_id: int,
    priority: int,
    interval_ms: int,
    *addresses: str,
    ttl: int = 255,
    rfc_checksum: bool = False,
    damage: int = 0,
) -> bytes:
    """An Ethernet frame with an advert; ``damage`` is added to its checksum."""
    packed = b"".join(ip_address(address).packed for address in addresses)
    own = ip_address(source).packed
    group = _GROUP4 if len(own) == 4 else _GROUP6
    head = struct.pack("!BBBBH", 0x31, virtual_router_id, priority, len(addresses), interval_ms // 10)
    length = len(head) + 2 + len(packed)
    pseudo = b"" if rfc_checksum else own + group + struct.pack("!HH", _VRRP, length)
    checksum = (_sum16(pseudo + head + bytes(2) + packed) + damage) & 0xFFFF
    message = head + checksum.to_bytes(2, "big") + packed
    if len(own) == 16:
        header = struct.pack("!IHBB", 6 << 28, length, _VRRP, ttl) + own + group
        return bytes.fromhex("333300000012") + mac + b"\x86\xdd" + header + message
    header = struct.pack("!BBHHHBBH", 0x45, 0xC0, 20 + length, 0, 0, ttl, _VRRP, 0) + own + group
    header = header[:10] + _sum16(header).to_bytes(2, "big") + header[12:]
    return bytes.fromhex("01005e000012") + mac + b"\x08\x00" + header + message


@dataclass(frozen=True, slots=True)
class Heard:
    """An advert of somebody else, in the RFC's form."""

    source: bytes
    priority: int
    interval_s: float


class Peer:
    """The election of RFC 9568 6.4, preempting, for one virtual router."""

    def __init__(self, device: str, source: str, number: int, priority: int, interval_ms: int) -> None:
        self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
        self._wire.bind((device, _ETH_P_IP))
        self._mac = self._wire.getsockname()[4]
        self._source, self._number, self._priority = source, number, priority
        self._interval_ms = interval_ms
        self.heard = {"rfc": 0, "other": 0}
        self.active = False

    def run(self, address: str) -> None:
        until = self._down_at(self._interval_ms / 1000)
        self._tell()
        while True:
            now = time.monotonic()
            if now >= until:
                if not self.active:
                    self.active = True
                    self._tell()
                self.send(address, self._priority)
                until = now + self._interval_ms / 1000
            elif select.select([self._wire], [], [], until - now)[0]:
                heard = self._hear()
                if heard is None or (self.active and not self._is_better(heard)):
                    continue
                if heard.priority == 0:
                    until = min(until, time.monotonic() + self._skew(self._interval_ms / 1000))
                elif self.active or heard.priority >= self._priority:
                    self.active = self._leave()
                    until = self._down_at(heard.interval_s)

    def send(self, address: str, priority: int) -> None:
        self._wire.send(
            advert(
                self._mac,
                self._source,
                self._number,
                priority,
                self._interval_ms,
                address,
                rfc_checksum=True,
            )
        )

    def _leave(self) -> bool:
        if self.active:
            self.active = False
            self._tell()
        return False

    def _is_better(self, heard: Heard) -> bool:
        return (heard.priority, heard.source) > (self._priority, socket.inet_aton(self._source))

    def _hear(self) -> Heard | None:
        frame, whence = self._wire.recvfrom(2048)
        start = 14 + (frame[14] & 0x0F) * 4
        message = frame[start : 14 + int.from_bytes(frame[16:18], "big")]
        if whence[2] == socket.PACKET_OUTGOING or frame[23] != _VRRP or message[1] != self._number:
            return None
        if _sum16(message):
            self.heard["other"] += 1
            return None
        self.heard["rfc"] += 1
        return Heard(frame[26:30], message[2], (int.from_bytes(message[4:6], "big") & 0xFFF) / 100)

    def _skew(self, interval_s: float) -> float:
        return (256 - self._priority) / 256 * interval_s

    def _down_at(self, interval_s: float) -> float:
        return time.monotonic() + 3 * interval_s + self._skew(interval_s)

    def _tell(self) -> None:
        print(json.dumps({"at": time.monotonic(), "active": self.active, **self.heard}), flush=True)

    def tell_and_end(self, address: str) -> None:
        self._tell()
        if self.active:
            self.send(address, 0)
        sys.exit(0)


def main() -> None:
    device, source, number, priority, interval_ms, address = sys.argv[1:]
    peer = Peer(device, source, int(number), int(priority), int(interval_ms))
    signal.signal(signal.SIGTERM, lambda *_: peer.tell_and_end(address))
    peer.run(address)


if __name__ == "__main__":
    main()
