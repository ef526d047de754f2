# SPDX-License-Identifier: Apache-2.0
"""Routers while they are being planned: their addresses, their room, free VRIDs, and who leads how much."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from ipaddress import ip_address

import msgspec

from holdfast_api.names import router_id
from holdfast_api.types import Owner, RouterAddress, VirtualRouter
from holdfast_operator.candidates import Spread, preference
from holdfast_operator.claims import Claim, Needs
from holdfast_operator.macs import VRRP, vrrp_mac
from holdfast_operator.world import World

MOST_IPV4 = 255  # addresses in one advert: its count is one byte
MOST_IPV6 = 88  # and 1,500 bytes of MTU


def is_ipv6(address: str) -> bool:
    return ":" in address


def counts(addresses: Iterable[str]) -> tuple[int, int]:
    """How many are IPv4, how many IPv6."""
    v6 = total = 0
    for address in addresses:
        total += 1
        v6 += is_ipv6(address)
    return total - v6, v6


@dataclass(slots=True)
class Draft:
    """One router. ``stored`` is what the API has, or a likeness of what was lost. ``exists``: it has it.

    ``needs`` None: every member is frozen, or they must all leave. ``nodes`` is the planned order.
    """

    name: str
    stored: VirtualRouter
    exists: bool
    needs: Needs | None = None
    entries: dict[str, RouterAddress] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    v4: int = 0
    v6: int = 0

    @property
    def vrid(self) -> int:
        return self.stored.spec.virtual_router_id

    def room_for(self, addresses: Sequence[str]) -> bool:
        v4, v6 = counts(addresses)
        return self.v4 + v4 <= MOST_IPV4 and self.v6 + v6 <= MOST_IPV6

    def put(self, entry: RouterAddress) -> None:
        if entry.address not in self.entries:
            self.v4 += not is_ipv6(entry.address)
            self.v6 += is_ipv6(entry.address)
        self.entries[entry.address] = entry

    def hold(self, claim: Claim, *, claimed: bool, stays: bool = False) -> None:
        """The claim's address is Held here from now on; with the MAC it has had if it only ``stays``."""
        meta = claim.vip.metadata
        owner = Owner(meta.namespace, meta.name, meta.uid)
        mac = claim.runs_with if stays or claim.refused is not None else claim.mac
        if self.stored.spec.mode != "VirtualMAC":
            mac = None
        elif mac == VRRP:
            mac = vrrp_mac(self.vrid, claim.address)
        self.put(RouterAddress(claim.address, owner, "Held", claimed, mac))

    def sorted_entries(self) -> tuple[RouterAddress, ...]:
        return tuple(sorted(self.entries.values(), key=lambda e: _order(e.address)))

    def held(self) -> tuple[str, ...]:
        """The addresses that decide on the NIC: those Held, else those on their way out."""
        held = tuple(a for a, e in self.entries.items() if e.state == "Held")
        return tuple(
            sorted(held or tuple(self.entries) or tuple(e.address for e in self.stored.spec.addresses))
        )


def keep_apart(drafts: Iterable[Draft]) -> None:
    """No virtual MAC in two routers at once: who has yet to join his group has the NIC's own until then."""
    homes: dict[str, list[Draft]] = {}
    for draft in drafts:
        for mac in {entry.mac_address for entry in draft.entries.values()}:
            if mac is not None:
                homes.setdefault(mac, []).append(draft)
    for mac, several in homes.items():
        if len(several) == 1:
            continue
        running = [d.name for d in several if any(e.mac_address == mac for e in d.stored.spec.addresses)]
        for draft in several:
            if draft.name in (running or [several[0].name]):
                continue
            for address, entry in draft.entries.items():
                if entry.mac_address == mac:
                    draft.entries[address] = msgspec.structs.replace(entry, mac_address=None)


def _order(address: str) -> tuple[int, int]:
    ip = ip_address(address)
    return ip.version, int(ip)


class FreeIDs:
    """VRIDs that a new router may take, searched from where the cluster's UID points."""

    def __init__(self, world: World, drafts: Mapping[str, Draft]) -> None:
        span = world.virtual_router_ids
        digest = blake2b(world.cluster_uid.encode(), digest_size=8).digest()
        start = int.from_bytes(digest) % len(span)
        taken = {router.spec.virtual_router_id for router in world.routers.values()}
        taken |= {draft.vrid for draft in drafts.values()}
        names = set(world.unreadable_routers) | set(
            world.sightings
        )  # a report outlives its router: a tombstone
        taken |= {number for name in names if (number := router_id(name)) is not None}
        self._world = world
        self._free = [vrid for vrid in (*span[start:], *span[:start]) if vrid not in taken]
        self._heard: dict[tuple[tuple[str, str], ...], frozenset[int]] = {}

    def heard(self, reach: tuple[tuple[str, str], ...]) -> frozenset[int]:
        """VRIDs of strangers on these (node, NIC)."""
        if reach not in self._heard:
            self._heard[reach] = frozenset(
                heard.virtual_router_id
                for node, nic in reach
                for heard in self._world.speakers[node].heard_virtual_router_ids
                if heard.interface == nic
            )
        return self._heard[reach]

    def count(self, reach: tuple[tuple[str, str], ...]) -> int:
        heard = self.heard(reach)
        return sum(vrid not in heard for vrid in self._free)

    def take(self, reach: tuple[tuple[str, str], ...]) -> int | None:
        heard = self.heard(reach)
        vrid = next((vrid for vrid in self._free if vrid not in heard), None)
        if vrid is not None:
            self._free.remove(vrid)
        return vrid


class Balance:
    """Who leads and who stands first behind whom, so that a dead leader's load spreads over the others."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.load: Counter[str] = Counter()  # addresses that a node leads
        self.class_load: Counter[tuple[Needs | None, str]] = Counter()
        self._leads: Counter[tuple[Needs | None, str]] = Counter()  # routers
        self._pairs: Counter[tuple[Needs | None, str, str]] = Counter()
        self._all_pairs: Counter[tuple[str, str]] = Counter()

    def add_router(self, needs: Needs | None, nodes: Sequence[str]) -> None:
        if nodes:
            self._leads[needs, nodes[0]] += 1
        if len(nodes) > 1:
            self._pairs[needs, nodes[0], nodes[1]] += 1
            self._all_pairs[nodes[0], nodes[1]] += 1

    def add_load(self, draft: Draft, amount: int) -> None:
        if draft.nodes:
            self.load[draft.nodes[0]] += amount
            self.class_load[draft.needs, draft.nodes[0]] += amount

    def spread(self, router: str, needs: Needs | None) -> Spread:
        def chosen(nodes: Sequence[str], leader: str | None) -> str:
            def by_lead(node: str) -> tuple[int, int, int, bytes]:
                return (
                    self._leads[needs, node],
                    self.class_load[needs, node],
                    self.load[node],
                    preference(self._world, router, node),
                )

            def by_pair(node: str) -> tuple[int, int, bytes]:
                pairs = self._pairs[needs, leader or "", node]
                return (pairs, self._all_pairs[leader or "", node], preference(self._world, router, node))

            return min(nodes, key=by_lead if leader is None else by_pair)

        return chosen

    def order(self, router: str, needs: Needs, nodes: Sequence[str]) -> tuple[str, ...]:
        """The order of a new router's candidates."""
        world, spread = self._world, self.spread(router, needs)
        leader = spread(world.steady(nodes), None)
        rest = [node for node in nodes if node != leader]
        if not rest:
            return (leader,)
        second = spread(world.steady(rest), leader)
        tail = [node for node in rest if node != second]
        tail.sort(key=lambda node: (world.rank(node), preference(world, router, node)))
        return (leader, second, *tail)
