# SPDX-License-Identifier: Apache-2.0
"""Orders to hand over: when they are given, to whom, and when they end."""

from dataclasses import replace

import msgspec
import pytest

from holdfast_api.conditions import Reason
from holdfast_api.types import Failback, Failover, Handover, Move, VirtualRouter
from holdfast_operator import status
from holdfast_operator.candidates import home_order
from holdfast_operator.changes import router_changes
from holdfast_operator.handovers import MOST_AT_ONCE
from holdfast_operator.plan import plan
from holdfast_operator.world import DrainRule, Node, Timely, World
from tests.unit.operator.worlds import (
    NOW,
    applied,
    asking,
    live_through,
    marked,
    nic,
    only,
    report,
    reporting,
    running,
    vip,
    vips,
    world,
)

FAILBACKS: tuple[Failback, ...] = ("Never", "Immediate", "Delayed")


def one(failback: Failback = "Never", nodes: int = 3) -> World:
    """One VirtualIP that runs, and whose standbys hear its holder."""
    wanted = [vip("a", "192.0.2.1", failover=Failover(failback=failback))]
    return running(live_through(world(nodes, wanted)), heard=True)


def order_of(start: World) -> Handover | None:
    (made,) = plan(start).routers.values()
    return made.spec.handover


def planned(start: World) -> tuple[str, ...]:
    (made,) = plan(start).routers.values()
    return tuple(candidate.node for candidate in made.spec.candidates)


def step(start: World) -> World:
    """The plan is applied, every speaker has read it, and nobody has moved."""
    after = applied(start, plan(start))
    router = only(after)
    actives = {s.node for s in start.actives(only(start))}
    said = []
    for sighting in after.of(router):
        hears = None if sighting.node in actives else next(iter(actives), None)
        told = msgspec.structs.replace(
            sighting.report, observed_generation=router.metadata.generation, hears=hears
        )
        said.append((sighting.node, told))
    return reporting(after, said)


def obeyed(start: World, order: Handover) -> World:
    """``to`` has it, and ``from`` says that the order is done."""
    router = only(start)
    term = start.actives(router)[0].report.term + 1
    said = []
    for node in home_order(router):
        told = report(router, node, "Active" if node == order.to else "Backup", term=term)
        hears = None if node == order.to else order.to
        done = order.id if node == order.from_ else ""
        said.append((node, msgspec.structs.replace(told, hears=hears, handover=done)))
    return reporting(start, said)


def outdated(start: World, router: VirtualRouter) -> World:
    """Ten seconds have passed for the order that stands."""
    assert router.spec.handover is not None
    spent = start.timely.spent | {(router.metadata.uid, router.spec.handover.id)}
    return replace(start, timely=replace(start.timely, spent=spent))


# --- a drained node -----------------------------------------------------------------------------


@pytest.mark.parametrize("failback", FAILBACKS)
def test_a_drained_actives_router_is_ordered_over_to_the_first_standby_and_ends_there(
    failback: Failback,
) -> None:
    start = one(failback)
    giver, heir, third = home_order(only(start))
    ordered = step(marked(start, giver))
    order = only(ordered).spec.handover
    assert order is not None
    rest = step(obeyed(ordered, order))

    assert (order.from_, order.to) == (giver, heir)
    assert home_order(only(ordered)) == (heir, third, giver)
    assert only(rest).spec.handover is None
    assert home_order(only(rest)) == (heir, third, giver)
    assert router_changes(plan(rest)) == ()


@pytest.mark.parametrize("failback", FAILBACKS)
def test_a_drained_node_that_returns_is_an_ordinary_standby(failback: Failback) -> None:
    start = one(failback)
    giver = home_order(only(start))[0]
    drained = step(marked(start, giver))
    order = only(drained).spec.handover
    assert order is not None
    rest = step(obeyed(drained, order))

    back = marked(rest, giver, by="")

    assert order_of(back) is None
    assert planned(back) == home_order(only(rest))


@pytest.mark.parametrize(
    ("node", "rule", "drained"),
    [
        (Node("x", labels={"holdfast.dev/drain": ""}), DrainRule(), True),
        (Node("x", labels={"holdfast.dev/drain": "yes"}), DrainRule(), True),
        (Node("x", labels={"holdfast.dev/drain": "false"}), DrainRule(), False),
        (Node("x"), DrainRule(), False),
        (Node("x", taints=frozenset({"node.kubernetes.io/out-of-service"})), DrainRule(), True),
        (Node("x", taints=frozenset({"ToBeDeletedByClusterAutoscaler"})), DrainRule(), True),
        (Node("x", taints=frozenset({"karpenter.sh/disrupted"})), DrainRule(), True),
        (Node("x", taints=frozenset({"karpenter.sh/disrupted"})), DrainRule(taints=("mine",)), False),
        (Node("x", taints=frozenset({"mine"})), DrainRule(taints=("mine",)), True),
        (Node("x", unschedulable=True), DrainRule(), False),
        (Node("x", unschedulable=True), DrainRule(cordon=True), True),
    ],
)
def test_what_drains_a_node(node: Node, rule: DrainRule, drained: bool) -> None:
    assert bool(rule.mark(node)) is drained


@pytest.mark.parametrize(
    "spoilt",
    ["silent", "Initialize", "unheard", "behind", "unplugged", "drained", "deleting", "lagging"],
)
def test_an_heir_is_alive_a_backup_that_hears_the_active_and_has_read_the_plan(spoilt: str) -> None:
    start = one()
    router = only(start)
    giver, heir, third = home_order(router)
    match spoilt:
        case "silent":
            start = replace(start, live=start.live - {heir})
        case "Initialize":
            start = reporting(start, [(heir, report(router, heir, "Initialize"))])
        case "unheard":
            start = reporting(start, [(heir, report(router, heir, "Backup", hears=third))])
        case "behind":
            start = reporting(start, [(heir, report(router, heir, "Backup", hears=giver, behind=1))])
        case "unplugged":
            nics = (msgspec.structs.replace(start.speakers[heir].interfaces[0], carrier=False),)
            speaker = msgspec.structs.replace(start.speakers[heir], interfaces=nics)
            start = replace(start, speakers={**start.speakers, heir: speaker})
        case "drained":
            start = marked(start, heir)
        case "deleting":
            start = replace(start, nodes={**start.nodes, heir: replace(start.nodes[heir], deleting=True)})
        case "lagging":
            start = reporting(start, [(heir, report(router, heir, "Backup", hears=giver, behind=1))])
            start = replace(start, timely=Timely(lagging=frozenset({(router.metadata.name, heir)})))
    drained = marked(start, giver)

    assert order_of(drained) is None, "not yet, or to nobody at once"
    if spoilt != "behind":  # that one is waited for
        later = step(drained)
        if spoilt == "lagging":
            later = reporting(later, [(heir, report(only(later), heir, "Backup", hears=giver, behind=2))])
        if spoilt == "unheard":
            later = reporting(later, [(heir, report(only(later), heir, "Backup", hears=third))])
        order = order_of(later)
        assert order is not None
        assert order.to == third


def test_there_is_no_order_without_exactly_one_live_active() -> None:
    start = one()
    router = only(start)
    giver, heir, _ = home_order(router)
    split = reporting(start, [(heir, report(router, heir, term=1))])
    silent = replace(start, live=start.live - {giver})
    nobody = reporting(start, [(giver, report(router, giver, "Backup"))])

    for each in (split, silent, nobody):
        assert order_of(marked(each, giver)) is None


@pytest.mark.parametrize("failback", FAILBACKS)
def test_when_all_nodes_are_drained_everything_stays_where_it_is(failback: Failback) -> None:
    start = one(failback)
    for node in start.nodes:
        start = marked(start, node)

    assert router_changes(plan(start)) == ()
    assert all(v.scheduled is None for v in plan(world(2, [vip("a", "192.0.2.1")])).verdicts.values())


def test_a_drained_node_leads_no_new_router_and_comes_last_there() -> None:
    made = plan(marked(world(3, vips(12)), "n2")).routers.values()

    assert {router.spec.candidates[-1].node for router in made} == {"n2"}
    assert len(made) == 2, "as many as two nodes would get"


def test_an_order_that_failed_is_not_repeated_but_another_heir_is_tried_once() -> None:
    start = one()
    giver, heir, third = home_order(only(start))
    start = step(marked(start, giver))
    first = only(start).spec.handover
    start = step(outdated(start, only(start)))
    start = step(start) if only(start).spec.handover is None else start
    second = only(start).spec.handover
    assert first is not None
    assert second is not None
    start = step(outdated(start, only(start)))

    assert [first.to, second.to] == [heir, third]
    assert only(start).spec.handover is None
    assert router_changes(plan(start)) == (), "and then no more"
    assert planned(start)[-1] == giver
    assert start.actives(only(start))[0].node == giver, "order alone makes nobody resign"

    again = step(marked(start, giver, by="once more"))
    anew = step(marked(marked(start, giver, by=""), giver, round_=77))
    for each in (again, anew):
        order = order_of(each)
        assert order is not None
        assert order.id not in (first.id, second.id)


def test_an_order_that_the_active_reports_as_dealt_with_is_not_repeated_by_an_operator_without_memory() -> (
    None
):
    start = one(nodes=2)
    giver = home_order(only(start))[0]
    start = step(marked(start, giver, round_=5))
    order = only(start).spec.handover
    assert order is not None
    said = report(only(start), giver, handover=order.id)
    start = step(outdated(reporting(start, [(giver, said)]), only(start)))
    forgetful = replace(start, timely=Timely())

    for number in (0, 5):
        assert order_of(marked(forgetful, giver, round_=number)) is None
    assert order_of(marked(forgetful, giver, round_=9)) is not None, "marked anew since"


def test_an_order_stands_while_it_is_carried_out_and_is_withdrawn_when_its_reason_is_gone() -> None:
    start = one()
    router = only(start)
    giver, heir, third = home_order(router)
    start = step(marked(start, giver))
    order = only(start).spec.handover
    assert order is not None
    resigning = reporting(start, [(giver, report(only(start), giver, handover=order.id))])
    deaf = reporting(resigning, [(heir, report(only(start), heir, "Backup", behind=1))])
    dead = replace(start, live=start.live - {heir})
    elsewhere = reporting(
        start,
        [
            (giver, report(only(start), giver, "Backup")),
            (third, report(only(start), third, "Active", term=2)),
        ],
    )

    for each in (start, resigning, deaf):
        assert order_of(each) == order
    for each in (marked(start, giver, by=""), elsewhere, outdated(start, only(start))):
        assert order_of(each) is None or order_of(each) != order
    taken = order_of(dead)
    assert taken is None or taken.to == third


def test_at_most_a_few_routers_move_off_one_node_at_a_time_and_in_the_end_all() -> None:
    nics = {f"n{i}": (nic(i),) for i in range(1, 4)}
    groups = [vip(f"g{i}", f"192.0.2.{i}", group=f"g{i}") for i in range(1, 31)]
    start = running(live_through(world(3, groups, interfaces=nics)), heard=True)
    start = marked(start, "n1")
    led = {name for name, r in start.routers.items() if home_order(r)[0] == "n1"}
    assert len(led) > MOST_AT_ONCE
    moved: set[str] = set()
    for _ in range(12):
        start = applied(start, plan(start))
        orders = {n: r.spec.handover for n, r in start.routers.items() if r.spec.handover is not None}
        assert len(orders) <= MOST_AT_ONCE
        moved |= orders.keys()
        start = running(start, heard=True, term=1)

    assert moved == led
    assert all(home_order(r)[-1] == "n1" for r in start.routers.values())
    assert router_changes(plan(start)) == ()


# --- a move that was asked for ------------------------------------------------------------------


def answer(start: World) -> Move | None:
    return status.fold(start, plan(start), NOW)["default", "a"].move


@pytest.mark.parametrize("failback", FAILBACKS)
def test_a_move_that_was_asked_for_is_ordered_once_its_heir_stands_first_and_is_answered(
    failback: Failback,
) -> None:
    start = one(failback)
    giver, second, third = home_order(only(start))
    first = step(asking(start, "a", third))
    ordered = step(first)
    order = only(ordered).spec.handover
    assert order is not None
    rest = step(obeyed(ordered, order))
    rest = step(rest)

    assert only(first).spec.handover is None
    assert home_order(only(first)) == (giver, third, second)
    assert (order.from_, order.to) == (giver, third)
    assert home_order(only(ordered)) == (third, giver, second)
    assert answer(rest) == Move(
        third, Reason.HANDED_OVER.value, f"{third} is the Active of {only(rest).metadata.name}"
    )
    assert only(rest).spec.handover is None
    assert router_changes(plan(rest)) == ()
    assert rest.vips[0].status.move == answer(rest)


def test_a_move_is_served_once_and_not_again_when_the_address_moves_on() -> None:
    start = one()
    _, heir, third = home_order(only(start))
    start = step(step(asking(start, "a", heir)))
    order = only(start).spec.handover
    assert order is not None
    start = step(obeyed(start, order))
    later = obeyed(start, Handover("x-0", heir, third))

    assert order_of(step(later)) is None
    assert answer(asking(later, "a", "")) is None, "without the annotation there is no answer"


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        ("n9", Reason.NOT_CANDIDATE),
        ("drained", Reason.DRAINING),
        ("silent", Reason.SPEAKER_SILENT),
        ("cut", Reason.SPEAKER_SILENT),
        ("unplugged", Reason.NOT_CANDIDATE),
        ("overdue", Reason.HANDOVER_FAILED),
        ("failed", Reason.HANDOVER_FAILED),
    ],
)
def test_a_move_that_cannot_be_is_refused_and_not_tried_again(spoilt: str, reason: Reason) -> None:
    start = one()
    router = only(start)
    giver, heir, _ = home_order(router)
    to = "n9" if spoilt == "n9" else heir
    match spoilt:
        case "drained":
            start = marked(start, heir)
        case "silent":
            start = replace(start, live=start.live - {heir})
        case "cut":
            start = replace(start, live=start.live - {giver})
        case "unplugged":
            nics = (msgspec.structs.replace(start.speakers[heir].interfaces[0], carrier=False),)
            speaker = msgspec.structs.replace(start.speakers[heir], interfaces=nics)
            start = replace(start, speakers={**start.speakers, heir: speaker})
        case "overdue":
            start = reporting(start, [(heir, report(router, heir, "Initialize"))])
            assert answer(asking(start, "a", to)) is None, "it is waited for"
            start = replace(start, timely=Timely(overdue=frozenset({("default", "a")})))
        case "failed":
            start = step(asking(start, "a", to))
            start = outdated(start, only(start))
    refused = asking(start, "a", to)
    found = answer(refused)
    assert found is not None
    after = applied(refused, plan(refused))

    assert (found.to, found.reason) == (to, reason)
    assert found.message
    assert order_of(refused) is None
    assert order_of(running(replace(after, live=frozenset(after.nodes), timely=Timely()), heard=True)) is None


def test_a_move_can_be_asked_for_again() -> None:
    start = one()
    heir = home_order(only(start))[1]
    start = step(asking(start, "a", heir))
    start = step(outdated(start, only(start)))
    failed = answer(start)
    assert failed is not None
    assert failed.reason == Reason.HANDOVER_FAILED
    start = step(asking(start, "a", ""))

    assert answer(start) is None
    assert order_of(asking(start, "a", heir, asked=9)) is not None


# --- a host that flaps --------------------------------------------------------------------------


@pytest.mark.parametrize("failback", FAILBACKS)
def test_a_node_that_flaps_ranks_behind_the_steady_ones(failback: Failback) -> None:
    start = one(failback)
    router = only(start)
    flapping, second, third = home_order(router)
    taken = obeyed(start, Handover("x-0", flapping, second))
    unsteady = replace(taken, timely=Timely(unsteady=frozenset({flapping})))
    steady = replace(applied(unsteady, plan(unsteady)), timely=Timely())

    assert planned(unsteady) == (second, third, flapping)
    assert planned(steady)[0] == second, "and does not move back by itself afterwards"


def test_a_node_that_flaps_is_the_heir_only_when_nobody_steady_is_there() -> None:
    start = one()
    giver, second, third = home_order(only(start))
    flapping = replace(start, timely=Timely(unsteady=frozenset({second})))
    both = replace(start, timely=Timely(unsteady=frozenset({second, third})))

    later = step(marked(flapping, giver))
    order = order_of(later)
    assert order is not None
    assert order.to == third
    other = order_of(marked(both, giver))
    assert other is not None
    assert other.to == second


# --- a node that comes back ---------------------------------------------------------------------


@pytest.mark.parametrize("failback", FAILBACKS)
def test_a_node_that_comes_back_takes_over_again_only_once_its_node_is_ready(failback: Failback) -> None:
    start = one(failback)
    home, second, third = home_order(only(start))
    taken = step(obeyed(start, Handover("x-0", home, second)))

    def meek(ready: bool) -> list[str]:
        nodes = {**taken.nodes, home: replace(taken.nodes[home], ready=ready)}
        (made,) = plan(replace(taken, nodes=nodes)).routers.values()
        return [candidate.node for candidate in made.spec.candidates if candidate.meek]

    assert planned(taken) == ((second, home, third) if failback == "Never" else (home, second, third))
    assert meek(ready=False) == ([] if failback == "Never" else [home])
    assert meek(ready=True) == []


@pytest.mark.parametrize("failback", FAILBACKS)
def test_an_active_whose_node_is_not_ready_any_more_goes_on(failback: Failback) -> None:
    start = one(failback)
    active = home_order(only(start))[0]
    unready = replace(start, nodes={**start.nodes, active: replace(start.nodes[active], ready=False)})

    assert router_changes(plan(unready)) == ()
