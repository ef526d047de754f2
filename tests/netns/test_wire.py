# SPDX-License-Identifier: Apache-2.0
"""The recorder in the switch counts right: frames made by hand, each of which it must put in its place."""

import time
from collections.abc import Iterator

import pytest

from tests.netns.by_hand import MAC, V4, V6, Wired, arp, ethernet, ipv4, ipv6, neighbour
from tests.rig.run import Run, command
from tests.rig.wire import Seen, count

pytestmark = pytest.mark.netns

OTHER4 = "192.0.2.99"
STRANGER = "02:aa:aa:aa:aa:aa"
NOBODY4 = ".".join("0000")  # the sender of an ARP probe
NOBODY = "02:de:ad:00:00:01"


@pytest.fixture
def wired(rig_ready: None) -> Iterator[Wired]:  # noqa: ARG001  pytest orders fixtures by their arguments
    with Run() as run:
        made = Wired(run)
        yield made
        made.close()


def told(seen: list[Seen]) -> set[tuple[str, str, str, str, str, int]]:
    return {(s.port, s.form, s.source, s.address, s.said, len(s.times)) for s in seen}


def test_every_frame_in_the_name_of_an_address_is_counted_by_its_mac_and_port(wired: Wired) -> None:
    east, west = wired.macs["east"], wired.macs["west"]
    with wired.record() as wire:
        wired.send(
            "east", *[ipv4(MAC, V4, to=west)] * 3, ipv4(east, V4, to=west), ipv4(east, OTHER4, to=west)
        )
        wired.send("west", ipv6(west, V6, to=east), ipv6(west, "fd00:192:0:2::c", to=east))
        wired.send("east", ipv4(MAC, "192.0.2.11", to=west, protocol=112))
    assert wire.named(V4) == {MAC: 3, east: 1}
    assert wire.named(V6) == {west: 1}
    assert told(wire.wrong(V4, MAC)) == {("east", "ip", east, V4, "", 1)}
    assert told(wire.wrong(V6, MAC)) == {("west", "ip", west, V6, "", 1)}
    assert told(wire.seen()) - told(wire.wrong(V4, MAC)) - told(wire.wrong(V6, MAC)) == {
        ("east", "ip", MAC, V4, "", 3),
        ("east", "advert", MAC, "192.0.2.11", "", 1),
    }


def test_a_mac_named_inside_arp_or_nd_is_judged_too(wired: Wired) -> None:
    east = wired.macs["east"]
    link_local = "fe80::1"
    with wired.record() as wire:
        wired.send(
            "east", arp(1, MAC, MAC, V4), arp(2, MAC, MAC, V4), arp(1, MAC, east, V4), arp(1, east, east, V4)
        )
        wired.send("east", arp(1, east, east, OTHER4), arp(1, east, east, NOBODY4))
        wired.send("east", neighbour(136, MAC, MAC, V6, V6), neighbour(136, MAC, east, link_local, V6))
        wired.send(
            "east", neighbour(135, east, east, V6, link_local), neighbour(135, east, east, link_local, V6)
        )
    assert wire.named(V4) == {MAC: 3, east: 1}
    assert told(wire.wrong(V4, MAC)) == {
        ("east", "arp request", MAC, V4, east, 1),
        ("east", "arp request", east, V4, east, 1),
    }
    assert wire.named(V6) == {MAC: 2, east: 1}, "who only asks for it does not speak in its name"
    assert told(wire.wrong(V6, MAC)) == {("east", "na", MAC, V6, east, 1), ("east", "ns", east, V6, east, 1)}


def test_times_tell_before_from_after_and_a_host_without_power_is_silent(wired: Wired) -> None:
    west = wired.macs["west"]
    with wired.record() as wire:
        wired.send("east", ipv4(MAC, V4, to=west))
        time.sleep(0.02)
        moved = time.monotonic()
        time.sleep(0.02)
        wired.send("west", *[ipv4(MAC, V4, to=west)] * 2)
        wired.cables["east"].cut()
        wired.send("east", *[ipv4(MAC, V4, to=west)] * 5)
        wired.cables["east"].mend()
        late = time.monotonic()
        wired.send("east", ethernet(MAC, NOBODY, 0x88B5, b"a late frame"))
        end = time.monotonic()
    assert wire.ports_of(MAC, until=moved) == {"east": 1}
    assert wire.ports_of(MAC, since=moved, until=late) == {"west": 2}
    assert wire.ports_of(MAC, since=late) == {"east": 1}
    (last,) = [s for s in wire.seen(since=late) if s.form == "other"]
    assert late - 0.01 <= last.times[0] <= end + 0.01


def test_only_what_the_switch_does_not_know_is_flooded(wired: Wired) -> None:
    """And it forgets after the time it was told to."""
    east, west = wired.macs["east"], wired.macs["west"]
    wired.segment.forget_after(1)
    with wired.record() as wire:
        wired.send("west", ipv4(west, OTHER4, to=east), ipv4(STRANGER, OTHER4, to=east))
        known = time.monotonic()
        wired.send("east", *[ipv4(east, OTHER4, to=STRANGER)] * 4, *[ipv4(east, V4, to=west)] * 3)
        wired.send("east", *[ipv4(east, OTHER4, to=NOBODY)] * 2, arp(1, east, east, OTHER4))
        time.sleep(0.1)
        then = time.monotonic()
        time.sleep(2.2)
        wired.send("east", *[ipv4(east, OTHER4, to=STRANGER)] * 4)
    assert wire.flooded(since=known, until=then) == {NOBODY: 2}
    assert wire.flooded(since=then) == {STRANGER: 4}
    assert count(wire.seen(since=known)) == 3, "what is not in the address's name is nobody's business"


def test_recorders_leave_nothing_behind_and_stand_side_by_side(wired: Wired) -> None:
    before = command("ip", "-n", wired.segment.namespace, "-o", "link", "show")
    with wired.record() as one, wired.record() as other:
        wired.send("east", ipv4(MAC, V4, to=wired.macs["west"]))
    assert one.named(V4) == other.named(V4) == {MAC: 1}
    assert len(command("ip", "-n", wired.segment.namespace, "-o", "link", "show").splitlines()) == len(
        before.splitlines()
    )
    rules = command("ip", "netns", "exec", wired.segment.namespace, "nft", "list", "ruleset")
    assert rules.strip() == ""
