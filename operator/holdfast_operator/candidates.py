# SPDX-License-Identifier: Apache-2.0
"""The candidates of a router: who, in which order, with which priority.

Silence demotes, it never empties: a Lease that lapsed moves a node behind the live ones, and takes it out
only when its Node is gone. Order alone never makes an Active resign.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil

from holdfast_api.interfaces import sources
from holdfast_api.types import Candidate, Handover, Interface, Mode, VirtualRouter
from holdfast_operator.eligibility import Atlas, Refusal, Selector, refusal, summary
from holdfast_operator.world import World

LEADER_PRIORITY = 250
STANDBY_PRIORITY = 248
STEP_MS = 3  # between two standbys, so that one hears the other's advert before its own time has come

Spread = Callable[[Sequence[str], str | None], str]  # of these nodes, who comes next after this leader


def priorities(interval_ms: int) -> tuple[int, ...]:
    """All priorities at this interval, best first. A unit is interval/256 of skew (RFC 9568 6.1)."""
    step = max(ceil(STEP_MS * 256 / interval_ms), 1)
    return (LEADER_PRIORITY, *range(STANDBY_PRIORITY, 0, -step))


def home_order(router: VirtualRouter) -> tuple[str, ...]:
    """Its candidates in the order that counts on the wire; a list in the API may be merged in another."""
    ranked = sorted(router.spec.candidates, key=lambda c: -c.priority)
    return tuple(candidate.node for candidate in ranked)


def preference(world: World, router: str, node: str) -> bytes:
    """Rendezvous hash: an order of nodes that differs from router to router and never changes."""
    return blake2b(f"{world.cluster_uid}/{router}/{node}".encode(), digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class Needed:
    """What the candidates of one router are chosen by. ``selector`` None: only those it has now."""

    name: str
    selector: Selector | None
    interfaces: tuple[str, ...]
    addresses: tuple[str, ...]
    mode: Mode
    interval_ms: int
    failback: str


def eligible(world: World, atlas: Atlas, needed: Needed) -> tuple[tuple[str, ...], Refusal | None]:
    """Nodes that could become candidates now, sorted; and if there are none, why."""
    selector = needed.selector or ()
    refusals = {}
    found = []
    for node in sorted(world.nodes):
        refused = refusal(atlas.case(node, selector, needed.interfaces, needed.addresses, needed.mode))
        if refused is None:
            found.append(node)
        else:
            refusals[node] = refused
    return tuple(found), None if found else summary(refusals)


@dataclass(frozen=True, slots=True)
class Wish:
    """``giver`` shall hand over to ``heir``. ``order`` is None until it can be obeyed."""

    giver: str
    heir: str
    order: Handover | None


@dataclass(frozen=True, slots=True)
class _Bench:
    """The nodes of a router sorted by what can be said of them."""

    well: tuple[str, ...]  # candidates now, and fit
    ill: tuple[str, ...]  # candidates now, silent or without a link: behind all others
    fresh: tuple[str, ...]  # newly eligible
    first: str | None  # the observed Active


def ordered(
    world: World,
    atlas: Atlas,
    needed: Needed,
    stored: VirtualRouter,
    wished: Sequence[str],
    spread: Spread,
    wish: Wish | None = None,
) -> tuple[str, ...]:
    """The nodes in their order; ``wished`` is the order there was. Empty only when every Node is gone."""
    bench = _bench(world, atlas, needed, stored, wished)
    fresh = _queue(world, needed.name, bench, spread)
    well = {*bench.well, *fresh}
    if needed.failback == "Never":
        active = tuple(n for n in bench.well if n == bench.first)
        others = tuple(n for n in bench.well if n != bench.first)
        ill = tuple(sorted(bench.ill, key=lambda n: n != bench.first))
        order = active + tuple(sorted(others + fresh, key=world.rank)) + ill
    else:  # the stored order is the home order: a node that is away comes back to its own place
        here = set(bench.well) | set(bench.ill)
        order = tuple(sorted((*(n for n in wished if n in here), *fresh), key=world.rank))
    order = _with_wish(world, order, bench.first, wish, well)
    return _cut(order, len(priorities(needed.interval_ms)), bench.first or (wished[0] if wished else None))


def _with_wish(
    world: World, order: tuple[str, ...], active: str | None, wish: Wish | None, well: set[str]
) -> tuple[str, ...]:
    """Until its order is given the Active stays first, then the heir is; drained nodes come last.

    A drained Active without an heir leads on while nobody else is fit.
    """
    if wish is not None:
        first, second = (wish.giver, wish.heir) if wish.order is None else (wish.heir, wish.giver)
        order = (first, second, *(n for n in order if n not in (first, second)))
    waits = wish is not None and wish.order is None
    alone = all(node in world.draining for node in well)
    return tuple(sorted(order, key=lambda n: n in world.draining and not (n == active and (waits or alone))))


def _bench(
    world: World, atlas: Atlas, needed: Needed, stored: VirtualRouter, wished: Sequence[str]
) -> _Bench:
    actives = [s.node for s in world.actives(stored)]
    overtaken = {s.node for s in world.of(stored) if s.report.state == "Active"} - set(actives)
    first = actives[0] if actives else None
    here = [n for n in wished if n in world.nodes]
    admitted = set(here) if needed.selector is None else set(atlas.selected(needed.selector))
    fresh: tuple[str, ...] = ()
    if needed.selector is not None:
        fresh = tuple(n for n in eligible(world, atlas, needed)[0] if n not in here)
    well: list[str] = []
    ill: list[str] = []
    for node in here:
        nic = atlas.interface(node, needed.interfaces, needed.addresses)
        live = node in world.live or (node == first and world.heard(stored, node))
        unfit = nic is not None and (not isinstance(nic, Interface) or bool(atlas.lacks(node, needed.mode)))
        if node not in admitted or (unfit and live and node != first):
            continue
        linked = not isinstance(nic, Interface) or nic.carrier
        sound = live and nic is not None and linked and node not in overtaken
        (well if sound and not world.nodes[node].deleting else ill).append(node)
    if not well and not fresh:  # nobody who could take over: everybody stays who is there
        return _Bench((), tuple(here), (), first)
    return _Bench(tuple(well), tuple(ill), fresh, first)


def _queue(world: World, router: str, bench: _Bench, spread: Spread) -> tuple[str, ...]:
    """The newcomers in an order that spreads leaders and first standbys, then by their hash."""
    rest = list(bench.fresh)
    order: list[str] = []
    leader = bench.well[0] if bench.well else None
    while rest and len(bench.well) + len(order) < 2:
        chosen = spread(rest, leader)
        rest.remove(chosen)
        order.append(chosen)
        leader = leader or chosen
    return (*order, *sorted(rest, key=lambda node: preference(world, router, node)))


def _cut(order: tuple[str, ...], room: int, kept: str | None) -> tuple[str, ...]:
    """As many as there are priorities; the one that holds the addresses now is never cut off."""
    if len(order) <= room or kept not in order[room:] or kept is None:
        return order[:room]
    return (*order[: room - 1], kept)


def candidates(
    world: World, atlas: Atlas, needed: Needed, nodes: Sequence[str], stored: VirtualRouter | None
) -> tuple[Candidate, ...]:
    """The nodes with their priorities and with what their NIC sends from; the last known where silent.

    With failback a node that comes back waits until its Node is Ready: kube-proxy may not be there yet.
    """
    known = {c.node: c for c in stored.spec.candidates} if stored is not None else {}
    active = {s.node for s in world.actives(stored)} if stored is not None else set()
    found = []
    for node, priority in zip(nodes, priorities(needed.interval_ms), strict=False):
        nic = atlas.interface(node, needed.interfaces, needed.addresses)
        meek = needed.failback != "Never" and node not in active and not world.nodes[node].ready
        if isinstance(nic, Interface):
            found.append(Candidate(node, priority, sources(nic), (nic.mac,), meek))
        else:
            last = known.get(node)
            macs = last.macs if last else ()
            found.append(Candidate(node, priority, last.sources if last else (), macs, meek))
    return tuple(found)
