# SPDX-License-Identifier: Apache-2.0
"""The benchmark's second part: an address with a MAC of its own moves, beside keepalived's ``use_vmac``.

Whole speakers on hosts of their own (``Fleet``), a switch that forgets a MAC after 2 s, a recorder in it
(``Wire``), an ordinary client and a deaf one, which heeds no announcement: only a MAC that moves along
brings it to the next owner at once.
"""

import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from tests.rig.caches import Caches, forget, heed_no_announcement
from tests.rig.faults import CRASH, STOP, Fault, end_all, processes, send
from tests.rig.figures import Move, Moves
from tests.rig.fleet import V4, Fleet, router
from tests.rig.hosts import SPEAKER_CAPABILITIES, Host
from tests.rig.peers import Instance, start_keepalived
from tests.rig.probe import Answers, Probe
from tests.rig.run import RigError, Run, command
from tests.rig.wire import Seen, Wire, count

AGEING_SECONDS: Final = 2.0
WATCH_SECONDS: Final = 4.0  # from the fault on: long enough for a switch to forget
FAULTS: Final = (CRASH, STOP)
START_SECONDS: Final = 12.0  # of the hosts, and of a contestant with the first of its rounds
AROUND_SECONDS: Final = 2.5  # a fault: start of the onlookers, the moment, their accounts, the boot
_VRID: Final = 77
_DEAF: Final = 249
_DEAF_HZ: Final = 200
_STANDBY_SECONDS: Final = 1.2  # a speaker has listened, and its macvlan is there
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
        lives = _lives(host)
        fleet.start_host(host)
        fleet.until(f"the speaker of {host.name} runs", lambda: _lives(host) > lives)
        time.sleep(_STANDBY_SECONDS)


def _lives(host: Host) -> int:
    return host.speaker.log.read_text().count(" on node ") if host.speaker is not None else 0


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
    """Three hosts, the ordinary client and the deaf one, on a switch that forgets soon."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.fleet = Fleet(run)
        self.fleet.segment.forget_after(AGEING_SECONDS)
        self.deaf = run.add_namespace("deaf")
        self.fleet.segment.connect("deaf", _DEAF, port="deaf", careful=False)
        heed_no_announcement(self.deaf.name)
        self._sysctls = {host.name: _touched(host) for host in self.fleet.hosts}

    def forget_all(self) -> None:
        """Nobody has ever talked to anybody: a new owner meets its clients for the first time."""
        for name in ("client", "deaf", *(host.name for host in self.fleet.hosts)):
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
    """The fault hits the owner ``wait_seconds`` after both clients have had their first answer."""
    fleet, run = arena.fleet, arena.run
    pids = processes(owner)
    if not pids:
        raise RigError(f"{owner.name} holds {V4}, but nothing runs there")
    arena.forget_all()
    ports = [host.name for host in fleet.hosts]
    with (
        Wire(fleet.segment, ports, addresses=[V4], macs=[contestant.mac] if contestant.mac else []) as wire,
        Caches(run, {"client": [V4], "deaf": [V4]}) as caches,
        Probe(run, fleet.client, [V4]) as client,
        Probe(run, arena.deaf, [V4], rate_hz=_DEAF_HZ) as deaf,
    ):
        for probe in (client, deaf):
            probe.wait_answer(V4)
        first = time.monotonic()
        time.sleep(wait_seconds)
        moment = time.monotonic()
        if fault == CRASH:
            owner.lose_power()
            end_all(owner)
        else:
            send(pids[:1], signal.SIGTERM)
        time.sleep(max(0.0, moment + WATCH_SECONDS - time.monotonic()))
        answers, unheeding = client.result(), deaf.result()
        end = time.monotonic()
    taken = _taken(wire.seen(since=moment), owner)
    heir = next((host for host in fleet.hosts if host.name == taken.port), None) if taken else None
    since = taken.times[0] if taken else end
    right = contestant.mac or (heir.mac if heir else "")
    names = ("client", "deaf")
    ever = [any(change.mac != right for change in caches.changes(name, V4, since=first)) for name in names]
    ended = [caches.at(name, V4, end) != right for name in names]
    return Move(
        gap_ms=_gap_ms(answers, moment),
        lost=_lost(answers),
        deaf_gap_ms=_gap_ms(unheeding, moment),
        wrong=count(wire.wrong(V4, right, since=since)),
        flooded=sum(wire.flooded(since=moment).values()),
        old_owner=count(
            s for s in wire.seen(since=since) if s.source == contestant.mac and s.port == owner.name
        ),
        ended_wrong=sum(ended),
        ever_wrong=sum(map(max, ever, ended)),
        late_ms=max(answers.late_ms, unheeding.late_ms),
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
