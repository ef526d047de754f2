# SPDX-License-Identifier: Apache-2.0
"""Whom a Backup asks, whose answer counts, how often it answers; and when an unheeded Active gives in."""

from collections.abc import Sequence
from typing import Literal

import pytest

from holdfast_api.conditions import Reason
from holdfast_api.types import Candidate, Interface
from holdfast_speaker import effects as do
from holdfast_speaker.events import Link
from holdfast_speaker.node.host import Host
from holdfast_speaker.node.nic import Nic
from holdfast_speaker.node.suspicion import MOST_ASKED, Suspicion
from holdfast_speaker.vrrp.inquiry import ANSWER, QUESTION, Inquiry, build, parse

MS = 1_000
INTERVAL = 100 * MS
OWN_MAC = "02:00:00:00:00:01"
PEER_MAC = bytes.fromhex("020000000002")
THIRD_MAC = bytes.fromhex("020000000003")
NEIGHBOUR = bytes.fromhex("0200000000fe")
OWN, PEER = b"\x0a\0\0\1", b"\x0a\0\0\2"
US = Candidate("a", 250, ("10.0.0.1", "fe80::1"), (OWN_MAC,))
B = Candidate("b", 248, ("10.0.0.2", "fe80::2"), ("02:00:00:00:00:02",))


class Scene:
    """Node a, a Backup that heard its Active at 0 and has asked at 225 ms."""

    def __init__(self, candidates: Sequence[Candidate] = (US, B), *, six: bool = True) -> None:
        self.host = Host("a", 0)
        cidrs = ("10.0.0.1/24", "fe80::1/64") if six else ("10.0.0.1/24",)
        self.nic = Nic(Link(2, Interface("eth0", OWN_MAC, cidrs)), "a")
        self.suspicion = Suspicion(self.host, 51)
        self.suspicion.learn(candidates)
        self.suspicion.heard(0, INTERVAL)

    def ask(self, now_us: int = 225 * MS) -> list[Inquiry]:
        self.suspicion.wake(self.nic, now_us)
        return self.said()

    def said(self) -> list[Inquiry]:
        frames = [effect.frame for effect in self.host.out if isinstance(effect, do.Send)]
        self.host.out.clear()
        return [inquiry for frame in frames if (inquiry := parse(frame)) is not None]

    def hear(self, inquiry: Inquiry, now_us: int, *, hears: bool = True) -> None:
        self.suspicion.inquired(inquiry, PEER_MAC, self.nic, now_us, hears=hears)


def test_every_other_candidate_is_asked_in_both_families_at_its_own_mac() -> None:
    scene = Scene()
    scene.suspicion.wake(scene.nic, 225 * MS)
    frames = [effect.frame for effect in scene.host.out if isinstance(effect, do.Send)]

    assert {frame[:6] for frame in frames} == {PEER_MAC}
    assert [(inquiry.kind, inquiry.family, inquiry.target) for inquiry in scene.said()] == [
        (QUESTION, 4, PEER),
        (QUESTION, 6, b"\xfe\x80" + bytes(13) + b"\2"),
    ]


def test_what_has_no_address_of_a_family_asks_in_the_other() -> None:
    assert [inquiry.family for inquiry in Scene(six=False).ask()] == [4]


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate("c", 1, ("10.0.0.3",), ()),
        Candidate("c", 1, ("10.0.0.3",), ("no MAC",)),
        Candidate("c", 1, ("10.0.0.3",), ("02:00:00:00:00",)),
        Candidate("c", 1, ("no address",), ("02:00:00:00:00:03",)),
        Candidate("c", 1, (), ("02:00:00:00:00:03",)),
    ],
)
def test_who_cannot_be_asked_is_left_out_and_the_others_are_asked(candidate: Candidate) -> None:
    assert {inquiry.target for inquiry in Scene((candidate, US, B), six=False).ask()} == {PEER}


def test_no_more_are_asked_than_fit_a_moment() -> None:
    many = [Candidate(f"n{at}", 1, (f"10.0.0.{at}", f"fe80::{at}"), (OWN_MAC,)) for at in range(2, 100)]

    assert len(Scene(many).ask()) == MOST_ASKED


@pytest.mark.parametrize(
    ("answer", "holds"),
    [
        (Inquiry(ANSWER, 4, PEER, OWN, 51, hears=True), True),
        (
            Inquiry(
                ANSWER, 6, b"\xfe\x80" + bytes(13) + b"\2", b"\xfe\x80" + bytes(13) + b"\1", 51, hears=True
            ),
            True,
        ),
        (Inquiry(ANSWER, 4, PEER, OWN, 51, hears=False), False),
        (Inquiry(QUESTION, 4, PEER, OWN, 51, hears=True), False),
        (Inquiry(ANSWER, 4, b"\x0a\0\0\x4d", OWN, 51, hears=True), False),  # no candidate
        (Inquiry(ANSWER, 4, PEER, b"\x0a\0\0\x4d", 51, hears=True), False),  # to another
    ],
)
def test_only_a_candidates_answer_to_us_holds(answer: Inquiry, *, holds: bool) -> None:
    scene = Scene()
    scene.ask()
    scene.hear(answer, 230 * MS)

    assert scene.suspicion.holds(scene.nic, b"", 310 * MS) is holds
    assert scene.suspicion.reason is (Reason.ACTIVE_HEARD_BY_OTHERS if holds else None)


def test_a_plan_without_the_answerer_makes_him_a_stranger() -> None:
    scene = Scene()
    scene.ask()
    scene.suspicion.learn((US,))
    scene.hear(Inquiry(ANSWER, 4, PEER, OWN, 51, hears=True), 230 * MS)

    assert not scene.suspicion.holds(scene.nic, b"", 310 * MS)


def test_questions_are_answered_and_a_flood_of_them_each_two_milliseconds() -> None:
    scene = Scene()
    answers = 0
    for now in range(0, 100 * MS, 100):
        scene.hear(Inquiry(QUESTION, 4, PEER, OWN, 51), now)
        said = scene.said()
        answers += len(said)
        assert said in ([], [Inquiry(ANSWER, 4, OWN, PEER, 51, hears=True)])

    assert answers == 50


def test_an_answer_is_not_answered() -> None:
    scene = Scene()
    scene.hear(Inquiry(ANSWER, 4, PEER, OWN, 51, hears=True), 5)

    assert scene.said() == []


@pytest.mark.parametrize(
    ("known", "heard_at_ms", "reason"),
    [
        (None, None, None),
        (NEIGHBOUR, None, Reason.ISOLATED),
        (NEIGHBOUR, 226, None),
        (PEER_MAC, None, None),  # the Active alone is no company
        (THIRD_MAC, None, None),  # nor are the other candidates: they may all be dead
    ],
)
def test_who_is_cut_off_says_so(known: bytes | None, heard_at_ms: int | None, reason: Reason | None) -> None:
    scene = Scene((US, B, Candidate("c", 240, ("10.0.0.3",), ("02:00:00:00:00:03",))))
    if known is not None:
        scene.nic.note(b"\xff" * 6 + known, b"\x0a\0\0\xfe", 0)
    scene.ask()
    scene.host.dirty = False
    if heard_at_ms is not None:
        scene.nic.note(b"\xff" * 6 + NEIGHBOUR, b"", heard_at_ms * MS)
    held = scene.suspicion.holds(scene.nic, PEER_MAC, 310 * MS)

    assert (held, scene.suspicion.reason) == (reason is not None, reason)
    assert scene.host.dirty is (reason is not None)
    assert not scene.suspicion.holds(scene.nic, PEER_MAC, 3225 * MS)
    assert scene.suspicion.reason is None


def test_a_neighbour_not_heard_for_ten_minutes_is_not_missed() -> None:
    scene = Scene()
    scene.nic.note(b"\xff" * 6 + NEIGHBOUR, b"\x0a\0\0\xfe", -600_000 * MS)
    scene.ask()

    assert not scene.suspicion.holds(scene.nic, PEER_MAC, 310 * MS)


@pytest.mark.parametrize(
    ("answered_ms", "cedes"),
    [(None, [False] * 5 + [True] * 3), (201, [False] * 8), (199, [False] * 5 + [True] * 3)],
)
def test_an_active_that_is_not_heeded_cedes_unless_somebody_answers(
    answered_ms: int | None, cedes: list[bool]
) -> None:
    """It asks at the third advert of the lesser one, 200 ms after the first."""
    scene = Scene()
    given = []
    for count in range(1, 9):
        now = (count - 1) * INTERVAL
        if answered_ms is not None and now - INTERVAL <= answered_ms * MS < now:
            scene.nic.note(reply(scene), b"\x0a\0\0\xfe", answered_ms * MS)
        given.append(scene.suspicion.unheeded(count, scene.nic, now))

    assert given == cedes
    assert [inquiry.kind for inquiry in scene.said()] == [QUESTION, QUESTION]


def reply(scene: Scene, *, operation: bytes = b"\0\2") -> bytes:
    """The neighbour's ARP to us."""
    arp = b"\x00\x01\x08\x00\x06\x04" + operation + NEIGHBOUR + b"\x0a\0\0\xfe" + scene.nic.mac + OWN
    return scene.nic.mac + NEIGHBOUR + b"\x08\x06" + arp


def test_a_question_to_us_does_not_prove_that_we_are_heard() -> None:
    """A client that misses us asks at our MAC, and the lesser one has asked before it took over."""
    scene = Scene()
    for count in range(1, 6):
        scene.suspicion.unheeded(count, scene.nic, count * INTERVAL)
    scene.nic.note(reply(scene, operation=b"\0\1"), b"\x0a\0\0\xfe", 550 * MS)
    asked = Inquiry(QUESTION, 4, PEER, OWN, 51)
    scene.nic.note(build(asked, mac=PEER_MAC, to_mac=scene.nic.mac), PEER, 550 * MS)

    assert scene.suspicion.unheeded(6, scene.nic, 600 * MS)


@pytest.mark.parametrize("family", [4, 6])
def test_an_answer_proves_that_we_are_heard(family: Literal[4, 6]) -> None:
    scene = Scene()
    said = scene.ask()
    (asked,) = (each for each in said if each.family == family)
    answer = Inquiry(ANSWER, family, asked.target, asked.source, 51, hears=False)
    scene.nic.note(build(answer, mac=PEER_MAC, to_mac=scene.nic.mac), asked.target, 230 * MS)

    assert scene.nic.answered_us == 230 * MS


@pytest.mark.parametrize(
    ("said", "cedes"), [([False], False), ([False, True], True), ([True, False], False)], ids=str
)
def test_an_active_that_only_the_lesser_one_misses_cedes_though_neighbours_answer(
    said: list[bool], *, cedes: bool
) -> None:
    """A deaf one's question tells that it hears nobody: to that one nobody gives way."""
    scene = Scene()
    scene.suspicion.clear()
    for at, hears in enumerate(said):
        scene.hear(Inquiry(QUESTION, 4, PEER, OWN, 51, hears=hears), at * 50 * MS)
    for count in range(1, 6):
        scene.suspicion.unheeded(count, scene.nic, count * INTERVAL)
    scene.nic.note(reply(scene), b"\x0a\0\0\xfe", 550 * MS)

    assert scene.suspicion.unheeded(6, scene.nic, 600 * MS) is cedes


@pytest.mark.parametrize(("heard_ms", "hears"), [(224, False), (226, True)])
def test_the_second_question_tells_whether_anybody_is_heard(heard_ms: int, *, hears: bool) -> None:
    scene = Scene()
    scene.nic.note(b"\xff" * 6 + NEIGHBOUR, b"", 100 * MS)
    first = scene.ask()
    scene.nic.note(b"\xff" * 6 + NEIGHBOUR, b"", heard_ms * MS)
    second = scene.ask(275 * MS)

    assert {inquiry.hears for inquiry in first} == {False}
    assert {inquiry.hears for inquiry in second} == {hears}


def test_nobody_is_asked_twice_for_one_advert_in_two_families() -> None:
    scene = Scene()
    scene.suspicion.unheeded(3, scene.nic, 0)
    scene.suspicion.unheeded(3, scene.nic, 5 * MS)

    assert len(scene.said()) == 2


def test_an_active_that_is_not_heeded_asks_again_each_six_adverts_and_once_answered_it_stays() -> None:
    """A third candidate that hears both may have just come back; answers may be lost later."""
    scene = Scene(six=False)
    asked = []
    for count in range(1, 17):
        now = count * INTERVAL
        given = {scene.suspicion.unheeded(count, scene.nic, now + late) for late in (0, 1 * MS)}
        assert given == {False}
        asked += [count] * len(scene.said())
        if count == 3:
            scene.nic.note(reply(scene), b"\x0a\0\0\xfe", now + 50 * MS)

    assert asked == [3, 9, 15]


C = Candidate("c", 246, ("10.0.0.3", "fe80::3"), ("02:00:00:00:00:03",))
THIRD = b"\x0a\0\0\3"


class Between(Scene):
    """Node a hears the adverts of b and of c: b at 1 s, c at 1 s and ``apart_ms``."""

    def __init__(self, apart_ms: int = 50) -> None:
        super().__init__((US, B, C))
        self.suspicion.heard(1_000 * MS, INTERVAL, PEER)
        self.suspicion.heard((1_000 + apart_ms) * MS, INTERVAL, THIRD)

    def asked(self, now_ms: int = 1_060) -> list[Inquiry]:
        """What a says when b asks, besides the answer."""
        self.hear(Inquiry(QUESTION, 4, PEER, OWN, 51), now_ms * MS)
        return [inquiry for inquiry in self.said() if inquiry.kind == QUESTION]

    def answered(self, now_ms: int = 1_061, *, hears: bool = True, source: bytes = THIRD) -> list[Inquiry]:
        self.hear(Inquiry(ANSWER, 4, source, OWN, 51, hears=hears), now_ms * MS)
        return self.said()


def test_an_active_that_asks_is_told_when_the_other_one_hears_us() -> None:
    """The other one misses it alone, but has no reason to ask: he is Active himself."""
    scene = Between()

    assert scene.asked() == [Inquiry(QUESTION, 4, OWN, THIRD, 51, hears=False)]
    assert scene.answered() == [Inquiry(QUESTION, 4, OWN, PEER, 51, hears=True)]
    assert scene.answered() == []


@pytest.mark.parametrize(("now_ms", "asks"), [(1_060, True), (1_149, True), (1_150, False), (1_225, False)])
def test_who_has_not_spoken_for_one_and_a_half_intervals_is_no_active(now_ms: int, *, asks: bool) -> None:
    assert bool(Between().asked(now_ms)) is asks


@pytest.mark.parametrize("apart_ms", [-100, -1_000])
def test_one_active_alone_is_asked_for_nobody(apart_ms: int) -> None:
    assert Between(apart_ms).asked() == []


@pytest.mark.parametrize(
    ("now_ms", "hears", "source"), [(1_061, False, THIRD), (1_061, True, PEER), (1_211, True, THIRD)]
)
def test_who_is_deaf_or_late_or_asked_himself_is_told_of_to_nobody(
    now_ms: int, source: bytes, *, hears: bool
) -> None:
    scene = Between()
    scene.asked()
    scene.suspicion.heard(1_150 * MS, INTERVAL, PEER)
    scene.suspicion.heard(1_150 * MS, INTERVAL, THIRD)

    assert scene.answered(now_ms, hears=hears, source=source) == []


def test_an_active_has_nobody_between_whom_it_stands() -> None:
    scene = Between()
    scene.suspicion.clear()

    assert scene.asked() == []


def test_a_flood_of_questions_is_passed_on_each_ten_milliseconds() -> None:
    scene = Between()

    assert sum(len(scene.asked(now_ms)) for now_ms in range(1_050, 1_100)) == 5
