# SPDX-License-Identifier: Apache-2.0
"""Who may have which address, and what a VirtualIP needs of a router.

A VirtualIP that has its place already keeps it while its new spec can't be accepted (``frozen``): what
runs is not touched for a mistake in an edit.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from holdfast_api.conditions import Reason
from holdfast_api.names import router_id
from holdfast_api.types import (
    Failback,
    Mode,
    RouterAddress,
    VirtualIPSpec,
    VirtualRouter,
    VirtualRouterSpec,
)
from holdfast_operator.eligibility import Atlas, Refusal, Selector, canonical, spelled
from holdfast_operator.macs import VRRP, Wish, allotted, blocked, own, vrrp_mac
from holdfast_operator.world import Vip, VipKey, World

DEFAULT_DELAY_S = 300
SHORTEST_MS = 10
LONGEST_MS = 40_950  # what an advert's twelve bits of centiseconds can say


@dataclass(frozen=True, slots=True, order=True)
class Needs:
    """What VirtualIPs must have in common to share a router. ``group`` is ("", "") for none."""

    group: tuple[str, str]
    selector: Selector
    interfaces: tuple[str, ...]
    mode: Mode
    interval_ms: int
    failback: Failback
    failback_delay_s: int


def needs_of(vip: Vip, spec: VirtualIPSpec) -> Needs:
    failover = spec.failover
    delayed = failover.failback == "Delayed"  # otherwise the delay means nothing and splits nobody
    return Needs(
        group=(vip.metadata.namespace, spec.group) if spec.group else ("", ""),
        selector=canonical(spec.nodes.selector),
        interfaces=spec.interfaces,
        mode=spec.mode,
        interval_ms=failover.advert_interval_milliseconds,
        failback=failover.failback,
        failback_delay_s=failover.failback_delay_seconds if delayed else DEFAULT_DELAY_S,
    )


def distance(needs: Needs, spec: VirtualRouterSpec) -> int:
    """0: the router is as needed; 1: its failover settings can be changed in place; 2: it can't be."""
    if needs.interfaces != spec.interfaces or needs.mode != spec.mode:
        return 2
    same = (
        needs.interval_ms == spec.advert_interval_milliseconds
        and needs.failback == spec.failback
        and (needs.failback != "Delayed" or needs.failback_delay_s == spec.failback_delay_seconds)
    )
    return 0 if same else 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where an address of a VirtualIP stands now. ``entry`` None: its router is gone and comes back."""

    router: str
    entry: RouterAddress | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A VirtualIP's claim, judged. ``needs`` is None when there is nothing to place anew.

    ``allotted``: its virtual MAC, or VRRP; None in mode NodeMAC. ``fallen_back``: the network does not carry
    it, and the spec says to do without; done once it is in the status, so that a restart does not forget it.
    """

    vip: Vip
    address: str
    needs: Needs | None
    place: Place | None
    refused: Refusal | None = None
    allotted: str | None = None
    fallen_back: bool = False

    @property
    def key(self) -> VipKey:
        return self.vip.key

    @property
    def settled(self) -> bool:
        """It is in its place, and its spec has not changed since it was last judged."""
        entry = self.place.entry if self.place is not None else None
        judged = {c.observed_generation for c in self.vip.status.conditions}
        return (
            (entry is None or entry.state == "Held")
            and self.place is not None
            and (not judged or self.vip.metadata.generation in judged)
        )

    @property
    def mac(self) -> str | None:
        """What its router's plan shall say: a MAC, VRRP, or None for the NIC's own."""
        return None if self.fallen_back and self.fallback_told else self.allotted

    @property
    def runs_with(self) -> str | None:
        """What its router's plan says now; of a router that was lost, what the status says."""
        if self.place is not None and self.place.entry is not None:
            return self.place.entry.mac_address
        return self.vip.status.mac_address

    @property
    def own_mac(self) -> str | None:
        """The MAC that is kept for it, whether it is in use or not."""
        entry = self.place.entry if self.place is not None else None
        known = (self.allotted, entry.mac_address if entry is not None else None, self.vip.status.mac_address)
        return next((mac for mac in known if own(mac) is not None), None)

    @property
    def fallback_told(self) -> bool:
        """Whether the status says that the network does not carry the MAC of this spec."""
        return self.vip.status.mac_fallback_generation == self.vip.metadata.generation

    @property
    def frozen(self) -> bool:
        """Refused, and yet it stays where it is."""
        return self.refused is not None and self.place is not None


@dataclass(frozen=True, slots=True)
class Claims:
    """Every VirtualIP's claim by key, in the order of their age."""

    by_key: Mapping[VipKey, Claim]

    def standing(self) -> Iterable[Claim]:
        """The claims that are granted, and those that stay for the time being."""
        return (c for c in self.by_key.values() if c.refused is None or c.frozen)


def ours(router: VirtualRouter) -> bool:
    """Whether the operator made it: its name follows from its VRID. Others are left alone."""
    return router_id(router.metadata.name) == router.spec.virtual_router_id


# --- places -------------------------------------------------------------------------------------


def places(world: World) -> dict[VipKey, Place]:
    """Where each VirtualIP's address is recorded: in a router, else in its own status (router lost)."""
    recorded: dict[tuple[VipKey, str], list[tuple[bool, bool, int, Place]]] = {}
    for name, router in world.routers.items():
        if not ours(router):
            continue
        for entry in router.spec.addresses:
            owner = (entry.owner.namespace, entry.owner.name)
            held = any(r == name for r, _ in world.holders.get(entry.address, ()))
            rank = (entry.state != "Held", not held, router.spec.virtual_router_id)
            recorded.setdefault((owner, entry.address), []).append((*rank, Place(name, entry)))
    found: dict[VipKey, Place] = {}
    for vip in world.vips:
        address = vip.spec.address if vip.spec is not None else vip.status.address
        options = recorded.get((vip.key, address), []) if address is not None else []
        if options:
            found[vip.key] = min(options, key=lambda option: option[:3])[3]
        elif (lost := _lost(world, vip)) is not None:
            found[vip.key] = Place(lost, None)
    return found


def _lost(world: World, vip: Vip) -> str | None:
    """The router that its status names and that does not exist any more: it comes back as it was."""
    name = vip.status.virtual_router
    if name is None or name in world.routers or vip.spec is None or vip.spec.address != vip.status.address:
        return None
    return name if router_id(name) is not None else None


# --- verdicts -----------------------------------------------------------------------------------


def judge(world: World, atlas: Atlas) -> Claims:
    """Every claim with its verdict, in order of age."""
    placed = places(world)
    node_of = {address: node.name for node in world.nodes.values() for address in node.addresses}
    claims = {
        vip.key: _alone(vip, placed.get(vip.key), node_of)
        for vip in sorted(world.vips, key=lambda vip: vip.age_key)
    }
    _share_addresses(world, claims)
    _give_macs(world, claims)
    _agree_in_groups(world, atlas, claims)
    return Claims(claims)


def _alone(vip: Vip, place: Place | None, node_of: Mapping[str, str]) -> Claim:
    """The verdict on what can be seen in the object itself."""
    spec = vip.spec
    if spec is None:
        why = Refusal(Reason.INVALID_SPEC, "; ".join(vip.errors) or "the spec cannot be read")
        return Claim(vip, vip.status.address or "", None, place, why)
    address = spec.address or ""
    refused: Refusal | None = None
    if spec.pool is not None:
        words = "this version takes no address from a pool: give spec.address and remove spec.pool"
        refused = Refusal(Reason.POOL_NOT_SUPPORTED, f"spec.pool {spec.pool}: {words}")
    elif not address:
        refused = Refusal(Reason.INVALID_SPEC, "spec.address: Required value: give an IPv4 or IPv6 address")
    elif not SHORTEST_MS <= spec.failover.advert_interval_milliseconds <= LONGEST_MS:
        words = f"must be {SHORTEST_MS} to {LONGEST_MS}"
        refused = Refusal(Reason.INVALID_SPEC, f"spec.failover.advertIntervalMilliseconds: {words}")
    elif place is None and address in node_of:
        # Only before it has a place: kubelets are known to report a VIP they find bound as a Node's own.
        words = f"{address} is an address of node {node_of[address]} itself"
        refused = Refusal(Reason.ADDRESS_OF_NODE, f"{words}: take one that no host uses")
    return Claim(vip, address, None if refused else needs_of(vip, spec), place, refused)


def _refuse(claim: Claim, reason: Reason, message: str, *, place: Place | None) -> Claim:
    return Claim(claim.vip, claim.address, None, place, Refusal(reason, message))


def _share_addresses(world: World, claims: dict[VipKey, Claim]) -> None:
    """One owner for each address: the recorded one, else the oldest, else the first by name."""
    rivals: dict[str, list[Claim]] = {}
    for claim in claims.values():
        if claim.address and (claim.refused is None or claim.frozen):
            rivals.setdefault(claim.address, []).append(claim)
    foreign = {
        entry.address: name
        for name, router in world.routers.items()
        if not ours(router)
        for entry in router.spec.addresses
    }
    for address, rivalry in rivals.items():
        if address in foreign:
            words = f"{address} is in VirtualRouter {foreign[address]}, which the operator did not make"
            for claim in rivalry:
                claims[claim.key] = _refuse(claim, Reason.ADDRESS_IN_USE, words, place=None)
            continue
        if len(rivalry) == 1:
            continue
        owner, *others = sorted(rivalry, key=lambda c: (_record(c), c.vip.age_key))
        words = f"{address} belongs to VirtualIP {owner.key[0]}/{owner.key[1]}: take another address"
        for claim in others:
            claims[claim.key] = _refuse(claim, Reason.ADDRESS_IN_USE, words, place=None)


def _record(claim: Claim) -> int:
    """0: a router records it as the owner; 1: its own status does; 2: nothing does."""
    if claim.place is None:
        return 2
    return 1 if claim.place.entry is None else 0


# --- virtual MACs -------------------------------------------------------------------------------


def _give_macs(world: World, claims: dict[VipKey, Claim]) -> None:
    """A virtual MAC for everybody who asks for one, or why not; what runs goes on as it was."""
    asking = [
        (claim, spec)
        for claim in claims.values()
        if claim.refused is None and (spec := claim.vip.spec) is not None and spec.mode == "VirtualMAC"
    ]
    found = allotted(world, [_wish(claim, spec) for claim, spec in asking if spec.mac_address != VRRP])
    for claim, spec in asking:
        mac = found.get(claim.key, VRRP)
        if isinstance(mac, Refusal):
            claims[claim.key] = _refuse(claim, mac.reason, mac.message, place=claim.place)
            continue
        given = replace(claim, allotted=mac)
        falls = spec.mac_fallback == "NodeMAC" and (given.fallback_told or _gets_nowhere(world, given))
        claims[claim.key] = replace(given, fallen_back=falls)


def _wish(claim: Claim, spec: VirtualIPSpec) -> Wish:
    namespace, name = claim.key
    entry = claim.place.entry if claim.place is not None else None
    return Wish(
        key=claim.key,
        address=claim.address,
        circle=(namespace, spec.group, "") if spec.group else (namespace, "", name),
        given=spec.mac_address,
        runs=own(entry.mac_address if entry is not None else None),
        kept=own(claim.vip.status.mac_address),
    )


def _gets_nowhere(world: World, claim: Claim) -> bool:
    """Whether the network does not carry this very MAC, as the Active says."""
    place = claim.place
    if place is None or place.entry is None:
        return False
    mac = claim.allotted
    if mac == VRRP:
        mac = vrrp_mac(router_id(place.router) or 0, claim.address)
    return place.entry.mac_address == mac and blocked(world, place.router, claim.address)


# --- groups and what a router is for ------------------------------------------------------------


def reference(atlas: Atlas, router: VirtualRouter, members: Sequence[Claim]) -> Needs | None:
    """What a router is for: the needs that its members have in common, or most nearly.

    Nearest to what is stored wins, then the numbers: one that was edited leaves, the others stay. If
    all were edited alike, the router changes with them, unless NIC or mode changed (then all leave).
    """
    counted = Counter(c.needs for c in members if c.needs is not None)
    stored = {c.node for c in router.spec.candidates}

    def far(needs: Needs) -> tuple[int, int, int, Needs]:
        away = len(stored ^ set(atlas.selected(needs.selector)))
        return (distance(needs, router.spec), away, -counted[needs], needs)

    best = min(counted, key=far, default=None)
    return None if best is None or distance(best, router.spec) == 2 else best


def _agree_in_groups(world: World, atlas: Atlas, claims: dict[VipKey, Claim]) -> None:
    """Members that differ from their group are refused; those with a place keep it meanwhile."""
    groups: dict[tuple[str, str], list[Claim]] = {}
    for claim in claims.values():
        if claim.needs is not None and claim.needs.group != ("", ""):
            groups.setdefault(claim.needs.group, []).append(claim)
    for members in groups.values():
        if len({c.needs for c in members}) == 1:
            continue
        leader = _spokesman(world, atlas, members)
        for claim in members:
            if claim.needs != leader.needs and claim.needs is not None and leader.needs is not None:
                words = _difference(claim.needs, leader.needs)
                other = f"VirtualIP {leader.key[0]}/{leader.key[1]} of group {claim.needs.group[1]}"
                message = f"{words} differs from {other}: make the members of the group alike"
                claims[claim.key] = _refuse(claim, Reason.GROUP_DISAGREES, message, place=claim.place)


def _spokesman(world: World, atlas: Atlas, members: Sequence[Claim]) -> Claim:
    """The member whose settings count: one that the group's router already runs with, else the oldest."""
    homes = Counter(
        c.place.router for c in members if c.place is not None and c.place.router in world.routers
    )
    if not homes:
        return members[0]
    home = min(homes, key=lambda name: (-homes[name], name))
    inside = [c for c in members if c.place is not None and c.place.router == home]
    wanted = reference(atlas, world.routers[home], inside)
    return next((c for c in inside if c.needs == wanted), inside[0])


def _difference(mine: Needs, theirs: Needs) -> str:
    pairs = (
        ("spec.interfaces", mine.interfaces, theirs.interfaces),
        ("spec.mode", mine.mode, theirs.mode),
        ("spec.nodes.selector", spelled(mine.selector), spelled(theirs.selector)),
        ("spec.failover.advertIntervalMilliseconds", mine.interval_ms, theirs.interval_ms),
        ("spec.failover.failback", mine.failback, theirs.failback),
        ("spec.failover.failbackDelaySeconds", mine.failback_delay_s, theirs.failback_delay_s),
    )
    return ", ".join(f"{field} ({a} and {b})" for field, a, b in pairs if a != b)
