# SPDX-License-Identifier: Apache-2.0
"""Adverts under a key: forged, replayed, reordered and stale ones are refused; rotation loses none."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_speaker.vrrp import trailer as layout
from holdfast_speaker.vrrp.advert import Advert, Discard, build, parse
from holdfast_speaker.vrrp.keyring import RETIRING_US, SETTLING_US, Keyring
from holdfast_speaker.vrrp.seal import MOST_SENDERS, Mode, Seal
from tests.unit.speaker.test_trailer import FOUR, MAC, SIX

S = 1_000_000
UTC = 1_750_000_000 * S
KEY, NEXT = b"k" * 32, b"n" * 32
NOW = 1000 * S
WINDOW = 5 * S  # of an advert each 100 ms


def seal(mode: Mode = "enforce", /, offset_us: int = UTC, **secrets: bytes) -> Seal:
    """Its keys as k1=..., k2=...; settled."""
    made = Seal(mode, wall_offset_us=offset_us)
    made.keyring.renew({int(name[1:]): key for name, key in (secrets or {"k1": KEY}).items()}, NOW - 3600 * S)
    return made


def heard(frame: bytes) -> Advert:
    advert = parse(frame)
    assert isinstance(advert, Advert)
    return advert


def sent(sender: Seal, now_us: int = NOW, advert: Advert = FOUR) -> Advert:
    return heard(sender.sign(advert, MAC, now_us))


@pytest.mark.parametrize("advert", [FOUR, SIX, replace(FOUR, rfc_checksum=True)])
def test_what_one_signs_the_other_obeys(advert: Advert) -> None:
    assert seal().check(sent(seal(), advert=advert), NOW) is None


# --- forged ---------------------------------------------------------------------------------------


def mended(frame: bytes) -> bytes:
    """The frame with all checksums right, as a forger would send it."""
    whole = bytearray(frame)
    four = whole[12:14] == b"\x08\x00"
    start, end = (34, len(whole) - 28) if four else (54, len(whole))
    if four:
        whole[24:26] = b"\0\0"
        whole[24:26] = (0xFFFF - int.from_bytes(whole[14:34]) % 0xFFFF).to_bytes(2, "big")
    addresses = bytes(whole[26:34] if four else whole[22:54])
    whole[start + 6 : start + 8] = b"\0\0"
    total = int.from_bytes(addresses) + 112 + end - start + int.from_bytes(whole[start:end])
    whole[start + 6 : start + 8] = (0xFFFF - total % 0xFFFF).to_bytes(2, "big")
    return bytes(whole)


@pytest.mark.parametrize("advert", [FOUR, SIX], ids=["IPv4", "IPv6"])
def test_no_bit_of_the_message_the_trailer_or_the_source_can_be_flipped(advert: Advert) -> None:
    frame = seal().sign(advert, MAC, NOW)
    start, source = (34, range(26, 30)) if advert.family == 4 else (54, range(22, 38))
    answers = []
    assert mended(frame) == frame
    for at in [*source, *range(start, start + 6), *range(start + 8, len(frame))]:
        for bit in range(8):
            forged = bytearray(frame)
            forged[at] ^= 1 << bit
            read = parse(mended(bytes(forged)))
            answers.append(read if isinstance(read, Discard) else seal().check(read, NOW))

    assert None not in answers
    assert {Discard.BAD_MAC, Discard.STALE, Discard.UNKNOWN_KEY, Discard.TRAILING} <= set(answers)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (replace(FOUR, source=bytes((10, 0, 0, 2))), "another sender"),
        (replace(FOUR, virtual_router_id=52), "another router"),
        (replace(FOUR, priority=255), "another priority"),
        (replace(FOUR, priority=0), "a resignation"),
        (replace(FOUR, interval_us=40_950_000), "a wider window"),
        (replace(FOUR, listed=FOUR.listed[:4]), "a shorter list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_trailer_fits_no_other_advert(other: Advert, why: str) -> None:
    assert why
    assert seal().check(replace(other, trailer=sent(seal()).trailer), NOW) is Discard.BAD_MAC


def test_each_refusal_has_its_own_name() -> None:
    good = sent(seal())
    assert seal().check(FOUR, NOW) is Discard.UNSIGNED
    assert seal().check(replace(good, trailer=b"\2" + good.trailer[1:]), NOW) is Discard.TRAILING
    assert seal(k2=KEY).check(good, NOW) is Discard.UNKNOWN_KEY
    assert seal(k1=NEXT).check(good, NOW) is Discard.BAD_MAC
    assert seal().check(good, NOW + WINDOW + S) is Discard.STALE
    assert seal().check(good, NOW - WINDOW - S) is Discard.STALE


def test_permissive_signs_and_obeys_what_proves_nothing_but_no_forgery() -> None:
    permissive, good = seal("permissive"), sent(seal("permissive"))

    assert good.trailer
    assert permissive.check(FOUR, NOW) in permissive.tolerates
    assert permissive.check(sent(seal(k2=NEXT)), NOW) in permissive.tolerates
    assert permissive.check(good, NOW + 3600 * S) in permissive.tolerates
    assert permissive.check(sent(seal(k1=NEXT)), NOW) is Discard.BAD_MAC
    assert permissive.check(good, NOW + 3600 * S) is Discard.REPLAYED
    assert not {Discard.BAD_MAC, Discard.REPLAYED} & permissive.tolerates
    assert not seal("enforce").tolerates


def test_a_stale_forgery_is_still_a_forgery_where_staleness_is_tolerated() -> None:
    assert seal("permissive").check(sent(seal(k1=NEXT)), NOW + 3600 * S) is Discard.BAD_MAC


def test_without_a_key_nothing_is_signed() -> None:
    bare = Seal("permissive", wall_offset_us=UTC)

    assert not bare.signs
    assert bare.sign(FOUR, MAC, NOW) == build(FOUR, MAC)
    assert bare.check(sent(seal()), NOW) is Discard.UNKNOWN_KEY


# --- replayed, reordered, stale -------------------------------------------------------------------


def test_the_same_again_is_a_replay_and_an_earlier_one_too() -> None:
    sender, receiver = seal(), seal()
    first, second, third = (sent(sender, NOW + step * 100_000) for step in range(3))

    assert receiver.check(first, NOW) is None
    assert receiver.check(third, NOW + 200_000) is None
    assert receiver.check(second, NOW + 200_000) is Discard.REPLAYED
    assert receiver.check(third, NOW + 200_000) is Discard.REPLAYED


def test_adverts_of_one_microsecond_are_told_apart() -> None:
    sender, receiver = seal(), seal()

    assert [receiver.check(sent(sender), NOW) for _ in range(100)] == [None] * 100


def test_two_nics_on_one_segment_each_hear_it_once() -> None:
    receiver, advert = seal(), sent(seal())

    assert [receiver.check(advert, NOW, index=index) for index in (2, 3, 2)] == [None, None, Discard.REPLAYED]


def test_staleness_comes_first_and_costs_no_hmac(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver, old = seal(), sent(seal())
    monkeypatch.setattr(layout, "holds", lambda *_: pytest.fail("an HMAC was computed"))

    assert receiver.check(old, NOW + WINDOW + S) is Discard.STALE


def test_a_forgery_moves_no_mark_and_is_remembered_nowhere() -> None:
    receiver, sender = seal(), seal()
    ahead = seal(k1=NEXT, offset_us=UTC + 4 * S)
    assert receiver.check(sent(ahead), NOW) is Discard.BAD_MAC

    assert receiver.check(sent(sender), NOW) is None
    for host in range(50):
        forged = replace(FOUR, source=bytes((10, 0, 1, host)))
        receiver.check(sent(ahead, advert=forged), NOW)
    assert len(receiver._heard) == 1


def test_the_window_is_three_intervals_and_at_least_five_seconds() -> None:
    slow = replace(FOUR, interval_us=10 * S)
    assert seal().check(sent(seal()), NOW + WINDOW - 1000) is None
    assert seal().check(sent(seal()), NOW + WINDOW + 1000) is Discard.STALE
    assert seal().check(sent(seal(), advert=slow), NOW + 30 * S - 1000) is None
    assert seal().check(sent(seal(), advert=slow), NOW + 30 * S + 1000) is Discard.STALE


def test_of_too_many_senders_the_one_heard_longest_ago_is_forgotten() -> None:
    sender, receiver = seal(), seal()
    first, second = (sent(sender, advert=replace(FOUR, source=bytes((10, 0, 0, n)))) for n in (1, 2))
    assert receiver.check(first, NOW) is None
    assert receiver.check(second, NOW) is None
    last = sent(sender)
    assert receiver.check(last, NOW) is None  # the first sender again
    for host in range(MOST_SENDERS - 1):
        other = replace(FOUR, source=bytes((10, 1, host // 256, host % 256)))
        assert receiver.check(sent(sender, NOW, other), NOW) is None

    assert len(receiver._heard) == MOST_SENDERS
    assert receiver.check(last, NOW) is Discard.REPLAYED
    assert receiver.check(second, NOW) is None


@settings(max_examples=100)
@given(st.lists(st.integers(0, 39), min_size=1, max_size=120))
def test_in_any_order_each_advert_counts_at_most_once_and_none_after_a_later_one(order: list[int]) -> None:
    """Loss, duplication and reordering."""
    sender, receiver = seal(), seal()
    adverts = [sent(sender, NOW + step * 100_000) for step in range(40)]
    accepted = [n for n in order if receiver.check(adverts[n], NOW + 4 * S) is None]

    assert all(one < other for one, other in pairwise(accepted))
    assert accepted[-1] == max(order)


# --- clocks ---------------------------------------------------------------------------------------


class Host:
    """A sender and receiver with a clock of its own, which somebody sets."""

    def __init__(self, number: int, skew_us: int) -> None:
        self.seal = seal(offset_us=UTC + skew_us)
        self.advert = replace(FOUR, source=bytes((10, 0, 0, number)))

    def step(self, by_us: int) -> None:
        self.seal.wall_offset_us += by_us

    def send(self, now_us: int) -> Advert:
        return sent(self.seal, now_us, self.advert)


SKEWS = st.lists(st.integers(-200_000, 200_000), min_size=3, max_size=3)
WHEN = st.lists(st.integers(0, 2 * S), min_size=3, max_size=3)


def exchanged(
    by_us: int, skews: list[int], when: list[int], *, seconds: int
) -> Iterator[tuple[int, Advert, list[Host]]]:
    """The time, an advert, and who hears it. Each clock is set by ``by_us`` at its own time.

    The first two of the hosts send each 100 ms, from a second before ``NOW``, to all others.
    """
    hosts = [Host(number, skew) for number, skew in enumerate(skews)]
    waiting = dict(enumerate(when))
    for now_us in range(NOW - S, NOW + seconds * S, 100_000):
        for number, at_us in list(waiting.items()):
            if now_us >= NOW + at_us:
                hosts[number].step(by_us)
                del waiting[number]
        for sender in hosts[:2]:
            yield now_us, sender.send(now_us), [host for host in hosts if host is not sender]


@settings(max_examples=60)
@given(st.integers(-4 * S, 4 * S), SKEWS, WHEN)
def test_a_step_within_the_window_loses_no_advert(by_us: int, skews: list[int], when: list[int]) -> None:
    """All clocks are set, each a little later than the other; two send, all hear."""
    captured: list[Advert] = []
    for now_us, advert, receivers in exchanged(by_us, skews, when, seconds=8):
        for receiver in receivers:
            assert receiver.seal.check(advert, now_us + 300) is None
            for old in captured[-8:]:
                if old.source != receiver.advert.source:
                    assert receiver.seal.check(old, now_us + 300) is not None
        captured.append(advert)


@settings(max_examples=60)
@given(st.integers(-4000 * S, 4000 * S), SKEWS, WHEN)
def test_after_any_step_of_all_clocks_adverts_are_heard_again_within_a_second_and_a_half(
    by_us: int, skews: list[int], when: list[int]
) -> None:
    refused = [
        now_us
        for now_us, advert, receivers in exchanged(by_us, skews, when, seconds=12)
        for receiver in receivers
        if receiver.seal.check(advert, now_us + 300) is not None
    ]

    assert all(NOW <= at_us <= NOW + max(when) + 1_500_000 for at_us in refused)


def test_who_is_alone_with_a_wrong_clock_is_refused_and_heard_again_once_it_is_right() -> None:
    right, wrong = Host(1, 0), Host(2, 0)
    for by_us in (3600 * S, -3600 * S):
        assert right.seal.check(wrong.send(NOW), NOW) is None
        wrong.step(by_us)
        assert right.seal.check(wrong.send(NOW + S), NOW + S) is Discard.STALE
        wrong.step(-by_us)
        assert right.seal.check(wrong.send(NOW + 2 * S), NOW + 2 * S) is None
        right, wrong = Host(1, 0), Host(2, 0)


def test_a_clock_set_back_a_little_never_makes_a_sequence_fall() -> None:
    sender = seal()
    sequences = []
    for step in range(40):
        sender.wall_offset_us = UTC - (step * 37 % 50) * 100_000
        trailer = layout.read(sent(sender, NOW + step * 10_000).trailer)
        assert trailer is not None
        sequences.append(trailer.sequence)

    assert all(layout.distance(other, one) > 0 for one, other in pairwise(sequences))


# --- rotation -------------------------------------------------------------------------------------


def ids(keyring: Keyring, now_us: int) -> tuple[int, bytes] | None:
    key = keyring.signing(now_us)
    return None if key is None else (key.id, key.secret)


@pytest.mark.parametrize(
    ("live", "newest"),
    [((1,), 1), ((1, 2), 2), ((254, 255), 255), ((255, 1), 1), ((254, 255, 1), 1), ((3, 2, 1), 3)],
)
def test_the_newest_key_signs_and_ids_count_on_from_255_to_1(live: tuple[int, ...], newest: int) -> None:
    keyring = Keyring()
    keyring.renew({each: bytes((each,)) * 32 for each in live}, 0)

    assert ids(keyring, SETTLING_US) == (newest, bytes((newest,)) * 32)


def test_a_new_key_is_accepted_at_once_and_signs_when_the_others_have_it() -> None:
    keyring = Keyring()
    keyring.renew({1: KEY}, 0)
    keyring.renew({1: KEY, 2: NEXT}, NOW)

    assert list(keyring.accepted(2, NOW)) == [NEXT]
    assert ids(keyring, NOW + SETTLING_US - 1) == (1, KEY)
    assert ids(keyring, NOW + SETTLING_US) == (2, NEXT)


def test_a_withdrawn_key_is_accepted_for_ten_minutes_more() -> None:
    keyring = Keyring()
    keyring.renew({1: KEY, 2: NEXT}, 0)
    assert keyring.renew({2: NEXT}, NOW)

    assert list(keyring.accepted(1, NOW + RETIRING_US - 1)) == [KEY]
    assert list(keyring.accepted(1, NOW + RETIRING_US)) == []
    assert ids(keyring, NOW) == (2, NEXT)


def test_a_key_replaced_under_its_id_signs_late_too() -> None:
    keyring = Keyring()
    keyring.renew({1: KEY}, 0)
    keyring.renew({1: NEXT}, NOW)

    assert list(keyring.accepted(1, NOW)) == [KEY, NEXT]
    assert ids(keyring, NOW + SETTLING_US - 1) == (1, KEY)
    assert ids(keyring, NOW + SETTLING_US) == (1, NEXT)


def test_while_no_key_is_settled_the_last_one_that_was_goes_on() -> None:
    keyring = Keyring()
    keyring.renew({1: KEY}, 0)
    keyring.renew({2: NEXT}, NOW)
    keyring.renew({3: KEY}, NOW + 100 * S)

    assert ids(keyring, NOW + 100 * S) == (1, KEY)
    assert ids(keyring, NOW + 100 * S + SETTLING_US) == (3, KEY)
    keyring.renew({4: NEXT}, NOW + 401 * S)
    assert ids(keyring, NOW + 401 * S) == (3, KEY)


def test_right_after_a_start_the_first_of_several_that_came_and_went_signs() -> None:
    keyring = Keyring()
    keyring.renew({1: KEY, 2: NEXT}, 0)
    assert ids(keyring, 0) == (1, KEY)
    keyring.renew({2: NEXT}, 1 * S)
    keyring.renew({2: KEY}, 2 * S)

    assert ids(keyring, 2 * S) == (1, KEY)


def test_the_same_keys_again_are_no_news() -> None:
    keyring = Keyring()

    assert keyring.renew({1: KEY}, 0)
    assert not keyring.renew({1: KEY}, NOW)
    assert ids(keyring, SETTLING_US) == (1, KEY)


def test_keys_that_change_without_end_are_not_all_remembered() -> None:
    keyring = Keyring()
    for turn in range(1000):
        keyring.renew({1: turn.to_bytes(32, "big")}, turn)

    assert len(list(keyring.accepted(1, 1000))) == 17


MINUTE = 60 * S


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 255),
    st.lists(st.lists(st.integers(0, 120 * S), min_size=3, max_size=3), min_size=5, max_size=5),
    st.lists(st.integers(10 * MINUTE, 60 * MINUTE), max_size=6),
    st.data(),
)
def test_rotation_with_overlapping_keys_loses_no_advert(
    first: int, delays: list[list[int]], pauses: list[int], data: st.DataObject
) -> None:
    """Two rotations on three nodes; each learns of each change up to two minutes late; nodes restart."""
    second, third = first % 255 + 1, (first + 1) % 255 + 1
    secrets = {each: each.to_bytes(1, "big") * 32 for each in (first, second, third)}
    phases = [(first,), (first, second), (second,), (second, third), (third,)]
    news = [
        (
            phase * 20 * MINUTE + delays[phase][node] * (phase > 0),
            node,
            {each: secrets[each] for each in live},
        )
        for phase, live in enumerate(phases)
        for node in range(3)
    ]
    restarts = []
    at_us = 0
    for pause in pauses:
        at_us += pause
        restarts.append((at_us, data.draw(st.integers(0, 2))))
    rings, mounted = [Keyring() for _ in range(3)], [{first: secrets[first]}] * 3
    for now_us in range(0, 100 * MINUTE, 10 * S):
        for when_us, node, live in news:
            if now_us - 10 * S < when_us <= now_us:
                mounted[node] = live
        for when_us, node in restarts:
            if now_us - 10 * S < when_us <= now_us:
                rings[node] = Keyring()
        for node, keyring in enumerate(rings):
            keyring.renew(mounted[node], now_us)
        for keyring in rings:
            key = keyring.signing(now_us)
            assert key is not None
            assert all(key.secret in other.accepted(key.id, now_us) for other in rings)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 120 * S), min_size=3, max_size=3))
def test_a_key_replaced_in_place_loses_no_advert(delays: list[int]) -> None:
    rings = [Keyring() for _ in range(3)]
    for now_us in range(0, 60 * MINUTE, 10 * S):
        for keyring, delay in zip(rings, delays, strict=True):
            keyring.renew({1: NEXT if now_us >= 20 * MINUTE + delay else KEY}, now_us)
        for keyring in rings:
            key = keyring.signing(now_us)
            assert key is not None
            assert all(key.secret in other.accepted(key.id, now_us) for other in rings)
