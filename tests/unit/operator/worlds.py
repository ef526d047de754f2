# SPDX-License-Identifier: Apache-2.0
"""Worlds for the planner's tests: small builders, and a hand that applies a Plan as the API would."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec

from holdfast_api.names import DRAIN_LABEL, MOVE_TO_ANNOTATION
from holdfast_api.types import (
    Failover,
    HeardVirtualRouterID,
    Interface,
    LabelSelector,
    Metadata,
    NodeChoice,
    RouterReport,
    RouterState,
    SpeakerStatus,
    Transition,
    VirtualIPSpec,
    VirtualIPStatus,
    VirtualRouter,
)
from holdfast_operator import changes, status
from holdfast_operator.candidates import home_order
from holdfast_operator.plan import Plan, plan
from holdfast_operator.world import Node, Vip, World

NOW = "2026-11-22T10:00:00Z"
CREATED = "2026-11-22T09:00:00Z"
SINCE = "2026-11-22T09:59:00.000000Z"


def nic(
    number: int, name: str = "eth0", *, carrier: bool = True, listened: bool = True, v6: bool = True
) -> Interface:
    """Node ``number``'s NIC on 192.0.2.0/24 and 2001:db8::/64."""
    addresses: tuple[str, ...] = (f"192.0.2.{200 + number}/22",) if number < 50 else (f"192.0.3.{number}/22",)
    if v6:
        addresses += (f"2001:db8::f:{number:x}/64", f"fe80::{number:x}/64")
    mac = f"02:00:00:00:00:{number:02x}"
    return Interface(name, mac, addresses, carrier=carrier, listened=listened)


def node_name(number: int) -> str:
    return f"n{number}"


def vip(
    name: str,
    address: str | None = None,
    *,
    namespace: str = "default",
    created: str = CREATED,
    selector: Mapping[str, str] | None = None,
    interval_ms: int = 100,
    annotations: Mapping[str, str] | None = None,
    **spec: object,
) -> Vip:
    """A VirtualIP; what it can be asked for beyond that goes into ``spec`` as the field's own name."""
    failover = spec.pop("failover", Failover(advert_interval_milliseconds=interval_ms))
    chosen = LabelSelector(match_labels=dict(selector)) if selector is not None else None
    wanted = VirtualIPSpec(
        address=address,
        failover=failover,  # type: ignore[arg-type]
        nodes=NodeChoice(selector=chosen),
        **spec,  # type: ignore[arg-type]
    )
    metadata = Metadata(
        name=name,
        namespace=namespace,
        uid=f"uid-{namespace}-{name}",
        generation=1,
        resource_version="1",
        creation_timestamp=created,
        annotations=dict(annotations or {}),
    )
    return Vip(metadata, wanted)


def vips(count: int, first: int = 0) -> tuple[Vip, ...]:
    """So many IPv4 VirtualIPs of one class, one second after the other."""
    return tuple(
        vip(
            f"v{number:05}",
            f"192.0.{number // 250}.{number % 250 + 1}"
            if count <= 500
            else f"10.{number // 60000}.{number // 250 % 240}.{number % 250 + 1}",
        )
        for number in range(first, first + count)
    )


def world(
    count: int = 3,
    wanted: Iterable[Vip] = (),
    *,
    interfaces: Mapping[str, Sequence[Interface]] | None = None,
    silent: Iterable[str] = (),
    labels: Mapping[str, Mapping[str, str]] | None = None,
    ids: range = range(1, 256),
) -> World:
    """``count`` nodes n1.. with a live speaker each, one NIC eth0, listened."""
    names = [node_name(number) for number in range(1, count + 1)]
    nics = {name: (nic(number),) for number, name in enumerate(names, 1)} | dict(interfaces or {})
    return World(
        cluster_uid="5f1c",
        nodes={
            name: Node(
                name, labels=dict((labels or {}).get(name, {})), addresses=frozenset({f"198.51.100.{i}"})
            )
            for i, name in enumerate(names, 1)
        },
        speakers={name: SpeakerStatus(interfaces=tuple(nics[name])) for name in names},
        live=frozenset(names) - frozenset(silent),
        vips=tuple(wanted),
        routers={},
        virtual_router_ids=ids,
        epoch=1,
    )


def applied(before: World, made: Plan, now: str = NOW) -> World:
    """The world after the API has taken every change of the plan; speakers have not moved yet."""
    routers = dict(before.routers)
    for change in changes.router_changes(made):
        match change:
            case changes.CreateRouter():
                uid = f"uid-{change.name}-{len(routers)}"
                routers[change.name] = VirtualRouter(
                    Metadata(change.name, uid=uid, generation=1), change.spec
                )
            case changes.ApplyRouter():
                meta = msgspec.structs.replace(change.stored, generation=change.stored.generation + 1)
                routers[meta.name] = VirtualRouter(meta, change.spec)
            case changes.DeleteRouter():
                del routers[change.stored.name]
    statuses = status.fold(before, made, now)
    told = tuple(replace(v, status=statuses[v.key]) for v in before.vips)
    return replace(before, routers=routers, vips=told)


def settled(start: World, rounds: int = 6) -> World:
    """Planned and applied until nothing changes."""
    for _ in range(rounds):
        made = plan(start)
        after = applied(start, made)
        if after.routers == start.routers and after.vips == start.vips:
            return start
        start = after
    raise AssertionError(f"the plan does not settle within {rounds} rounds")


def report(
    router: VirtualRouter,
    node: str,
    state: RouterState = "Active",
    *,
    term: int = 1,
    held: Sequence[str] | None = None,
    behind: int = 0,
    transition: Transition | None = None,
    **more: object,
) -> RouterReport:
    """What ``node`` says of the router; an Active holds every Held address unless told otherwise."""
    wanted = tuple(e.address for e in router.spec.addresses if e.state == "Held")
    return RouterReport(
        name=router.metadata.name,
        uid=router.metadata.uid,
        observed_generation=router.metadata.generation - behind,
        state=state,
        term=term,
        since=SINCE,
        interface="eth0",
        held=tuple(held) if held is not None else (wanted if state == "Active" else ()),
        last_transition=transition or (Transition(node, "FirstActive", SINCE) if state == "Active" else None),
        **more,  # type: ignore[arg-type]
    )


def reporting(start: World, said: Iterable[tuple[str, RouterReport]]) -> World:
    """These reports replace what the nodes said of the same routers."""
    speakers = dict(start.speakers)
    for node, told in said:
        others = tuple(r for r in speakers[node].routers if r.name != told.name)
        speakers[node] = msgspec.structs.replace(speakers[node], routers=(*others, told))
    return replace(start, speakers=speakers)


def running(start: World, *, term: int = 1, heard: bool = False) -> World:
    """Every router runs as planned: the leader is Active and holds all, the others are Backup.

    ``heard``: the others say that they hear it.
    """
    said = []
    for router in start.routers.values():
        leader = home_order(router)[0] if router.spec.candidates else None
        for candidate in router.spec.candidates:
            leads = candidate.node == leader
            state: RouterState = "Active" if leads else "Backup"
            hears = leader if heard and not leads else None
            said.append((candidate.node, report(router, candidate.node, state, term=term, hears=hears)))
    gone = {
        name: msgspec.structs.replace(s, routers=tuple(r for r in s.routers if r.name in start.routers))
        for name, s in start.speakers.items()
    }
    return reporting(replace(start, speakers=gone), said)


def live_through(start: World, rounds: int = 8) -> World:
    """Planner and speakers in turn, until both rest."""
    for _ in range(rounds):
        before = start
        start = running(applied(start, plan(start)))
        if start == before:
            return start
    raise AssertionError(f"planner and speakers do not come to rest within {rounds} rounds")


def marked(start: World, node: str, *, by: str = "true", round_: int = 0) -> World:
    """The node has the label holdfast.dev/drain, or has it no more ("")."""
    labels = {DRAIN_LABEL: by} if by else {}
    nodes = {**start.nodes, node: replace(start.nodes[node], labels=labels, marked=round_)}
    return replace(start, nodes=nodes)


def asking(start: World, name: str, to: str, *, asked: int = 0) -> World:
    """The VirtualIP has the annotation holdfast.dev/move-to, or has it no more ("")."""

    def noted(each: Vip) -> Vip:
        annotations = {MOVE_TO_ANNOTATION: to} if to else {}
        metadata = msgspec.structs.replace(each.metadata, annotations=annotations)
        return replace(each, metadata=metadata, asked=asked)

    return replace(start, vips=tuple(noted(v) if v.metadata.name == name else v for v in start.vips))


def changed(start: World, new: Vip) -> World:
    """The VirtualIP of that key has a new spec (and keeps its status)."""
    return replace(
        start,
        vips=tuple(
            replace(new, status=old.status, metadata=msgspec.structs.replace(new.metadata, generation=2))
            if old.key == new.key
            else old
            for old in start.vips
        ),
    )


def hearing(start: World, node: str, vrid: int, interface: str = "eth0") -> World:
    speakers = dict(start.speakers)
    heard = (*speakers[node].heard_virtual_router_ids, HeardVirtualRouterID(interface, vrid))
    speakers[node] = msgspec.structs.replace(speakers[node], heard_virtual_router_ids=heard)
    return replace(start, speakers=speakers)


def only(start: World) -> VirtualRouter:
    """The one router there is."""
    (router,) = start.routers.values()
    return router


def blank(start: World) -> World:
    """No VirtualIP has a status: nobody remembers."""
    return replace(start, vips=tuple(replace(v, status=VirtualIPStatus()) for v in start.vips))


def silent_plan() -> str:
    """A plan with a bit of everything, as text: for comparing interpreters."""
    start = live_through(world(5, [*vips(60), vip("g", "2001:db8::9", group="g"), vip("x", "203.0.113.1")]))
    start = replace(start, live=frozenset({"n2", "n4"}), vips=(*start.vips[3:], *vips(3, first=900)))
    return repr(plan(start))
