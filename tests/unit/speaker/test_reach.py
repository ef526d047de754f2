# SPDX-License-Identifier: Apache-2.0
"""Whether the segment carries a virtual MAC: who is asked, how often, and what the answers mean."""

from ipaddress import ip_address

import pytest

from holdfast_api.types import Interface
from holdfast_speaker import effects as do
from holdfast_speaker.events import Link
from holdfast_speaker.node.address import Holding
from holdfast_speaker.node.host import Host
from holdfast_speaker.node.nic import Nic
from holdfast_speaker.node.reach import AGAIN_US, MOST_QUESTIONS, Reach, Target
from holdfast_speaker.units import NEVER_US

MAC = bytes.fromhex("020000000001")
SECOND = 1_000_000
NEIGHBOURS = [(bytes((2, 0, 0, 0, 0, n)), ip_address(f"10.0.0.{n}").packed) for n in range(2, 8)]


def holding(number: int, *, six: bool = False, mac: int | None = None) -> Holding:
    made = Holding(f"2001:db8::{number}" if six else f"10.0.1.{number}")
    made.mac = bytes((2, 0xAA, 0, 0, 0, number if mac is None else mac))
    return made


class Scene:
    def __init__(self, *bound: Holding, targets: list[Target] | None = None) -> None:
        self.host = Host("a", 0, dirty=False)
        addresses = ("10.0.0.1/16", "2001:db8::1:1/64", "fe80::1/64")
        self.nic = Nic(Link(2, Interface("eth0", MAC.hex(":"), addresses)), "a")
        self.reach = Reach(self.host, "vr-51")
        self.bound = list(bound)
        self.targets = NEIGHBOURS if targets is None else targets
        self.now = 0
        self.reach.begin(self.bound, 0)

    def until(self, end_us: int) -> list[bytes]:
        """The frames that leave until then."""
        self.host.out.clear()
        while self.reach.deadline_us <= end_us:
            self.now = self.reach.deadline_us
            self.reach.wake(self.nic, self.bound, self.targets, self.now)
        self.now = end_us
        return [effect.frame for effect in self.host.out if isinstance(effect, do.Send)]

    def answer(self, target: Target, to: bytes = MAC) -> None:
        """As the brain does with an ARP reply."""
        reply = to + target[0] + bytes.fromhex("0806 0001 0800 0604 0002") + target[0] + target[1] + bytes(10)
        self.nic.note(reply, target[1], self.now)
        self.reach.heard(to)

    def said(self) -> list[str]:
        return [effect.level for effect in self.host.out if isinstance(effect, do.Log)]


def by(frames: list[bytes], mac: bytes) -> list[bytes]:
    """Whom this MAC asked."""
    return [frame[:6] for frame in frames if frame[6:12] == mac]


def test_for_the_nics_own_mac_nothing_is_asked() -> None:
    scene = Scene(Holding("10.0.1.1"))

    assert scene.reach.deadline_us == NEVER_US
    assert scene.until(100 * SECOND) == []


def test_the_same_neighbours_are_asked_by_both_macs() -> None:
    scene = Scene(holding(1))
    frames = scene.until(100_000)

    assert by(frames, scene.bound[0].mac) == by(frames, MAC) == [mac for mac, _ in NEIGHBOURS[:3]]


def test_the_first_may_be_dead_so_others_are_asked_after_two_rounds() -> None:
    scene = Scene(holding(1))
    rounds = [by(scene.until(at), scene.bound[0].mac) for at in (100_000, 600_000, 1_600_000, 2_600_000)]

    assert rounds[0] == rounds[1] == [mac for mac, _ in NEIGHBOURS[:3]]
    assert rounds[2] == rounds[3] == [mac for mac, _ in NEIGHBOURS[3:]]


def test_who_answers_the_virtual_mac_ends_it() -> None:
    scene = Scene(holding(1))
    scene.until(100_000)
    scene.answer(NEIGHBOURS[0])
    scene.answer(NEIGHBOURS[0], to=scene.bound[0].mac)

    assert scene.reach.deadline_us == NEVER_US
    assert scene.reach.blocked == frozenset()
    assert not scene.host.dirty


def test_answers_to_the_nic_alone_mean_blocked_and_it_is_said_once() -> None:
    scene = Scene(holding(1))
    scene.until(100_000)
    scene.answer(NEIGHBOURS[0])
    scene.until(3_599_999)
    assert scene.reach.blocked == frozenset()

    scene.until(3_600_000)
    assert scene.reach.blocked == {scene.bound[0].mac}
    assert scene.host.dirty
    assert scene.said() == ["warning"]

    scene.until(3_600_000 + AGAIN_US + 100_000)
    scene.answer(NEIGHBOURS[1])
    scene.until(2 * AGAIN_US)
    assert scene.said() == []
    assert scene.reach.blocked == {scene.bound[0].mac}


def test_an_answer_at_last_is_told_at_once() -> None:
    scene = Scene(holding(1))
    scene.until(100_000)
    scene.answer(NEIGHBOURS[0])
    scene.until(AGAIN_US)
    scene.host.dirty = False
    scene.answer(NEIGHBOURS[0], to=scene.bound[0].mac)

    assert scene.reach.blocked == frozenset()
    assert scene.host.dirty
    assert scene.said()[-1] == "info"
    assert scene.reach.deadline_us == NEVER_US


@pytest.mark.parametrize("who", ["nobody", "somebody who was not asked", "one who answered before"])
def test_without_an_answer_of_those_who_were_asked_nothing_is_known(who: str) -> None:
    scene = Scene(holding(1), targets=NEIGHBOURS[:2])
    if who == "one who answered before":
        scene.now = -1
        scene.answer(NEIGHBOURS[0])
    scene.until(200_000)
    if who == "somebody who was not asked":
        scene.answer(NEIGHBOURS[5])
    scene.until(AGAIN_US)
    assert scene.reach.blocked == frozenset()

    frames = scene.until(3_600_000 + AGAIN_US + 100_000)
    assert by(frames, scene.bound[0].mac) == [mac for mac, _ in NEIGHBOURS[:2]]


def test_an_ipv4_answer_says_nothing_of_an_ipv6_virtual_mac() -> None:
    """Only those whom it could ask count: no IPv6 neighbour is known here."""
    scene = Scene(holding(1, six=True))
    frames = scene.until(100_000)
    scene.now = 200_000
    scene.answer(NEIGHBOURS[0])
    scene.until(AGAIN_US)

    assert frames == []
    assert scene.reach.blocked == frozenset()


def test_255_virtual_macs_ask_no_more_than_256_questions_a_round() -> None:
    scene = Scene(*(holding(number) for number in range(1, 256)))
    frames = scene.until(100_000)

    assert len({frame[6:12] for frame in frames if frame[6:12] != MAC}) == 255
    assert len(frames) <= MOST_QUESTIONS + len(NEIGHBOURS)


def test_one_log_line_for_many_macs_however_they_come_back() -> None:
    scene = Scene(*(holding(number) for number in range(1, 101)))
    scene.until(100_000)
    scene.answer(NEIGHBOURS[0])
    scene.until(3_600_000)
    assert scene.said() == ["warning"]
    (fact,) = (dict(effect.facts)["macs"] for effect in scene.host.out if isinstance(effect, do.Log))
    assert len(str(fact)) < 200

    scene.host.out.clear()
    for each in scene.bound:
        scene.answer(NEIGHBOURS[0], to=each.mac)
    assert scene.said() == ["info"]


def test_a_mac_that_is_no_longer_ours_is_neither_tried_nor_blocked() -> None:
    scene = Scene(holding(1), holding(2))
    scene.until(100_000)
    scene.answer(NEIGHBOURS[0])
    scene.until(3_600_000)
    scene.bound = [holding(1, mac=9)]
    frames = scene.until(3_600_000 + AGAIN_US + 4 * SECOND)

    assert {frame[6:12] for frame in frames} == {MAC, scene.bound[0].mac}
    assert scene.reach.blocked == frozenset()
    assert "info" not in scene.said()


def test_a_new_mac_is_tried_and_those_that_were_reached_are_not() -> None:
    scene = Scene(holding(1))
    scene.until(100_000)
    scene.answer(NEIGHBOURS[0], to=scene.bound[0].mac)
    scene.bound.append(holding(2))
    scene.reach.begin(scene.bound, scene.now)
    frames = scene.until(scene.now + 100_000)

    assert {frame[6:12] for frame in frames} == {MAC, scene.bound[1].mac}


def test_what_is_no_longer_held_is_not_blocked_and_nothing_is_said_of_the_network() -> None:
    scene = Scene(holding(1))
    scene.until(100_000)
    scene.answer(NEIGHBOURS[0])
    scene.until(3_600_000)
    scene.host.out.clear()
    scene.reach.clear()

    assert scene.reach.blocked == frozenset()
    assert scene.reach.deadline_us == NEVER_US
    assert scene.said() == []


def test_a_late_wake_up_makes_up_for_nothing() -> None:
    scene = Scene(holding(1))
    scene.now = 10 * SECOND
    scene.reach.wake(scene.nic, scene.bound, scene.targets, scene.now)

    assert scene.reach.deadline_us == 10 * SECOND + 100_000
