# SPDX-License-Identifier: Apache-2.0
"""Addresses whose MAC moves along: no cache changes, no wrong MAC speaks, no port is stolen back.

``TAKEOVERS=300 pytest tests/story/test_virtual_mac.py`` crashes three hundred times.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.rig.caches import cached, heed_no_announcement, pin
from tests.rig.fleet import V4, V6, Fleet, router
from tests.rig.hosts import Host
from tests.rig.network import netns_path
from tests.rig.onlookers import Onlookers
from tests.rig.run import command, in_namespace
from tests.rig.wire import Wire

pytestmark = pytest.mark.netns

MAC4, MAC6 = "02:48:46:00:00:04", "02:48:46:00:00:06"
MACS = {V4: MAC4, V6: MAC6}
TAKEOVERS = int(os.environ.get("TAKEOVERS", "3"))
GAP_MS = 1000.0  # 350 is promised and `make bench` measures it; a busy machine may be late by more
SETTLED_S = 0.05  # from the heir's first answer: the giver has heard it


@pytest.fixture
def fleet(fleet: Fleet) -> Fleet:
    """Its switch forgets whom it has not heard for two seconds."""
    fleet.segment.forget_after(2.0)
    return fleet


@contextmanager
def watched(fleet: Fleet) -> Iterator[tuple[Wire, Onlookers]]:
    """The switch, and the addresses from outside."""
    ports = [host.name for host in fleet.hosts]
    with (
        Wire(fleet.segment, ports, addresses=list(MACS), macs=list(MACS.values())) as wire,
        Onlookers(fleet, *MACS) as seen,
    ):
        yield wire, seen


def longest_gap_ms(seen: Onlookers, after: float) -> float:
    """Until both answer again."""
    return max(seen.probe.wait_gap(address, after=after, timeout_s=5).ms for address in MACS)


def settle(fleet: Fleet) -> Host:
    """The one holder of both, after its adverts have been heard for a while."""
    holder = fleet.until_held(V4, V6)
    time.sleep(0.4)
    return holder


def pinned(client: str) -> None:
    """Static entries: nothing that is said changes them."""
    for address, mac in MACS.items():
        pin(client, address, mac)


def frames_of_loser(wire: Wire, change_at: float, loser: Host) -> int:
    """Frames with a virtual MAC that came from the port of him who had it, after the change."""
    found = [wire.ports_of(mac, since=change_at) for mac in MACS.values()]
    return sum(each.get(loser.name, 0) for each in found)


def first_frame(wire: Wire, mac: str, host: Host) -> float:
    """When the switch first heard this MAC on this host's port."""
    port = host.name
    return min(seen.times[0] for seen in wire.seen() if seen.source == mac and seen.port == port)


# --- crashes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hardened", [pinned, heed_no_announcement], ids=["static entries", "stubborn"])
@pytest.mark.timeout(120 + 5 * TAKEOVERS)
def test_crashes_in_a_row_change_no_cache(fleet: Fleet, hardened: Callable[[str], None]) -> None:
    fleet.start(router(7, V4, V6, macs=MACS))
    settle(fleet)
    client = fleet.run.namespace_name("client")
    hardened(client)
    gaps = []
    for _ in range(TAKEOVERS):
        giver = settle(fleet)
        with watched(fleet) as (wire, seen):
            before = [cached(client, address) for address in MACS]
            moment = time.monotonic()
            giver.lose_power()
            gaps.append(longest_gap_ms(seen, moment))
            time.sleep(0.5)
            after = [cached(client, address) for address in MACS]
        assert before == after == [MAC4, MAC6]
        for address, mac in MACS.items():
            assert wire.wrong(address, mac) == []
            assert mac not in wire.flooded(since=moment + 1.0)
        assert seen.double_ms == 0.0
        giver.boot()
        fleet.start_host(giver)
    print(f"{TAKEOVERS} crashes, cache unchanged: gap {min(gaps):.0f} to {max(gaps):.0f} ms")
    assert max(gaps) <= GAP_MS


# --- planned moves ----------------------------------------------------------------------------------


@pytest.mark.timeout(120 + 5 * TAKEOVERS)
def test_a_hand_over_loses_nothing_and_the_port_is_not_stolen_back(fleet: Fleet) -> None:
    fleet.start(router(7, V4, V6, macs=MACS))
    for _ in range(TAKEOVERS):
        giver = settle(fleet)
        with watched(fleet) as (wire, seen):
            assert giver.stop_speaker() == 0
            heir = fleet.until_held(V4, V6)
            time.sleep(0.5)
            left = giver.macvlans()
        seen.tell(f"hand-over from {giver.name} to {heir.name}")
        assert left == []
        assert seen.lost == seen.nothing_lost
        for address, mac in MACS.items():
            taken = first_frame(wire, mac, heir)
            assert frames_of_loser(wire, taken, giver) == 0, "not one after the heir's first"
            assert wire.wrong(address, mac, since=taken + SETTLED_S) == []
        fleet.start_host(giver)


# --- the process dies, the host lives ----------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["SIGKILL", "SIGSTOP"])
def test_a_host_whose_speaker_died_or_stalls_sends_nothing_by_the_mac(fleet: Fleet, how: int) -> None:
    fleet.start(router(7, V4, V6, macs=MACS))
    giver = settle(fleet)
    with watched(fleet) as (wire, seen):
        moment = time.monotonic()
        giver.running_speaker().signal(signal.Signals(how))
        gap_ms = longest_gap_ms(seen, moment)
        time.sleep(0.5)
        # What a stalled host may still do: the kernel's own programs speak by the address.
        _speak_as(giver, V4)
        if how == signal.SIGSTOP:
            giver.resume_speaker()
        else:
            fleet.start_host(giver)
        time.sleep(1.0)
        heir = fleet.until_held(V4, V6)
        _speak_as(giver, V4)
    assert heir is not giver
    assert (seen.witness.doubled, seen.double_ms) == (0, 0.0)
    assert gap_ms <= GAP_MS
    for mac in MACS.values():
        assert frames_of_loser(wire, first_frame(wire, mac, heir), giver) == 0


def _speak_as(host: Host, address: str) -> None:
    """A program on the host goes on using the address as source, if it is still there."""
    ping = ["ping", "-c2", "-i0.2", "-W1", "-I", address, "192.0.2.250"]
    command("ip", "netns", "exec", host.namespace, *ping, check=False)


# --- somebody else's doing ---------------------------------------------------------------------------


def test_another_station_with_our_mac_is_told_and_loses_the_port(fleet: Fleet) -> None:
    fleet.start(router(7, V4, macs={V4: MAC4}))
    holder = fleet.until_held(V4)
    time.sleep(3.0)  # last words of an old Active are no conflict
    frame = bytes.fromhex("ffffffffffff") + bytes.fromhex(MAC4.replace(":", "")) + b"\x88\xb6" + bytes(46)
    station = fleet.run.add_namespace("twin")
    fleet.segment.connect("twin", 99, port="twin", careful=False)
    with Onlookers(fleet, V4) as seen:
        for _ in range(8):
            command(*in_namespace(station, ["python3", "-c", _SHOUT.format(frame=frame.hex())]))
            time.sleep(0.5)
        time.sleep(1.5)
    assert "somebody with the same virtual MAC" in holder.speaker_log()
    assert seen.gap_ms(V4) < 4000
    fleet.until("the port is won back", lambda: _answers(fleet, V4))
    over = "Nobody else claims the address any more"
    fleet.until("the conflict is over", lambda: over in holder.speaker_log())


_SHOUT = (
    "import socket; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('eth0', 0));"
    "s.send(bytes.fromhex('{frame}'))"
)


def _answers(fleet: Fleet, address: str) -> bool:
    client = fleet.run.namespace_name("client")
    ping = ["ip", "netns", "exec", client, "ping", "-c1", "-W1", address]
    return "1 received" in command(*ping, check=False)


def test_a_network_that_blocks_the_mac_is_told(fleet: Fleet) -> None:
    """As VMware does without forged transmits: what does not come from the NIC's own MAC goes nowhere."""
    for host in fleet.hosts:
        _allow_only(fleet, host.name, host.mac)
    fleet.start(router(7, V4, candidates=fleet.candidates(), macs={V4: MAC4}))
    holder = fleet.until_held(V4)
    told = "does not carry frames of virtual MACs"
    fleet.until("it is told", lambda: told in holder.speaker_log(), seconds=15)


def _allow_only(fleet: Fleet, port: str, mac: str) -> None:
    rules = f"""table netdev security-{port} {{
        chain in {{
            type filter hook ingress device "{port}" priority -5;
            ether saddr != {mac} drop
        }}
    }}\n"""
    command(*in_namespace(netns_path(fleet.segment.namespace), ["nft", "-f", "-"]), stdin=rules)


# --- what is left over -------------------------------------------------------------------------------


def test_leftovers_go_and_other_macvlans_stay(fleet: Fleet) -> None:
    only, *_ = fleet.hosts
    foreign = "link add pod0 link eth0 type macvlan mode bridge\nlink set pod0 up\n"
    command("ip", "-n", only.namespace, "-batch", "-", stdin=foreign)
    fleet.start(router(7, V4, V6, macs=MACS), hosts=[only])
    fleet.until_held(V4, V6)
    assert len(only.macvlans()) == 2
    only.kill_speaker()
    assert len(only.macvlans()) == 2, "the kernel keeps them, silent"
    fleet.start(router(7, V4), hosts=[only])  # the plan changed while it was down
    fleet.until("held by the NIC's own MAC", lambda: only.holds(V4) and only.macvlans() == [], seconds=20)
    assert not only.holds(V6)
    assert only.stop_speaker() == 0
    assert (only.addresses(), only.ruleset(), only.macvlans()) == ([], "", [])
    assert "pod0" in command("ip", "-n", only.namespace, "-o", "link", "show", "type", "macvlan")


# --- what may be below -------------------------------------------------------------------------------


def test_it_works_on_a_bridge(fleet: Fleet) -> None:
    for host in fleet.hosts:
        host.add_bridge()
    fleet.start(router(7, V4, V6, macs=MACS))
    giver = settle(fleet)
    with watched(fleet) as (wire, seen):
        moment = time.monotonic()
        giver.running_speaker().signal(signal.SIGKILL)
        gap_ms = longest_gap_ms(seen, moment)
        time.sleep(0.5)
    (heir,) = (host for host in fleet.hosts if host is not giver and host.holds(V4))
    assert gap_ms <= GAP_MS
    for address, mac in MACS.items():
        assert wire.wrong(address, mac) == []
        assert frames_of_loser(wire, first_frame(wire, mac, heir), giver) == 0
