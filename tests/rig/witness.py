# SPDX-License-Identifier: Apache-2.0
"""The witness: a station on the switch that asks who has an address, each 5 ms, and notes every answer.

``with Witness(segment, "192.0.2.10") as witness: ...; witness.double_ms``. What it sees is what is on the
wire: it asks by ARP probe (sender address 0; IPv6: a solicitation from an address of its own), which
changes nobody's cache [semantics V17], and no cache decides whom it asks. Each question has another
sender MAC, so an answer belongs to exactly one question, however late it comes.

It also hears what everybody hears: adverts (protocol 112) and announcements of the addresses it asks for.
"""

import argparse
import contextlib
import gc
import itertools
import json
import os
import select
import socket
import struct
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final

from tests.rig.network import Segment
from tests.rig.observer import Observer
from tests.rig.run import command
from tests.rig.stalls import Stalls, room_ms

EVERY_MS: Final = 5.0
RETURN_MS: Final = 50.0  # who answers before and after another one within this time, held it meanwhile too
_MAX_SECONDS: Final = 1800.0
_DRAIN_SECONDS: Final = 0.25
_RING: Final = 256  # sender MACs in turn: an answer may be 1.28 s late
_MARK: Final = b"\x02\x48\x46"  # locally administered; then the witness's number, the address's, the turn
_SOURCE6: Final = IPv6Address("fe80::4846:1").packed
_PACKET_IGNORE_OUTGOING: Final = 23
_SOL_PACKET: Final = 263
_VRRP: Final = 112

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Answer:
    """``mac`` said at ``at`` (monotonic) that it has the address; ``question`` counts from 0."""

    at: float
    question: int
    mac: str


@dataclass(frozen=True, slots=True)
class Heard:
    """An advert (``what`` is its source address), or an announcement (``what`` is the address announced)."""

    at: float
    mac: str
    what: str


@dataclass(frozen=True, slots=True)
class Account:
    """All that was asked and answered for one address."""

    address: str
    asked: tuple[float, ...]  # when, on the monotonic clock
    answers: tuple[Answer, ...]

    @property
    def macs(self) -> dict[str, int]:
        """How many questions each MAC answered."""
        return dict(Counter(answer.mac for answer in self.answers))

    def doubled(self) -> list[int]:
        """The questions that more than one answer came to."""
        counts = Counter(answer.question for answer in self.answers)
        return sorted(question for question, count in counts.items() if count > 1)

    def shared(self) -> list[int]:
        """The questions during which two had the address: doubled ones, and one's between two of another.

        A single question that was the old holder's last and the new one's first is a move: on a busy machine
        it reaches one some ms after the other.
        """
        by_question: list[set[str]] = [set() for _ in self.asked]
        for answer in self.answers:
            by_question[answer.question].add(answer.mac)
        found = {question for question in self.doubled() if not self._is_move(question, by_question)}
        latest: dict[str, int] = {}
        for question, macs in enumerate(by_question):
            for mac in macs:
                before = latest.get(mac, question)
                if (self.asked[question] - self.asked[before]) * 1000 <= RETURN_MS:
                    found |= {between for between in range(before + 1, question) if by_question[between]}
                latest[mac] = question
        return sorted(found)

    def _is_move(self, question: int, by_question: list[set[str]]) -> bool:
        """Whether, within ``RETURN_MS``, only one of the two answered before, and only the other after."""
        reach = int(RETURN_MS / EVERY_MS)
        before = set().union(*by_question[max(question - reach, 0) : question])
        after = set().union(*by_question[question + 1 : question + 1 + reach])
        return len(before) == len(after) == 1 and not before & after

    @property
    def double_ms(self) -> float:
        """How long two had the address: each such question stands for the time until the next one."""
        ends = (*self.asked[1:], self.asked[-1] + EVERY_MS / 1000) if self.asked else ()
        return sum((ends[question] - self.asked[question]) * 1000 for question in self.shared())


class Witness:
    """A running witness. Looking at what it saw ends its asking; so does the end of the ``with``."""

    def __init__(self, segment: Segment, *addresses: str) -> None:
        if not addresses:
            raise ValueError("a witness needs an address to ask for")
        self._segment = segment
        self._addresses = addresses

    def __enter__(self) -> "Witness":
        number = next(_numbers)
        name = f"witness{number}"
        self._namespace = self._segment.run.namespace_name(name)
        self._accounts: tuple[Account, ...] | None = None
        netns = self._segment.run.add_namespace(name)
        self._plug_in(name)
        args = [f"--number={number % 256}", *self._addresses]
        self._asker = Observer(self._segment.run, netns, "witness", args, word="asking")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._asker.kill()
            command("ip", "netns", "del", self._namespace, check=False)

    def _plug_in(self, port: str) -> None:
        """A station without addresses, that says nothing by itself."""
        setting = "net.ipv6.conf.default.disable_ipv6=1"
        command("ip", "netns", "exec", self._namespace, "sysctl", "-q", "-w", setting)
        pair = f"link add {port} type veth peer name eth0 netns {self._namespace}\n"
        up = f"link set {port} master sw0\nlink set {port} up\n"
        command("ip", "-n", self._segment.namespace, "-batch", "-", stdin=pair + up)
        command("ip", "-n", self._namespace, "link", "set", "eth0", "up")

    def stop(self) -> None:
        """Asks no more, and takes in what came. Again is no error."""
        if self._accounts is not None:
            return
        told = self._asker.account()
        self._accounts = tuple(
            Account(a["address"], tuple(a["asked"]), tuple(Answer(*answer) for answer in a["answers"]))
            for a in told["accounts"]
        )
        self._adverts = [Heard(*heard) for heard in told["adverts"]]
        self._announced = [Heard(*heard) for heard in told["announced"]]
        self._late_ms = float(told["late_ms"])
        self._stalled_ms = float(told["stalled_ms"])

    @property
    def accounts(self) -> tuple[Account, ...]:
        """One for each address, in their order."""
        self.stop()
        assert self._accounts is not None
        return self._accounts

    @property
    def answers(self) -> tuple[Answer, ...]:
        """To all questions, for one address after the other."""
        return tuple(answer for account in self.accounts for answer in account.answers)

    @property
    def macs(self) -> dict[str, int]:
        """How many questions each MAC answered, whatever the address."""
        return dict(Counter(answer.mac for answer in self.answers))

    @property
    def doubled(self) -> int:
        """How many questions more than one answer came to."""
        return sum(len(account.doubled()) for account in self.accounts)

    @property
    def double_ms(self) -> float:
        """How long two had an address; the worst of the addresses."""
        return max(account.double_ms for account in self.accounts)

    @property
    def late_ms(self) -> float:
        """How late the witness itself was at worst: what it can't have seen."""
        self.stop()
        return self._late_ms

    @property
    def stalled_ms(self) -> float:
        """How long a processor of this machine was away at worst, or the witness itself was late."""
        self.stop()
        return max(self._stalled_ms, self._late_ms)

    def room_ms(self, bound_ms: float = 0.0) -> float:
        """The bound, and what a machine that was away so long may need beyond it."""
        return room_ms(bound_ms, self.stalled_ms)

    def last_macs(self, seconds: float) -> list[set[str]]:
        """Who answered in the last seconds, for each address."""
        return [
            {answer.mac for answer in account.answers if answer.at >= account.asked[-1] - seconds}
            for account in self.accounts
        ]

    def adverts(self, source: str, *, since: float = 0.0, until: float = float("inf")) -> list[Heard]:
        """The adverts that this source address sent in that time (monotonic), any VRID, ucarp's too."""
        return [h for h in self.every_advert(since=since, until=until) if h.what == source]

    def every_advert(self, *, since: float = 0.0, until: float = float("inf")) -> list[Heard]:
        """The adverts of that time, whoever sent them."""
        self.stop()
        return [h for h in self._adverts if since <= h.at <= until]

    def announcements(self, mac: str, *, since: float = 0.0, until: float = float("inf")) -> list[Heard]:
        """What this MAC told everybody unasked: ARP by broadcast, neighbour advertisements to all nodes."""
        self.stop()
        return [h for h in self._announced if h.mac == mac and since <= h.at <= until]


# --- the program ------------------------------------------------------------------------------------


class Asker:
    """One address: its questions, ready to be sent, and what came back."""

    def __init__(self, address: str, prefix: bytes) -> None:
        self.address = address
        self.packed = ip_address(address).packed
        self.asked: array[float] = array("d")
        self.answers: list[tuple[float, int, str]] = []
        build = _solicitation if len(self.packed) == 16 else _probe
        self._frames = [build(prefix + bytes([turn]), self.packed) for turn in range(_RING)]

    def ask(self, sock: socket.socket) -> None:
        frame = self._frames[len(self.asked) % _RING]
        self.asked.append(time.monotonic())
        with contextlib.suppress(OSError):  # a full queue: an unanswered question
            sock.send(frame)

    def take(self, turn: int, mac: bytes, at: float) -> None:
        """An answer to the latest question of that turn."""
        latest = len(self.asked) - 1
        question = latest - (latest - turn) % _RING
        if question >= 0:
            self.answers.append((at, question, mac.hex(":")))


class Asking:
    """The socket and the loop."""

    def __init__(self, nic: str, number: int, addresses: Sequence[str]) -> None:
        self._prefix = _MARK + bytes([number])
        self._askers = [Asker(a, self._prefix + bytes([i])) for i, a in enumerate(addresses)]
        self._wanted = {asker.packed: asker.address for asker in self._askers}
        self._adverts: list[tuple[float, str, str]] = []
        self._announced: list[tuple[float, str, str]] = []
        self._late_ms = 0.0
        self._stalls = Stalls()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.setblocking(False)
        self._socket.bind((nic, 0x0003))  # ETH_P_ALL

    def run(self) -> None:
        """Asks until stdin ends, then tells."""
        print("asking", flush=True)
        self._stalls.start()
        begin = due = time.monotonic()
        stdin = sys.stdin.fileno()
        while (now := time.monotonic()) - begin < _MAX_SECONDS:
            if now >= due:
                self._late_ms = max(self._late_ms, (now - due) * 1000)
                for asker in self._askers:
                    asker.ask(self._socket)
                due = max(due, now - EVERY_MS / 1000) + EVERY_MS / 1000  # late: no burst of questions
                continue
            readable, _, _ = select.select([stdin, self._socket], [], [], due - now)
            if self._socket in readable:
                self._hear()
            if stdin in readable and not os.read(stdin, 1):
                break
        until = time.monotonic() + _DRAIN_SECONDS
        while (left := until - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left)[0]:
                self._hear()
        self._tell(self._stalls.stop())

    def _tell(self, stalled_ms: float) -> None:
        accounts = [
            {"address": a.address, "asked": list(a.asked), "answers": a.answers} for a in self._askers
        ]
        told = {
            "accounts": accounts,
            "adverts": self._adverts,
            "announced": self._announced,
            "late_ms": self._late_ms,
            "stalled_ms": stalled_ms,
        }
        print(json.dumps(told), flush=True)

    def _hear(self) -> None:
        for frame in self._frames():
            at = time.monotonic()
            kind = frame[12:14]
            if kind == b"\x08\x06" and len(frame) >= 42:
                self._hear_claim(at, frame, address=frame[28:32], mac=frame[22:28])
            elif kind == b"\x08\x00" and frame[23] == _VRRP:
                self._adverts.append((at, frame[6:12].hex(":"), socket.inet_ntoa(frame[26:30])))
            elif kind == b"\x86\xdd" and frame[20] == _VRRP:
                self._adverts.append((at, frame[6:12].hex(":"), str(IPv6Address(frame[22:38]))))
            elif kind == b"\x86\xdd" and frame[20] == socket.IPPROTO_ICMPV6 and frame[54:55] == b"\x88":
                self._hear_claim(at, frame, address=frame[62:78], mac=_said_mac(frame))

    def _frames(self) -> Iterator[bytes]:
        while True:
            try:
                frame = self._socket.recv(2048)
            except OSError:  # no more, or the NIC went away
                return
            if len(frame) >= 34:
                yield frame

    def _hear_claim(self, at: float, frame: bytes, *, address: bytes, mac: bytes) -> None:
        """``mac`` says that it has ``address``: to us, or to everybody."""
        known = self._wanted.get(address)
        if known is None:
            return
        if frame[:4] == self._prefix:
            self._askers[frame[4]].take(frame[5], mac, at)
        elif frame[0] & 1:
            self._announced.append((at, mac.hex(":"), known))


def _probe(sender: bytes, address: bytes) -> bytes:
    """ARP, who has ``address``, from nobody (RFC 5227, 1.1)."""
    head = b"\xff" * 6 + sender + b"\x08\x06" + b"\x00\x01\x08\x00\x06\x04\x00\x01"
    return head + sender + bytes(4) + bytes(6) + address


def _solicitation(sender: bytes, address: bytes) -> bytes:
    """A neighbour solicitation (RFC 4861, 4.3). From an address: one from :: is answered to all nodes."""
    to = IPv6Address("ff02::1:ff00:0").packed[:13] + address[13:]
    option = b"\x01\x01" + sender
    body = b"\x87\x00\x00\x00" + bytes(4) + address + option
    pseudo = _SOURCE6 + to + struct.pack("!IxxxB", len(body), socket.IPPROTO_ICMPV6)
    total = sum(struct.unpack(f"!{len(pseudo + body) // 2}H", pseudo + body)) % 0xFFFF
    body = body[:2] + struct.pack("!H", 0xFFFF - total) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), socket.IPPROTO_ICMPV6, 255)
    return b"\x33\x33" + to[12:] + sender + b"\x86\xdd" + header + _SOURCE6 + to + body


def _said_mac(frame: bytes) -> bytes:
    """The target link-layer address of a neighbour advertisement; without the option, its sender."""
    return frame[80:86] if frame[78:80] == b"\x02\x01" and len(frame) >= 86 else frame[6:12]


def main() -> None:
    parser = argparse.ArgumentParser(description="ask who has these addresses until stdin ends")
    parser.add_argument("addresses", nargs="+")
    parser.add_argument("--nic", default="eth0")
    parser.add_argument("--number", type=int, default=0)
    options = parser.parse_args()
    with contextlib.suppress(PermissionError):  # real time keeps the pace; without, it is late and says so
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
    gc.disable()
    Asking(options.nic, options.number, options.addresses).run()


if __name__ == "__main__":
    main()
