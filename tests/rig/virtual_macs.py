# SPDX-License-Identifier: Apache-2.0
"""The benchmark's second part: an address with a MAC of its own moves, beside keepalived's ``use_vmac``.

Whole speakers on hosts of their own (``Fleet``), a switch that forgets a MAC after 2 s, a recorder in it
(``Wire``), and three clients: an ordinary one, a deaf one, which heeds no announcement, and one with a
static entry for the virtual MAC.
"""

import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, Protocol

from tests.rig.caches import Caches, forget, heed_no_announcement, pin
from tests.rig.faults import CRASH, STOP, Fault, end_all, processes, send
from tests.rig.figures import Move, Moves
from tests.rig.fleet import V4, Fleet, router
from tests.rig.hosts import SPEAKER_CAPABILITIES, Host
from tests.rig.peers import Instance, start_keepalived
from tests.rig.probe import RATE_HZ, Answers, Probe
from tests.rig.run import RigError, Run, command
from tests.rig.wire import Seen, Wire, count

AGEING_SECONDS: Final = 2.0
WATCH_SECONDS: Final = 4.0  # from the fault on: long enough for a switch to forget
FAULTS: Final = (CRASH, STOP)
LEARNING: Final = ("client", "deaf")  # the clients whose caches can change
START_SECONDS: Final = 12.0  # of the hosts, and of a contestant with the first of its rounds
AROUND_SECONDS: Final = 2.5  # a fault: start of the onlookers, the moment, their accounts, the boot
_VRID: Final = 77
_DEAF, _STATIC = 249, 248  # their numbers on the segment
_FEW_HZ: Final = 200  # what these two ask
_STANDBY_SECONDS: Final = 0.7  # a speaker has listened, and its macvlan is there
_TOUCHED: Final = ("arp_ignore", "arp_announce", "arp_filter", "rp_filter", "accept_local")
# What keepalived's own note on use_vmac recommends (doc/NOTE_vrrp_vmac.txt, in its source).
RECOMMENDED: Final = {
    "all.arp_ignore": 1,
    "all.arp_announce": 1,
    "all.arp_filter": 0,
    "eth0.arp_filter": 1,
}


class Contestant(Protocol):
    """Something that keeps V4 alive on the hosts of a fleet. ``mac`` None: with the NIC's own MAC."""

    @property
    def label(self) -> str: ...

    @property
    def mac(self) -> str | None: ...

    def start(self, fleet: Fleet, host: Host) -> None:
        """Runs there, and is a steady standby if another host holds the address."""
        ...


@dataclass(frozen=True, slots=True)
class Holdfast:
    """Ours; the same code path with and without a virtual MAC."""

    label: str
    mac: str | None = None

    def start(self, fleet: Fleet, host: Host) -> None:
        fleet.routers = (router(_VRID, V4, macs={V4: self.mac} if self.mac else None),)
        fleet.capabilities = (*SPEAKER_CAPABILITIES, "sys_nice")
        fleet.start_host(host)
        fleet.until_up(host)
        time.sleep(_STANDBY_SECONDS)


@dataclass(frozen=True)
class _VirtualInstance(Instance):
    """An instance with a MAC of its own; its device is named like the speaker's: the rig knows those."""

    more: tuple[str, ...] = ()

    def configuration(self, device: str) -> str:
        head, brace, rest = Instance.configuration(self, device).partition("{\n")
        settings = (f"use_vmac hf-vrrp{self.virtual_router_id}", *self.more)
        return head + brace + "".join(f"  {setting}\n" for setting in settings) + rest


@dataclass(frozen=True, slots=True)
class Keepalived:
    """keepalived with ``use_vmac``, ``more`` settings, and sysctls beside those that it sets itself."""

    label: str
    more: tuple[str, ...] = ()
    sysctls: Mapping[str, int] = field(default_factory=dict)
    mac: str | None = f"00:00:5e:00:01:{_VRID:02x}"

    def start(self, fleet: Fleet, host: Host) -> None:
        settings = [f"net.ipv4.conf.{name}={value}" for name, value in self.sysctls.items()]
        if settings:
            _sysctl(host, "-q", "-w", *settings)
        priority = 200 - 50 * fleet.hosts.index(host)
        start_keepalived(host, _VirtualInstance(_VRID, priority, (V4,), 100, more=self.more))
        time.sleep(1.9)  # until it has heard the others and is a steady Backup


def contestants() -> list[Contestant]:
    """All of them, in the order of the table."""
    return [
        Holdfast("Holdfast VirtualMAC", "02:48:46:00:00:64"),
        Holdfast("Holdfast NodeMAC"),
        Keepalived("keepalived use_vmac"),
        Keepalived("keepalived use_vmac, recommended sysctls", sysctls=RECOMMENDED),
        Keepalived("keepalived use_vmac, vmac_xmit_base", more=("vmac_xmit_base",)),
    ]


class Field:
    """Three hosts and three clients, on a switch that forgets soon."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.fleet = Fleet(run)
        self.fleet.segment.forget_after(AGEING_SECONDS)
        self.clients = {"client": self.fleet.client}
        for name, number in (("deaf", _DEAF), ("static", _STATIC)):
            self.clients[name] = run.add_namespace(name)
            self.fleet.segment.connect(name, number, port=name, careful=False)
        heed_no_announcement(self.clients["deaf"].name)
        self._sysctls = {host.name: _touched(host) for host in self.fleet.hosts}

    def forget_all(self) -> None:
        """Nobody has ever talked to anybody: a new owner meets its clients for the first time."""
        for name in (*self.clients, *(host.name for host in self.fleet.hosts)):
            forget(self.run.namespace_name(name))

    def boot(self, host: Host) -> None:
        end_all(host)
        host.boot()
        _sysctl(host, "-q", "-w", *self._sysctls[host.name])


def measure(
    arena: Field,
    contestant: Contestant,
    faults: Sequence[Fault],
    rounds: int,
    seed: int,
    say: Callable[[str], None],
) -> Moves:
    """Enters the contestant, lets the faults hit its owner, and clears it away."""
    fleet = arena.fleet
    for host in fleet.hosts:
        contestant.start(fleet, host)
    fleet.until_held(V4)
    found: dict[str, list[Move]] = {}
    for fault in faults:
        dice = random.Random(f"{seed}/{fault.key}")
        for number in range(1, rounds + 1):
            owner = fleet.until_held(V4)
            move = strike(arena, contestant, owner, fault, 0.3 + dice.random() / 2)
            found.setdefault(fault.title, []).append(move)
            say(f"  {contestant.label}: {fault.title} {number} of {rounds}: {move.told()}")
            arena.boot(owner)
            contestant.start(fleet, owner)
    for host in fleet.hosts:
        arena.boot(host)
    return Moves(contestant.label, found, virtual=contestant.mac is not None)


def strike(arena: Field, contestant: Contestant, owner: Host, fault: Fault, wait_seconds: float) -> Move:
    """The fault hits the owner ``wait_seconds`` after each client has had its first answer."""
    fleet, run, mac = arena.fleet, arena.run, contestant.mac
    pids = processes(owner)
    if not pids:
        raise RigError(f"{owner.name} holds {V4}, but nothing runs there")
    arena.forget_all()
    if mac:
        pin(arena.clients["static"].name, V4, mac)
    ports = [host.name for host in fleet.hosts]
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(fleet.segment, ports, addresses=[V4], macs=[mac] if mac else []))
        caches = stack.enter_context(Caches(run, {name: [V4] for name in LEARNING}))
        probes = {
            name: stack.enter_context(Probe(run, arena.clients[name], [V4], rate_hz=rate))
            for name, rate in (("client", RATE_HZ), ("deaf", _FEW_HZ), ("static", _FEW_HZ))
            if mac or name in LEARNING
        }
        first = max(probe.wait_answer(V4) for probe in probes.values())
        time.sleep(wait_seconds)
        moment = time.monotonic()
        if fault == CRASH:
            owner.lose_power()
            end_all(owner)
        else:
            send(pids[:1], signal.SIGTERM)
        time.sleep(max(0.0, moment + WATCH_SECONDS - time.monotonic()))
        answers = {name: probe.result() for name, probe in probes.items()}
        end = time.monotonic()
    taken = _taken(wire.seen(since=moment), owner)
    since = taken.times[0] if taken else end
    macs_of = {host.name: host.mac for host in fleet.hosts}
    right = mac or (macs_of[taken.port] if taken else "")
    ended = {name for name in LEARNING if caches.at(name, V4, end) != right}
    ever = {name for name in LEARNING if any(c.mac != right for c in caches.changes(name, V4, since=first))}
    return Move(
        gap_ms=_gap_ms(answers["client"], moment),
        lost=_lost(answers["client"]),
        deaf_gap_ms=_gap_ms(answers["deaf"], moment),
        static_gap_ms=_gap_ms(answers["static"], moment) if mac else None,
        wrong=count(wire.wrong(V4, right, since=since)),
        flooded=sum(wire.flooded(since=moment).values()),
        old_owner=wire.ports_of(mac, since=since).get(owner.name, 0) if mac else 0,
        ended_wrong=len(ended),
        ever_wrong=len(ended | ever),
        late_ms=max(each.late_ms for each in answers.values()),
    )


def _taken(seen: Sequence[Seen], owner: Host) -> Seen | None:
    """The first frame in the address's name, or with its MAC, that came from another host."""
    others = [each for each in seen if each.port != owner.name and each.address == V4]
    return min(others, key=lambda each: each.times[0], default=None)


def _gap_ms(answers: Answers, moment: float) -> float:
    longest = max((gap.ms for gap in answers.gaps if gap.start >= moment - 0.01), default=0.0)
    return max(longest or min(answers.longest_gap_ms, 5.0), answers.silent_ms)


def _lost(answers: Answers) -> int:
    """Those at the end too, if it had not come back."""
    return answers.lost + (round(answers.silent_ms) if answers.silent_ms > 50 else 0)


def _touched(host: Host) -> list[str]:
    """The host's settings that keepalived or we may change, as ``sysctl -w`` takes them."""
    names = [f"net.ipv4.conf.{device}.{name}" for device in ("all", "default", "eth0") for name in _TOUCHED]
    return [line.replace(" ", "") for line in _sysctl(host, *names).splitlines()]


def _sysctl(host: Host, *words: str) -> str:
    return command("ip", "netns", "exec", host.namespace, "sysctl", *words)


def seconds_of(taking_part: Sequence[Contestant], faults: Sequence[Fault], rounds: int) -> float:
    """About how long all of it takes."""
    each = WATCH_SECONDS + AROUND_SECONDS + 2.0
    return START_SECONDS * len(taking_part) + each * rounds * len(faults) * len(taking_part)


def run(
    taking_part: Sequence[Contestant],
    faults: Sequence[Fault],
    rounds: int,
    seed: int,
    say: Callable[[str], None],
    results: list[Moves],
) -> None:
    """All of it, on the same hosts; ``results`` grows as they come. Raises RigError."""
    with Run() as made:
        arena = Field(made)
        for contestant in taking_part:
            say(f"{contestant.label}:")
            try:
                results.append(measure(arena, contestant, faults, rounds, seed, say))
            except AssertionError as error:  # a fleet is a test's, and speaks like one
                raise RigError(f"{contestant.label}: {error}") from error
