# SPDX-License-Identifier: Apache-2.0
"""When a Backup asks, what an answer is worth, and when it is itself that is cut off."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_speaker.node.doubt import Doubt
from holdfast_speaker.units import NEVER_US
from holdfast_speaker.vrrp.timing import active_down_us

MS = 1_000
SECOND = 1_000_000


def asked(doubt: Doubt, until_us: int) -> list[int]:
    """When it asks, woken punctually."""
    times = []
    while doubt.deadline_us <= until_us:
        now = doubt.deadline_us
        assert doubt.wake(now)
        times.append(now)
    return times


@pytest.mark.parametrize(
    ("interval_ms", "times"),
    [
        (10, [22.5, 27.5, 47.5, 67.5]),
        (20, [45, 55, 75, 95]),
        (40, [90, 110, 150, 190]),
        (100, [225, 275, 375, 475]),
        (1000, [2250, 2750, 3750, 4750]),
    ],
)
def test_it_asks_twice_before_active_down_and_then_each_interval(
    interval_ms: int, times: list[float]
) -> None:
    doubt = Doubt()
    doubt.heard(0, interval_ms * MS)

    assert asked(doubt, int(times[-1] * MS)) == [int(each * MS) for each in times]
    assert sum(each * MS < active_down_us(254, interval_ms * MS) for each in times) == 2


def test_who_never_heard_anybody_asks_nobody() -> None:
    doubt = Doubt()

    assert doubt.deadline_us == NEVER_US
    assert not doubt.wake(10 * SECOND)
    doubt.answered(10 * SECOND)
    assert not doubt.is_heard_elsewhere(10 * SECOND)


@pytest.mark.parametrize("interval_ms", [10, 20, 100, 1000])
def test_whoever_is_answered_each_time_is_held_without_a_gap(interval_ms: int) -> None:
    doubt = Doubt()
    doubt.heard(0, interval_ms * MS)
    for count in range(20):
        now = doubt.deadline_us
        assert count == 0 or doubt.is_heard_elsewhere(now)
        doubt.wake(now)
        doubt.answered(now + MS)


def test_an_advert_puts_the_question_off() -> None:
    doubt = Doubt()
    for now in range(0, 1000 * MS, 100 * MS):
        doubt.heard(now, 100 * MS)
        assert not doubt.wake(now + 199 * MS)


def test_an_answer_holds_for_five_intervals() -> None:
    doubt = Doubt()
    doubt.heard(0, 100 * MS)
    doubt.wake(225 * MS)
    doubt.answered(230 * MS)

    assert doubt.is_heard_elsewhere(729 * MS)
    assert not doubt.is_heard_elsewhere(730 * MS)


@pytest.mark.parametrize("end", ["heard", "clear"])
def test_an_answer_is_worth_nothing_after_the_active_spoke(end: str) -> None:
    doubt = Doubt()
    doubt.heard(0, 100 * MS)
    doubt.wake(225 * MS)
    doubt.answered(230 * MS)
    if end == "heard":
        doubt.heard(240 * MS, 100 * MS)
    else:
        doubt.clear()
    doubt.answered(250 * MS)

    assert not doubt.is_heard_elsewhere(260 * MS)


@pytest.mark.parametrize(
    ("anybody_ms", "company", "now_ms", "isolated"),
    [
        (224, True, 303, True),
        (224, True, 3224, True),
        (224, True, 3225, False),  # three seconds from the first question on
        (225, True, 303, False),  # somebody spoke since
        (224, False, 303, False),  # nobody was there to be missed
    ],
)
def test_it_is_cut_off_where_others_used_to_be_heard_and_nobody_is(
    anybody_ms: int, now_ms: int, *, company: bool, isolated: bool
) -> None:
    doubt = Doubt()
    doubt.heard(0, 100 * MS)
    asked(doubt, now_ms * MS)

    assert doubt.is_isolated(now_ms * MS, anybody_us=anybody_ms * MS, company=company) is isolated


def test_nobody_is_cut_off_before_it_has_asked() -> None:
    doubt = Doubt()
    doubt.heard(0, 100 * MS)

    assert not doubt.is_isolated(200 * MS, anybody_us=-NEVER_US, company=True)


@given(
    st.lists(
        st.tuples(st.sampled_from(["heard", "answered", "wake", "clear"]), st.integers(0, SECOND)),
        max_size=60,
    ),
    st.integers(1, 4095).map(lambda number: number * 10 * MS),
)
def test_no_deadline_is_left_in_the_past_and_nothing_holds_for_ever(
    steps: list[tuple[str, int]], interval_us: int
) -> None:
    doubt, now = Doubt(), 0
    for step, later in steps:
        now += later
        match step:
            case "heard":
                doubt.heard(now, interval_us)
            case "answered":
                doubt.answered(now)
            case "clear":
                doubt.clear()
            case _:
                doubt.wake(now)
                assert doubt.deadline_us > now
        assert not doubt.is_heard_elsewhere(now + 5 * interval_us)
        assert not doubt.is_isolated(now + 3 * SECOND, anybody_us=-NEVER_US, company=True)
