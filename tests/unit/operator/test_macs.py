# SPDX-License-Identifier: Apache-2.0
"""Virtual MACs: who gets which and how long, who is refused, and what is done where none gets through."""

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_api.conditions import ConditionType, Reason
from holdfast_api.types import Condition, VirtualIPSpec, VirtualIPStatus
from holdfast_operator import macs, status
from holdfast_operator.candidates import home_order
from holdfast_operator.changes import router_changes
from holdfast_operator.macs import Wish, allotted, drawn, vrrp_mac
from holdfast_operator.notices import notices
from holdfast_operator.plan import plan
from holdfast_operator.world import Vip, World
from tests.unit.operator.worlds import (
    NOW,
    applied,
    blank,
    changed,
    live_through,
    marked,
    nic,
    only,
    reporting,
    running,
    settled,
    vip,
    vips,
    world,
)

MAC, OTHER = "02:11:22:33:44:55", "02:66:77:88:99:aa"
UID = "5f1c"  # of every world here


def virtual(name: str, address: str, **spec: object) -> Vip:
    return vip(name, address, mode="VirtualMAC", **spec)  # type: ignore[arg-type]


def entries(start: World) -> dict[str, str | None]:
    """Address -> its MAC in the routers' plans."""
    return {e.address: e.mac_address for r in start.routers.values() for e in r.spec.addresses}


def status_of(start: World, name: str = "a") -> VirtualIPStatus:
    return status.fold(start, plan(start), NOW)["default", name]


def said(start: World, kind: ConditionType, name: str = "a") -> Condition:
    return next(c for c in status_of(start, name).conditions if c.type == kind)


# --- allocated, and kept ------------------------------------------------------------------------


def test_a_mac_is_forty_bits_of_a_hash_of_cluster_and_name() -> None:
    wanted = "02" + sha256(b"5f1c/default/a/0").hexdigest()[:10]
    start = live_through(world(3, [virtual("a", "192.0.2.1"), vip("b", "192.0.2.2")]))
    router = start.routers[start.vips[0].status.virtual_router or ""]

    assert (status_of(start).mac_address or "").replace(":", "") == wanted
    assert entries(start) == {"192.0.2.1": status_of(start).mac_address, "192.0.2.2": None}
    assert router.spec.mode == "VirtualMAC"
    assert [e.address for e in router.spec.addresses] == ["192.0.2.1"], "the modes share no router"
    assert said(start, ConditionType.READY).reason == Reason.HELD


def test_two_clusters_two_namespaces_and_two_names_get_different_macs() -> None:
    keys = [(UID, "default", "a"), ("other", "default", "a"), (UID, "other", "a"), (UID, "default", "b")]
    found = {drawn(uid, (namespace, name), n) for uid, namespace, name in keys for n in (0, 1)}

    assert len(found) == 8
    assert all(mac.startswith("02:") for mac in found)


def lives_in_another_cluster(start: World) -> World:
    return replace(start, cluster_uid="another")


def loses_its_routers(start: World) -> World:
    return replace(start, routers={})


def goes_to_node_mac_and_back(start: World) -> World:
    there = live_through(changed(start, vip("a", "192.0.2.1")))
    assert entries(there) == {"192.0.2.1": None, "192.0.2.2": entries(start)["192.0.2.2"]}
    return changed(there, virtual("a", "192.0.2.1"))


def changes_its_router(start: World) -> World:
    return changed(start, virtual("a", "192.0.2.1", interval_ms=500))


def is_scheduled_nowhere_for_a_while(start: World) -> World:
    there = live_through(changed(start, virtual("a", "192.0.2.1", selector={"no": "where"})))
    return changed(there, virtual("a", "192.0.2.1"))


@pytest.mark.parametrize(
    "happens",
    [
        lives_in_another_cluster,
        blank,
        loses_its_routers,
        goes_to_node_mac_and_back,
        changes_its_router,
        is_scheduled_nowhere_for_a_while,
    ],
)
def test_a_mac_is_never_worked_out_anew(happens: object) -> None:
    start = live_through(world(1, [virtual("a", "192.0.2.1"), virtual("b", "192.0.2.2")]))
    mac = status_of(start).mac_address
    after = happens(replace(start, cluster_uid="moved"))  # type: ignore[operator]
    after = live_through(after, rounds=12)

    assert mac is not None
    assert status_of(after).mac_address == mac
    assert entries(after)["192.0.2.1"] == mac


def test_one_that_can_not_go_where_it_shall_stays_as_it_runs() -> None:
    start = live_through(world(1, [virtual("a", "192.0.2.1", mac_address=MAC)]))
    after = live_through(changed(start, vip("a", "192.0.2.1", selector={"no": "where"})))

    assert said(after, ConditionType.SCHEDULED).reason == Reason.NO_NODE_MATCHES
    assert entries(after) == {"192.0.2.1": MAC}


def test_a_kept_mac_is_in_no_plan_of_the_other_mode() -> None:
    members = [("a", "192.0.2.1"), ("b", "192.0.2.2")]
    start = live_through(world(3, [virtual(n, a, group="g") for n, a in members]))
    kept = status_of(start).mac_address
    for name, address in members:
        start = changed(start, vip(name, address, group="g"))
    start = live_through(start, rounds=12)
    broken = changed(start, vip("a", "192.0.2.1", group="g", interval_ms=0))
    after = live_through(replace(broken, routers={}), rounds=12)

    assert status_of(after).mac_address == kept
    assert entries(after) == {"192.0.2.1": None, "192.0.2.2": None}


def test_one_that_nobody_can_hold_has_its_mac_already() -> None:
    start = settled(world(0, [virtual("a", "192.0.2.1")]))

    assert status_of(start).mac_address == drawn(UID, ("default", "a"), 0)


def test_a_mac_that_is_given_is_taken_and_one_that_was_is_kept() -> None:
    start = live_through(world(3, [virtual("a", "192.0.2.1", mac_address=MAC)]))
    edited = live_through(changed(start, virtual("a", "192.0.2.1", mac_address=OTHER)))
    silent = live_through(changed(edited, virtual("a", "192.0.2.1")))

    assert [status_of(w).mac_address for w in (start, edited, silent)] == [MAC, OTHER, OTHER]
    assert [entries(w)["192.0.2.1"] for w in (start, edited, silent)] == [MAC, OTHER, OTHER]
    assert only(edited).metadata.name == only(start).metadata.name, "a MAC changes in place"


def test_another_number_is_drawn_when_anybody_has_the_mac() -> None:
    first, second = (drawn(UID, ("default", "a"), n) for n in (0, 1))
    third = drawn(UID, ("default", "a"), 2)
    taken = nic(2)
    taken = msgspec.structs.replace(taken, mac=second.upper())
    young = "2026-11-22T09:30:00Z"
    start = world(
        3,
        [virtual("a", "192.0.2.1", created=young), virtual("b", "192.0.2.2", mac_address=first)],
        interfaces={"n2": [taken]},
    )
    idle = settled(world(3, [virtual("b", "192.0.2.2", mac_address=first)]))
    idle = settled(changed(idle, vip("b", "192.0.2.2")))
    idle = replace(idle, vips=(*idle.vips, virtual("a", "192.0.2.1")))

    assert status_of(start).mac_address == third
    assert status_of(idle).mac_address == second, "one that is kept for somebody is not given away"


def test_vrrps_mac_follows_the_router_and_is_shared_by_what_is_in_it() -> None:
    four, six = (
        virtual(n, a, mac_address="VRRP", group="g") for n, a in (("a", "192.0.2.1"), ("b", "2001:db8::1"))
    )
    start = live_through(world(3, [four, six, virtual("c", "192.0.2.3", mac_address="VRRP", group="g")]))
    vrid = only(start).spec.virtual_router_id

    assert entries(start) == {
        "192.0.2.1": f"00:00:5e:00:01:{vrid:02x}",
        "192.0.2.3": f"00:00:5e:00:01:{vrid:02x}",
        "2001:db8::1": f"00:00:5e:00:02:{vrid:02x}",
    }
    assert status_of(start, "b").mac_address == vrrp_mac(vrid, "2001:db8::1")
    assert router_changes(plan(start)) == ()


def test_who_leaves_vrrps_mac_gets_one_of_its_own_and_the_other_way_round() -> None:
    start = live_through(world(3, [virtual("a", "192.0.2.1")]))
    vrrp = live_through(changed(start, virtual("a", "192.0.2.1", mac_address="VRRP")))
    back = live_through(changed(vrrp, virtual("a", "192.0.2.1")))

    assert entries(vrrp) == {"192.0.2.1": vrrp_mac(only(vrrp).spec.virtual_router_id, "192.0.2.1")}
    assert entries(back) == {"192.0.2.1": drawn(UID, ("default", "a"), 0)}


# --- refused ------------------------------------------------------------------------------------


def test_of_two_that_are_given_one_mac_the_older_has_it_and_the_other_is_told_whose_it_is() -> None:
    young = "2026-11-22T09:30:00Z"
    start = settled(
        world(
            3,
            [
                virtual("a", "192.0.2.1", mac_address=MAC, created=young),
                virtual("b", "192.0.2.2", mac_address=MAC),
            ],
        )
    )
    refused = said(start, ConditionType.ACCEPTED)

    assert (refused.status, refused.reason) == ("False", Reason.MAC_IN_USE)
    for word in (MAC, "default/b", "spec.macAddress"):
        assert word in refused.message
    assert entries(start) == {"192.0.2.2": MAC}
    assert status_of(start).mac_address is None


def test_what_runs_keeps_its_mac_though_an_older_one_is_given_it_and_that_one_goes_on_as_before() -> None:
    young = "2026-11-22T09:30:00Z"
    both = [virtual("a", "192.0.2.1"), virtual("b", "192.0.2.2", mac_address=MAC, created=young)]
    start = live_through(world(3, both))
    before = entries(start)
    edited = live_through(changed(start, virtual("a", "192.0.2.1", mac_address=MAC)))

    assert said(edited, ConditionType.ACCEPTED).reason == Reason.MAC_IN_USE
    assert said(edited, ConditionType.ACCEPTED, "b").status == "True"
    assert entries(edited) == before
    assert said(edited, ConditionType.READY).status == "True"


def test_a_mac_on_its_way_out_is_not_free_yet() -> None:
    start = live_through(world(3, [virtual("a", "192.0.2.1", mac_address=MAC), vip("z", "192.0.2.9")]))
    deleted = replace(start, vips=(start.vips[1], virtual("b", "192.0.2.2", mac_address=MAC)))
    leaving = applied(deleted, plan(deleted))
    done = live_through(leaving)

    assert said(leaving, ConditionType.ACCEPTED, "b").reason == Reason.MAC_IN_USE
    assert "default/a" in said(leaving, ConditionType.ACCEPTED, "b").message
    assert entries(done)["192.0.2.2"] == MAC


def test_a_nodes_own_mac_is_refused_but_a_node_that_shows_a_mac_later_ends_nothing() -> None:
    card = msgspec.structs.replace(nic(2), mac=MAC)
    start = settled(world(3, [virtual("a", "192.0.2.1", mac_address=MAC)], interfaces={"n2": [card]}))
    held = live_through(world(3, [virtual("a", "192.0.2.1", mac_address=MAC)]))
    shown = dict(held.speakers)
    shown["n3"] = msgspec.structs.replace(shown["n3"], interfaces=(*shown["n3"].interfaces, card))
    refused = said(start, ConditionType.ACCEPTED)

    assert (refused.status, refused.reason) == ("False", Reason.MAC_OF_NODE)
    for word in (MAC, "eth0 of node n2", "spec.macAddress"):
        assert word in refused.message
    assert said(replace(held, speakers=shown), ConditionType.ACCEPTED).status == "True"


def test_a_group_may_share_a_mac_and_who_leaves_it_stays_until_it_has_another() -> None:
    members = [
        virtual(n, a, mac_address=MAC, group="g") for n, a in (("a", "192.0.2.1"), ("b", "2001:db8::1"))
    ]
    start = live_through(world(3, members))
    left = live_through(changed(start, virtual("a", "192.0.2.1", mac_address=MAC)))
    own = live_through(changed(left, virtual("a", "192.0.2.1", mac_address=OTHER)))

    assert entries(start) == {"192.0.2.1": MAC, "2001:db8::1": MAC}
    assert entries(left) == entries(start)
    assert said(left, ConditionType.ACCEPTED).reason == Reason.MAC_IN_USE
    assert len(left.routers) == 1
    assert entries(own) == {"192.0.2.1": OTHER, "2001:db8::1": MAC}
    assert said(own, ConditionType.ACCEPTED, "b").status == "True"


def test_a_mac_is_never_planned_in_two_routers_while_a_member_comes_to_its_group() -> None:
    group = (virtual(name, f"192.0.2.{n}", group="g") for n, name in ((2, "b"), (3, "c"), (4, "d")))
    start = live_through(world(3, [virtual("a", "192.0.2.1", mac_address=MAC), *group]))
    after = changed(start, virtual("a", "192.0.2.1", mac_address=MAC, group="g"))
    after = changed(after, virtual("b", "192.0.2.2", mac_address=MAC, group="g"))
    for _ in range(8):
        after = running(applied(after, plan(after)))
        where = {n for n, r in after.routers.items() if any(e.mac_address == MAC for e in r.spec.addresses)}
        assert len(where) == 1

    assert [entries(after)[f"192.0.2.{n}"] for n in (1, 2)] == [MAC, MAC]
    assert len(after.routers) == 1


def test_without_the_clusters_uid_only_new_macs_wait() -> None:
    start = live_through(world(3, [virtual("a", "192.0.2.1")]))
    before = entries(start)
    more = (virtual("b", "192.0.2.2"), virtual("c", "192.0.2.3", mac_address=MAC), vip("d", "192.0.2.4"))
    blind = live_through(replace(start, cluster_uid="", vips=(*start.vips, *more)))
    refused = said(blind, ConditionType.ACCEPTED, "b")
    seen = live_through(replace(blind, cluster_uid=UID))

    assert (refused.status, refused.reason) == ("False", Reason.NO_CLUSTER_UID)
    assert "RBAC" in refused.message
    assert entries(blind) == {**before, "192.0.2.3": MAC, "192.0.2.4": None}
    assert entries(seen)["192.0.2.2"] == drawn(UID, ("default", "b"), 0)


# --- nodes that can't -----------------------------------------------------------------------------


def lacking(start: World, *nodes: str, reason: Reason = Reason.FENCE_UNAVAILABLE) -> World:
    """These nodes' speakers say that their kernel has no egress hook."""
    fault = Condition("Fence", "False", reason.value, "no nftables egress hook", 0, NOW)
    said = {n: msgspec.structs.replace(start.speakers[n], preflight=(fault,)) for n in nodes}
    return replace(start, speakers={**start.speakers, **said})


@pytest.mark.parametrize("reason", [Reason.FENCE_UNAVAILABLE, Reason.VIRTUAL_MAC_UNAVAILABLE])
def test_a_node_without_a_fence_is_no_candidate_in_mode_virtual_mac_alone(reason: Reason) -> None:
    start = lacking(world(3, [virtual("a", "192.0.2.1"), vip("b", "192.0.2.2")]), "n2", reason=reason)
    start = live_through(start)
    nodes = {r.spec.mode: sorted(c.node for c in r.spec.candidates) for r in start.routers.values()}

    assert nodes == {"VirtualMAC": ["n1", "n3"], "NodeMAC": ["n1", "n2", "n3"]}


def test_when_no_node_has_a_fence_the_virtual_ip_says_so() -> None:
    refused = said(lacking(world(2, [virtual("a", "192.0.2.1")]), "n1", "n2"), ConditionType.SCHEDULED)

    assert (refused.status, refused.reason) == ("False", Reason.VIRTUAL_MAC_UNAVAILABLE)
    assert "no nftables egress hook" in refused.message


def test_a_candidate_that_lost_its_fence_goes_unless_it_is_the_active() -> None:
    start = live_through(world(3, [virtual("a", "192.0.2.1")]))
    leader, standby, third = (c.node for c in only(start).spec.candidates)
    (made,) = plan(lacking(start, leader, standby)).routers.values()

    assert [c.node for c in made.spec.candidates] == [leader, third]


def test_a_drained_node_hands_over_to_none_without_a_fence() -> None:
    start = live_through(world(3, [virtual("a", "192.0.2.1")]))
    start = running(start, heard=True)
    leader, standby, third = (c.node for c in only(start).spec.candidates)
    start = marked(lacking(start, standby), leader)
    for _ in range(3):
        (made,) = plan(start).routers.values()
        assert made.spec.handover is None or made.spec.handover.to == third
        start = running(applied(start, plan(start)), heard=True)

    assert home_order(only(start))[0] == third


# --- a network that does not carry it --------------------------------------------------------------


def blocking(start: World, *addresses: str, behind: int = 0) -> World:
    """Every Active says that of what it holds with a virtual MAC these reach nobody."""
    said = []
    planned = entries(start)
    for node, speaker in start.speakers.items():
        for told in speaker.routers:
            lost = tuple(a for a in addresses if a in told.held and (planned[a] or behind))
            generation = start.routers[told.name].metadata.generation - behind
            said.append((node, msgspec.structs.replace(told, blocked=lost, observed_generation=generation)))
    return reporting(start, said)


def falls_back(start: World, rounds: int = 8) -> Iterator[World]:
    """Planner and speakers in turn on a network that carries nothing for 192.0.2.1."""
    for _ in range(rounds):
        start = blocking(running(applied(start, plan(start))), "192.0.2.1")
        yield start


def test_a_blocked_mac_makes_it_unready_with_the_remedies() -> None:
    start = live_through(world(3, [virtual("a", "192.0.2.1", mac_address=MAC)]))
    *_, after = falls_back(start)
    found = said(after, ConditionType.READY)

    assert (found.status, found.reason) == ("False", Reason.VIRTUAL_MAC_BLOCKED)
    for word in (MAC, "forged transmits", "port security", "Wi-Fi", "spec.macFallback: NodeMAC"):
        assert word in found.message
    assert entries(after) == {"192.0.2.1": MAC}
    assert status_of(after).mac_fallback_generation is None
    assert [h.node for h in status_of(after).active] == [only(after).spec.candidates[0].node]
    assert said(live_through(blocking(after)), ConditionType.READY).reason == Reason.HELD


def test_a_report_on_an_older_plan_blocks_nothing_new_and_heals_nothing_old() -> None:
    start = live_through(world(3, [virtual("a", "192.0.2.1", mac_address=MAC, mac_fallback="NodeMAC")]))
    never = live_through(world(3, [virtual("a", "192.0.2.1", mac_address=MAC)]))
    *_, blocked = falls_back(never)

    assert said(blocking(start, "192.0.2.1", behind=1), ConditionType.READY).reason == Reason.HELD
    assert status_of(blocking(start, "192.0.2.1", behind=1)).mac_fallback_generation is None
    assert said(blocking(blocked, "192.0.2.1", behind=1), ConditionType.READY).status == "False"


def test_with_a_fallback_it_goes_on_with_the_nodes_mac_until_the_spec_changes() -> None:
    wish = {"mac_address": MAC, "mac_fallback": "NodeMAC"}
    start = live_through(world(3, [virtual("a", "192.0.2.1", **wish), virtual("b", "192.0.2.2")]))
    before = entries(start)
    _, first, *_, last = falls_back(start)
    found = said(last, ConditionType.READY)
    edited = changed(last, virtual("a", "192.0.2.1", **wish))
    tried = live_through(edited)

    assert before["192.0.2.1"] == MAC
    assert entries(first)["192.0.2.1"] == MAC, "the status knows it first: no restart forgets it"
    assert entries(last) == {**before, "192.0.2.1": None}
    assert (found.status, found.reason) == ("True", Reason.VIRTUAL_MAC_BLOCKED)
    for word in ("own MAC", MAC, "spec.macFallback"):
        assert word in found.message
    assert status_of(last).mac_fallback_generation == 1
    assert router_changes(plan(blocking(last))) == (), "it stays so though nothing is blocked any more"
    assert entries(tried) == before
    assert said(tried, ConditionType.READY).reason == Reason.HELD
    assert status_of(tried).mac_address == MAC


def test_a_mac_that_was_given_in_place_of_a_blocked_one_is_tried_first() -> None:
    start = live_through(world(3, [virtual("a", "192.0.2.1", mac_address=MAC)]))
    *_, blocked = falls_back(start)
    edited = changed(blocked, virtual("a", "192.0.2.1", mac_address=OTHER, mac_fallback="NodeMAC"))
    told = applied(edited, plan(edited))

    assert entries(told) == {"192.0.2.1": OTHER}
    assert told.vips[0].status.mac_fallback_generation is None
    assert told.vips[0].status.mac_address == OTHER


def test_a_fallback_is_remembered_by_the_status_alone() -> None:
    start = live_through(world(3, [virtual("a", "192.0.2.1", mac_fallback="NodeMAC")]))
    mac = status_of(start).mac_address
    *_, fallen = falls_back(start)
    after = live_through(replace(fallen, routers={}), rounds=12)

    assert entries(after) == {"192.0.2.1": None}
    assert status_of(after).mac_address == mac


def test_vrrps_mac_falls_back_too() -> None:
    start = live_through(world(3, [virtual("a", "192.0.2.1", mac_address="VRRP", mac_fallback="NodeMAC")]))
    *_, fallen = falls_back(start)

    assert entries(fallen) == {"192.0.2.1": None}
    assert said(fallen, ConditionType.READY).status == "True"


def test_a_block_is_an_event_each_time_it_begins_and_a_fallback_once() -> None:
    def events(wish: dict[str, object]) -> list[str]:
        start = live_through(world(3, [virtual("a", "192.0.2.1", mac_address=MAC, **wish)]))
        steps = [start, *falls_back(start)]
        statuses = [w.vips[0].status for w in steps]
        news = [n for old, new in pairwise(statuses) for n in notices(old, new)]
        assert all("VirtualMACBlocked: " in n.note and MAC in n.note for n in news)
        return [n.reason for n in news]

    assert events({}) == ["Blocked"]
    assert events({"mac_fallback": "NodeMAC"}) == ["FellBack"]


# --- whatever comes -------------------------------------------------------------------------------

FEW = 6  # different MACs there are: so that everybody collides


def narrow(_uid: str, key: tuple[str, str], number: int) -> str:
    return f"02:00:00:00:ff:{(int(key[1][1:]) + number) % (4 * FEW):02x}"


@st.composite
def wanting(draw: st.DrawFn) -> list[Vip]:
    count = draw(st.integers(1, 10))
    given_macs = [None, None, *(f"02:00:00:00:ff:{n:02x}" for n in range(FEW)), "VRRP", "02:00:00:00:00:01"]
    return [
        vip(
            f"v{i}",
            f"192.0.2.{i + 1}",
            created=f"2026-11-22T09:00:0{draw(st.integers(0, 3))}Z",
            mode=draw(st.sampled_from(["VirtualMAC"] * 4 + ["NodeMAC"])),
            mac_address=draw(st.sampled_from(given_macs)),
            mac_fallback=draw(st.sampled_from(["Never", "NodeMAC"])),
            group=draw(st.sampled_from([None, None, "g", "h"])),
            interval_ms=draw(st.sampled_from([100, 100, 100, 500])),
        )
        for i in range(count)
    ]


def sound(start: World) -> None:
    """No MAC in two routers, none of a node's, none of two that may not share it."""
    nics = {i.mac for s in start.speakers.values() for i in s.interfaces}
    homes: dict[str, set[str]] = {}
    groups: dict[str, set[object]] = {}
    of = {v.key: v for v in start.vips}
    for name, router in start.routers.items():
        for entry in router.spec.addresses:
            mac = entry.mac_address
            if mac is None:
                continue
            assert router.spec.mode == "VirtualMAC"
            assert mac not in nics
            homes.setdefault(mac, set()).add(name)
            owner = of.get((entry.owner.namespace, entry.owner.name))
            if not mac.startswith("00:00:5e") and owner is not None and owner.spec is not None:
                judged = said(start, ConditionType.ACCEPTED, owner.key[1])
                if judged.status == "True" and entry.state == "Held":
                    groups.setdefault(mac, set()).add(owner.spec.group or owner.key)
    assert {mac: names for mac, names in homes.items() if len(names) > 1} == {}
    assert {mac: names for mac, names in groups.items() if len(names) > 1} == {}


@settings(max_examples=150, deadline=None)
@given(wanting(), st.data())
def test_macs_are_unlike_stable_in_any_order_and_after_a_restart_and_edits(
    wanted: list[Vip], data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(macs, "drawn", narrow)
        start = world(3, wanted)
        mixed = replace(start, vips=tuple(data.draw(st.permutations(start.vips))))
        assert plan(mixed).routers == plan(start).routers
        rest = live_through(start, rounds=16)
        sound(rest)
        before = entries(rest)
        assert entries(live_through(blank(rest), rounds=16)) == before, "routers alone are memory enough"
        for v in rest.vips:
            if data.draw(st.integers(0, 2)) == 0:
                new = data.draw(wanting())[0]
                rest = changed(rest, replace(new, metadata=v.metadata, spec=spec_for(v, new)))
        for _ in range(16):
            after = running(applied(rest, plan(rest)))
            sound(after)
            if after == rest:
                break
            rest = after
        else:
            raise AssertionError("planner and speakers do not come to rest")


def spec_for(old: Vip, new: Vip) -> VirtualIPSpec:
    """The new one's wishes for the old one's address."""
    assert old.spec is not None
    assert new.spec is not None
    return msgspec.structs.replace(new.spec, address=old.spec.address)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, "02:00:00:00:ff:01", "02:00:00:00:ff:02"]),
            st.sampled_from([None, "02:00:00:00:ff:01", "02:00:00:00:ff:03"]),
            st.sampled_from(["", "g"]),
        ),
        max_size=12,
    )
)
def test_whoever_is_given_none_gets_one_that_nobody_else_has(
    drawn_wishes: list[tuple[str | None, str | None, str]],
) -> None:
    wishes = [
        Wish(("d", f"v{i}"), f"192.0.2.{i}", ("d", group, "" if group else f"v{i}"), asked, None, kept)
        for i, (asked, kept, group) in enumerate(drawn_wishes)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(macs, "drawn", narrow)
        found = allotted(world(2, vips(1)), wishes)

    assert set(found) == {wish.key for wish in wishes}
    users: dict[str, set[object]] = {}
    for wish in wishes:
        mac = found[wish.key]
        assert isinstance(mac, str) or wish.given is not None, "only what is given can be refused"
        if isinstance(mac, str):
            assert wish.given in (None, mac)
            users.setdefault(mac, set()).add(wish.circle)
    assert all(len(circles) == 1 for circles in users.values())
