# SPDX-License-Identifier: Apache-2.0
"""The segment: a switch, hosts' cables, and what can go wrong with a cable.

The switch is a bridge in a namespace of its own; a cable is a veth pair whose one end is the host's NIC.
Faults are nftables rules on the switch's port, so the link stays up while nothing, or too little, comes
through: what a host without power looks like behind a switch that still has it. (Rules in the host would
not do: a packet socket hears a frame before the ingress hook drops it.)
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final, Literal

from tests.rig.run import NETNS, RigError, Run, command, in_namespace

V4: Final = IPv4Network("192.0.2.0/24")  # TEST-NET-1, RFC 5737
V6: Final = IPv6Network("fd00:192:0:2::/64")
DAD_SECONDS: Final = 8.0

Direction = Literal["both", "in", "out"]  # seen from the host


@dataclass(frozen=True, slots=True)
class Port:
    """The switch's end of a cable, with the rules for what comes from the host and what goes to it."""

    namespace: str
    device: str
    from_host: dict[str, str] = field(default_factory=dict)
    to_host: dict[str, str] = field(default_factory=dict)

    def script(self) -> str:
        """The nftables transaction that puts exactly these rules in force."""
        table = f"table netdev {self.device.replace('-', '_')}"
        lines = [table, f"delete {table}"]
        for hook, rules in (("ingress", self.from_host), ("egress", self.to_host)):
            if rules:
                head = f'type filter hook {hook} device "{self.device}" priority 0; policy accept;'
                body = "\n".join(rules.values())
                lines.append(f"{table} {{\nchain {hook} {{\n{head}\n{body}\n}}\n}}")
        return "\n".join(lines) + "\n"


class Cable:
    """A host's NIC (``device``) and the switch port it is plugged into."""

    def __init__(self, device: str, port: Port) -> None:
        self.device = device
        self._port = port

    def cut(self, direction: Direction = "both") -> None:
        """Nothing comes through any more, and nobody is told: the link stays up."""
        self._fault("cut", "drop", direction)

    def lose(self, percent: float, direction: Direction = "both") -> None:
        """Loses that share of the frames, by chance, in each direction named."""
        self._fault("loss", f"numgen random mod 10000 < {round(percent * 100)} drop", direction)

    def block_tcp(self, address: str, port: int) -> None:
        """Takes one TCP service away from the host, silently, and leaves all else."""
        family = "ip6" if ":" in address else "ip"
        self._port.from_host["tcp"] = f"{family} daddr {address} tcp dport {port} drop"
        self._port.to_host["tcp"] = f"{family} saddr {address} tcp sport {port} drop"
        self._load()

    def deafen_to(self, *macs: str) -> None:
        """Nothing that these stations send comes through to this one; no MAC: all of it does again."""
        self._deafen_to(macs)
        self._load()

    def _deafen_to(self, macs: Sequence[str]) -> None:
        self._port.to_host.pop("stations", None)
        if macs:
            self._port.to_host["stations"] = f"ether saddr {{ {', '.join(macs)} }} drop"

    def lose_adverts(self, direction: Direction = "both") -> None:
        """VRRP (protocol 112) alone doesn't come through."""
        self._fault("adverts", "meta l4proto 112 drop", direction)

    def unplug(self) -> None:
        """The port goes down: both ends lose their carrier."""
        command("ip", "-n", self._port.namespace, "link", "set", self._port.device, "down")

    def plug(self) -> None:
        command("ip", "-n", self._port.namespace, "link", "set", self._port.device, "up")

    def mend(self) -> None:
        """No fault any more."""
        self.script_without_faults()
        self._load()
        self.plug()

    def script_without_faults(self) -> str:
        """The transaction of ``mend``, for whoever makes one of many."""
        self._port.from_host.clear()
        self._port.to_host.clear()
        return self._port.script()

    def script_without(self, macs: Sequence[str]) -> str:
        """The transaction of ``deafen_to``, for whoever makes one of many."""
        self._deafen_to(macs)
        return self._port.script()

    def _fault(self, name: str, rule: str, direction: Direction) -> None:
        if direction in ("both", "out"):
            self._port.from_host[name] = rule
        if direction in ("both", "in"):
            self._port.to_host[name] = rule
        self._load()

    def _load(self) -> None:
        """One transaction: a crash is a moment, not a sequence."""
        nft = in_namespace(netns_path(self._port.namespace), ["nft", "-f", "-"])
        command(*nft, stdin=self._port.script())


@dataclass(frozen=True, slots=True)
class Station:
    """Who is on a cable."""

    cable: Cable
    mac: str


class Segment:
    """One Ethernet segment. IPv4 ``.N`` and IPv6 ``::N`` belong to the station with number N."""

    def __init__(self, run: Run, *, name: str = "switch", v4: IPv4Network = V4, v6: IPv6Network = V6) -> None:
        self.run = run
        self.v4 = v4
        self.v6 = v6
        self.namespace = run.namespace_name(name)
        run.add_namespace(name)
        # Snooping without a querier forgets listeners; real switches flood link-local groups anyway.
        options = ["type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"]
        command("ip", "-n", self.namespace, "link", "add", "sw0", *options)
        command("ip", "-n", self.namespace, "link", "set", "sw0", "up")

    def addresses(self, number: int) -> tuple[str, str]:
        """The station's IPv4 and IPv6 address, without prefix lengths."""
        return str(self.v4[number]), str(self.v6[number])

    def forget_after(self, seconds: float) -> None:
        """The switch forgets a MAC from which it heard nothing for so long; its default is 300 s."""
        ageing = ["type", "bridge", "ageing_time", str(round(seconds * 100))]
        command("ip", "-n", self.namespace, "link", "set", "sw0", *ageing)

    def part(self, *sides: Sequence[Station]) -> None:
        """From one moment on no side hears another. One side with everybody: the segment is whole again."""
        scripts = []
        for side in sides:
            foreign = [each.mac for other in sides if other is not side for each in other]
            for station in side:
                scripts.append(station.cable.script_without(foreign))
        self._load(scripts)

    def mend(self, cables: Sequence[Cable]) -> None:
        """None of their faults any more, in one moment."""
        self._load([cable.script_without_faults() for cable in cables])

    def _load(self, scripts: Sequence[str]) -> None:
        nft = in_namespace(netns_path(self.namespace), ["nft", "-f", "-"])
        command(*nft, stdin="".join(scripts))

    def connect(
        self, station: str, number: int, *, port: str, nic: str = "eth0", careful: bool = True
    ) -> Cable:
        """Gives the station (a namespace of this run) a NIC with its addresses, plugged into ``port``.

        ``careful``: IPv6 addresses go through duplicate address detection, as on a real host; see
        ``wait_for_dad``.
        """
        namespace = self.run.namespace_name(station)
        v4, v6 = self.addresses(number)
        if not careful:
            _sysctl(namespace, "net.ipv6.conf.default.accept_dad=0")
        pair = ["type", "veth", "peer", "name", nic, "netns", namespace]
        command("ip", "-n", self.namespace, "link", "add", port, *pair)
        in_switch = f"link set {port} master sw0\nlink set {port} up\n"
        command("ip", "-n", self.namespace, "-batch", "-", stdin=in_switch)
        in_host = (
            f"address add {v4}/{self.v4.prefixlen} brd + dev {nic}\n"
            f"address add {v6}/{self.v6.prefixlen} dev {nic}\nlink set {nic} up\n"
        )
        command("ip", "-n", namespace, "-batch", "-", stdin=in_host)
        return Cable(nic, Port(self.namespace, port))


def _sysctl(namespace: str, setting: str) -> None:
    command("ip", "netns", "exec", namespace, "sysctl", "-q", "-w", setting)


def wait_for_dad(namespaces: list[str]) -> None:
    """Returns when no address there is tentative any more: about 2 s after the link came up."""
    deadline = time.monotonic() + DAD_SECONDS
    for namespace in namespaces:
        while tentative := command("ip", "-n", namespace, "-6", "-o", "address", "show", "tentative"):
            if time.monotonic() > deadline:
                raise RigError(f"still tentative after {DAD_SECONDS:.0f} s in {namespace}:\n{tentative}")
            time.sleep(0.05)


def mac_of(namespace: str, device: str) -> str:
    """The MAC address of a device."""
    fields = command("ip", "-n", namespace, "-o", "link", "show", device).split()
    return fields[fields.index("link/ether") + 1]


def bound(namespace: str, device: str) -> list[str]:
    """The addresses on a device, with prefix lengths, link-local ones left out."""
    lines = command("ip", "-n", namespace, "-o", "address", "show", "dev", device).splitlines()
    found = [line.split()[3] for line in lines if line.split()[2] in ("inet", "inet6")]
    return [cidr for cidr in found if not cidr.startswith("fe80:")]


def neighbour(namespace: str, address: str) -> str:
    """What a station's ARP or ND cache says of an address, as ``ip neighbour`` prints it."""
    return command("ip", "-n", namespace, "neighbour", "show", "to", address).strip()


def netns_path(namespace: str) -> Path:
    return NETNS / namespace
