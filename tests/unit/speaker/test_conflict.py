# SPDX-License-Identifier: Apache-2.0
"""Somebody claims what is held: one burst a second, told at once or after two seconds, over after five."""

import pytest

from holdfast_api.types import MOST_CONFLICTS, Interface
from holdfast_speaker import effects as do
from holdfast_speaker.events import Link
from holdfast_speaker.node.address import Holding
from holdfast_speaker.node.conflict import Conflicts
from holdfast_speaker.node.host import Host
from holdfast_speaker.node.nic import Nic
from holdfast_speaker.units import NEVER_US

SECOND = 1_000_000
STRANGER, OTHER, PEER = "02:99:00:00:00:01", "02:99:00:00:00:02", "02:00:00:00:00:02"


OWN = "02:aa:00:00:00:64"


class Scene:
    """A router that holds 10.0.0.100 on eth0."""

    def __init__(self) -> None:
        self.host = Host("a", 0, dirty=False)
        self.nic = Nic(Link(2, Interface("eth0", "02:00:00:00:00:01", ("10.0.0.1/24",))), "a")
        self.conflicts = Conflicts(self.host, "vr-51")
        self.holding = Holding("10.0.0.100")
        self.holding.mac = bytes.fromhex(OWN.replace(":", ""))

    def claim(self, mac: str, now_us: int, holding: Holding | None = None) -> None:
        self.conflicts.claimed(holding or self.holding, mac, self.nic, peer=mac == PEER, now_us=now_us)

    def reported(self) -> list[tuple[str, str]]:
        return [(each.mac, each.reason) for each in self.conflicts.report()]

    def counted(self) -> int:
        return sum(isinstance(effect, do.Count) for effect in self.host.out)


def test_nothing_is_to_be_done_while_nobody_claims_anything() -> None:
    scene = Scene()

    assert scene.conflicts.deadline_us == NEVER_US
    scene.conflicts.wake(SECOND, scene.nic)
    scene.conflicts.clear()
    assert (scene.host.out, scene.host.dirty) == ([], False)


def test_a_flood_of_claims_makes_one_burst_a_second() -> None:
    scene = Scene()
    bursts = 0
    for now in range(0, 3 * SECOND, 1_000):
        scene.nic.announcer.stop([scene.holding.address])
        before = len(scene.nic.announcer)
        scene.claim(STRANGER, now)
        bursts += len(scene.nic.announcer) > before

    assert bursts == scene.counted() == 3


@pytest.mark.parametrize(
    ("claims", "told"),
    [
        ([(STRANGER, 0)], [(STRANGER, "AddressClaimed")]),
        ([(PEER, 0)], []),
        ([(PEER, 0), (PEER, 2 * SECOND - 1)], []),
        ([(PEER, 0), (PEER, 2 * SECOND)], [(PEER, "AddressClaimedByPeer")]),
        ([(PEER, 0), (STRANGER, 1)], [(STRANGER, "AddressClaimed")]),
        ([(STRANGER, 0), (PEER, 3 * SECOND)], [(STRANGER, "AddressClaimed")]),
        ([(STRANGER, 0), (OTHER, 1)], [(OTHER, "AddressClaimed")]),
        ([(OWN, 0)], []),
        ([(OWN, 0), (OWN, 2 * SECOND - 1)], []),
        ([(OWN, 0), (OWN, 2 * SECOND)], [(OWN, "MACDoubled")]),
        ([(OWN, 0), (STRANGER, 1)], [(STRANGER, "AddressClaimed")]),
        ([(STRANGER, 0), (OWN, 3 * SECOND)], [(STRANGER, "AddressClaimed")]),
    ],
)
def test_a_stranger_is_told_of_at_once_and_a_peer_who_goes_on(
    claims: list[tuple[str, int]], told: list[tuple[str, str]]
) -> None:
    scene = Scene()
    for mac, now in claims:
        scene.claim(mac, now)

    assert scene.reported() == told
    assert scene.host.dirty is bool(told)


def test_the_worse_news_is_told_and_two_strangers_do_not_flap_the_report() -> None:
    scene = Scene()
    scene.claim(PEER, 0)
    scene.claim(PEER, 2 * SECOND)
    scene.host.dirty = False
    scene.claim(STRANGER, 2 * SECOND + 1)
    assert scene.host.dirty

    scene.host.dirty = False
    for now in range(3 * SECOND, 4 * SECOND, 1000):
        scene.claim((STRANGER, OTHER, PEER)[now // 1000 % 3], now)
    assert not scene.host.dirty


def test_a_doubled_mac_is_no_candidates_claim_though_a_candidate_sent_it() -> None:
    scene = Scene()
    for now in (0, 2 * SECOND):
        scene.conflicts.claimed(scene.holding, OWN, scene.nic, peer=True, now_us=now)

    assert scene.reported() == [(OWN, "MACDoubled")]


def test_it_asks_each_second_and_is_over_five_seconds_after_the_last_claim() -> None:
    scene = Scene()
    scene.claim(STRANGER, 0)
    scene.claim(STRANGER, 400_000)
    probes, now = [], 0
    while scene.conflicts.deadline_us != NEVER_US:
        now = scene.conflicts.deadline_us
        scene.host.out.clear()
        scene.host.dirty = False
        scene.conflicts.wake(now, scene.nic)
        probes += [now for effect in scene.host.out if isinstance(effect, do.Announce)]

    assert probes == [SECOND * count for count in range(1, 6)]
    assert now == 6 * SECOND  # looked at each second
    assert scene.host.dirty
    assert scene.reported() == []


def test_a_conflict_that_is_over_begins_anew() -> None:
    scene = Scene()
    scene.claim(PEER, 0)
    scene.claim(PEER, 2 * SECOND)
    scene.conflicts.wake(7 * SECOND, scene.nic)
    scene.claim(PEER, 8 * SECOND)

    assert scene.reported() == []


@pytest.mark.parametrize("end", ["no NIC", "clear"])
def test_what_is_no_longer_held_is_no_conflict(end: str) -> None:
    scene = Scene()
    scene.claim(STRANGER, 0)
    scene.host.dirty = False
    if end == "clear":
        scene.conflicts.clear()
    else:
        scene.conflicts.wake(SECOND, None)

    assert scene.host.dirty
    assert scene.conflicts.deadline_us == NEVER_US
    assert scene.reported() == []


def test_the_report_has_room_for_so_many() -> None:
    scene = Scene()
    for number in range(255):
        scene.claim(STRANGER, number, Holding(f"10.0.1.{number}"))
    told = [each.address for each in scene.conflicts.report()]

    assert len(told) == MOST_CONFLICTS
    assert told == sorted(told)
