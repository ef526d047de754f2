# SPDX-License-Identifier: Apache-2.0
"""A real keepalived (2.2.7, VRRPv3) in the same virtual routers as our speakers, as their only peer.

Many virtual routers live through one story at once: ours higher, lower, equal, with other intervals, in
both families. h1 and h3 run a speaker, h2 keepalived; its address lies between theirs. A witness on the
switch says who answered, and when.
"""

import json
import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address
from typing import Any, Final, Literal

import pytest
from msgspec import structs

from holdfast_api.types import Candidate, VirtualRouter
from tests.rig.api import socket_in
from tests.rig.confinement import ROOT
from tests.rig.fleet import Fleet, router
from tests.rig.hosts import METRICS, Host
from tests.rig.network import netns_path
from tests.rig.peers import Instance, start_keepalived
from tests.rig.process import Process
from tests.rig.rfc_peer import advert
from tests.rig.run import Run, command, dying_with_parent, in_namespace
from tests.rig.witness import Account, Witness

pytestmark = pytest.mark.netns

NOISE_MS: Final = 200  # of a busy machine, and of a takeover
THEIR_NOISE_MS: Final = 700  # keepalived's own: it takes one virtual router after the other
HEALED_MS: Final = 800  # from the mending of a cable until one of two Actives has let go; and noise


@dataclass(frozen=True, slots=True)
class Shared:
    """One virtual router of ours and keepalived's. ``node``: our only candidate that is there."""

    name: str
    number: int
    ours: int
    theirs: int
    node: str = "h1"
    family: Literal[4, 6] = 4
    our_ms: int = 100
    their_ms: int = 100
    first: bool = False  # ours is the first candidate, who looks for an owner as soon as it starts

    @property
    def address(self) -> str:
        return f"192.0.2.{100 + self.number}" if self.family == 4 else f"fd00:192:0:2::{100 + self.number}"

    def plan(self) -> VirtualRouter:
        others = () if self.first else (Candidate("elsewhere", 254),)
        return router(
            self.number,
            self.address,
            interval_ms=self.our_ms,
            candidates=(*others, Candidate(self.node, self.ours)),
        )

    def instance(self, *, preempt: bool = False) -> Instance:
        return Instance(self.number, self.theirs, (self.address,), self.their_ms, preempt)

    def down_ms(self, interval_ms: int, priority: int) -> float:
        """Active_Down_Interval of a Backup with this priority (RFC 9568 6.1)."""
        return 3 * interval_ms + (256 - priority) * interval_ms / 256


SHARED = (
    Shared("higher", 11, 200, 150, first=True),
    Shared("lower", 12, 100, 150),
    Shared("higher6", 13, 200, 150, family=6, first=True),
    Shared("lower6", 14, 100, 150, family=6),
    Shared("equal, theirs greater", 15, 150, 150),
    Shared("equal, ours greater", 16, 150, 150, node="h3"),
    Shared("equal6", 17, 150, 150, family=6),
    Shared("they are faster", 18, 100, 150, their_ms=50),
    Shared("they are slower", 19, 100, 150, their_ms=400, first=True),
)


class Street:
    """The hosts, and what runs on them."""

    def __init__(self, run: Run) -> None:
        self.fleet = Fleet(run)
        self.h1, self.h2, self.h3 = self.fleet.hosts
        self.macs = {host.name: host.mac for host in self.fleet.hosts}
        self._keepalived: Process | None = None

    @property
    def keepalived(self) -> Process:
        assert self._keepalived is not None
        return self._keepalived

    def reset(self) -> None:
        """Nothing runs, nothing is held."""
        if self._keepalived is not None and self._keepalived.running():
            self.kill_keepalived()
        for host in self.fleet.hosts:
            host.kill_speaker()
            host.boot()
            for address in link_locals(host, listed=True):
                command("ip", "-n", host.namespace, "address", "del", f"{address}/128", "dev", "eth0")

    def start_ours(self, *routers: VirtualRouter) -> None:
        """Returns when they are about to listen, however long a busy machine takes to start them."""
        self.fleet.start(*routers, hosts=(self.h1, self.h3))
        self.until_up()

    def until_up(self) -> None:
        for host in (self.h1, self.h3):
            self.fleet.until(f"{host.name} serves its metrics", host.is_up)

    def start_keepalived(self, *instances: Instance) -> None:
        self._keepalived = start_keepalived(self.h2, *instances)

    def kill_keepalived(self) -> None:
        """SIGKILL of both its processes: of the parent alone, the child would stop in order."""
        folder = self.h2.run.folder / "hosts" / self.h2.name / "keepalived"
        self.keepalived.pause()
        child = int((folder / "vrrp.pid").read_text())
        os.kill(child, signal.SIGKILL)
        self.keepalived.kill()

    def holders(self, shared: Sequence[Shared]) -> dict[str, list[str]]:
        on = {host.name: set(host.addresses()) for host in self.fleet.hosts}
        return {each.name: [name for name, held in on.items() if each.address in held] for each in shared}

    def until_held(self, wanted: dict[str, str], seconds: float = 30.0) -> None:
        """Until exactly these hosts hold these virtual routers' addresses."""
        shared = [each for each in SHARED if each.name in wanted]
        self.fleet.until(
            f"held as {wanted}",
            lambda: self.holders(shared) == {name: [host] for name, host in wanted.items()},
            seconds,
        )


def link_locals(host: Host, *, listed: bool) -> list[str]:
    """The link-local addresses of its NIC: its own, or those that keepalived bound since it lists them."""
    text = command("ip", "-n", host.namespace, "-6", "-o", "address", "show", "dev", "eth0", "scope", "link")
    found = [line.split()[3].partition("/")[0] for line in text.splitlines()]
    return [address for address in found if address.startswith("fe80::200:5eff:fe00:") is listed]


def winner(street: Street, each: Shared) -> str:
    """Of two that are Active: the higher priority, then the greater source address."""
    if each.ours != each.theirs:
        return each.node if each.ours > each.theirs else "h2"
    if each.family == 4:
        return max((each.node, "h2"), key=lambda name: int(name[1:]))
    sources = {h.name: IPv6Address(link_locals(h, listed=False)[0]) for h in (street.h1, street.h2)}
    return max((each.node, "h2"), key=lambda name: sources[name])


@pytest.fixture(scope="module")
def one_street(rig_ready: None) -> Iterator[Street]:  # noqa: ARG001  root and tools, or a failure that says so
    with Run() as run:
        yield Street(run)


@pytest.fixture
def street(one_street: Street) -> Iterator[Street]:
    one_street.reset()
    yield one_street
    one_street.reset()


def gap_ms(account: Account, *, after: float, mac: str) -> float:
    """From ``after`` until the first question this MAC answered."""
    taken = [answer.at for answer in account.answers if answer.mac == mac and answer.at > after]
    assert taken, f"{account.address} never answered by {mac}: {account.macs}"
    return (taken[0] - after) * 1000


ALL = {each.name: each for each in SHARED}


def bounds(each: Shared, account: Account, *, until: float, after: float) -> None:
    """No two answered before ``until``, none but one from ``after`` on (both monotonic)."""
    doubles = [account.asked[question] for question in account.shared()]
    late = [round((at - after) * 1000) for at in doubles if not until <= at <= after]
    assert not late, f"{each.name}: two answered {late} ms after the time allowed"


@pytest.mark.parametrize("death", ["cut", "SIGKILL", "SIGTERM"])
def test_keepalived_dies_and_ours_take_over(street: Street, death: str) -> None:
    """And learn its interval: who is faster or slower than ours is judged by its own."""
    street.start_keepalived(*(each.instance() for each in SHARED))
    street.until_held(dict.fromkeys(ALL, "h2"))
    street.start_ours(*(each.plan() for each in SHARED))
    time.sleep(1.5)
    assert street.holders(SHARED) == {name: ["h2"] for name in ALL}  # whoever is higher: failback is Never
    with Witness(street.fleet.segment, *(each.address for each in SHARED)) as witness:
        time.sleep(0.3)
        died = time.monotonic()
        if death == "cut":
            street.h2.cable.cut()
        elif death == "SIGKILL":
            street.kill_keepalived()
        else:
            street.keepalived.terminate()
        time.sleep(2.0)
        over = time.monotonic()
        if death == "cut":
            street.h2.cable.mend()
            street.until_held({name: winner(street, each) for name, each in ALL.items()})
        else:
            street.h2.boot()  # after a SIGKILL it answers for what keepalived left bound
            street.until_held({name: each.node for name, each in ALL.items()})
        time.sleep(0.5)
        accounts = witness.accounts
    noise_ms, healed_ms = witness.room_ms(NOISE_MS), witness.room_ms(HEALED_MS)
    for each, account in zip(SHARED, accounts, strict=True):
        gap = gap_ms(account, after=died, mac=street.macs[each.node])
        down_ms = each.down_ms(each.their_ms, each.ours)
        shared_ms = [(account.asked[question] - over) * 1000 for question in account.shared()]
        told = f"{shared_ms[0]:.0f} to {shared_ms[-1]:.0f}" if shared_ms else "never"
        print(f"{each.name}: ours after {gap:.0f} ms; two answered, counted from the end: {told}")
        if death == "SIGTERM":
            assert gap <= down_ms - 3 * each.their_ms + noise_ms
            bounds(each, account, until=died, after=died + noise_ms / 1000)
        else:
            assert 2 * each.their_ms - 20 <= gap <= down_ms + noise_ms
            bounds(each, account, until=over if death == "cut" else died, after=over + healed_ms / 1000)


@pytest.mark.parametrize("death", ["crash", "SIGKILL", "SIGTERM"])
def test_ours_die_and_keepalived_takes_over_and_keeps_it(street: Street, death: str) -> None:
    street.start_ours(*(each.plan() for each in SHARED))
    street.until_held({name: each.node for name, each in ALL.items()})
    street.start_keepalived(*(each.instance() for each in SHARED))
    time.sleep(2.5)
    assert street.holders(SHARED) == {name: [each.node] for name, each in ALL.items()}
    with Witness(street.fleet.segment, *(each.address for each in SHARED)) as witness:
        time.sleep(0.3)
        died = time.monotonic()
        for host in (street.h1, street.h3):
            if death == "crash":
                host.lose_power()
            else:
                host.running_speaker().signal(signal.Signals[death])
        time.sleep(2.0)
        for host in (street.h1, street.h3):
            host.kill_speaker()
            host.boot()
            street.fleet.start_host(host)
        street.until_up()
        time.sleep(1.5)
        assert street.holders(SHARED) == {name: ["h2"] for name in ALL}
        accounts = witness.accounts
    for each, account in zip(SHARED, accounts, strict=True):
        gap = gap_ms(account, after=died, mac=street.h2.mac)
        down_ms = each.down_ms(each.our_ms, each.theirs)
        print(f"{each.name}: keepalived after {gap:.0f} ms; two answered for {account.double_ms:.0f} ms")
        assert gap <= (down_ms - 3 * each.our_ms if death == "SIGTERM" else down_ms) + witness.room_ms(
            THEIR_NOISE_MS
        )
        if death == "SIGTERM":
            assert account.double_ms <= witness.room_ms(NOISE_MS)
        else:  # after a SIGKILL the kernel's fence silences the host before keepalived's time is up
            assert account.double_ms <= witness.room_ms()


@pytest.mark.parametrize("latecomer", ["keepalived", "ours"])
def test_a_preempting_latecomer_gets_what_it_outranks(street: Street, latecomer: str) -> None:
    """An equal one gets nothing, and nobody ever answers beside another for long."""
    plans = [
        structs.replace(each.plan(), spec=structs.replace(each.plan().spec, failback="Immediate"))
        for each in SHARED
    ]
    instances = [each.instance(preempt=True) for each in SHARED]
    first = "h2" if latecomer == "ours" else ""
    if latecomer == "ours":
        street.start_keepalived(*instances)
    else:
        street.start_ours(*plans)
    street.until_held({name: first or each.node for name, each in ALL.items()})
    with Witness(street.fleet.segment, *(each.address for each in SHARED)) as witness:
        if latecomer == "ours":
            street.start_ours(*plans)
        else:
            street.start_keepalived(*instances)
        wanted = {
            name: (first or each.node) if each.ours == each.theirs else winner(street, each)
            for name, each in ALL.items()
        }
        time.sleep(2.0)
        street.until_held(wanted)
        time.sleep(1.0)
        assert street.holders(SHARED) == {name: [host] for name, host in wanted.items()}
        accounts = witness.accounts
    for each, account in zip(SHARED, accounts, strict=True):
        print(f"{each.name}: two answered for {account.double_ms:.0f} ms")
        assert account.double_ms <= witness.room_ms(NOISE_MS)


def test_a_differing_list_is_obeyed(street: Street) -> None:
    """keepalived 2.2.7 drops adverts that list other addresses than its own; ours may not do the same.

    So ours, the lower one, yields to it, whoever came first. (Ours higher and lists that differ: each advert
    that keepalived drops puts off its own, so that it is hardly ever heard, and both stay Active; ours
    reports AddressClaimed. docs/protocol.md says to change keepalived's list first.)
    """
    address = "192.0.2.140"
    plan = router(40, address, candidates=(Candidate("elsewhere", 254), Candidate("h1", 100)))
    theirs = Instance(40, 150, (address, "192.0.2.141"))
    street.start_ours(plan)
    street.fleet.until("ours has it", lambda: street.fleet.holders(address) == ["h1"])
    with Witness(street.fleet.segment, address) as witness:
        street.start_keepalived(theirs)
        street.fleet.until("keepalived has it", lambda: street.fleet.holders(address) == ["h2"])
        time.sleep(1.0)
        assert street.fleet.holders(address) == ["h2"]
        street.h1.kill_speaker()
        street.fleet.start_host(street.h1)
        street.until_up()
        time.sleep(1.5)
        assert street.fleet.holders(address) == ["h2"]
        street.keepalived.terminate()
        street.fleet.until("ours has it again", lambda: street.fleet.holders(address) == ["h1"])
        assert witness.double_ms <= witness.room_ms(NOISE_MS)


# --- checksums, and adverts that are wrong ----------------------------------------------------------


class RfcPeer:
    """A peer on h2 that hears and sends the RFC's checksum only (``tests.rig.rfc_peer``)."""

    def __init__(self, street: Street, shared: Shared, priority: int) -> None:
        argv = [sys.executable, "-m", "tests.rig.rfc_peer", "eth0", street.h2.v4]
        argv += [str(shared.number), str(priority), str(shared.their_ms), shared.address]
        inside = in_namespace(netns_path(street.h2.namespace), dying_with_parent(argv))
        env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
        self._run = street.fleet.run
        self.process = self._run.start(f"rfc-{priority}-{time.monotonic_ns()}", inside, env=env)

    def told(self) -> list[dict[str, Any]]:
        """Its changes of state, in order."""
        return [json.loads(line) for line in self.process.log.read_text().splitlines()]

    @property
    def active(self) -> bool:
        return bool(self.told()) and self.told()[-1]["active"]

    def stop(self) -> list[dict[str, Any]]:
        """It resigns if it is Active. All it told."""
        assert self.process.terminate() == 0
        return self.told()


def test_the_rfc_form_of_the_checksum_is_learned_and_answered(street: Street) -> None:
    lower = ALL["lower"]
    ours_has_it = partial(street.fleet.holders, lower.address)
    street.start_ours(lower.plan())
    street.fleet.until("ours has it", lambda: ours_has_it() == ["h1"])
    # Ours speaks keepalived's form, which this peer can't read: it becomes Active, and then is understood.
    deaf = RfcPeer(street, lower, 50)
    street.fleet.until("ours was heard in the RFC's form", lambda: len(deaf.told()) >= 3)
    time.sleep(0.5)
    first, active, backup = deaf.told()
    assert [first["active"], active["active"], backup["active"]] == [False, True, False]
    assert active["other"] > 0
    assert active["rfc"] == 0
    print(f"both were Active for {(backup['at'] - active['at']) * 1000:.0f} ms")
    assert backup["at"] - active["at"] <= HEALED_MS / 1000
    assert ours_has_it() == ["h1"]
    deaf.stop()
    # A higher one: obeyed, learned from, and followed when it resigns.
    higher = RfcPeer(street, lower, 200)
    street.fleet.until("the peer has it", lambda: higher.active and ours_has_it() == [])
    time.sleep(0.5)
    assert ours_has_it() == []
    resigned = time.monotonic()
    higher.stop()
    street.fleet.until("ours has it again", lambda: ours_has_it() == ["h1"])
    print(f"ours after {(time.monotonic() - resigned) * 1000:.0f} ms")
    # A lower one that comes now understands every word.
    late = RfcPeer(street, lower, 50)
    time.sleep(1.0)
    told = late.stop()
    assert [fact["active"] for fact in told] == [False, False]
    assert told[-1]["rfc"] > 5
    assert told[-1]["other"] == 0


def counted(host: Host) -> Counter[str]:
    """Its speaker's discards and takeovers, by reason."""
    with socket_in(netns_path(host.namespace), socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.connect(METRICS)
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join(iter(partial(sock.recv, 65536), b"")).decode()
    pattern = r'^holdfast_(?:discards|transitions)_total\{reason="(\w+)"\} (\S+)$'
    return Counter({reason: round(float(n)) for reason, n in re.findall(pattern, text, re.MULTILINE)})


WRONG: Final = {  # interval, TTL, what is added to the checksum
    "ttl": (100, 254, 0),
    "interval_zero": (0, 255, 0),
    "checksum": (100, 255, 1),
}
COPIES: Final = 20


@pytest.mark.parametrize("name", ["lower", "lower6"])
def test_adverts_with_one_fault_are_ignored_and_counted(street: Street, name: str) -> None:
    """From a peer that would win. The same advert without the fault does win."""
    each = ALL[name]
    source = street.h2.v4 if each.family == 4 else link_locals(street.h2, listed=False)[0]
    mac = bytes.fromhex(street.h2.mac.replace(":", ""))
    build = partial(advert, mac, source, each.number, 200)
    street.start_ours(each.plan())
    street.fleet.until("ours has it", lambda: street.fleet.holders(each.address) == ["h1"])
    with socket_in(netns_path(street.h2.namespace), socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        for reason, (interval_ms, ttl, damage) in WRONG.items():
            before = counted(street.h1)
            frame = build(interval_ms, each.address, ttl=ttl, damage=damage)
            for _ in range(COPIES):
                wire.send(frame)
                time.sleep(0.02)
            assert street.fleet.holders(each.address) == ["h1"]
            assert counted(street.h1) - before == {reason: COPIES}
        sound = build(100, each.address)

        def let_go() -> bool:
            wire.send(sound)
            time.sleep(0.05)
            return not street.fleet.holders(each.address)

        street.fleet.until("ours has let go", let_go)
