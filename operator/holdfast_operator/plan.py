# SPDX-License-Identifier: Apache-2.0
"""``plan(world) -> Plan``: which router holds which address, who leads it, who stands by. Pure.

Sticky: what stands stays. The memory is the world itself: routers as they are stored, statuses, reports.
In order: ``claims`` (who may have which address), what stays in its router, what is on its way out,
``placing`` (newcomers and movers), ``candidates`` (order and priorities).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from holdfast_api.conditions import Reason
from holdfast_api.names import FORCE_RELEASE_ANNOTATION, router_id
from holdfast_api.types import Handover, Move, PlannedFrom, RouterAddress, VirtualRouter, VirtualRouterSpec
from holdfast_operator.candidates import Needed, candidates, home_order, ordered
from holdfast_operator.claims import Claim, Claims, Needs, judge, ours, reference
from holdfast_operator.drafts import Balance, Draft, FreeIDs, keep_apart
from holdfast_operator.eligibility import Atlas, Refusal, spelled
from holdfast_operator.exits import Exits
from holdfast_operator.foreigners import haunted, stranger
from holdfast_operator.handovers import Orders
from holdfast_operator.placing import Class, Classes, Placing, Unit, likeness_of
from holdfast_operator.world import VipKey, World


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one VirtualIP. ``accepted`` and ``scheduled`` are None for yes.

    ``move`` is the answer to ``holdfast.dev/move-to``, once there is one. ``mac`` is its virtual MAC, in use
    or kept for it; ``fallen_back``: not in use, since the network does not carry it.
    """

    address: str | None
    accepted: Refusal | None
    scheduled: Refusal | None
    router: str | None
    move: Move | None = None
    mac: str | None = None
    fallen_back: bool = False


@dataclass(frozen=True, slots=True)
class PlannedRouter:
    """A router as it shall be. ``stored`` None: it is to be created.

    ``stranger``: the candidate that hears somebody else's adverts with its VRID, and their source.
    """

    name: str
    spec: VirtualRouterSpec
    stored: VirtualRouter | None
    stranger: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the operator wants, in full.

    ``released``: addresses that this plan lets go for good. ``renumbered``: the router that begins to move
    to another VRID, because a stranger has its own.
    """

    routers: Mapping[str, PlannedRouter]
    deletions: tuple[VirtualRouter, ...]
    verdicts: Mapping[VipKey, Verdict]
    released: tuple[RouterAddress, ...] = ()
    renumbered: str | None = None


def plan(world: World) -> Plan:
    return _Planner(world).run()


class _Planner:
    def __init__(self, world: World) -> None:
        self.world = world
        self.atlas = Atlas(world)
        self.claims: Claims = judge(world, self.atlas)
        self.drafts: dict[str, Draft] = {}
        self.balance = Balance(world)
        self.classes = Classes(world, self.atlas)
        self.groups: dict[Needs, Class] = {}
        self.exits = Exits(world)
        self.orders = Orders(world, self.atlas)
        self.handovers: dict[str, Handover] = {}
        self.members: dict[str, list[Claim]] = {}
        self.renumbered: str | None = None
        self.verdicts: dict[VipKey, Verdict] = {}

    def run(self) -> Plan:
        newcomers = self._settle()
        self._order_standing()
        self.exits.let_go(self.drafts, self.claims, {c.key for c in newcomers})
        self._join_classes()
        self._place(newcomers)
        for claim in self.claims.by_key.values():
            self.verdicts.setdefault(claim.key, self._standing_verdict(claim))
        return self._finished()

    # --- what stays -----------------------------------------------------------------------------

    def _settle(self) -> list[Claim]:
        """Drafts of all routers with the members that stay. Returns those that need another place."""
        self.members = members = self._open_drafts()
        self.renumbered = self._renumber()
        homes = self._group_homes()
        newcomers = [c for c in self.claims.by_key.values() if c.refused is None and c.place is None]
        for name, inside in members.items():
            draft = self.drafts[name]
            for claim in inside:
                here = claim.needs == draft.needs and homes.get(draft.needs, name) == name
                if claim.refused is None and not here:
                    newcomers.append(claim)
                else:
                    draft.hold(claim, claimed=self._was_claimed(draft, claim))
        return sorted(newcomers, key=lambda c: c.vip.age_key)

    def _open_drafts(self) -> dict[str, list[Claim]]:
        """A draft for each router that is or was; returns the claims that stand in each."""
        members: dict[str, list[Claim]] = {
            name: [] for name, router in sorted(self.world.routers.items()) if ours(router)
        }
        for claim in self.claims.standing():
            if claim.place is not None and claim.place.router not in self.world.unreadable_routers:
                members.setdefault(claim.place.router, []).append(claim)
        for name, inside in list(members.items()):
            stored = self.world.routers.get(name)
            if stored is not None:
                wished = home_order(stored)
            elif any(claim.needs is not None for claim in inside):
                stored, wished = _lost_router(name, inside)
            else:  # lost, and nobody left who could say what it was for
                del members[name]
                continue
            draft = Draft(name, stored, exists=name in self.world.routers, nodes=wished)
            draft.needs = reference(self.atlas, stored, inside)
            self.drafts[name] = draft
        return members

    def _renumber(self) -> str | None:
        """Closes routers whose VRID a stranger has: their members go to others. The one that begins now."""
        begins: str | None = None
        for name, draft in self.drafts.items():
            if not draft.exists or not haunted(self.world, self.atlas, draft.stored, self._needed(draft)):
                continue
            entries = (c.place.entry for c in self.members[name] if c.place is not None)
            begun = any(entry is not None and entry.state == "Releasing" for entry in entries)
            if not begun and (begins is not None or not self.world.timely.may_renumber):
                continue
            draft.needs = None
            begins = begins if begun else name
        return begins

    def _group_homes(self) -> dict[Needs | None, str]:
        """The one router of each group: where most of it is, not counting who was just edited into it."""
        found: dict[Needs | None, str] = {}
        sizes = Counter(c.place.router for c in self.claims.standing() if c.place is not None and c.settled)
        for name in sorted(self.drafts, key=lambda n: (-sizes[n], self.drafts[n].vrid)):
            needs = self.drafts[name].needs
            if needs is not None and needs.group != ("", ""):
                found.setdefault(needs, name)
        return found

    def _was_claimed(self, draft: Draft, claim: Claim) -> bool:
        """Whether some Active has held the address in this router: then a failover need not probe for it."""
        entry = claim.place.entry if claim.place is not None else None
        if entry is None:
            return bool(claim.vip.status.active or claim.vip.status.last_failover)
        return entry.claimed or any(
            s.report.state == "Active" and claim.address in s.report.held for s in self.world.of(draft.stored)
        )

    def _order_standing(self) -> None:
        """The candidates' order of every router there is: who leads is asked when newcomers are placed."""
        for draft in self.drafts.values():
            self.balance.add_router(draft.needs, draft.nodes)
        for draft in self.drafts.values():
            needed = self._needed(draft)
            wish = None
            if draft.exists:
                wish = self.orders.wish(draft.stored, needed, self.members[draft.name])
            if wish is not None and wish.order is not None:
                self.handovers[draft.name] = wish.order
            spread = self.balance.spread(draft.name, draft.needs)
            draft.nodes = ordered(self.world, self.atlas, needed, draft.stored, draft.nodes, spread, wish)
            self.balance.add_load(draft, len(draft.entries))

    def _needed(self, draft: Draft) -> Needed:
        spec, needs = draft.stored.spec, draft.needs
        return Needed(
            name=draft.name,
            selector=needs.selector if needs is not None else None,
            interfaces=spec.interfaces,
            addresses=draft.held(),
            mode=spec.mode,
            interval_ms=needs.interval_ms if needs is not None else spec.advert_interval_milliseconds,
            failback=needs.failback if needs is not None else spec.failback,
        )

    # --- newcomers and movers -------------------------------------------------------------------

    def _join_classes(self) -> None:
        """Every router with its class, so that newcomers find it."""
        grouped: dict[Needs, list[str]] = {}
        for claim in self.claims.by_key.values():
            if claim.refused is None and claim.needs is not None and claim.needs.group != ("", ""):
                grouped.setdefault(claim.needs, []).append(claim.address)
        self.groups = {needs: self.classes.find(needs, addresses) for needs, addresses in grouped.items()}
        homes = self._group_homes()
        for draft in self.drafts.values():
            if draft.needs is None or not draft.entries:
                continue
            if draft.needs in self.groups:
                if homes[draft.needs] == draft.name:
                    self.groups[draft.needs].drafts.append(draft)
            else:
                self.classes.find(draft.needs, draft.held()).drafts.append(draft)

    def _place(self, newcomers: Sequence[Claim]) -> None:
        free = FreeIDs(self.world, self.drafts)
        placing = Placing(self.world, self.classes, self.drafts, free, self.balance)
        ready = []
        for unit in self._units(self._unhindered(newcomers)):
            obstacle = placing.obstacle(unit)
            if obstacle is not None:
                self._stay(unit.members, obstacle)
            elif self._free_to_move(unit):
                ready.append(unit)
        placed = placing.place(ready)
        for index, unit in enumerate(ready):
            target = placed.get(index)
            if target is None:
                words = "too few VRIDs are free in --vrid-range for all that wait"
                self._stay(unit.members, Refusal(Reason.NO_VIRTUAL_ROUTER_ID, words))
                continue
            for claim in unit.members:
                self._move(claim, target)

    def _unhindered(self, newcomers: Iterable[Claim]) -> Iterator[Claim]:
        """Without the new claims to an address that somebody else has yet to let go."""
        for claim in newcomers:
            nodes = self.exits.obstacles(claim) if claim.place is None else None
            if nodes is None:
                yield claim
            else:
                self._await_release(claim, nodes)

    def _units(self, newcomers: Iterable[Claim]) -> list[Unit]:
        units: list[Unit] = []
        groups: dict[Needs, list[Claim]] = {}
        for claim in newcomers:
            if claim.needs is None:  # refused: never among the newcomers
                continue
            own = self.classes.find(claim.needs, (claim.address,))
            group = self.groups.get(claim.needs)
            if group is None or own.refused is not None:
                units.append(Unit((claim,), own))
            elif claim.needs in groups:
                groups[claim.needs].append(claim)
            else:
                groups[claim.needs] = [claim]
        units += [Unit(tuple(members), self.groups[needs]) for needs, members in groups.items()]
        return sorted(units, key=lambda unit: unit.members[0].vip.age_key)

    def _free_to_move(self, unit: Unit) -> bool:
        """Whether nobody holds any of the unit's addresses elsewhere; says who must let go, if so."""
        obstacles = {claim.key: self.exits.obstacles(claim) for claim in unit.members}
        if all(nodes is None for nodes in obstacles.values()):
            return True
        for claim in unit.members:
            self._wait(claim, obstacles[claim.key])
        return False

    def _wait(self, claim: Claim, nodes: tuple[str, ...] | None) -> None:
        """It changes its router, or its group does: not its turn yet."""
        words = "waiting for the other members of its group"
        if nodes is not None:
            words = f"waiting for {', '.join(nodes) or 'the speakers'} to report {claim.address} released"
        self.verdicts[claim.key] = Verdict(claim.address, None, Refusal(Reason.MOVING, words), None)

    def _await_release(self, claim: Claim, nodes: tuple[str, ...]) -> None:
        words = f"waiting for {', '.join(nodes) or 'the speakers'} to report {claim.address} released"
        if nodes:
            words += f"; if {nodes[0]} is dead for good, delete its Node or annotate "
            words += f"{FORCE_RELEASE_ANNOTATION}: {nodes[0]}"
        leaving = self.exits.leaving.get(claim.address)
        if leaving is not None:
            owner = leaving[1].owner
            words = f"its last owner was VirtualIP {owner.namespace}/{owner.name}: {words}"
        refused = Refusal(Reason.ADDRESS_RELEASING, words)
        self.verdicts[claim.key] = Verdict(claim.address, refused, _not_accepted(), None)

    def _stay(self, members: Iterable[Claim], why: Refusal) -> None:
        """They can't be placed: a mover stays where it runs, a newcomer waits."""
        for claim in members:
            self.verdicts[claim.key] = Verdict(claim.address, None, why, self.exits.stay(claim))

    def _move(self, claim: Claim, target: Draft) -> None:
        entry = self.exits.leave(claim)
        known = entry is not None and claim.place is not None
        target.hold(claim, claimed=entry.claimed if entry is not None and known else False)
        self.verdicts[claim.key] = Verdict(claim.address, None, None, target.name)

    # --- the result -----------------------------------------------------------------------------

    def _standing_verdict(self, claim: Claim) -> Verdict:
        name = claim.place.router if claim.place is not None else None
        if claim.refused is not None and not claim.frozen:
            return Verdict(claim.address or None, claim.refused, _not_accepted(), None)
        if name in self.world.unreadable_routers:
            words = f"VirtualRouter {name} can't be read: delete it, and the operator writes it anew"
            return Verdict(claim.address, claim.refused, Refusal(Reason.INVALID_PLAN, words), name)
        draft = self.drafts.get(name or "")
        if draft is None:
            return Verdict(claim.address or None, claim.refused, _not_accepted(), None)
        return Verdict(claim.address, claim.refused, self._unled(claim, draft), name)

    def _unled(self, claim: Claim, draft: Draft) -> Refusal | None:
        """Why a claim with a router has no leader there, or none that it wants."""
        if not draft.nodes:
            return Refusal(Reason.NO_NODE_MATCHES, f"no candidate of {draft.name} has a Node any more")
        if claim.needs is None or set(draft.nodes) & set(self.atlas.selected(claim.needs.selector)):
            return None
        words = f"nodes.selector {spelled(claim.needs.selector)} matches no node that could take over"
        return Refusal(Reason.NO_NODE_MATCHES, f"{words}; until one does, {draft.nodes[0]} keeps it")

    def _finished(self) -> Plan:
        routers, deletions = {}, []
        keep_apart(self.drafts.values())
        for name, draft in sorted(self.drafts.items(), key=lambda item: item[1].vrid):
            if draft.entries:
                heard = stranger(self.world, self.atlas, draft.stored, self._needed(draft))
                stored = draft.stored if draft.exists else None
                routers[name] = PlannedRouter(name, self._spec(draft), stored, heard)
            elif draft.exists:
                deletions.append(draft.stored)
        verdicts = {key: self._complete(key, verdict) for key, verdict in sorted(self.verdicts.items())}
        return Plan(routers, tuple(deletions), verdicts, tuple(self.exits.gone), self.renumbered)

    def _complete(self, key: VipKey, verdict: Verdict) -> Verdict:
        """The verdict with the answer to a move and with its virtual MAC, where there are such."""
        claim, draft = self.claims.by_key[key], self.drafts.get(verdict.router or "")
        move = self.orders.answers.get(key)
        entry = draft.entries.get(claim.address) if draft is not None else None
        mac = (entry.mac_address if entry is not None else None) or claim.own_mac
        if move is None and mac is None and not claim.fallen_back:
            return verdict
        return replace(verdict, move=move, mac=mac, fallen_back=claim.fallen_back)

    def _spec(self, draft: Draft) -> VirtualRouterSpec:
        needed, needs, stored = self._needed(draft), draft.needs, draft.stored
        actives = self.world.actives(stored)
        seen = PlannedFrom(actives[0].node, actives[0].report.term) if actives else stored.spec.planned_from
        spec = msgspec.structs.replace(
            stored.spec,
            addresses=draft.sorted_entries(),
            candidates=candidates(
                self.world, self.atlas, needed, draft.nodes, stored if draft.exists else None
            ),
            handover=self.handovers.get(draft.name),
            planned_from=seen,
            planner_epoch=max(self.world.epoch, stored.spec.planner_epoch),
        )
        if needs is None:
            return spec
        return msgspec.structs.replace(
            spec,
            advert_interval_milliseconds=needs.interval_ms,
            failback=needs.failback,
            failback_delay_seconds=needs.failback_delay_s,
        )


def _not_accepted() -> Refusal:
    return Refusal(Reason.NOT_ACCEPTED, "it may not have its address: see Accepted")


def _lost_router(name: str, members: Sequence[Claim]) -> tuple[VirtualRouter, tuple[str, ...]]:
    """A likeness of the router that the statuses name, and the order of its nodes as they tell it."""
    counted = Counter(c.needs for c in members if c.needs is not None)
    needs = min(counted, key=lambda n: (-counted[n], n))
    status = next((c.vip.status for c in members if c.needs == needs and c.vip.status.leader), None)
    order = (status.leader, *status.standbys) if status is not None and status.leader else ()
    return likeness_of(name, router_id(name) or 0, needs), order
