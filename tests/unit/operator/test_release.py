# SPDX-License-Identifier: Apache-2.0
"""Never two holders: an address that is let go, asked for again, or driven off its VRID by a stranger.

The property lets speakers live by what they have read: a cut one goes on by an old plan, and its old report
stands in the API. One segment for all; who is Active stays so until it dies or is told otherwise.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast_api.conditions import Reason
from holdfast_api.types import VirtualRouter
from holdfast_operator.candidates import home_order
from holdfast_operator.changes import router_changes
from holdfast_operator.plan import plan
from holdfast_operator.world import Timely, World
from tests.unit.operator.worlds import (
    applied,
    changed,
    hearing,
    live_through,
    only,
    report,
    reporting,
    running,
    vip,
    world,
)

Act = tuple[str, str]
ADDRESSES = ("192.0.2.1", "192.0.2.2", "2001:db8::1")


@dataclass
class Life:
    """A cluster in which anything may be cut off, edited or deleted. ``check`` after each turn."""

    world: World
    plans: dict[str, Mapping[str, VirtualRouter]] = field(default_factory=dict)  # node -> what it has read
    cut: set[str] = field(default_factory=set)
    active: dict[str, str] = field(default_factory=dict)  # router -> node, on the segment
    terms: Counter[str] = field(default_factory=Counter)
    away: bool = False

    def turn(self) -> None:
        """The operator plans, then the speakers read, elect and report."""
        if not self.away:
            before = self.world
            self.world = applied(self.world, plan(self.world))
            self._given_only_what_is_free(before)
        for node in self.world.nodes:
            if node not in self.cut:
                self.plans[node] = dict(self.world.routers)
        self._elect()
        self._one_holder()
        for node in self.world.nodes:
            if node not in self.cut:
                self._report(node)

    def _runs(self, node: str, name: str) -> bool:
        router = self.plans.get(node, {}).get(name)
        return router is not None and node in home_order(router)

    def _elect(self) -> None:
        names = {name for plans in self.plans.values() for name in plans}
        for name in sorted(names):
            now = self.active.get(name)
            if now is not None and self._runs(now, name):
                continue
            ready = [node for node in sorted(self.plans) if self._runs(node, name)]
            if not ready:
                self.active.pop(name, None)
                continue
            self.active[name] = min(ready, key=lambda n: home_order(self.plans[n][name]).index(n))
            self.terms[name] += 1

    def holds(self, node: str) -> set[tuple[str, str]]:
        """(router, address) that are bound on this node. A new address is asked for before it is bound."""
        found = set()
        for name, active in self.active.items():
            if active == node and self._runs(node, name):
                entries = self.plans[node][name].spec.addresses
                found |= {(name, e.address) for e in entries if e.state == "Held"}
        return found

    def _report(self, node: str) -> None:
        said = []
        held = self.holds(node)
        for name, router in self.plans[node].items():
            if node not in home_order(router):
                continue
            is_active = self.active.get(name) == node
            mine = [address for where, address in held if where == name]
            said.append(
                report(
                    router,
                    node,
                    "Active" if is_active else "Backup",
                    term=self.terms[name],
                    held=mine,
                    hears=None if is_active else self.active.get(name),
                )
            )
        speaker = msgspec.structs.replace(self.world.speakers[node], routers=tuple(said))
        self.world = replace(self.world, speakers={**self.world.speakers, node: speaker})

    def _given_only_what_is_free(self, before: World) -> None:
        """What is new in a router was reported to be held nowhere."""
        holders = {a for s in before.speakers.values() for r in s.routers for a in r.held}
        for name, router in self.world.routers.items():
            old = before.routers.get(name)
            known = {e.address: e.owner for e in old.spec.addresses} if old is not None else {}
            for entry in router.spec.addresses:
                if entry.state == "Held" and known.get(entry.address) != entry.owner:
                    same_vip = known.get(entry.address) is not None and (
                        known[entry.address].namespace,
                        known[entry.address].name,
                    ) == (entry.owner.namespace, entry.owner.name)
                    back = any(
                        v.key == (entry.owner.namespace, entry.owner.name)
                        and v.status.virtual_router == name
                        and v.status.address == entry.address
                        for v in before.vips
                    )
                    assert same_vip or back or entry.address not in holders, (name, entry)
        held = Counter(
            e.address for r in self.world.routers.values() for e in r.spec.addresses if e.state == "Held"
        )
        assert max(held.values(), default=0) <= 1, held

    def _one_holder(self) -> None:
        """Nobody holds what another router's Active holds.

        Left out is a cut standby that takes over by an old plan, of which the API can't know: the segment
        itself refuses it (claims ask first, and what another router lists is left alone).
        """
        where: dict[str, set[str]] = {}
        for node in self.world.nodes:
            said = {r.name for r in self.world.speakers[node].routers if r.state == "Active"}
            for name, address in self.holds(node):
                if node not in self.cut or name in said:
                    where.setdefault(address, set()).add(name)
        assert all(len(names) == 1 for names in where.values()), where

    def act(self, what: Act) -> None:
        kind, name = what
        match kind:
            case "cut":
                self.cut.add(name)
            case "mend":
                self.cut.discard(name)
            case "away":
                self.away = name == "yes"
            case "silence":
                self.world = replace(self.world, live=self.world.live - self.cut)
            case "heal":
                self.world = replace(self.world, live=frozenset(self.world.nodes))
            case "delete":
                self._delete(name)
            case "steal":
                self._delete(name)
                self._claim("two", name, group="thief")
            case "edit":
                edited = vip(name, self._address(name), namespace="one", group="edited")
                self.world = changed(self.world, edited)
            case "drop":
                routers = {n: r for n, r in self.world.routers.items() if name not in _owners(r)}
                self.world = replace(self.world, routers=routers)
            case _:
                self._claim(kind, name)

    def _delete(self, name: str) -> None:
        kept = tuple(v for v in self.world.vips if v.metadata.name != name)
        self.world = replace(self.world, vips=kept)

    def _address(self, name: str) -> str:
        return ADDRESSES[int(name[-1]) % len(ADDRESSES)]

    def _claim(self, namespace: str, name: str, *, group: str | None = None) -> None:
        if not any(v.key == (namespace, name) for v in self.world.vips):
            new = vip(name, self._address(name), namespace=namespace, group=group or f"of-{name}")
            self.world = replace(self.world, vips=(*self.world.vips, new))


def _owners(router: VirtualRouter) -> set[str]:
    return {entry.owner.name for entry in router.spec.addresses}


NAMES = [f"v{number}" for number in range(4)]
NODES = ["n1", "n2", "n3"]
acts = st.one_of(
    st.tuples(
        st.sampled_from(["one", "two", "delete", "steal", "steal", "edit", "drop"]), st.sampled_from(NAMES)
    ),
    st.tuples(st.sampled_from(["cut", "mend"]), st.sampled_from(NODES)),
    st.tuples(st.just("away"), st.sampled_from(["yes", "no", "no"])),
    st.tuples(st.sampled_from(["silence", "heal", "turn", "turn"]), st.just("")),
)
starts = st.lists(st.tuples(st.just("one"), st.sampled_from(NAMES)), min_size=1, max_size=3)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(starts, st.lists(acts, min_size=3, max_size=20))
def test_whatever_is_deleted_claimed_and_cut_off_an_address_has_one_holder(
    first: list[Act], told: list[Act]
) -> None:
    life = Life(world(3))
    for what in (*first, *told):
        if what[0] != "turn":
            life.act(what)
        life.turn()
    life.away = False
    life.cut.clear()
    life.world = replace(life.world, live=frozenset(life.world.nodes))
    for _ in range(8):
        life.turn()

    for each in life.world.vips:  # and in the end everybody has what is due to him
        verdict = plan(life.world).verdicts[each.key]
        assert verdict.accepted is None or verdict.accepted.reason == Reason.ADDRESS_IN_USE
        if verdict.accepted is None and verdict.scheduled is None:
            here = (verdict.router, verdict.address)
            holders = [n for n in life.world.nodes if here in life.holds(n)]
            assert len(holders) == 1


# --- stories ------------------------------------------------------------------------------------


def two_owners() -> World:
    """a is held by the leader of a router of its own; b is somewhere else."""
    return live_through(world(3, [vip("a", "192.0.2.1", group="x"), vip("b", "192.0.2.2", group="y")]))


def stolen(start: World) -> World:
    """a is deleted, and its address is asked for from another namespace, all while nobody looked."""
    return replace(start, vips=(*start.vips[1:], vip("c", "192.0.2.1", namespace="other")))


def thief(start: World) -> Reason | None:
    refused = plan(start).verdicts["other", "c"].accepted
    return refused.reason if refused is not None else None


def all_but(start: World, *nodes: str) -> World:
    """These nodes read nothing; the others have read everything, and hold nothing that is not theirs."""
    said = []
    for router in start.routers.values():
        for node in home_order(router):
            if node not in nodes:
                leads = home_order(router)[0] == node
                said.append((node, report(router, node, "Active" if leads else "Backup")))
    return reporting(start, said)


def test_deleted_and_stolen_while_its_holders_api_is_cut_and_the_operator_was_away() -> None:
    start = two_owners()
    holder = start.vips[0].status.active[0].node
    start = stolen(start)
    for live in (start.live, start.live - {holder}):
        away = replace(start, live=live)
        for _ in range(4):
            away = all_but(applied(away, plan(away)), holder)
            assert thief(away) == Reason.ADDRESS_RELEASING
        back = live_through(replace(away, live=frozenset(away.nodes)))

        assert thief(back) is None
        assert [
            (e.owner.name, e.claimed)
            for r in back.routers.values()
            for e in r.spec.addresses
            if e.address == "192.0.2.1"
        ] == [("c", True)]


def test_an_address_that_is_given_to_another_is_probed_for_first() -> None:
    """A cut standby may hold it by an old plan, of which nobody can know."""
    start = stolen(two_owners())
    for _ in range(10):
        start = applied(start, plan(start))
        entries = [e for r in start.routers.values() for e in r.spec.addresses if e.owner.name == "c"]
        if entries:
            break
        start = all_but(start)

    assert [entry.claimed for entry in entries] == [False]


def test_a_speaker_object_that_is_gone_has_released_nothing_until_its_node_goes_or_the_owner_says_so() -> (
    None
):
    start = two_owners()
    holder = start.vips[0].status.active[0].node
    edited = changed(start, vip("a", "192.0.2.1", group="x", interval_ms=200))  # plannedFrom is written
    start = live_through(edited)
    start = stolen(start)
    gone = {n: s for n, s in start.speakers.items() if n != holder}
    remembered = replace(
        start, speakers=gone, ghosts={holder: start.speakers[holder]}, live=start.live - {holder}
    )
    forgotten = replace(start, speakers=gone, live=start.live - {holder})
    for each in (remembered, forgotten):
        for _ in range(4):
            each = all_but(applied(each, plan(each)), holder)
        assert thief(each) == Reason.ADDRESS_RELEASING
        nodeless = replace(each, nodes={n: node for n, node in each.nodes.items() if n != holder})
        for _ in range(3):
            nodeless = all_but(applied(nodeless, plan(nodeless)), holder)
        assert thief(nodeless) is None
        note = {"holdfast.dev/force-release": holder}
        forced = [
            replace(v, metadata=msgspec.structs.replace(v.metadata, annotations=note))
            if v.key[1] == "c"
            else v
            for v in each.vips
        ]
        assert thief(replace(each, vips=tuple(forced))) is None


def test_a_live_standby_that_has_not_read_the_plan_is_waited_for_but_not_for_ever() -> None:
    start = two_owners()
    old = start.routers[start.vips[0].status.virtual_router or ""]
    standby = home_order(old)[1]
    start = stolen(start)
    for _ in range(3):
        start = all_but(applied(start, plan(start)), standby)
    late = replace(start, timely=Timely(lagging=frozenset({(old.metadata.name, standby)})))

    assert thief(start) == Reason.ADDRESS_RELEASING
    assert thief(replace(start, live=start.live - {standby})) is None
    assert thief(late) is None


def test_a_vrid_is_used_again_only_when_every_speaker_has_seen_that_its_router_is_gone() -> None:
    start = live_through(world(3, [vip("a", "192.0.2.1")], ids=range(7, 9)))
    old = only(start)
    cut = next(n for n in home_order(old)[1:])
    kept = start.speakers[cut]
    empty = replace(start, vips=())
    for _ in range(3):
        empty = running(applied(empty, plan(empty)))
    empty = replace(empty, speakers={**empty.speakers, cut: kept}, live=empty.live - {cut})
    asked = replace(empty, vips=(vip("b", "192.0.2.9", group="b"), vip("c", "192.0.2.8", group="c")))
    ghost = replace(asked, speakers={n: s for n, s in asked.speakers.items() if n != cut}, ghosts={cut: kept})
    read = replace(asked, speakers={**asked.speakers, cut: msgspec.structs.replace(kept, routers=())})
    nodeless = replace(asked, nodes={n: node for n, node in asked.nodes.items() if n != cut})

    assert empty.routers == {}
    for waiting in (asked, ghost):
        assert old.metadata.name not in plan(waiting).routers
        assert len(plan(waiting).routers) == 1
    for free in (read, nodeless):
        assert len(plan(free).routers) == 2


def test_two_clusters_on_one_segment_share_no_vrid_however_they_grow() -> None:
    ids = range(100, 112)
    both = [replace(world(2, ids=ids), cluster_uid=uid) for uid in ("one", "two")]
    for number in range(6):
        for mine in (0, 1):
            new = vip(f"v{number}", f"192.0.2.{10 * mine + number + 1}", group=f"g{number}")
            both[mine] = live_through(replace(both[mine], vips=(*both[mine].vips, new)))
            for router in both[mine].routers.values():
                vrid = router.spec.virtual_router_id
                if (("n1", "eth0", vrid)) not in both[1 - mine].strangers:
                    both[1 - mine] = hearing(both[1 - mine], "n1", vrid)
    one, two = ({r.spec.virtual_router_id for r in each.routers.values()} for each in both)

    assert len(one) == len(two) == 6
    assert not one & two


# --- a stranger on a VRID of ours ---------------------------------------------------------------


def haunted(start: World, router: VirtualRouter, *nodes: str) -> World:
    vrid = router.spec.virtual_router_id
    for node in nodes:
        start = hearing(start, node, vrid)
    foreign = frozenset((node, "eth0", vrid) for node in nodes) | start.timely.foreign
    return replace(start, timely=replace(start.timely, foreign=foreign))


def test_a_router_moves_to_another_vrid_when_two_candidates_hear_a_stranger_for_a_minute() -> None:
    start = two_owners()
    a, b = (start.routers[v.status.virtual_router or ""] for v in start.vips)
    moving = haunted(start, a, "n1", "n2")
    first = plan(moving)
    moving = applied(moving, first)
    states = [e.state for e in moving.routers[a.metadata.name].spec.addresses]
    again = replace(moving, timely=replace(moving.timely, may_renumber=False))
    rest = live_through(again)
    new = rest.routers[rest.vips[0].status.virtual_router or ""]

    assert first.renumbered == a.metadata.name
    assert states == ["Releasing"], "released and reported first"
    assert thief(stolen(moving)) == Reason.ADDRESS_RELEASING
    assert new.metadata.name not in (a.metadata.name, b.metadata.name)
    assert [e.address for e in new.spec.addresses] == ["192.0.2.1"]
    assert a.metadata.name not in rest.routers
    assert rest.vips[1].status.virtual_router == b.metadata.name
    assert router_changes(plan(rest)) == ()


def test_a_router_stays_when_one_candidate_alone_hears_the_stranger_or_only_for_a_moment() -> None:
    start = two_owners()
    a = start.routers[start.vips[0].status.virtual_router or ""]
    brief = replace(haunted(start, a, "n1", "n2"), timely=Timely())

    assert router_changes(plan(haunted(start, a, "n1"))) == ()
    assert router_changes(plan(brief)) == ()
    silent = replace(haunted(start, a, "n1", "n2"), live=frozenset({"n1", "n3"}))
    assert plan(silent).renumbered is None, "what a silent node heard may be long ago"


def test_one_router_a_minute_gets_another_vrid_and_none_when_there_is_no_free_one() -> None:
    start = two_owners()
    a, b = (start.routers[v.status.virtual_router or ""] for v in start.vips)
    both = haunted(haunted(start, a, "n1", "n2"), b, "n1", "n3")
    busy = replace(both, timely=replace(both.timely, may_renumber=False))
    full = replace(both, virtual_router_ids=range(a.spec.virtual_router_id, a.spec.virtual_router_id + 1))
    moved = {name for name, r in plan(both).routers.items() if r.spec.addresses[0].state == "Releasing"}

    assert len(moved) == 1
    assert {plan(both).renumbered} == moved
    assert router_changes(plan(busy)) == ()
    assert router_changes(plan(full)) == ()
