# SPDX-License-Identifier: Apache-2.0
"""The segment: a switch, hosts' cables, and what can go wrong with a cable.

The switch is a bridge in a namespace of its own; a cable is a veth pair whose one end is the host's NIC.
Faults are nftables rules in the netdev ingress hook of both ends, so the link stays up while nothing, or
too little, comes through: what a host without power looks like behind a switch that still has it.
"""

import subprocess
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final, Literal

from tests.rig.run import NETNS, RigError, Run, command

V4: Final = IPv4Network("192.0.2.0/24")  # TEST-NET-1, RFC 5737
V6: Final = IPv6Network("fd00:192:0:2::/64")
DAD_SECONDS: Final = 8.0

Direction = Literal["both", "in", "out"]  # seen from the host


@dataclass(slots=True)
class End:
    """One end of a cable: a device in a namespace, and the rules for what arrives there."""

    namespace: str
    device: str
    rules: dict[str, str] = field(default_factory=dict)

    def script(self) -> str:
        """The nftables transaction that puts exactly ``rules`` in force."""
        table = f"table netdev hfrig_{self.device.replace('-', '_')}"
        lines = [table, f"delete {table}"]
        if self.rules:
            chain = f'type filter hook ingress device "{self.device}" priority -500; policy accept;'
            body = "\n".join(self.rules.values())
            lines.append(f"{table} {{\nchain arriving {{\n{chain}\n{body}\n}}\n}}")
        return "\n".join(lines) + "\n"


class Cable:
    """A host's NIC and the switch port it is plugged into."""

    def __init__(self, host_end: End, switch_end: End) -> None:
        self._host = host_end
        self._switch = switch_end

    @property
    def device(self) -> str:
        """The NIC's name in the host."""
        return self._host.device

    def cut(self, direction: Direction = "both") -> None:
        """Nothing comes through any more, and nobody is told: the link stays up."""
        self._fault("cut", "drop", direction)

    def lose(self, percent: float, direction: Direction = "both") -> None:
        """Loses that share of the frames, by chance, in each direction named."""
        self._fault("loss", f"numgen random mod 10000 < {round(percent * 100)} drop", direction)

    def block_tcp(self, address: str, port: int) -> None:
        """Takes one TCP service away from the host, silently, and leaves all else."""
        family = "ip6" if ":" in address else "ip"
        self._switch.rules["tcp"] = f"{family} daddr {address} tcp dport {port} drop"
        self._host.rules["tcp"] = f"{family} saddr {address} tcp sport {port} drop"
        self._load()

    def unplug(self) -> None:
        """The port goes down: both ends lose their carrier."""
        command("ip", "-n", self._switch.namespace, "link", "set", self._switch.device, "down")

    def plug(self) -> None:
        command("ip", "-n", self._switch.namespace, "link", "set", self._switch.device, "up")

    def mend(self) -> None:
        """No fault any more."""
        self._host.rules.clear()
        self._switch.rules.clear()
        self._load()
        self.plug()

    def _fault(self, name: str, rule: str, direction: Direction) -> None:
        if direction in ("both", "out"):
            self._switch.rules[name] = rule
        if direction in ("both", "in"):
            self._host.rules[name] = rule
        self._load()

    def _load(self) -> None:
        """Both ends at once: a crash is a moment, not a sequence."""
        started = [_nft(end) for end in (self._switch, self._host)]
        for end, nft in zip((self._switch, self._host), started, strict=True):
            script = end.script()
            _, errors = nft.communicate(script.encode(), timeout=30)
            if nft.returncode != 0:
                raise RigError(f"nft in {end.namespace}: {errors.decode(errors='replace')}\n{script}")


def _nft(end: End) -> "subprocess.Popen[bytes]":
    argv = ["nsenter", f"--net={NETNS / end.namespace}", "nft", "-f", "-"]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


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
        return Cable(End(namespace, nic), End(self.namespace, port))


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
