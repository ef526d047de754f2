# SPDX-License-Identifier: Apache-2.0
"""Leader election, the decision: whose turn it is."""

import pytest

from holdfast_operator.lease import (
    Create,
    LeaseSpec,
    Observed,
    Renew,
    Take,
    Terms,
    Wait,
    decide,
    observe,
    written,
)

TERMS = Terms()
ME, OTHER = "me", "other"


def seen(
    holder: str | None, *, since_s: float = 0.0, transitions: int | None = 4, duration_s: int | None = 6
) -> Observed:
    return Observed("17", LeaseSpec(holder, duration_s, "then", "then", transitions), since_s)


@pytest.mark.parametrize(
    ("found", "now_s", "wanted"),
    [
        (None, 0.0, Create(1)),
        (seen(ME), 100.0, Renew(4)),
        (seen(OTHER), 5.9, Wait(OTHER)),
        (seen(OTHER), 6.0, Take(5)),
        (seen(OTHER, duration_s=20), 19.0, Wait(OTHER)),
        (seen(OTHER, since_s=50.0), 55.0, Wait(OTHER)),
        (seen(""), 0.0, Take(5)),
        (seen(None, transitions=None), 0.0, Take(1)),
    ],
)
def test_a_lease_is_taken_when_it_is_free_or_was_unchanged_for_its_duration(
    found: Observed | None, now_s: float, wanted: object
) -> None:
    assert decide(found, ME, now_s, floor=0, terms=TERMS) == wanted


def test_a_new_reign_is_above_every_epoch_that_routers_were_planned_with() -> None:
    """A Lease deleted by hand would start at zero, and every write of the new leader be refused."""
    assert decide(None, ME, 0.0, floor=41, terms=TERMS) == Create(42)
    assert decide(seen("", transitions=3), ME, 0.0, floor=41, terms=TERMS) == Take(42)


def test_a_change_of_any_kind_starts_the_wait_anew_and_wall_clocks_play_no_part() -> None:
    first = observe(None, "1", LeaseSpec(OTHER, 6, renew_time="1970-01-01T00:00:00Z"), 10.0)
    same = observe(first, "1", LeaseSpec(OTHER, 6, renew_time="2999-01-01T00:00:00Z"), 13.0)
    changed = observe(same, "2", same.spec, 14.0)

    assert same.unchanged_since_s == 10.0
    assert changed.unchanged_since_s == 14.0


def test_the_leader_stops_believing_in_its_lease_before_the_others_may_take_it() -> None:
    assert TERMS.renew_s < TERMS.hold_s < TERMS.duration_s
    with pytest.raises(ValueError, match="renew < hold < duration"):
        Terms(duration_s=6, hold_s=6, renew_s=2)


def test_a_renewal_keeps_the_time_of_the_acquisition() -> None:
    old = LeaseSpec(ME, 6, "then", "then", 4)

    assert written(Renew(4), ME, "now", TERMS, old)["acquireTime"] == "then"
    assert written(Take(5), ME, "now", TERMS, old) == {
        "holderIdentity": ME,
        "leaseDurationSeconds": 6,
        "acquireTime": "now",
        "renewTime": "now",
        "leaseTransitions": 5,
    }
