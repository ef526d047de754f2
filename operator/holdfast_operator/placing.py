# SPDX-License-Identifier: Apache-2.0
"""Newcomers and movers into routers: classes, how many routers each gets, and which takes whom.

A class is what shares routers: equal needs, and the same NIC on the same nodes. N nodes get up to N(N-1)
routers of it, one for each ordered pair of leader and first standby, so that whoever dies, its load
spreads evenly. What is placed stays placed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from holdfast_api.conditions import Reason
from holdfast_api.names import router_name
from holdfast_api.types import Metadata, VirtualRouter, VirtualRouterSpec
from holdfast_operator.candidates import Needed, eligible, priorities
from holdfast_operator.claims import Claim, Needs
from holdfast_operator.drafts import MOST_IPV4, MOST_IPV6, Balance, Draft, FreeIDs, counts
from holdfast_operator.eligibility import Atlas, Refusal
from holdfast_operator.world import World

Reach = tuple[tuple[str, str], ...]  # (node, NIC), sorted


@dataclass(slots=True)
class Class:
    """What shares routers: equal needs and equal reach."""

    needs: Needs
    reach: Reach
    nodes: tuple[str, ...]  # eligible now
    refused: Refusal | None  # why nobody is
    nics: Reach  # the part of reach that is eligible
    drafts: list[Draft] = field(default_factory=list)

    @property
    def grouped(self) -> bool:
        return self.needs.group != ("", "")


@dataclass(frozen=True, slots=True)
class Unit:
    """Claims that are placed together: a group's newcomers, or one claim. Oldest first."""

    members: tuple[Claim, ...]
    home: Class

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(claim.address for claim in self.members)


class Classes:
    """All classes of one World, found by what a VirtualIP needs."""

    def __init__(self, world: World, atlas: Atlas) -> None:
        self._world = world
        self._atlas = atlas
        self._by_key: dict[tuple[Needs, Reach], Class] = {}
        self._by_subnets: dict[tuple[Needs, tuple[tuple[str, ...], ...]], Class] = {}

    def find(self, needs: Needs, addresses: Sequence[str]) -> Class:
        subnets = tuple(sorted({self._atlas.subnets(address) for address in addresses}))
        known = self._by_subnets.get((needs, subnets))
        if known is None:
            reach = tuple(self._atlas.reach(needs.selector, needs.interfaces, addresses).items())
            known = self._by_key.get((needs, reach))
            if known is None:
                known = self._by_key[needs, reach] = self._new(needs, reach, addresses)
            if len(subnets) <= 1:  # with several the numbers may decide on the NIC: no shortcut
                self._by_subnets[needs, subnets] = known
        return known

    def _new(self, needs: Needs, reach: Reach, addresses: Sequence[str]) -> Class:
        wanted = Needed(
            name="",
            selector=needs.selector,
            interfaces=needs.interfaces,
            addresses=tuple(addresses),
            mode=needs.mode,
            interval_ms=needs.interval_ms,
            failback=needs.failback,
        )
        nodes, refused = eligible(self._world, self._atlas, wanted)
        here = frozenset(nodes)
        return Class(needs, reach, nodes, refused, tuple(pair for pair in reach if pair[0] in here))

    def waiting_for(self, home: Class) -> tuple[str, ...]:
        """Nodes of the class that have just begun to listen: in seconds they will be candidates too."""
        here = self._world.live & self._world.settling
        return tuple(node for node, _ in home.reach if node in here and node not in home.nodes)


class Placing:
    """Puts units into routers, making new ones where the class may have more."""

    def __init__(
        self, world: World, classes: Classes, drafts: dict[str, Draft], free: FreeIDs, balance: Balance
    ) -> None:
        self._world = world
        self._classes = classes
        self._drafts = drafts
        self._free = free
        self._balance = balance

    def obstacle(self, unit: Unit) -> Refusal | None:
        """Why the unit can't be placed now, or None when it can."""
        home = unit.home
        if home.refused is not None:
            return home.refused
        if home.grouped:
            v4, v6 = counts(unit.addresses)
            if (
                v4 > MOST_IPV4
                or v6 > MOST_IPV6
                or not all(d.room_for(unit.addresses) for d in home.drafts[:1])
            ):
                limit = f"a virtual router carries at most {MOST_IPV4} IPv4 and {MOST_IPV6} IPv6 addresses"
                return Refusal(Reason.GROUP_DISAGREES, f"{limit}: split group {home.needs.group[1]}")
        if any(draft.room_for(unit.addresses) and draft.nodes for draft in home.drafts):
            return None
        waiting = self._classes.waiting_for(home)
        if not home.drafts and waiting:
            return Refusal(Reason.LISTENING, f"{', '.join(waiting[:3])} began to listen a moment ago")
        if self._free.count(home.nics) == 0:
            span = self._world.virtual_router_ids
            words = f"every VRID of {span.start}-{span.stop - 1} is taken, by us or by others on the segment"
            return Refusal(Reason.NO_VIRTUAL_ROUTER_ID, f"{words}: widen --vrid-range or share settings")
        return None

    def place(self, units: Sequence[Unit]) -> dict[int, Draft]:
        """Index of each unit -> the router it goes to; a unit without one found no VRID."""
        queues: dict[int, list[int]] = {}
        homes: dict[int, Class] = {}
        for index, unit in enumerate(units):
            homes[id(unit.home)] = unit.home
            queues.setdefault(id(unit.home), []).append(index)
        order = list(homes)  # as their oldest newcomer came: dicts keep that order
        for key in order:  # a first router for everybody, before anybody gets a second
            if not homes[key].drafts:
                self._open(homes[key])
        plain = [key for key in order if not homes[key].grouped]
        for position, key in enumerate(plain):
            fresh = [address for index in queues[key] for address in units[index].addresses]
            self._grow(homes[key], fresh, len(queues[key]), others=len(plain) - position)
        placed = {}
        for key in order:
            seats = _Seats(homes[key], self._balance)
            for index in queues[key]:
                draft = seats.take(units[index].addresses)
                if draft is None and not homes[key].grouped and (draft := self._open(homes[key])) is not None:
                    seats.add(draft)
                if draft is not None:
                    placed[index] = draft
                    draft.v4, draft.v6 = _plus(draft, units[index].addresses)
                    self._balance.add_load(draft, len(units[index].addresses))
        for draft in self._drafts.values():  # counted ahead of the entries themselves; put() counts for good
            draft.v4, draft.v6 = counts(draft.entries)
        return placed

    def _grow(self, home: Class, fresh: Sequence[str], newcomers: int, *, others: int) -> None:
        """New routers, up to max(min(V, N(N-1), share of free VRIDs), as many as must be)."""
        new4, new6 = counts(fresh)
        v4 = new4 + sum(draft.v4 for draft in home.drafts)
        v6 = new6 + sum(draft.v6 for draft in home.drafts)
        n = min(len(self._world.steady(home.nodes)), len(priorities(home.needs.interval_ms)))
        have = len(home.drafts)
        share = have + self._free.count(home.nics) // (others + 1)
        least = max(ceil(v4 / MOST_IPV4), ceil(v6 / MOST_IPV6), 1)
        wanted = max(min(v4 + v6, n * (n - 1), share), least)
        for _ in range(min(wanted - have, newcomers - sum(1 for d in home.drafts if not d.entries))):
            if self._open(home) is None:
                return

    def _open(self, home: Class) -> Draft | None:
        """One more router for the class; None when no VRID is free or nobody could lead it."""
        if not home.nodes:
            return None
        vrid = self._free.take(home.nics)
        if vrid is None:
            return None
        needs = home.needs
        name = router_name(vrid)
        likeness = likeness_of(name, vrid, needs)
        order = self._balance.order(name, needs, home.nodes)[: len(priorities(needs.interval_ms))]
        draft = Draft(name, likeness, exists=False, needs=needs, nodes=order)
        self._drafts[name] = draft
        self._balance.add_router(needs, order)
        home.drafts.append(draft)
        return draft


def likeness_of(name: str, vrid: int, needs: Needs) -> VirtualRouter:
    """A router as it would be stored, without addresses and candidates."""
    spec = VirtualRouterSpec(
        virtual_router_id=vrid,
        addresses=(),
        advert_interval_milliseconds=needs.interval_ms,
        failback=needs.failback,
        failback_delay_seconds=needs.failback_delay_s,
        interfaces=needs.interfaces,
        mode=needs.mode,
    )
    return VirtualRouter(Metadata(name), spec)


def _plus(draft: Draft, addresses: Sequence[str]) -> tuple[int, int]:
    v4, v6 = counts(addresses)
    return draft.v4 + v4, draft.v6 + v6


class _Seats:
    """The routers of a class by their leader: the next newcomer goes to the node that leads least."""

    def __init__(self, home: Class, balance: Balance) -> None:
        self._needs = home.needs
        self._balance = balance
        self._by_leader: dict[str, list[Draft]] = {}
        self._fresh = [draft for draft in home.drafts if not draft.entries and draft.nodes]
        for draft in home.drafts:
            self.add(draft)

    def add(self, draft: Draft) -> None:
        if draft.nodes:
            self._by_leader.setdefault(draft.nodes[0], []).append(draft)

    def take(self, addresses: Sequence[str]) -> Draft | None:
        balance = self._balance
        if self._fresh:
            return self._fresh.pop(0)  # it was opened for somebody
        leaders = sorted(
            self._by_leader, key=lambda n: (balance.class_load[self._needs, n], balance.load[n], n)
        )
        for leader in leaders:
            roomy = [draft for draft in self._by_leader[leader] if draft.room_for(addresses)]
            if roomy:
                return min(roomy, key=lambda draft: (draft.v4 + draft.v6, draft.vrid))
        return None
