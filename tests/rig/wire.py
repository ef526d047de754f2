# SPDX-License-Identifier: Apache-2.0
"""A recorder in the switch: which MACs spoke in the name of an address, from which port; what was flooded.

``with Wire(segment, ["h1", "h2"], addresses=[V4], macs=[MAC]) as wire: ...; wire.wrong(V4, MAC)``. It gets a
copy of what the switch took in from these ports, behind the rig's faults: what a host without power goes on
sending is not there. A port of its own, on which nobody ever speaks, shows what is flooded: every unicast
frame that leaves there was meant for a MAC the switch did not know.

Times are the kernel's, so they are right however late the recorder itself was; it fails if it missed one.
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
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Final

from tests.rig.network import Segment, netns_path
from tests.rig.observer import Observer
from tests.rig.run import RigError, command, in_namespace

QUIET: Final = "quiet"  # the port of our own
_BEHIND_FAULTS: Final = 10  # priority of our chains; the rig's faults have 0
_MAX_SECONDS: Final = 1800.0
_PORT_SECONDS: Final = 5.0  # a new port forwards when the kernel has seen its carrier: up to 1 s
_DRAIN_SECONDS: Final = 0.1
_SO_RCVBUFFORCE: Final = 33
_SO_TIMESTAMPNS: Final = 35
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_TIMESPEC: Final = struct.Struct("@qq")
_VRRP: Final = 112
_NEIGHBOUR: Final = {135: "ns", 136: "na"}
_ARP: Final = {1: "arp request", 2: "arp reply"}

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Seen:
    """Frames that differ in nothing but the ``times`` (monotonic) at which they came to the switch.

    ``form``: arp request, arp reply, ns, na, advert, ip, or other. ``source``, ``destination``: Ethernet's.
    ``address`` is the sender's (of an advertisement: its target), ``said`` the MAC named inside, or "".
    """

    port: str
    form: str
    source: str
    destination: str
    address: str
    said: str
    times: tuple[float, ...]

    def within(self, since: float, until: float) -> "Seen":
        return replace(self, times=tuple(at for at in self.times if since <= at <= until))


class Wire:
    """A running recorder. Looking at what it saw ends it; so does the end of the ``with``."""

    def __init__(
        self, segment: Segment, ports: Sequence[str], *, addresses: Sequence[str], macs: Sequence[str] = ()
    ) -> None:
        self._segment = segment
        self._ports = tuple(ports)
        self._addresses = tuple(addresses)
        self._macs = tuple(macs)
        self._all: tuple[Seen, ...] | None = None

    def __enter__(self) -> "Wire":
        self._name = f"wire{next(_numbers)}"
        copies = {port: f"{self._name}-{index}" for index, port in enumerate(self._ports)}
        devices = [f"{device}={port}" for port, device in copies.items()]
        self._plug_in(list(copies.values()))
        args = [f"{self._name}-q={QUIET}", *devices]
        netns = netns_path(self._segment.namespace)
        self._recorder = Observer(self._segment.run, netns, "wire", args, word="recording")
        self._nft(self._rules(copies))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._recorder.kill()
            table = f"table netdev {self._name}"
            self._nft(f"{table}\ndelete {table}\n")
            names = [f"{self._name}-{end}" for end in ("q", *range(len(self._ports)))]
            lines = "".join(f"link del {name}\n" for name in names)
            command("ip", "-n", self._segment.namespace, "-batch", "-", stdin=lines, check=False)

    def _plug_in(self, copies: Iterable[str]) -> None:
        """A device for the copies of each port, and the quiet port; none of them says anything by itself.

        Each is a cable of which only the near end is of use: not every kernel has dummies.
        """
        quiet = f"{self._name}-q"
        ends = [(near, f"{near}p") for near in (*copies, quiet)]
        self._ip([f"link add {near} type veth peer name {far}" for near, far in ends])
        names = [name for pair in ends for name in pair]
        settings = [f"net.ipv6.conf.{name}.disable_ipv6=1" for name in names]
        command("ip", "netns", "exec", self._segment.namespace, "sysctl", "-q", "-w", *settings)
        self._ip([*(f"link set {name} up" for name in names), f"link set {quiet} master sw0"])
        deadline = time.monotonic() + _PORT_SECONDS
        while "state forwarding" not in command(
            "bridge", "-n", self._segment.namespace, "link", "show", "dev", quiet
        ):
            if time.monotonic() > deadline:
                raise RigError(f"the switch does not forward to {quiet}")
            time.sleep(0.01)

    def _ip(self, lines: Iterable[str]) -> None:
        command("ip", "-n", self._segment.namespace, "-batch", "-", stdin="\n".join(lines) + "\n")

    def _nft(self, script: str) -> None:
        command(*in_namespace(netns_path(self._segment.namespace), ["nft", "-f", "-"]), stdin=script)

    def _rules(self, copies: dict[str, str]) -> str:
        """What of each port is copied: only what may be of interest, and that once."""
        four = ", ".join(a for a in self._addresses if ":" not in a)
        six = ", ".join(a for a in self._addresses if ":" in a)
        wanted = [f"ether saddr {{ {', '.join(self._macs)} }}"] if self._macs else []
        wanted += [f"ip saddr {{ {four} }}", f"arp saddr ip {{ {four} }}"] if four else []
        targets = ", ".join("0x" + IPv6Address(a).packed.hex() for a in self._addresses if ":" in a)
        advertised = f"icmpv6 type nd-neighbor-advert @th,64,128 {{ {targets} }}"
        wanted += [f"ip6 saddr {{ {six} }}", advertised] if six else []
        text = ""
        for index, (port, device) in enumerate(copies.items()):
            text += f'chain copy{index} {{\ndup to "{device}"\n}}\n'
            rules = "\n".join(f"{match} goto copy{index}" for match in wanted)
            head = f'type filter hook ingress device "{port}" priority {_BEHIND_FAULTS};'
            text += f"chain from{index} {{\n{head}\n{rules}\n}}\n"
        return f"table netdev {self._name} {{\n{text}}}\n"

    def stop(self) -> None:
        """Records no more, and takes in what was seen. Again is no error."""
        if self._all is not None:
            return
        told = self._recorder.account()
        if told["missed"]:
            raise RigError(f"the recorder missed {told['missed']} frames")
        self._all = tuple(Seen(**(each | {"times": tuple(each["times"])})) for each in told["seen"])

    def seen(self, *, since: float = 0.0, until: float = float("inf")) -> list[Seen]:
        """All that came from the ports in that time (monotonic)."""
        return [each for each in self._within(since, until) if each.port != QUIET]

    def named(self, address: str, *, since: float = 0.0, until: float = float("inf")) -> dict[str, int]:
        """How many frames named this address as their sender, by Ethernet source."""
        return _count((s.source, s) for s in self.seen(since=since, until=until) if s.address == address)

    def wrong(self, address: str, mac: str, *, since: float = 0.0, until: float = float("inf")) -> list[Seen]:
        """The frames with this sender that came from another MAC, or named another one inside."""
        of_address = [s for s in self.seen(since=since, until=until) if s.address == address]
        return [s for s in of_address if s.source != mac or s.said not in ("", mac)]

    def ports_of(self, mac: str, *, since: float = 0.0, until: float = float("inf")) -> dict[str, int]:
        """How many frames with this Ethernet source came from each port."""
        return _count((s.port, s) for s in self.seen(since=since, until=until) if s.source == mac)

    def flooded(self, *, since: float = 0.0, until: float = float("inf")) -> dict[str, int]:
        """How many unicast frames the switch sent to everybody, by their destination."""
        within = self._within(since, until)
        return _count((s.destination, s) for s in within if s.port == QUIET)

    def _within(self, since: float, until: float) -> list[Seen]:
        self.stop()
        assert self._all is not None
        return [cut for each in self._all if (cut := each.within(since, until)).times]


def count(frames: Iterable[Seen]) -> int:
    """How many frames these are."""
    return sum(len(each.times) for each in frames)


def _count(pairs: Iterable[tuple[str, Seen]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for key, each in pairs:
        counts[key] += len(each.times)
    return dict(counts)


# --- the program ------------------------------------------------------------------------------------


def read(frame: bytes) -> tuple[str, str, str]:
    """A frame's form, the address it names as its sender, and the MAC it names inside."""
    kind = frame[12:14]
    if kind == b"\x08\x06" and len(frame) >= 42:
        return _ARP.get(frame[21], "other"), socket.inet_ntoa(frame[28:32]), frame[22:28].hex(":")
    if kind == b"\x08\x00" and len(frame) >= 34:
        return "advert" if frame[23] == _VRRP else "ip", socket.inet_ntoa(frame[26:30]), ""
    if kind != b"\x86\xdd" or len(frame) < 54:
        return "other", "", ""
    form = "advert" if frame[20] == _VRRP else "ip"
    if frame[20] == socket.IPPROTO_ICMPV6 and len(frame) >= 78:
        form = _NEIGHBOUR.get(frame[54], form)
    sender = frame[62:78] if form == "na" else frame[22:38]
    option = {"na": b"\x02\x01", "ns": b"\x01\x01"}.get(form)
    said = frame[80:86].hex(":") if option == frame[78:80] and len(frame) >= 86 else ""
    return form, str(IPv6Address(sender)), said


class Recorder:
    """Sockets on the devices, and what they heard."""

    def __init__(self, devices: dict[str, str]) -> None:
        self._ports = {_listen(device): port for device, port in devices.items()}
        self._seen: defaultdict[tuple[str, ...], array[float]] = defaultdict(lambda: array("d"))

    def run(self) -> None:
        """Records until stdin ends, then tells."""
        print("recording", flush=True)
        stdin = sys.stdin.fileno()
        sources: list[int | socket.socket] = [stdin, *self._ports]
        end = time.monotonic() + _MAX_SECONDS
        while (left := end - time.monotonic()) > 0:
            readable, _, _ = select.select(sources, [], [], left)
            self._hear()
            if stdin in readable and not os.read(stdin, 1):
                sources.remove(stdin)
                end = time.monotonic() + _DRAIN_SECONDS
        names = [name for name in Seen.__slots__ if name != "times"]
        seen = [dict(zip(names, k, strict=True), times=list(times)) for k, times in self._seen.items()]
        missed = sum(_missed(sock) for sock in self._ports)
        print(json.dumps({"seen": seen, "missed": missed}), flush=True)

    def _hear(self) -> None:
        to_monotonic = time.monotonic() - time.time()
        for sock, port in self._ports.items():
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame, notes, _, whence = sock.recvmsg(2048, 64)
                    if whence[2] == socket.PACKET_OUTGOING and (port != QUIET or not frame[0] & 1):
                        self._note(port, frame, _kernel_time(notes) + to_monotonic)

    def _note(self, port: str, frame: bytes, at: float) -> None:
        form, address, said = read(frame)
        key = (port, form, frame[6:12].hex(":"), frame[:6].hex(":"), address, said)
        self._seen[key].append(round(at, 5))


def _listen(device: str) -> socket.socket:
    """Hears what leaves by this device."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.setblocking(False)
    sock.bind((device, 0x0003))  # ETH_P_ALL
    return sock


def _kernel_time(notes: Sequence[tuple[int, int, bytes]]) -> float:
    """When the kernel had the frame, on the wall clock."""
    seconds, nanoseconds = next(_TIMESPEC.unpack(data) for _, kind, data in notes if kind == _SO_TIMESTAMPNS)
    return float(seconds) + float(nanoseconds) / 1e9


def _missed(sock: socket.socket) -> int:
    """Frames that found no room in the socket's queue."""
    return int(struct.unpack("II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="record what leaves by DEVICE=NAME until stdin ends")
    parser.add_argument("devices", nargs="+")
    options = parser.parse_args()
    with contextlib.suppress(PermissionError):  # without real time it needs a longer queue, which it has
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    gc.disable()
    Recorder(dict(each.split("=", 1) for each in options.devices)).run()


if __name__ == "__main__":
    main()
