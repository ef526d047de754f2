# SPDX-License-Identifier: Apache-2.0
"""Going without a gap: orders read once, offers each ten seconds, a second for what is ceded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_api.conditions import Reason
from holdfast_api.types import Handover
from holdfast_speaker.node.departure import Departure
from holdfast_speaker.units import NEVER_US

SECOND = 1_000_000
EXTEND = 90_000
ORDER = Handover("h1", "a", "b")


@pytest.mark.parametrize(
    ("known", "order", "obeyed"),
    [
        (None, ORDER, True),
        (None, None, False),
        (None, Handover("h1", "b", "a"), False),  # to us, not from us
        (ORDER, ORDER, False),  # older than we are
        (ORDER, Handover("h2", "a", "b"), True),
        (Handover("h2", "c", "b"), ORDER, True),
    ],
)
def test_an_order_is_obeyed_by_the_one_it_is_for(
    known: Handover | None, order: Handover | None, *, obeyed: bool
) -> None:
    assert Departure(known).ordered(order, "a") is obeyed


@pytest.mark.parametrize("node", ["a", "b", "c"])
def test_an_order_is_read_once_also_by_whom_it_is_not_for(node: str) -> None:
    departure = Departure(None)
    departure.ordered(ORDER, node)

    assert departure.order == "h1"
    assert not departure.ordered(ORDER, "a")
    assert not departure.ordered(None, "a")
    assert not departure.ordered(ORDER, "a")


@pytest.mark.parametrize(
    ("reason", "offers"),
    [
        (Reason.STOPPING, True),
        (Reason.NOT_CANDIDATE, True),
        (Reason.NO_CARRIER, False),
        (Reason.NO_INTERFACE_ON_SUBNET, False),
        (Reason.INVALID_PLAN, False),
        (Reason.STARTING, False),
    ],
)
def test_without_a_segment_there_is_no_hand_over(reason: Reason, *, offers: bool) -> None:
    assert Departure(None).offers(reason) is offers


def test_leaving_is_offered_once_for_each_reason() -> None:
    departure = Departure(None)

    assert departure.go(Reason.NOT_CANDIDATE, 0)
    assert not departure.go(Reason.NOT_CANDIDATE, 1)
    assert departure.go(Reason.STOPPING, 2)
    departure.stay()
    assert departure.reason is None
    assert departure.go(Reason.STOPPING, 3)


def test_who_is_no_candidate_offers_again_each_ten_seconds_and_stays_meanwhile() -> None:
    departure = Departure(None)
    departure.go(Reason.NOT_CANDIDATE, 0)

    assert departure.refused(5) is None
    assert departure.deadline_us == 10 * SECOND + 5
    assert departure.wake(10 * SECOND + 4, extend_us=EXTEND) is None
    assert departure.wake(10 * SECOND + 5, extend_us=EXTEND) == "offer"
    assert departure.deadline_us == NEVER_US
    departure.refused(11 * SECOND)
    departure.stay()
    assert departure.deadline_us == NEVER_US


def test_who_wants_to_go_and_had_to_take_it_again_offers_it_once_more() -> None:
    departure = Departure(None)
    departure.again(5)
    assert departure.deadline_us == NEVER_US

    departure.go(Reason.STOPPING, 6)
    departure.again(7)
    assert departure.wake(7, extend_us=EXTEND) == "offer"
    assert departure.wake(8, extend_us=EXTEND) is None


def test_who_stops_offers_it_for_a_second_and_then_goes_even_if_nobody_wanted_it() -> None:
    departure = Departure(None)
    departure.go(Reason.STOPPING, 7)

    assert departure.refused(SECOND + 6) is None
    assert departure.wake(SECOND + 6, extend_us=EXTEND) == "offer"
    assert departure.refused(SECOND + 7) is Reason.STOPPING
    assert departure.deadline_us == NEVER_US


def test_an_order_nobody_carried_out_is_no_reason_to_go() -> None:
    departure = Departure(None)
    departure.ordered(ORDER, "a")

    assert departure.refused(5) is None
    assert departure.deadline_us == NEVER_US


def test_what_is_ceded_is_kept_alive_for_a_second_and_not_longer() -> None:
    departure = Departure(None)
    departure.cede(7)
    extended, now = [], 0
    while departure.deadline_us != NEVER_US:
        now = departure.deadline_us
        due = departure.wake(now, extend_us=EXTEND)
        assert due in ("extend", "over")
        if due == "extend":
            extended.append(now)

    assert extended == [7 + EXTEND * count for count in range(12)]
    assert now == SECOND + 7
    assert not departure.ceding


@given(
    st.lists(
        st.tuples(st.sampled_from(["cede", "over", "refused", "stay", "wake"]), st.integers(0, 3 * SECOND)),
        max_size=40,
    ),
    st.integers(0, 10_000),
)
def test_no_deadline_is_left_in_the_past(steps: list[tuple[str, int]], extend_us: int) -> None:
    """However late it is woken, a few turns put everything right."""
    departure, now = Departure(None), 0
    departure.go(Reason.NOT_CANDIDATE, now)
    for step, later in steps:
        now += later
        match step:
            case "cede":
                departure.cede(now)
            case "over":
                departure.over()
            case "refused":
                departure.refused(now)
            case "stay":
                departure.stay()
            case _:
                turns = [departure.wake(now, extend_us=extend_us) for _ in range(3)]
                assert turns[-1] is None
                assert departure.deadline_us > now
