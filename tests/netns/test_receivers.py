# SPDX-License-Identifier: Apache-2.0
"""Stubborn devices: caches are filled at the old Active, which falls silent; each must find the new one.

All stand on one segment and live through one crash, both families at once; a test for each says what moved
it. Linux receivers are told apart by their sysctls, the others by their policy (``tests.rig.receiver``).

Nothing here can move a static entry, or a device that believes neither an announcement nor a question
and never asks again.
"""

import contextlib
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import pytest

from holdfast_api.types import Candidate
from tests.rig.api import socket_in
from tests.rig.confinement import ROOT
from tests.rig.fleet import V4, V6, Fleet, router
from tests.rig.network import neighbour, netns_path, wait_for_dad
from tests.rig.process import Process
from tests.rig.receiver import POLICIES
from tests.rig.run import Run, command, dying_with_parent, in_namespace

pytestmark = pytest.mark.netns

BEYOND4, BEYOND6 = "198.51.100.7", "2001:db8:51::7"  # reached by way of the virtual IP
BURST_S = 6.0  # longer than a burst
_DISCARD = 9
_LOG_LINE = re.compile(r"\[(?P<at>[^]]+)\] (?P<address>\S+) .*lladdr (?P<mac>\S+)")

FIRST = (
    -0.2,
    1.0,
)  # seconds after the first announcement: by the first copy, the one at 0.15 s, or their questions
LATER = (1.0, 2.1)  # the copy at 1.1 s


@dataclass(frozen=True, slots=True)
class Kind:
    """One Linux receiver: its sysctls, and when it must have moved."""

    sysctls: tuple[str, ...] = ()
    known: bool = False  # to the standby: it has talked to it
    late: bool = False  # and that only just before the crash
    empty: bool = False  # has no entry when the announcement comes
    believes: tuple[tuple[float, float] | None, tuple[float, float] | None] = (FIRST, FIRST)  # v4, v6


_DROPS = ("ipv4.conf.eth0.drop_gratuitous_arp=1", "ipv6.conf.eth0.drop_unsolicited_na=1")
_FORWARDS = ("ipv4.ip_forward=1", "ipv6.conf.all.forwarding=1")

LINUX = {
    "plain": Kind(),
    "locked": Kind(("ipv4.neigh.eth0.locktime=3000",)),  # 30 s; the entry is new when the crash comes
    "dropping": Kind(_DROPS, known=True),
    "unknown": Kind(_DROPS),  # to the standby, but for the question that it once asked everybody
    "newcomer": Kind(_DROPS, late=True),
    "gateway": Kind((*_DROPS, *_FORWARDS)),  # of all hosts, who never talked to it; the VIP is its next hop
    "accepting": Kind(
        ("ipv4.conf.eth0.arp_accept=1", *_FORWARDS, "ipv6.conf.eth0.accept_untracked_na=1"), empty=True
    ),
    "blank": Kind(empty=True, believes=(None, None)),  # makes no entry of an announcement: it asks
}
"""``accept_untracked_na`` works on routers only."""

# Of ours, those that only a question can move: the standby must have talked to them in that family.
OURS_KNOWN = {"requests": (6,), "questions": (4, 6)}


@dataclass(frozen=True, slots=True)
class Moved:
    """When an entry came to the new Active's MAC, in seconds after its first announcement; by which frame."""

    seconds: float
    by: str


class Street:
    """A fleet of two, and a receiver of each kind."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.fleet = Fleet(run, hosts=2)
        self.stations: dict[str, tuple[str, str]] = {}
        self.logs: dict[str, Process] = {}
        for number, name in enumerate((*LINUX, *POLICIES), 150):
            run.add_namespace(name)
            self.fleet.segment.connect(name, number, port=name, careful=False)
            self.stations[name] = self.fleet.segment.addresses(number)
        wait_for_dad([run.namespace_name(name) for name in self.stations])
        for name, kind in LINUX.items():
            for setting in kind.sysctls:
                namespace = run.namespace_name(name)
                command("ip", "netns", "exec", namespace, "sysctl", "-qw", f"net.{setting}")
        self._route()

    def _route(self) -> None:
        """``gateway`` is everybody's way out, and knows a network behind the virtual IP."""
        four, six = self.stations["gateway"]
        for host in self.fleet.hosts:
            lines = f"route add default via {four}\nroute add default via {six}\n"
            command("ip", "-n", host.namespace, "-batch", "-", stdin=lines)
        lines = f"route add {BEYOND4}/32 via {V4}\nroute add {BEYOND6}/128 via {V6}\n"
        command("ip", "-n", self.run.namespace_name("gateway"), "-batch", "-", stdin=lines)

    def listen(self) -> None:
        """Each receiver tells from now on what it believes, and when."""
        for name in self.stations:
            path = netns_path(self.run.namespace_name(name))
            argv = ["ip", "-ts", "-o", "monitor", "neigh", "dev", "eth0"]
            if name in POLICIES:
                own = self.stations[name]
                argv = [sys.executable, "-m", "tests.rig.receiver", name, "eth0", *own, V4, V6]
            env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT)}
            self.logs[name] = self.run.start(name, in_namespace(path, dying_with_parent(argv)), env=env)

    def send(self, name: str, *destinations: str) -> None:
        """A datagram to each: the kernel there must find the MAC first."""
        for destination in destinations:
            family = socket.AF_INET6 if ":" in destination else socket.AF_INET
            there = netns_path(self.run.namespace_name(name))
            with socket_in(there, family, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
                sock.sendto(b"", (destination, _DISCARD))

    def forget(self, name: str) -> None:
        lines = "".join(f"neigh flush to {address} dev eth0\n" for address in (V4, V6))
        command("ip", "-n", self.run.namespace_name(name), "-batch", "-", stdin=lines)

    def make_new(self, name: str, address: str, mac: str) -> None:
        """Its entry is from this moment; Linux counts ``locktime`` from then."""
        lines = f"neigh del {address} dev eth0\nneigh add {address} lladdr {mac} dev eth0 nud stale\n"
        command("ip", "-n", self.run.namespace_name(name), "-batch", "-", stdin=lines)

    def believed(self, name: str, address: str) -> str | None:
        """The MAC that this receiver's cache leads to."""
        if name in POLICIES:
            moves = [fact for fact in self.facts(name) if "moved" in fact and fact["address"] == address]
            return str(moves[-1]["mac"]) if moves else None
        fields = neighbour(self.run.namespace_name(name), address).split()
        return fields[fields.index("lladdr") + 1] if "lladdr" in fields else None

    def facts(self, name: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.logs[name].log.read_text().splitlines()]


@dataclass(frozen=True, slots=True)
class Outcome:
    """After the crash. ``moved`` by receiver and address; ``final``: where each cache leads in the end."""

    moved: dict[tuple[str, str], Moved]
    final: dict[tuple[str, str], str | None]
    before: dict[tuple[str, str], str | None]
    old_mac: str
    new_mac: str


def crash(street: Street) -> Outcome:
    """The caches lead to the Active, its cable is cut, the other takes over."""
    fleet = street.fleet
    every = [(name, address) for name in street.stations for address in (V4, V6)]
    for name, kind in LINUX.items():
        if kind.known:
            street.send("h2", *street.stations[name])
    for name, families in OURS_KNOWN.items():
        street.send("h2", *(a for a in street.stations[name] if (6 if ":" in a else 4) in families))
    old, new = fleet.hosts
    fleet.start(router(7, V4, V6, candidates=(Candidate("h1", 250), Candidate("h2", 248))), hosts=[old])
    assert fleet.until_held(V4, V6) is old
    fleet.start_host(new)
    fleet.until("h2 listens", lambda: "on node h2" in new.speaker_log())
    time.sleep(0.5)
    street.listen()
    for name, kind in LINUX.items():
        if not kind.empty:
            street.send(name, *((BEYOND4, BEYOND6) if name == "gateway" else (V4, V6)))
    full = [key for key in every if not (key[0] in LINUX and LINUX[key[0]].empty)]
    fleet.until("caches lead to h1", lambda: all(street.believed(*key) == old.mac for key in full))
    time.sleep(BURST_S)  # the first Active says nothing for a while
    for name, kind in LINUX.items():
        if kind.empty:  # the first Active's burst may have made an entry
            street.forget(name)
    for name, kind in LINUX.items():
        if kind.late:
            street.send("h2", *street.stations[name])
    before = {key: street.believed(*key) for key in every}
    street.make_new("locked", V4, old.mac)
    old.cable.cut()
    fleet.until("h2 took over", lambda: new.holds(V4) and new.holds(V6))
    time.sleep(BURST_S)
    street.send("blank", V4, V6)
    with contextlib.suppress(AssertionError):
        fleet.until("all moved", lambda: all(street.believed(*key) == new.mac for key in every), 3.0)
    final = {key: street.believed(*key) for key in every}
    return Outcome(_moves(street, new.mac), final, before, old.mac, new.mac)


def _moves(street: Street, mac: str) -> dict[tuple[str, str], Moved]:
    """From the receivers' logs. What a Linux receiver believed by is told by what its sysctls leave."""
    first = {
        address: min(
            float(str(fact["at"]))
            for fact in street.facts("replies")
            if fact.get("address") == address and fact.get("mac") == mac and "heard" in fact
        )
        for address in (V4, V6)
    }
    moved: dict[tuple[str, str], Moved] = {}
    skew = time.time() - time.monotonic()
    for name, process in street.logs.items():
        if name in POLICIES:
            for fact in street.facts(name):
                key = (name, str(fact["address"]))
                if "moved" in fact and fact["mac"] == mac:
                    moved.setdefault(key, Moved(float(str(fact["at"])) - first[key[1]], str(fact["moved"])))
            continue
        for line in process.log.read_text().splitlines():
            found = _LOG_LINE.match(line)
            if found and found["mac"] == mac and found["address"] in first:
                at = datetime.fromisoformat(found["at"]).timestamp() - skew
                moved.setdefault((name, found["address"]), Moved(at - first[found["address"]], "the kernel"))
    return moved


@pytest.fixture(scope="module")
def outcome(rig_ready: None) -> Iterator[Outcome]:  # noqa: ARG001  root and tools, or a failure that says so
    with Run() as run:
        yield crash(Street(run))


def window(name: str, address: str) -> tuple[float, float] | None:
    """When this receiver must have moved; None: not before it asks."""
    if name in LINUX:
        return LINUX[name].believes[":" in address]
    return LATER if name == "careful" else FIRST


def means(name: str, address: str) -> set[str]:
    """The frames that may have moved a receiver of ours."""
    six = ":" in address
    return {
        "requests": {"question" if six else "announcement"},
        "replies": {"na"} if six else {"reply"},
        "questions": {"question"},
        "invalidates": {"answer"},
        "careful": {"na"} if six else {"announcement", "reply"},
    }.get(name, {"the kernel"})


@pytest.mark.parametrize("address", [V4, V6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("name", [*LINUX, *POLICIES])
def test_a_cache_leads_to_the_new_active(outcome: Outcome, name: str, address: str) -> None:
    key = (name, address)
    empty = name in LINUX and LINUX[name].empty
    assert outcome.before[key] == (None if empty else outcome.old_mac)
    assert outcome.final[key] == outcome.new_mac
    moved, at = outcome.moved[key], window(name, address)
    print(f"{name} {address}: {moved.seconds * 1000:.0f} ms after the first announcement, by {moved.by}")
    if at is None:
        assert moved.seconds > BURST_S - 0.5  # nothing but its own question
    else:
        assert at[0] <= moved.seconds <= at[1]
        assert moved.by in means(name, address)
