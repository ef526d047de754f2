# SPDX-License-Identifier: Apache-2.0
"""The Active's process is killed or stopped while its host lives on: the host falls silent, another answers.

The kernel keeps the addresses meanwhile, so only its fence stands between them and the segment. A witness
asks each 5 ms who has them: never may two answer one question (design, section 7: never two answering).
"""

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.rig.fleet import V4, V6, Fleet, router
from tests.rig.hosts import SPEAKER_CAPABILITIES, Host
from tests.rig.network import wait_for_dad
from tests.rig.probe import Probe
from tests.rig.run import command
from tests.rig.witness import Witness

pytestmark = pytest.mark.netns

GAP_MS = 1000.0  # 350 is promised and `make bench` measures it; a busy machine may be late by more
NOISE_MS = 100.0  # of the client on such a machine
PACES = [(100, SPEAKER_CAPABILITIES), (10, (*SPEAKER_CAPABILITIES, "sys_nice"))]
STALLS_S = (0.12, 0.25, 0.28, 0.3, 0.33, 0.4)  # around 2.8 intervals, where the fence closes
WATCHED_S = 2.0  # after waking


@pytest.fixture(params=PACES, ids=["100 ms", "10 ms"])
def active(fleet: Fleet, request: pytest.FixtureRequest) -> Host:
    """Who has both addresses, for half a second; at each of the paces."""
    interval_ms, capabilities = request.param
    fleet.start(router(7, V4, V6, interval_ms=interval_ms), capabilities=capabilities)
    host = fleet.until_held(V4, V6)
    time.sleep(0.5)
    return host


@contextmanager
def watched(fleet: Fleet) -> Iterator[tuple[Witness, Probe]]:
    """Both addresses, once a client was answered."""
    with Witness(fleet.segment, V4, V6) as witness, Probe(fleet.run, fleet.client, [V4, V6]) as probe:
        for address in (V4, V6):
            probe.wait_answer(address)
        yield witness, probe


def test_a_killed_speakers_host_falls_silent_before_another_answers(fleet: Fleet, active: Host) -> None:
    """Also when it is started again, on a host that still has the addresses."""
    with watched(fleet) as (witness, probe):
        moment = time.monotonic()
        active.running_speaker().signal(signal.SIGKILL)
        gaps = [probe.wait_gap(address, after=moment) for address in (V4, V6)]
        time.sleep(1.0)
        fleet.start_host(active)
        fleet.until("one holder", lambda: len(fleet.holders(V4)) == len(fleet.holders(V6)) == 1)
        time.sleep(0.5)
    assert witness.double_ms <= witness.room_ms()
    assert max(gap.ms for gap in gaps) <= GAP_MS
    for gap in gaps:
        assert gap.mac_before == active.mac
        assert gap.mac_after in {host.mac for host in fleet.hosts if host is not active}
    assert all(len(macs) == 1 and active.mac not in macs for macs in witness.last_macs(0.4))


def test_a_stopped_speakers_host_is_silent_and_wakes_as_a_backup(fleet: Fleet, active: Host) -> None:
    with watched(fleet) as (witness, probe):
        moment = time.monotonic()
        active.pause_speaker()
        gaps = [probe.wait_gap(address, after=moment) for address in (V4, V6)]
        time.sleep(2.0)
        woken = time.monotonic()
        active.resume_speaker()
        time.sleep(WATCHED_S)
        results = probe.results()
    assert witness.double_ms <= witness.room_ms()
    assert max(gap.ms for gap in gaps) <= GAP_MS
    late = [gap for answers in results.values() for gap in answers.gaps if gap.start >= woken]
    assert [gap for gap in late if gap.ms > witness.room_ms(NOISE_MS)] == [], "waking is no news to a client"
    assert len(witness.adverts(active.v4, since=woken)) <= 1
    assert witness.announcements(active.mac, since=woken) == []
    assert all(len(macs) == 1 and active.mac not in macs for macs in witness.last_macs(WATCHED_S - 0.1))
    assert len(fleet.holders(V4)) == len(fleet.holders(V6)) == 1
    assert not active.holds(V4)


def test_stalls_of_any_length_never_make_two_answer(fleet: Fleet) -> None:
    """Shorter ones change nothing, longer ones move the address; in between it may be either, never both."""
    fleet.start(router(7, V4))
    fleet.until_held(V4)
    time.sleep(0.5)
    chance = random.Random(4)
    with Witness(fleet.segment, V4) as witness:
        for stall_s in STALLS_S:
            holder = fleet.until_held(V4)
            time.sleep(chance.uniform(0.3, 0.4))  # anywhere in an interval
            holder.pause_speaker()
            time.sleep(stall_s)
            holder.resume_speaker()
            time.sleep(0.8)
        fleet.until_held(V4)
        time.sleep(0.3)
    shared = [account.shared() for account in witness.accounts]
    assert witness.double_ms <= witness.room_ms(), shared
    assert len(witness.last_macs(0.2)[0]) == 1


def test_a_backup_that_stalls_at_its_takeover_gives_way(fleet: Fleet) -> None:
    """The Active is killed; the next one is stopped about when its timer fires, and the third takes over."""
    fleet.start(router(7, V4))
    fleet.until_held(V4)
    time.sleep(0.5)
    for after_s in (0.25, 0.28, 0.3):
        first = fleet.until_held(V4)
        second, third = (host for host in fleet.hosts if host is not first)  # by priority: LEADERS
        with Witness(fleet.segment, V4) as witness:
            time.sleep(0.2)
            first.running_speaker().signal(signal.SIGKILL)
            time.sleep(after_s)
            second.pause_speaker()
            time.sleep(1.0)
            second.resume_speaker()
            time.sleep(0.7)
        assert witness.double_ms <= witness.room_ms(), f"stopped {after_s} s after the kill"
        assert witness.last_macs(0.3)[0] in ({second.mac}, {third.mac}), "one of them"
        first.kill_speaker()
        first.boot()
        fleet.start_host(first)
        fleet.until_up(first)


@pytest.mark.parametrize("addressed", [True, False], ids=["addressed", "without addresses"])
def test_a_second_nic_on_the_segment_does_not_answer(fleet: Fleet, *, addressed: bool) -> None:
    """The kernel answers ARP for any of its addresses on any of its NICs, unless it is kept from it."""
    for number, host in enumerate(fleet.hosts, 30):
        host.add_nic(fleet.segment, number, nic="eth1")
    wait_for_dad([host.namespace for host in fleet.hosts])
    if not addressed:
        for host in fleet.hosts:  # a bridge, for a veth without a subnet is taken for a pod's cable
            script = "link add br1 type bridge stp_state 0 forward_delay 0\nlink set br1 up\n"
            script += "address flush dev eth1 scope global\nlink set eth1 master br1\n"
            command("ip", "-n", host.namespace, "-batch", "-", stdin=script)
    fleet.start(router(7, V4, V6))
    holder = fleet.until_held(V4, V6)
    time.sleep(0.5)
    with Witness(fleet.segment, V4, V6) as witness:
        time.sleep(0.5)
        alive = time.monotonic()
        holder.running_speaker().signal(signal.SIGKILL)
        time.sleep(1.5)
    assert {answer.mac for answer in witness.answers if answer.at < alive} == {holder.mac}
    assert witness.double_ms <= witness.room_ms()
    assert all(len(macs) == 1 and holder.mac not in macs for macs in witness.last_macs(0.3))
    assert set(witness.macs) <= {host.mac for host in fleet.hosts}


def test_a_flushed_ruleset_costs_no_failover(fleet: Fleet) -> None:
    """``systemctl restart nftables`` flushes everybody's rules; the fence is back within ten seconds.

    Made anew it is shut, for the millisecond until its leases are.
    """
    fleet.start(router(7, V4, V6))
    holder = fleet.until_held(V4, V6)
    with watched(fleet) as (witness, probe):
        time.sleep(0.5)
        command("ip", "netns", "exec", holder.namespace, "nft", "flush", "ruleset")
        fleet.until("the fence is back", lambda: "netdev holdfast" in holder.ruleset())
        time.sleep(1.0)
        lost = [answers.lost for answers in probe.results().values()]
        holder.running_speaker().signal(signal.SIGKILL)
        time.sleep(1.5)
    assert max(lost) <= witness.room_ms(NOISE_MS)
    assert witness.double_ms <= witness.room_ms(), "and it fences as before"
    assert all(len(macs) == 1 and holder.mac not in macs for macs in witness.last_macs(0.3))
