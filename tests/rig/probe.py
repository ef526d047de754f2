# SPDX-License-Identifier: Apache-2.0
"""The client: asks addresses 1,000 times a second and knows when nobody answered, and whose MAC did.

Requests leave through a raw ICMP socket, so that the kernel resolves the address as for any client;
answers are read with their Ethernet header from a packet socket, so that their sender is seen. ``Probe``
runs this module as a program in the client's namespace, at real-time priority where that is allowed.

A gap is counted by send times: from the last answered request before it to the first answered after it.
"""

import argparse
import contextlib
import ctypes
import gc
import itertools
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from tests.rig.observer import start_own
from tests.rig.run import RigError, Run
from tests.rig.stalls import room_ms

RATE_HZ: Final = 1000
MAX_SECONDS: Final = 1800.0
REPORTED_GAP_MS: Final = 5.0  # longer ones stand in the timeline and are told while it runs
SILENCE_MS: Final = 50.0  # what an address that moves costs at least; a busy machine's hiccups are shorter
_DRAIN_SECONDS: Final = 0.25
_PAYLOAD: Final = struct.Struct("!IHI")  # run's mark, target, sequence
_ECHO: Final = struct.Struct("!BBHHH")
_SO_ATTACH_FILTER: Final = 26
_SOL_RAW: Final = 255


@dataclass(frozen=True, slots=True)
class Gap:
    """A time without answers; ``start`` is the last answered request's, on the monotonic clock."""

    start: float
    ms: float
    lost: int
    mac_before: str
    mac_after: str


@dataclass(frozen=True, slots=True)
class Answers:
    """What one address answered. Times are on the monotonic clock, None when there never was one."""

    address: str
    sent: int
    answered: int
    lost: int  # of those sent after the first answer and before the last one
    longest_gap_ms: float
    first_answer: float | None  # when it came: a request may wait in the ARP queue for it
    macs: dict[str, int]
    doubled: int  # requests that more than one answer came to
    gaps: tuple[Gap, ...]  # those above 5 ms, in order
    late_ms: float = 0.0  # how late the prober itself was at worst: what it can't tell apart
    silent_ms: float = 0.0  # at the end: from the last answered request to the last one

    def silences(self, above_ms: float = SILENCE_MS) -> tuple[Gap, ...]:
        """The gaps above this, but for those that the prober's own lateness explains."""
        return tuple(gap for gap in self.gaps if gap.ms > room_ms(above_ms, self.late_ms))


# --- the side that asks for it ----------------------------------------------------------------------


class Probe:
    """A running prober. ``with Probe(run, netns, ["192.0.2.10"]) as probe: ...; probe.results()``."""

    def __init__(
        self, run: Run, netns: Path, addresses: Sequence[str], *, nic: str = "eth0", rate_hz: int = RATE_HZ
    ) -> None:
        self._process = start_own(run, netns, "probe", [f"--nic={nic}", f"--rate={rate_hz}", *addresses])
        self._first: dict[str, float] = {}
        self._gaps: dict[str, list[Gap]] = {address: [] for address in addresses}
        self._results: dict[str, Answers] = {}
        self._started = threading.Event()
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._started.wait(15):
            raise RigError(f"the prober did not start:\n{self._process.tail()}")

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.running():
            self._process.kill()
        self._reader.join(5)
        for pipe in (self._process.popen.stdin, self._process.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def wait_answer(self, address: str, timeout_s: float = 30.0) -> float:
        """When (monotonic) the first answer came; waits for it."""
        with self._news:
            if not self._news.wait_for(lambda: address in self._first, timeout_s):
                raise RigError(f"{address} did not answer within {timeout_s} s")
        return self._first[address]

    def wait_gap(self, address: str, *, after: float = 0.0, timeout_s: float = 30.0) -> Gap:
        """The first gap above 5 ms that began at or after ``after`` (less one interval) and has ended."""

        def found() -> Gap | None:
            return next((g for g in self._gaps[address] if g.start >= after - 0.01), None)

        with self._news:
            gap = self._news.wait_for(found, timeout_s)
        if gap is None:
            raise RigError(
                f"{address}: no gap ended within {timeout_s} s: it either answers on, or not at all"
            )
        return gap

    def results(self) -> dict[str, Answers]:
        """Stops asking; what each address answered."""
        popen = self._process.popen
        if not self._results:
            assert popen.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                popen.stdin.close()
            self._reader.join(15)
            popen.wait(15)
        if not self._results:
            raise RigError(f"the prober gave no result:\n{self._process.tail()}")
        return self._results

    def result(self) -> Answers:
        """The only address's."""
        (answers,) = self.results().values()
        return answers

    def _read(self) -> None:
        stream = self._process.popen.stdout
        assert stream is not None
        for line in stream:
            news = json.loads(line)
            with self._news:
                match news.pop("news"):
                    case "started":
                        self._started.set()
                    case "first":
                        self._first[news["address"]] = news["at"]
                    case "gap":
                        self._gaps[news.pop("address")].append(Gap(**news))
                    case "result":
                        gaps = tuple(Gap(**g) for g in news.pop("gaps"))
                        self._results[news["address"]] = Answers(gaps=gaps, **news)
                self._news.notify_all()


# --- the program ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Target:
    """One address and what has come back so far. ``sent_at`` and ``answers`` are indexed by sequence."""

    index: int
    address: str
    family: int
    sent_at: "array[float]" = field(default_factory=lambda: array("d"))
    answers: bytearray = field(default_factory=bytearray)
    macs: dict[str, int] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    last: int = -1  # the highest answered sequence
    first_at: float | None = None
    last_mac: str = ""

    def answer(self, sequence: int, mac: str) -> Gap | None:
        """Notes an answer; the gap that it ends, if that was long enough to tell."""
        if sequence >= len(self.answers):
            return None
        self.answers[sequence] = min(self.answers[sequence] + 1, 255)
        self.macs[mac] = self.macs.get(mac, 0) + 1
        if sequence <= self.last:
            return None
        gap = None
        if self.last >= 0:
            ms = (self.sent_at[sequence] - self.sent_at[self.last]) * 1000
            begun = self.first_at is not None and self.sent_at[self.last] >= self.first_at
            if begun and ms > REPORTED_GAP_MS and sequence - self.last > 1:
                lost = sequence - self.last - 1
                gap = Gap(self.sent_at[self.last], round(ms, 3), lost, self.last_mac, mac)
                self.gaps.append(gap)
        self.last, self.last_mac = sequence, mac
        return gap

    def result(self, late_ms: float) -> dict[str, Any]:
        times, first_at = self.sent_at, self.first_at or 0.0
        came = [i for i, count in enumerate(self.answers) if count]
        # What left before the first answer came waited in the kernel's ARP queue, or fell out of it.
        answered = [i for i in came if times[i] >= first_at]
        pairs = itertools.pairwise(answered)
        longest = max(((times[b] - times[a]) * 1000 for a, b in pairs), default=0.0)
        span = answered[-1] - answered[0] + 1 if answered else 0
        return {
            "news": "result",
            "address": self.address,
            "sent": len(times),
            "answered": len(came),
            "lost": span - len(answered),
            "longest_gap_ms": round(longest, 3),
            "first_answer": self.first_at,
            "macs": self.macs,
            "doubled": sum(1 for count in self.answers if count > 1),
            "gaps": [_gap(g) for g in self.gaps],
            "late_ms": round(late_ms, 3),
            "silent_ms": round((times[-1] - times[answered[-1]]) * 1000, 3) if answered else 0.0,
        }


def _gap(gap: Gap) -> dict[str, Any]:
    return {name: getattr(gap, name) for name in Gap.__slots__}


class Prober:
    """The sockets and the loop."""

    def __init__(self, nic: str, addresses: Sequence[str], rate_hz: int) -> None:
        self._interval = 1.0 / rate_hz
        self._mark = int.from_bytes(os.urandom(4), "big")
        self._id = os.getpid() & 0xFFFF
        self.targets = [
            Target(i, a, socket.AF_INET6 if ip_address(a).version == 6 else socket.AF_INET)
            for i, a in enumerate(addresses)
        ]
        families = {t.family for t in self.targets}
        self._send = {family: _asking_socket(family) for family in families}
        self._receive = [_hearing_socket(nic, family) for family in families]
        self._late_ms = 0.0

    def run(self) -> None:
        """Asks until stdin ends, then prints the results."""
        _tell({"news": "started"})
        begin = due = time.monotonic()
        stdin = sys.stdin.fileno()
        while True:
            now = time.monotonic()
            if now >= due:
                self._late_ms = max(self._late_ms, (now - due) * 1000)
                for target in self.targets:
                    self._ask(target)
                # Late by more than a few turns: ask on from now, a burst would only look like answers.
                due = due + self._interval if now - due < 5 * self._interval else now + self._interval
                continue
            readable, _, _ = select.select([stdin, *self._receive], [], [], max(0.0, due - now))
            if stdin in readable and (not os.read(stdin, 1)):
                break
            self._hear()
            if now - begin > MAX_SECONDS:
                break
        until = time.monotonic() + _DRAIN_SECONDS
        while (left := until - time.monotonic()) > 0:
            select.select(self._receive, [], [], left)
            self._hear()
        for target in self.targets:
            _tell(target.result(self._late_ms))

    def _ask(self, target: Target) -> None:
        sequence = len(target.sent_at)
        kind = 128 if target.family == socket.AF_INET6 else 8
        payload = _PAYLOAD.pack(self._mark, target.index, sequence)
        header = _ECHO.pack(kind, 0, 0, self._id, sequence & 0xFFFF)
        if target.family == socket.AF_INET:  # the kernel fills in ICMPv6's checksum only
            header = _ECHO.pack(kind, 0, _checksum(header + payload), self._id, sequence & 0xFFFF)
        target.sent_at.append(time.monotonic())
        target.answers.append(0)
        with contextlib.suppress(OSError):  # nobody there (EHOSTUNREACH), queue full: lost, and counted so
            self._send[target.family].sendto(header + payload, (target.address, 0))

    def _hear(self) -> None:
        for sock in self._receive:
            while True:
                try:
                    frame = sock.recv(2048)
                except BlockingIOError:
                    break
                except OSError:  # the NIC went down for a moment
                    break
                self._take(frame)

    def _take(self, frame: bytes) -> None:
        icmp = 54 if frame[12:14] == b"\x86\xdd" else 14 + (frame[14] & 15) * 4
        if len(frame) < icmp + _ECHO.size + _PAYLOAD.size:
            return
        mark, index, sequence = _PAYLOAD.unpack_from(frame, icmp + _ECHO.size)
        if mark != self._mark or index >= len(self.targets):
            return
        target = self.targets[index]
        fresh = target.last < 0
        gap = target.answer(sequence, frame[6:12].hex(":"))
        if fresh and target.last >= 0:
            target.first_at = time.monotonic()
            _tell({"news": "first", "address": target.address, "at": target.first_at})
        if gap is not None:
            _tell({"news": "gap", "address": target.address} | _gap(gap))


def _tell(news: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(news) + "\n")
    sys.stdout.flush()


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))  # even length by construction
    total = (total & 0xFFFF) + (total >> 16)
    complement: int = ~(total + (total >> 16)) & 0xFFFF
    return complement


def _asking_socket(family: int) -> socket.socket:
    """A raw ICMP socket that only sends: its filter lets nothing in."""
    if family == socket.AF_INET:
        sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        sock.setsockopt(_SOL_RAW, 1, b"\xff\xff\xff\xff")  # ICMP_FILTER: block all
    else:
        sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        sock.setsockopt(socket.IPPROTO_ICMPV6, 1, b"\xff" * 32)  # ICMP6_FILTER: block all
    sock.setblocking(False)
    return sock


def _hearing_socket(nic: str, family: int) -> socket.socket:
    """A packet socket that hears echo replies of one family, and nothing else."""
    # classic BPF (opcode, jump if true, jump if false, operand), on the frame with its Ethernet header
    if family == socket.AF_INET:
        kind = 0x0800
        program = [
            (0x30, 0, 0, 23),  # A = protocol
            (0x15, 0, 4, socket.IPPROTO_ICMP),
            (0xB1, 0, 0, 14),  # X = header length
            (0x50, 0, 0, 14),  # A = ICMP type
            (0x15, 0, 1, 0),  # echo reply
        ]
    else:
        kind = 0x86DD
        program = [
            (0x30, 0, 0, 20),  # A = next header
            (0x15, 0, 3, socket.IPPROTO_ICMPV6),
            (0x30, 0, 0, 54),  # A = ICMPv6 type
            (0x15, 0, 1, 129),  # echo reply
        ]
    program += [(0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0)]
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    code = ctypes.create_string_buffer(packed)
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(code))
    )
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.setblocking(False)
    sock.bind((nic, kind))
    return sock


def main() -> None:
    parser = argparse.ArgumentParser(description="ask addresses 1,000 times a second until stdin ends")
    parser.add_argument("addresses", nargs="+")
    parser.add_argument("--nic", default="eth0")
    parser.add_argument("--rate", type=int, default=RATE_HZ)
    options = parser.parse_args()
    with contextlib.suppress(
        PermissionError
    ):  # real time keeps the pace on a busy machine; without, it is late
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
    gc.disable()  # nothing here makes cycles, and a collection would look like a gap
    Prober(options.nic, options.addresses, options.rate).run()


if __name__ == "__main__":
    main()
