# SPDX-License-Identifier: Apache-2.0
"""Stories of the planner, each a World and what the Plan makes of it."""

from collections import Counter
from dataclasses import replace

import msgspec
import pytest

from holdfast_api.conditions import Reason
from holdfast_api.types import (
    Failover,
    Interface,
    Metadata,
    VirtualIPStatus,
    VirtualRouter,
    VirtualRouterSpec,
)
from holdfast_operator.candidates import home_order, priorities
from holdfast_operator.changes import router_changes
from holdfast_operator.plan import Verdict, plan
from holdfast_operator.world import Node, World
from tests.unit.operator.worlds import (
    applied,
    blank,
    changed,
    hearing,
    live_through,
    nic,
    only,
    report,
    reporting,
    running,
    settled,
    vip,
    vips,
    world,
)

KEY = ("default", "a")


def verdict(start: World, name: str = "a") -> Verdict:
    return plan(start).verdicts["default", name]


def reason(found: Verdict) -> tuple[str | None, str | None]:
    accepted = found.accepted.reason if found.accepted else None
    return accepted, found.scheduled.reason if found.scheduled else None


# --- how many, and who leads --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "count", "routers"),
    [(1, 5, 1), (2, 1, 1), (2, 200, 2), (3, 4, 4), (3, 200, 6), (5, 200, 20), (3, 2000, 8)],
)
def test_a_class_gets_a_router_for_each_ordered_pair_as_far_as_it_has_addresses(
    nodes: int, count: int, routers: int
) -> None:
    nics = {
        f"n{i}": (
            Interface(
                "eth0", "02:00:00:00:00:01", (f"10.255.0.{i}/8", f"192.0.2.{200 + i}/22"), listened=True
            ),
        )
        for i in range(1, nodes + 1)
    }

    assert len(plan(world(nodes, vips(count), interfaces=nics)).routers) == routers


def test_two_hundred_addresses_are_spread_within_one_and_each_pair_of_leader_and_standby_comes_once() -> None:
    routers = plan(world(3, vips(200))).routers.values()
    load = Counter(router.spec.candidates[0].node for router in routers for _ in router.spec.addresses)
    pairs = Counter((r.spec.candidates[0].node, r.spec.candidates[1].node) for r in routers)

    assert sorted(load.values()) == [66, 67, 67]
    assert set(pairs.values()) == {1}
    assert len(pairs) == 6


def test_addresses_that_come_one_by_one_end_as_evenly_as_those_that_come_at_once() -> None:
    start = world(3)
    for new in vips(20):
        start = live_through(replace(start, vips=(*start.vips, new)))
    load = Counter(home_order(r)[0] for r in start.routers.values() for _ in r.spec.addresses)

    assert len(start.routers) == 6
    assert sorted(load.values()) == [6, 7, 7]


def test_a_group_of_both_families_shares_one_router() -> None:
    members = [vip(f"g{i}", f"192.0.2.{i}", group="edge") for i in range(1, 9)]
    members += [vip(f"h{i}", f"2001:db8::{i}", group="edge") for i in range(1, 9)]

    assert len(plan(world(3, members)).routers) == 1


def test_groups_of_two_namespaces_share_nothing_though_their_names_are_equal() -> None:
    members = [vip("a", "192.0.2.1", group="edge"), vip("a", "192.0.2.2", namespace="other", group="edge")]

    assert len(plan(world(3, members)).routers) == 2


def test_a_group_larger_than_an_advert_is_told_so() -> None:
    members = [vip(f"g{i}", f"2001:db8::{i:x}", group="edge") for i in range(1, 90)]
    found = plan(world(3, members)).verdicts["default", "g1"]

    assert found.scheduled is not None
    assert found.scheduled.reason == Reason.GROUP_DISAGREES
    assert "88 IPv6" in found.scheduled.message


def test_what_needs_other_settings_or_another_segment_gets_another_router() -> None:
    start = world(
        3,
        [
            vip("a", "192.0.2.1"),
            vip("b", "192.0.2.2", interval_ms=1000),
            vip("c", "192.0.2.3", failover=Failover(failback="Immediate")),
            vip("d", "10.0.0.1"),
            vip("e", "192.0.2.4", interfaces=("eth*",)),
        ],
        interfaces={
            f"n{i}": (
                nic(i),
                Interface("eth1", "02:00:00:00:01:01", (f"10.0.0.{200 + i}/24",), listened=True),
            )
            for i in (1, 2, 3)
        },
    )

    assert len(plan(start).routers) == 5


def test_priorities_step_by_three_milliseconds_of_skew() -> None:
    assert priorities(100)[:4] == (250, 248, 240, 232)
    assert priorities(10) == (250, 248, 171, 94, 17)
    assert priorities(1000)[:3] == (250, 248, 247)
    for interval_ms in (10, 50, 100, 1000, 40950):
        steps = [
            a - b for a, b in zip(priorities(interval_ms)[1:], priorities(interval_ms)[2:], strict=False)
        ]
        assert min(steps) * interval_ms / 256 >= 3
        assert min(priorities(interval_ms)) >= 1


def test_at_ten_milliseconds_candidates_beyond_the_fifth_are_left_out() -> None:
    start = live_through(world(7, [vip("a", "192.0.2.1", interval_ms=10)]))

    assert len(only(start).spec.candidates) == 5


# --- it stays -----------------------------------------------------------------------------------


def test_an_applied_plan_planned_again_changes_nothing() -> None:
    start = live_through(world(4, [*vips(30), vip("g", "2001:db8::1", group="g")]))

    assert router_changes(plan(start)) == ()


def test_a_later_virtual_ip_moves_none_of_the_earlier_ones() -> None:
    start = live_through(world(3, vips(2)))
    before = {v.key: v.status.virtual_router for v in start.vips}
    after = live_through(replace(start, vips=vips(40)))

    assert {v.key: v.status.virtual_router for v in after.vips if v.key in before} == before


def test_a_silent_node_is_demoted_behind_the_live_ones_and_nobody_else_moves() -> None:
    start = live_through(world(3, vips(6)))
    silent = replace(start, live=frozenset({"n1", "n2"}))
    after = plan(silent).routers

    for name, router in after.items():
        old = home_order(start.routers[name])
        new = tuple(c.node for c in router.spec.candidates)
        assert new == (*(n for n in old if n != "n3"), "n3")


def test_when_everybody_is_silent_nothing_changes() -> None:
    start = live_through(world(3, vips(6)))

    assert router_changes(plan(replace(start, live=frozenset()))) == ()


def test_a_silent_active_whose_adverts_a_live_standby_hears_keeps_the_lead() -> None:
    start = live_through(world(3, [vip("a", "192.0.2.1")]))
    router = only(start)
    leader, standby, _ = home_order(router)
    start = reporting(start, [(standby, report(router, standby, "Backup", hears=leader))])
    silent = replace(start, live=frozenset(start.nodes) - {leader})

    assert plan(silent).routers[router.metadata.name].spec.candidates[0].node == leader


def test_a_node_that_is_deleted_is_no_candidate_any_more() -> None:
    start = live_through(world(3, [vip("a", "192.0.2.1")]))
    leader = home_order(only(start))[0]
    gone = replace(start, nodes={n: node for n, node in start.nodes.items() if n != leader})

    assert leader not in [c.node for c in next(iter(plan(gone).routers.values())).spec.candidates]


def test_the_observed_active_leads_under_failback_never_and_the_dead_one_goes_last() -> None:
    start = live_through(world(3, [vip("a", "192.0.2.1")]))
    router = only(start)
    leader, standby, third = home_order(router)
    taken = reporting(start, [(standby, report(router, standby, term=2))])
    taken = replace(taken, taken_at={(router.metadata.name, standby): 10.0}, alive_at={leader: 5.0})
    order = [c.node for c in plan(taken).routers[router.metadata.name].spec.candidates]

    assert order == [standby, third, leader]


def test_the_home_order_stays_under_failback_immediate_whoever_is_active() -> None:
    start = live_through(world(3, [vip("a", "192.0.2.1", failover=Failover(failback="Immediate"))]))
    router = only(start)
    standby = home_order(router)[1]
    taken = replace(reporting(start, [(standby, report(router, standby, term=2))]), live=frozenset({"n1"}))

    assert router_changes(plan(taken)) == ()


def test_a_node_whose_label_goes_is_taken_out_but_not_when_it_is_the_last() -> None:
    labels = {"n1": {"edge": "yes"}, "n2": {"edge": "yes"}}
    start = live_through(world(3, [vip("a", "192.0.2.1", selector={"edge": "yes"})], labels=labels))
    name = only(start).metadata.name
    leader = home_order(only(start))[0]
    unlabelled = replace(start, nodes={**start.nodes, leader: Node(leader)})
    nobody = replace(start, nodes={n: Node(n) for n in start.nodes})

    assert [c.node for c in plan(unlabelled).routers[name].spec.candidates] == [
        n for n in home_order(only(start)) if n != leader
    ]
    assert plan(nobody).routers[name].spec.candidates == only(start).spec.candidates
    assert reason(verdict(nobody)) == (None, Reason.NO_NODE_MATCHES)


def test_a_speaker_that_starts_later_becomes_a_candidate_behind_the_others() -> None:
    start = world(3, [vip("a", "192.0.2.1")])
    late = start.speakers["n3"]
    start = live_through(replace(start, speakers={n: s for n, s in start.speakers.items() if n != "n3"}))
    before = home_order(only(start))
    start = live_through(replace(start, speakers={**start.speakers, "n3": late}))

    assert home_order(only(start)) == (*before, "n3")


def test_an_address_was_claimed_once_an_active_has_reported_it() -> None:
    fresh = settled(world(3, [vip("a", "192.0.2.1")]))
    held = live_through(fresh)

    assert [e.claimed for e in only(fresh).spec.addresses] == [False]
    assert [e.claimed for e in only(held).spec.addresses] == [True]


# --- moving, leaving, coming back ---------------------------------------------------------------


def test_a_changed_virtual_ip_leaves_is_reported_released_and_only_then_enters_another_router() -> None:
    start = live_through(world(3, vips(12)))
    edited = vip("v00000", "192.0.0.1", interval_ms=500)
    old = start.vips[0].status.virtual_router
    first = changed(start, edited)
    leaving = applied(first, plan(first))
    waiting = applied(leaving, plan(leaving))
    entry = {e.address: e.state for e in waiting.routers[old or ""].spec.addresses}
    done = live_through(waiting)

    assert entry["192.0.0.1"] == "Releasing"
    assert waiting.vips[0].status.conditions[1].reason == Reason.MOVING
    assert waiting.vips[0].status.virtual_router is None
    assert done.vips[0].status.virtual_router not in (None, old)
    assert done.routers[done.vips[0].status.virtual_router or ""].spec.advert_interval_milliseconds == 500
    assert [
        e.claimed for r in done.routers.values() for e in r.spec.addresses if e.address == "192.0.0.1"
    ] == [True]


def test_a_router_whose_members_are_all_edited_alike_changes_in_place() -> None:
    start = live_through(world(3, [vip("a", "192.0.2.1")]))
    edited = changed(start, vip("a", "192.0.2.1", interval_ms=500))
    (made,) = plan(edited).routers.values()

    assert made.name == only(start).metadata.name
    assert made.spec.advert_interval_milliseconds == 500


def test_a_changed_virtual_ip_that_nobody_could_take_stays_where_it_runs() -> None:
    start = live_through(world(3, vips(12)))
    edited = changed(start, vip("v00000", "192.0.0.1", selector={"no": "where"}))
    made = plan(edited)

    assert router_changes(made) == ()
    assert reason(made.verdicts["default", "v00000"]) == (None, Reason.NO_NODE_MATCHES)


def test_a_group_that_disagrees_while_it_is_edited_keeps_running_and_moves_together_when_it_agrees() -> None:
    members = [vip("a", "192.0.2.1", group="g"), vip("b", "2001:db8::1", group="g")]
    start = live_through(world(3, members))
    half = changed(start, vip("a", "192.0.2.1", group="g", interval_ms=50))
    whole = changed(half, vip("b", "2001:db8::1", group="g", interval_ms=50))

    assert router_changes(plan(half)) == ()
    assert reason(verdict(half)) == (Reason.GROUP_DISAGREES, None)
    (made,) = plan(whole).routers.values()
    assert made.spec.advert_interval_milliseconds == 50


def test_a_deleted_virtual_ips_address_is_releasing_until_nobody_reports_to_hold_it() -> None:
    start = live_through(world(3, [vip("a", "192.0.2.1"), vip("b", "192.0.2.2", group="x")]))
    claimant = vip("c", "192.0.2.1")
    deleted = replace(start, vips=(start.vips[1], claimant))
    told = applied(deleted, plan(deleted))
    found = verdict(told, "c")
    dead = replace(told, live=frozenset())
    nodeless = replace(told, nodes={})
    done = live_through(told)

    assert [e.state for r in told.routers.values() for e in r.spec.addresses if e.address == "192.0.2.1"] == [
        "Releasing"
    ]
    assert reason(found) == (Reason.ADDRESS_RELEASING, Reason.NOT_ACCEPTED)
    assert start.vips[0].status.active[0].node in (found.accepted.message if found.accepted else "")
    assert reason(verdict(dead, "c"))[0] == Reason.ADDRESS_RELEASING
    assert reason(verdict(nodeless, "c"))[0] is None
    assert [
        e.owner.name for r in done.routers.values() for e in r.spec.addresses if e.address == "192.0.2.1"
    ] == ["c"]


def test_an_address_stays_releasing_while_a_node_holds_it_or_has_not_read_the_plan() -> None:
    start = live_through(world(3, [vip("a", "192.0.2.1"), vip("b", "192.0.2.2", group="x")]))
    old = start.routers[start.vips[0].status.virtual_router or ""]
    leader = home_order(old)[0]
    deleted = replace(start, vips=start.vips[1:])
    leaving = applied(deleted, plan(deleted))
    router = leaving.routers[old.metadata.name]
    others = [(n, report(router, n, "Backup")) for n in home_order(old) if n != leader]
    leaving = reporting(leaving, others)
    holding = reporting(leaving, [(leader, report(router, leader, held=("192.0.2.1",)))])
    behind = reporting(leaving, [(leader, report(router, leader, held=(), behind=1))])
    released = reporting(leaving, [(leader, report(router, leader, held=()))])

    for blocked in (holding, behind):
        assert [e.state for e in plan(blocked).routers[router.metadata.name].spec.addresses] == ["Releasing"]
        assert plan(blocked).released == ()
    assert [r.metadata.name for r in plan(released).deletions] == [router.metadata.name]
    assert [e.address for e in plan(released).released] == ["192.0.2.1"]


def test_a_newcomer_does_not_take_the_vrid_of_a_router_that_comes_back() -> None:
    start = settled(world(3, [vip("a", "192.0.2.1", group="g")]))
    lost = replace(start, routers={}, vips=(*start.vips, vip("b", "192.0.2.2", group="h")))
    made = plan(lost).routers

    assert len(made) == 2
    assert [e.owner.name for e in made[only(start).metadata.name].spec.addresses] == ["a"]


def test_the_next_owner_may_disbelieve_a_dead_node() -> None:
    start = live_through(world(3, [vip("a", "192.0.2.1")]))
    dead = start.vips[0].status.active[0].node
    force = vip("c", "192.0.2.1", annotations={"holdfast.dev/force-release": dead})
    told = replace(start, vips=(force,), live=frozenset(start.nodes) - {dead})
    told = applied(told, plan(told))
    read = [(n, report(only(told), n, "Backup")) for n in told.live]
    told = reporting(told, read)
    alive = replace(told, live=frozenset(start.nodes))

    assert reason(verdict(told, "c")) == (None, None)
    assert reason(verdict(alive, "c"))[0] == Reason.ADDRESS_RELEASING, "a live node speaks for itself"


def test_a_router_without_addresses_is_deleted_and_its_vrid_is_not_taken_while_a_report_mentions_it() -> None:
    start = live_through(world(3, [vip("a", "192.0.2.1")]))
    old = only(start)
    empty = replace(start, vips=())
    empty = applied(empty, plan(empty))
    released = running(empty)
    gone = applied(released, plan(released))
    again = replace(gone, vips=(vip("b", "192.0.2.9"),))
    (made,) = plan(again).routers
    forgotten = reporting(again, [])
    forgotten = replace(
        again, speakers={n: msgspec.structs.replace(s, routers=()) for n, s in again.speakers.items()}
    )
    (later,) = plan(forgotten).routers

    assert gone.routers == {}
    assert made != old.metadata.name
    assert later == old.metadata.name


def test_a_router_deleted_by_hand_comes_back_with_its_name_addresses_and_order() -> None:
    start = live_through(world(3, [vip("a", "192.0.2.1", group="g"), vip("b", "2001:db8::1", group="g")]))
    before = only(start)
    (made,) = plan(replace(start, routers={})).routers.values()

    assert made.name == before.metadata.name
    assert made.stored is None
    assert made.spec.candidates == before.spec.candidates
    assert made.spec.addresses == before.spec.addresses


def test_routers_alone_are_memory_enough_and_so_are_statuses_alone() -> None:
    start = live_through(world(3, vips(20)))
    by_routers = plan(blank(start)).routers
    by_statuses = plan(replace(start, routers={})).routers

    for made in (by_routers, by_statuses):
        where = {e.address: name for name, r in made.items() for e in r.spec.addresses}
        assert where == {v.status.address: v.status.virtual_router for v in start.vips}


def test_a_virtual_ip_made_anew_under_its_old_name_has_its_address_without_a_pause() -> None:
    start = live_through(world(3, [vip("a", "192.0.2.1")]))
    anew = vip("a", "192.0.2.1")
    anew = replace(anew, metadata=msgspec.structs.replace(anew.metadata, uid="uid-new"))
    (made,) = plan(replace(start, vips=(anew,))).routers.values()

    assert [(e.owner.uid, e.state, e.claimed) for e in made.spec.addresses] == [("uid-new", "Held", True)]


# --- refused ------------------------------------------------------------------------------------


def test_an_address_belongs_to_its_recorded_owner_else_to_the_oldest_else_to_the_first_by_name() -> None:
    old, young = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
    b = live_through(world(3, [vip("b", "192.0.2.1", created=young)]))
    recorded = replace(b, vips=(*b.vips, vip("a", "192.0.2.1", created=old)))
    by_age = world(3, [vip("a", "192.0.2.1", created=young), vip("b", "192.0.2.1", created=old)])
    by_name = world(3, [vip("a", "192.0.2.1"), vip("b", "192.0.2.1")])

    assert reason(verdict(recorded, "a"))[0] == Reason.ADDRESS_IN_USE
    assert "default/b" in (verdict(recorded, "a").accepted or pytest.fail("accepted")).message
    assert reason(verdict(by_age, "a"))[0] == Reason.ADDRESS_IN_USE
    assert reason(verdict(by_name, "b"))[0] == Reason.ADDRESS_IN_USE


def test_what_a_node_has_for_itself_is_refused_but_a_kubelet_that_reports_the_vip_ends_nothing() -> None:
    start = world(3, [vip("a", "198.51.100.2")])
    held = live_through(world(3, [vip("a", "192.0.2.1")]))
    reported = replace(held, nodes={**held.nodes, "n1": Node("n1", addresses=frozenset({"192.0.2.1"}))})

    assert reason(verdict(start)) == (Reason.ADDRESS_OF_NODE, Reason.NOT_ACCEPTED)
    assert router_changes(plan(reported)) == ()


@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        (vip("a", None, pool="p"), Reason.POOL_NOT_SUPPORTED),
        (vip("a", "192.0.2.1", pool="p"), Reason.POOL_NOT_SUPPORTED),
        (vip("a", "192.0.2.1", interval_ms=0), Reason.INVALID_SPEC),
        (replace(vip("a"), spec=None, errors=("spec.address: no",)), Reason.INVALID_SPEC),
    ],
)
def test_what_this_version_cannot_do_is_refused(wanted: object, word: Reason) -> None:
    assert reason(verdict(world(3, [wanted]))) == (word, Reason.NOT_ACCEPTED)  # type: ignore[list-item]


def test_an_edit_that_cannot_be_accepted_leaves_running_what_runs() -> None:
    start = live_through(world(3, [vip("a", "192.0.2.1")]))
    for edited in (vip("a", "192.0.2.1", interval_ms=0), replace(vip("a"), spec=None, errors=("no",))):
        after = changed(start, edited)

        assert router_changes(plan(after)) == ()
        assert verdict(after).accepted is not None
        assert verdict(after).router == only(start).metadata.name


def test_addresses_of_a_router_that_is_not_ours_are_taken_and_the_router_is_left_alone() -> None:
    theirs = live_through(world(3, [vip("x", "192.0.2.1")]))
    entry = only(theirs).spec.addresses
    spec = VirtualRouterSpec(virtual_router_id=77, addresses=entry)
    router = VirtualRouter(Metadata("by-hand", uid="u"), spec)
    start = replace(world(3, [vip("a", "192.0.2.1")]), routers={"by-hand": router})

    assert reason(verdict(start))[0] == Reason.ADDRESS_IN_USE
    assert router_changes(plan(start)) == ()


@pytest.mark.parametrize(
    ("start", "word"),
    [
        (world(0, [vip("a", "192.0.2.1")]), Reason.NO_NODE_MATCHES),
        (world(2, [vip("a", "192.0.2.1", selector={"no": "where"})]), Reason.NO_NODE_MATCHES),
        (world(2, [vip("a", "203.0.113.1")]), Reason.NO_NODE_ON_SUBNET),
        (world(2, [vip("a", "192.0.2.1", interfaces=("wlan*",))]), Reason.INTERFACE_NOT_FOUND),
        (world(2, [vip("a", "192.0.2.1")], silent=["n1", "n2"]), Reason.NO_LIVE_SPEAKER),
        (
            world(1, [vip("a", "192.0.2.1")], interfaces={"n1": [nic(1, carrier=False)]}),
            Reason.NO_CARRIER,
        ),
        (
            world(1, [vip("a", "192.0.2.1")], interfaces={"n1": [nic(1, listened=False)]}),
            Reason.LISTENING,
        ),
        (hearing(world(1, [vip("a", "192.0.2.1")], ids=range(5, 6)), "n1", 5), Reason.NO_VIRTUAL_ROUTER_ID),
    ],
)
def test_what_cannot_be_scheduled_says_why(start: World, word: Reason) -> None:
    found = verdict(start)

    assert reason(found) == (None, word)
    assert found.router is None


def test_a_first_router_waits_a_moment_for_the_speakers_that_have_just_begun_to_listen() -> None:
    start = world(3, [vip("a", "192.0.2.1")], interfaces={"n3": [nic(3, listened=False)]})

    assert reason(verdict(replace(start, settling=frozenset({"n3"})))) == (None, Reason.LISTENING)
    assert reason(verdict(start)) == (None, None)


# --- VRIDs --------------------------------------------------------------------------------------


def test_two_clusters_begin_their_search_for_vrids_in_different_places() -> None:
    start = world(3, [vip("a", "192.0.2.1")])
    found = {next(iter(plan(replace(start, cluster_uid=uid)).routers)) for uid in "abcdefgh"}

    assert len(found) > 4


def test_a_vrid_that_is_heard_on_the_nic_is_not_taken() -> None:
    start = world(3, [vip("a", "192.0.2.1")], ids=range(51, 54))
    for vrid in (51, 53):
        start = hearing(start, "n2", vrid)

    assert list(plan(start).routers) == ["vr-52"]


def test_with_few_vrids_the_spread_shrinks_before_anybody_goes_without() -> None:
    wanted = [*vips(30), vip("g", "192.0.3.1", group="g"), vip("h", "192.0.3.2", interval_ms=50)]
    made = plan(world(3, wanted, ids=range(10, 14)))

    assert len(made.routers) <= 4
    assert all(v.scheduled is None for v in made.verdicts.values())


def test_a_class_takes_a_share_of_the_free_vrids_and_leaves_the_rest_to_those_that_come_later() -> None:
    start = live_through(world(3, vips(30), ids=range(10, 15)))
    later = replace(
        start, vips=(*start.vips, vip("g", "192.0.3.1", group="g"), vip("h", "192.0.3.2", group="h"))
    )

    assert len(start.routers) == 3
    assert [reason(verdict(later, name)) for name in "gh"] == [(None, None), (None, None)]


def test_when_no_vrid_is_left_what_runs_is_untouched_and_the_newcomer_is_told() -> None:
    start = live_through(world(3, [vip("a", "192.0.2.1", group="a")], ids=range(9, 10)))
    crowded = replace(start, vips=(*start.vips, vip("b", "192.0.2.2", group="b")))

    assert router_changes(plan(crowded)) == ()
    assert reason(verdict(crowded, "b")) == (None, Reason.NO_VIRTUAL_ROUTER_ID)


def test_a_router_that_cannot_be_read_keeps_its_vrid_and_its_virtual_ips_wait() -> None:
    start = live_through(world(3, [vip("a", "192.0.2.1")]))
    name = only(start).metadata.name
    blind = replace(start, routers={}, unreadable_routers=frozenset({name}))

    assert plan(blind).routers == {}
    assert reason(verdict(blind)) == (None, Reason.INVALID_PLAN)


def test_the_epoch_never_goes_back() -> None:
    start = live_through(replace(world(3, [vip("a", "192.0.2.1")]), epoch=7))
    edited = changed(replace(start, epoch=3), vip("a", "192.0.2.1", interval_ms=50))
    (made,) = plan(edited).routers.values()

    assert made.spec.planner_epoch == 7
    assert all(isinstance(v.status, VirtualIPStatus) for v in start.vips)
