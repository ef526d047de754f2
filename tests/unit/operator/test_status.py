# SPDX-License-Identifier: Apache-2.0
"""What a VirtualIP's status says, and which Events go with it."""

from dataclasses import replace

import msgspec
import pytest

from holdfast_api.conditions import ConditionType, Reason
from holdfast_api.types import (
    FailedAddress,
    ReportedConflict,
    RouterState,
    Transition,
    VirtualIPStatus,
)
from holdfast_operator import status
from holdfast_operator.candidates import home_order
from holdfast_operator.changes import status_changes
from holdfast_operator.notices import LONGEST_NOTE, Notice, event_body, notices
from holdfast_operator.plan import plan
from holdfast_operator.world import World
from tests.unit.operator.worlds import (
    NOW,
    SINCE,
    applied,
    changed,
    hearing,
    live_through,
    only,
    report,
    reporting,
    settled,
    vip,
    world,
)

LATER = "2026-11-22T11:00:00Z"


def told(start: World, now: str = LATER) -> VirtualIPStatus:
    return status.fold(start, plan(start), now)["default", "a"]


def said(found: VirtualIPStatus, kind: ConditionType) -> tuple[str, str]:
    condition = next(c for c in found.conditions if c.type == kind)
    return condition.status, condition.reason


def ready(start: World) -> tuple[str, str]:
    return said(told(start), ConditionType.READY)


@pytest.fixture
def start() -> World:
    """One VirtualIP that runs."""
    return live_through(world(3, [vip("a", "192.0.2.1")]))


def test_all_four_conditions_are_always_there_in_one_order(start: World) -> None:
    for each in (start, world(3, [vip("a", "192.0.2.1")]), world(0, [vip("a", pool="p")])):
        assert [c.type for c in told(each).conditions] == ["Accepted", "Scheduled", "Ready", "Conflict"]


def test_the_status_tells_plan_and_holder(start: World) -> None:
    found = told(start)
    leader, *standbys = home_order(only(start))

    assert found.leader == leader
    assert found.standbys == tuple(standbys)
    assert [(h.node, h.interface) for h in found.active] == [(leader, "eth0")]
    assert ready(start) == ("True", Reason.HELD)


def test_what_did_not_change_is_not_written_and_keeps_its_time(start: World) -> None:
    assert status_changes(start, status.fold(start, plan(start), LATER)) == ()


def test_only_a_changed_status_moves_the_transition_time(start: World) -> None:
    edited = changed(start, vip("a", "192.0.2.1", interval_ms=200))
    conditions = {c.type: c for c in told(edited).conditions}
    gone = told(replace(start, speakers={}))

    assert conditions["Accepted"].observed_generation == 2
    assert conditions["Accepted"].last_transition_time == NOW
    assert next(c for c in gone.conditions if c.type == "Ready").last_transition_time == LATER


def test_before_the_active_has_read_the_plan_it_is_claiming() -> None:
    fresh = settled(world(3, [vip("a", "192.0.2.1")]))
    router = only(fresh)
    leader = home_order(router)[0]

    assert ready(fresh) == ("False", Reason.NOT_HELD)
    assert ready(reporting(fresh, [(leader, report(router, leader, held=(), behind=1))])) == (
        "False",
        Reason.CLAIMING,
    )
    assert ready(reporting(fresh, [(leader, report(router, leader, held=()))])) == ("False", Reason.CLAIMING)


@pytest.mark.parametrize(
    ("word", "want_ready", "want_conflict"),
    [
        ("AddressAnswered", ("False", Reason.ADDRESS_ANSWERED), ("True", Reason.ADDRESS_ANSWERED)),
        ("ListedElsewhere", ("False", Reason.LISTED_ELSEWHERE), ("True", Reason.LISTED_ELSEWHERE)),
        ("BindFailed", ("False", Reason.BIND_FAILED), ("False", Reason.NO_CONFLICT)),
        ("FromTheFuture", ("False", Reason.BIND_FAILED), ("False", Reason.NO_CONFLICT)),
    ],
)
def test_an_address_that_the_active_could_not_take_says_why(
    start: World, word: str, want_ready: tuple[str, Reason], want_conflict: tuple[str, Reason]
) -> None:
    router = only(start)
    leader = home_order(router)[0]
    failed = (FailedAddress("192.0.2.1", word, "02:99:00:00:00:01 has it"),)
    after = reporting(start, [(leader, report(router, leader, held=(), failed=failed))])

    assert ready(after) == want_ready
    assert said(told(after), ConditionType.CONFLICT) == want_conflict
    assert "02:99" in next(c for c in told(after).conditions if c.type == "Ready").message


def test_a_silent_holder_leaves_it_unknown_unless_a_live_standby_hears_it(start: World) -> None:
    router = only(start)
    leader, standby, _ = home_order(router)
    silent = replace(start, live=frozenset(start.nodes) - {leader})
    heard = reporting(
        silent, [(standby, report(router, standby, "Backup", hears=router.spec.candidates[0].sources[0]))]
    )

    assert ready(silent) == ("Unknown", Reason.SPEAKER_SILENT)
    assert [h.node for h in told(silent).active] == [leader]
    assert ready(heard) == ("True", Reason.HELD)


def test_after_a_crash_only_the_new_active_is_listed_though_the_dead_ones_lease_still_runs(
    start: World,
) -> None:
    router = only(start)
    leader, standby, _ = home_order(router)
    story = Transition(
        standby, "ActiveSilent", "2026-11-22T10:30:00.123456Z", from_=leader, detection_milliseconds=303
    )
    after = reporting(start, [(standby, report(router, standby, term=2, transition=story))])
    after = replace(after, taken_at={(router.metadata.name, standby): 100.0}, alive_at={leader: 99.0})

    assert [h.node for h in told(after).active] == [standby]
    assert told(after).last_failover == story
    assert ready(after) == ("True", Reason.HELD)


def test_two_that_both_live_on_are_both_listed(start: World) -> None:
    router = only(start)
    leader, standby, _ = home_order(router)
    after = reporting(start, [(standby, report(router, standby, term=2))])
    after = replace(after, taken_at={(router.metadata.name, standby): 100.0}, alive_at={leader: 109.0})

    assert [h.node for h in told(after).active] == [standby, leader]
    assert ready(after) == ("True", Reason.SEVERAL_ACTIVE)


def test_an_active_that_has_yet_to_tell_its_story_is_not_given_an_older_one(start: World) -> None:
    """Its report says Active before the takeover is announced, and still carries its last story."""
    router = only(start)
    leader, standby, _ = home_order(router)
    first = Transition(standby, "ActiveSilent", "2026-11-22T10:10:00.000000Z", from_=leader)
    second = Transition(leader, "ActiveSilent", "2026-11-22T10:20:00.000000Z", from_=standby)
    old = report(router, leader, term=1, transition=replaced_time(second, "2026-11-22T10:00:00.000000Z"))
    known = tuple(
        replace(v, status=msgspec.structs.replace(v.status, last_failover=first)) for v in start.vips
    )
    taking = msgspec.structs.replace(old, since="2026-11-22T10:20:00.000000Z", term=3)
    after = reporting(replace(start, vips=known), [(leader, taking)])
    done = reporting(after, [(leader, msgspec.structs.replace(taking, last_transition=second))])

    assert told(after).last_failover == first
    assert told(done).last_failover == second


def replaced_time(story: Transition, time: str) -> Transition:
    return msgspec.structs.replace(story, time=time)


def test_a_virtual_ip_that_comes_to_another_router_does_not_take_over_its_story() -> None:
    both = live_through(world(3, [vip("a", "192.0.2.1"), vip("b", "192.0.2.2", group="x")]))
    home = both.routers[both.vips[1].status.virtual_router or ""]
    leader, standby, _ = home_order(home)
    story = Transition(standby, "ActiveSilent", "2026-11-22T09:30:00.000000Z", from_=leader)
    said = report(home, standby, term=2, transition=story)
    said = msgspec.structs.replace(said, since=story.time)
    both = reporting(both, [(standby, said), (leader, report(home, leader, "Backup", term=2))])
    edited = changed(both, vip("a", "192.0.2.1", group="x"))
    for _ in range(6):
        edited = applied(edited, plan(edited), LATER)
        for router in edited.routers.values():
            for sighting in edited.of(router):
                holds = tuple(e.address for e in router.spec.addresses if e.state == "Held")
                now = msgspec.structs.replace(
                    sighting.report,
                    observed_generation=router.metadata.generation,
                    held=holds if sighting.report.state == "Active" else (),
                )
                edited = reporting(edited, [(sighting.node, now)])
    found = told(edited)

    assert found.virtual_router == home.metadata.name
    assert [h.node for h in found.active] == [standby]
    assert found.last_failover is None or found.last_failover.reason == "FirstActive"


def test_a_stranger_who_claims_what_is_held_is_a_conflict_and_the_address_stays_ready(start: World) -> None:
    router = only(start)
    leader, standby, _ = home_order(router)
    stranger = ReportedConflict("192.0.2.1", "02:99:00:00:00:01", "AddressClaimed", SINCE)
    peer = ReportedConflict("192.0.2.1", "02:00:00:00:00:02", "AddressClaimedByPeer", SINCE)
    other = ReportedConflict("192.0.2.9", "02:99:00:00:00:02", "AddressClaimed", SINCE)

    def with_(*conflicts: ReportedConflict, node: str = leader) -> VirtualIPStatus:
        state: RouterState = "Active" if node == leader else "Backup"
        return told(reporting(start, [(node, report(router, node, state, conflicts=conflicts))]))

    for conflicts, reason in (
        ((stranger,), Reason.ADDRESS_CLAIMED),
        ((peer,), Reason.ADDRESS_CLAIMED_BY_PEER),
        ((peer, stranger), Reason.ADDRESS_CLAIMED),
    ):
        found = with_(*conflicts)
        assert said(found, ConditionType.CONFLICT) == ("True", reason)
        assert said(found, ConditionType.READY) == ("True", Reason.HELD)
    message = next(c for c in with_(stranger).conditions if c.type == "Conflict").message
    assert "02:99:00:00:00:01" in message
    assert leader in message
    assert said(with_(other), ConditionType.CONFLICT)[0] == "False"
    assert said(with_(stranger, node=standby), ConditionType.CONFLICT)[0] == "False", "it holds nothing"


def test_a_foreign_router_on_the_vrid_is_a_conflict_as_long_as_a_candidate_hears_it(start: World) -> None:
    router = only(start)
    vrid = router.spec.virtual_router_id
    heard = hearing(start, home_order(router)[1], vrid)
    found = told(heard)

    assert said(found, ConditionType.CONFLICT) == ("True", Reason.FOREIGN_ROUTER)
    assert said(found, ConditionType.READY) == ("True", Reason.HELD)
    assert said(told(hearing(start, "n1", vrid % 255 + 1)), ConditionType.CONFLICT)[0] == "False"
    assert said(told(hearing(start, "n1", vrid, "eth9")), ConditionType.CONFLICT)[0] == "False"


@pytest.mark.parametrize(
    ("reasons", "word", "says"),
    [
        (["MACDoubled"], Reason.MAC_DOUBLED, "another host on the segment sends with its virtual MAC 02:99"),
        (["MACDoubled", "AddressClaimed"], Reason.ADDRESS_CLAIMED, "answers for it"),
        (["AddressClaimedByPeer", "MACDoubled"], Reason.MAC_DOUBLED, "another host"),
        (["AddressClaimedByPeer"], Reason.ADDRESS_CLAIMED_BY_PEER, "a NIC of another candidate"),
        (["FromTheFuture"], Reason.ADDRESS_CLAIMED, "answers for it"),
    ],
)
def test_who_claims_what_is_held_is_told_apart_and_a_stranger_comes_first(
    start: World, reasons: list[str], word: Reason, says: str
) -> None:
    router = only(start)
    leader = home_order(router)[0]
    claims = tuple(ReportedConflict("192.0.2.1", "02:99:00:00:00:01", each, SINCE) for each in reasons)
    after = told(reporting(start, [(leader, report(router, leader, conflicts=claims))]))
    condition = next(c for c in after.conditions if c.type == "Conflict")

    assert (condition.status, condition.reason) == ("True", word)
    for part in (says, leader, SINCE):
        assert part in condition.message
    assert said(after, ConditionType.READY) == ("True", Reason.HELD)
    assert ("Warning", "Conflict") in news(told(start), after)


def test_a_node_that_is_no_candidate_is_not_believed(start: World) -> None:
    router = only(start)
    stranger = world(4).speakers["n4"]
    after = replace(
        start,
        nodes={**start.nodes, "n4": world(4).nodes["n4"]},
        speakers={**start.speakers, "n4": stranger},
    )
    after = reporting(after, [("n4", report(router, "n4", term=99))])

    assert [h.node for h in told(after).active] == [home_order(router)[0]]


def test_a_takeover_from_before_the_virtual_ip_was_made_is_not_its_story(start: World) -> None:
    young = tuple(
        replace(
            v,
            metadata=msgspec.structs.replace(v.metadata, creation_timestamp=LATER),
            status=VirtualIPStatus(),
        )
        for v in start.vips
    )

    assert told(replace(start, vips=young)).last_failover is None


# --- events -------------------------------------------------------------------------------------


def news(old: VirtualIPStatus, new: VirtualIPStatus) -> list[tuple[str, str]]:
    return [(notice.kind, notice.reason) for notice in notices(old, new)]


def test_the_same_status_is_no_news(start: World) -> None:
    assert notices(told(start), told(start)) == ()


def test_assigned_refused_failed_over_and_released_are_news(start: World) -> None:
    running = told(start)
    refused = told(world(3, [vip("a", pool="p")]))
    router = only(start)
    leader, standby, _ = home_order(router)
    story = Transition(
        standby, "ActiveSilent", "2026-11-22T10:30:00.123456Z", from_=leader, takeover_milliseconds=4
    )
    after = told(reporting(start, [(standby, report(router, standby, term=2, transition=story))]))
    (failed_over,) = notices(running, after)

    assert news(VirtualIPStatus(), running) == [("Normal", "Assigned")]
    assert news(VirtualIPStatus(), refused) == [("Warning", "Refused")]
    assert failed_over.reason == "FailedOver"
    for word in ("ActiveSilent", leader, standby, "4 ms"):
        assert word in failed_over.note
    assert ("Normal", "Released") in news(running, refused)


def test_a_conflict_is_news_once(start: World) -> None:
    router = only(start)
    leader = home_order(router)[0]
    failed = (FailedAddress("192.0.2.1", "AddressAnswered", "02:99:00:00:00:01"),)
    after = told(reporting(start, [(leader, report(router, leader, held=(), failed=failed))]))

    assert ("Warning", "Conflict") in news(told(start), after)
    assert news(after, after) == []


def test_the_end_of_a_conflict_is_news_and_its_return_is_new_news(start: World) -> None:
    router = only(start)
    heard = hearing(start, home_order(router)[1], router.spec.virtual_router_id)
    calm, stormy, again = told(start), told(heard), told(heard, "2026-11-22T12:00:00Z")
    (first,) = notices(calm, stormy)
    (second,) = notices(calm, again)

    assert news(calm, stormy) == [("Warning", "Conflict")]
    assert news(stormy, calm) == [("Normal", "ConflictOver")]
    assert first.note != second.note, "or the API would take it for the same Event"


def test_the_event_of_a_planned_move_tells_its_reason_and_its_times(start: World) -> None:
    router = only(start)
    leader, standby, _ = home_order(router)
    story = Transition(standby, "HandedOver", "2026-11-22T10:30:00.123456Z", leader, 0, 3, 9)
    moved = told(reporting(start, [(standby, report(router, standby, term=2, transition=story))]))
    (notice,) = notices(told(start), moved)

    assert moved.last_failover == story
    assert notice.reason == "FailedOver"
    for word in ("HandedOver", f"from {leader} to {standby}", story.time, "in 0 ms", "in 3 ms"):
        assert word in notice.note


def test_the_same_news_has_the_same_name_and_a_note_fits_the_api() -> None:
    metadata = vip("a").metadata
    first = event_body(Notice("Normal", "Assigned", "é" * 2000), metadata, NOW, "op1")
    again = event_body(Notice("Normal", "Assigned", "é" * 2000), metadata, LATER, "op2")
    other = event_body(Notice("Normal", "Assigned", "else"), metadata, NOW, "op1")

    assert first["metadata"]["name"] == again["metadata"]["name"] != other["metadata"]["name"]
    assert len(first["note"].encode()) <= LONGEST_NOTE


def test_a_moving_virtual_ip_says_so_and_is_not_ready(start: World) -> None:
    two = live_through(world(3, [vip("a", "192.0.2.1"), vip("b", "192.0.2.2", group="x")]))
    edited = changed(two, vip("a", "192.0.2.1", group="x"))
    leaving = applied(edited, plan(edited))
    found = told(leaving)

    assert said(found, ConditionType.SCHEDULED) == ("False", Reason.MOVING)
    assert said(found, ConditionType.READY) == ("False", Reason.NOT_SCHEDULED)
    assert only(start).spec.addresses[0].state == "Held"
