# SPDX-License-Identifier: Apache-2.0
"""A device with a small ARP and ND cache of its own, and with a will of its own about what may change it.

``python -m tests.rig.receiver POLICY DEVICE OWN4 OWN6 ADDRESS...`` asks for each address until it knows a
MAC, then listens for ever. It tells what it hears of those addresses ("heard") and what it believes since
("moved"), a line of JSON each, ``at`` on CLOCK_MONOTONIC. OWN4 and OWN6 are the namespace's own addresses,
for which its kernel answers. An answer to an outstanding question is always believed; for the rest there
is ``POLICIES``. What it hears is judged here by hand, not by the speaker's own parsers.
"""

import json
import select
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

_ETH_P_ALL: Final = 3
_SHORT: Final = socket.htons(_ETH_P_ALL)
_ASK_AGAIN_S: Final = 0.5
_CAREFUL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Heard:
    """``mac`` says it has ``address``.

    ``form``: announcement (an ARP request for the sender's own address), reply, na; question: asks us for
    our address; request: asks another one.
    """

    form: str
    address: str
    mac: str
    solicited: bool = False  # addressed to us alone, as an answer is


# What may change an entry that is there. A gratuitous frame is one that nobody asked for and that asks
# nothing: the request and reply forms of an announcement, and an unsolicited NA.
POLICIES: Final[dict[str, Callable[[Heard], bool]]] = {
    "requests": lambda heard: heard.form in ("announcement", "question"),
    "replies": lambda heard: heard.form in ("reply", "na"),
    "questions": lambda heard: heard.form == "question",
    "invalidates": lambda heard: heard.form in ("announcement", "reply", "na"),  # forgets, and asks again
    "careful": lambda heard: (
        heard.form in ("announcement", "reply", "na")
    ),  # but not before a second has passed since the first claim
}


def parse(frame: bytes, own: frozenset[str]) -> Heard | None:
    """What an ARP or ND frame claims; None for all else, and for probes."""
    mac, unicast = frame[6:12].hex(":"), not frame[0] & 1
    if frame[12:14] == b"\x08\x06" and len(frame) >= 42:
        sender, target = (socket.inet_ntoa(frame[at : at + 4]) for at in (28, 38))
        if not any(frame[28:32]):
            return None
        if frame[21] == 2:
            return Heard("reply", sender, mac, solicited=unicast and target in own)
        form = "announcement" if sender == target else "question" if target in own else "request"
        return Heard(form, sender, mac)
    if frame[12:14] != b"\x86\xdd" or len(frame) < 78 or frame[20] != 58 or frame[21] != 255:
        return None
    source, target = (socket.inet_ntop(socket.AF_INET6, frame[at : at + 16]) for at in (22, 62))
    option = frame[78:86]
    if frame[54] == 136 and option[:2] == b"\x02\x01":
        return Heard("na", target, option[2:].hex(":"), solicited=bool(frame[58] & 0x40) and unicast)
    if frame[54] == 135 and option[:2] == b"\x01\x01" and source != "::":
        return Heard("question" if target in own else "request", source, option[2:].hex(":"))
    return None


@dataclass
class Receiver:
    """``cache``: address to MAC. Writes to the wire and to its log by the two functions given."""

    policy: str
    own: frozenset[str]
    addresses: tuple[str, ...]
    ask: Callable[[str], None]
    tell: Callable[[dict[str, object]], None]
    cache: dict[str, str] = field(default_factory=dict)
    first_claim: dict[tuple[str, str], float] = field(default_factory=dict)

    def hear(self, frame: bytes, now: float) -> None:
        heard = parse(frame, self.own)
        if heard is None or heard.address not in self.addresses:
            return
        known = self.cache.get(heard.address)
        self.tell({"at": now, "heard": heard.form, "address": heard.address, "mac": heard.mac})
        if known is None:
            if heard.solicited:
                self._believe(heard, now)
        elif heard.mac != known and POLICIES[self.policy](heard):
            if self.policy == "invalidates":
                del self.cache[heard.address]
                self.ask(heard.address)
            elif self.policy == "careful":
                if now - self.first_claim.setdefault((heard.address, heard.mac), now) >= _CAREFUL_S:
                    self._believe(heard, now)
            else:
                self._believe(heard, now)

    def _believe(self, heard: Heard, now: float) -> None:
        self.cache[heard.address] = heard.mac
        by = "answer" if heard.solicited else heard.form
        self.tell({"at": now, "moved": by, "address": heard.address, "mac": heard.mac})

    def ask_for_missing(self) -> None:
        for address in self.addresses:
            if address not in self.cache:
                self.ask(address)


def question(mac: bytes, own: str, address: str) -> bytes:
    """Who has ``address``? To all, or to its solicited-node group."""
    if ":" not in address:
        body = socket.inet_aton(own) + bytes(6) + socket.inet_aton(address)
        return b"\xff" * 6 + mac + bytes.fromhex("08060001080006040001") + mac + body
    source, target = (socket.inet_pton(socket.AF_INET6, a) for a in (own, address))
    group = bytes.fromhex("ff0200000000000000000001ff") + target[13:]
    message = bytes.fromhex("87000000") + bytes(4) + target + b"\x01\x01" + mac
    pseudo = source + group + len(message).to_bytes(4, "big") + bytes((0, 0, 0, 58))
    checksum = 0xFFFF - int.from_bytes(pseudo + message, "big") % 0xFFFF
    message = message[:2] + checksum.to_bytes(2, "big") + message[4:]
    header = bytes.fromhex("60000000") + len(message).to_bytes(2, "big") + bytes((58, 255)) + source + group
    return b"\x33\x33\xff" + target[13:] + mac + b"\x86\xdd" + header + message


def main() -> None:
    policy, device, own4, own6, *addresses = sys.argv[1:]
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, _SHORT)
    wire.bind((device, _ETH_P_ALL))
    mac = wire.getsockname()[4]

    def ask(address: str) -> None:
        wire.send(question(mac, own6 if ":" in address else own4, address))

    def tell(fact: dict[str, object]) -> None:
        print(json.dumps(fact), flush=True)

    receiver = Receiver(policy, frozenset((own4, own6)), tuple(addresses), ask, tell)
    asked = 0.0
    while True:
        if time.monotonic() - asked >= _ASK_AGAIN_S:
            receiver.ask_for_missing()
            asked = time.monotonic()
        if select.select([wire], [], [], _ASK_AGAIN_S)[0]:
            frame, whence = wire.recvfrom(2048)
            if whence[2] != socket.PACKET_OUTGOING:
                receiver.hear(frame, time.monotonic())


if __name__ == "__main__":
    main()
