# SPDX-License-Identifier: Apache-2.0
"""Virtual MACs: which VirtualIP has which. Pure; the same answers in any order and after any restart.

What runs keeps its MAC, then what is in a status, then the older; a MAC is never worked out anew while one
of these knows it (R2.4). Only a group may share one, since it always moves together.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from typing import Final

from holdfast_api.conditions import Reason
from holdfast_operator.eligibility import Refusal
from holdfast_operator.world import VipKey, World

VRRP: Final = "VRRP"  # spec.macAddress: the one that RFC 9568 gives the router
Circle = tuple[str, str, str]  # namespace, group, "" for a group; namespace, "", name for who is alone


def vrrp_mac(virtual_router_id: int, address: str) -> str:
    """RFC 9568 7.3: one for each VRID and family."""
    return f"00:00:5e:00:{2 if ':' in address else 1:02x}:{virtual_router_id:02x}"


def own(mac: str | None) -> str | None:
    """A MAC that belongs to a VirtualIP and not to a virtual router, else None."""
    return None if mac is None or mac == VRRP or mac.startswith("00:00:5e:") else mac


def drawn(cluster_uid: str, key: VipKey, number: int) -> str:
    """R2.4: 02 and 40 bits of a hash. Two clusters on one segment draw differently."""
    text = "/".join((cluster_uid, *key, str(number)))
    return bytes([2, *sha256(text.encode()).digest()[:5]]).hex(":")


@dataclass(frozen=True, slots=True)
class Wish:
    """A VirtualIP in mode VirtualMAC that wants a MAC of its own. ``given`` is what its spec says.

    ``runs``: the MAC in its router's plan; ``kept``: the one in its status.
    """

    key: VipKey
    address: str
    circle: Circle
    given: str | None
    runs: str | None
    kept: str | None

    @property
    def wanted(self) -> str | None:
        return self.given or self.runs or self.kept

    @property
    def record(self) -> int:
        """How well it is recorded that what it wants is its own; 0 is best."""
        return (self.runs, self.kept, self.wanted).index(self.wanted)


def allotted(world: World, wishes: Sequence[Wish]) -> dict[VipKey, str | Refusal]:
    """A MAC for each wish, the oldest first in ``wishes``, or why it gets none."""
    if not wishes:
        return {}
    planned = _planned(world)
    nics = _nics(world)
    found: dict[VipKey, str | Refusal] = {}
    waiting: list[Wish] = []
    rivals: dict[str, list[Wish]] = {}
    for wish in wishes:
        if wish.wanted is None:
            waiting.append(wish)
        else:
            rivals.setdefault(wish.wanted, []).append(wish)
    for mac, rivalry in rivals.items():
        for wish in rivalry:
            refused = _refusal(mac, wish, rivalry, planned.get(mac, {}), nics)
            if refused is None:
                found[wish.key] = mac
            elif wish.given is not None:
                found[wish.key] = refused
            else:
                waiting.append(wish)
    named = {vip.status.mac_address for vip in world.vips}
    named |= {vip.spec.mac_address for vip in world.vips if vip.spec is not None}
    taken = {*planned, *nics, *rivals, *(mac for mac in named if mac is not None)}
    age = {wish.key: place for place, wish in enumerate(wishes)}
    found.update(_draw(world.cluster_uid, sorted(waiting, key=lambda wish: age[wish.key]), taken))
    return found


def _refusal(
    mac: str, wish: Wish, rivals: Sequence[Wish], planned: Mapping[str, VipKey], nics: Mapping[str, str]
) -> Refusal | None:
    """Why the wish can't have this MAC. What runs is not taken away for what a node says of its NICs.

    Who left a group with the group's MAC stays where it is, and so does the group: each could only go on
    with it where the other is.
    """
    remedy = "give another in spec.macAddress, or remove it to have one allocated"
    owner = min(rivals, key=lambda rival: rival.record)  # of equals the first: the oldest
    others = (r for r in rivals if r.circle != wish.circle)
    better = next((r for r in others if r == owner or (r.given and r.runs == mac)), None)
    if better is not None:
        return _in_use(mac, better.key, remedy)
    if owner.runs == mac:
        return None
    elsewhere = next((key for address, key in planned.items() if address != wish.address), None)
    if elsewhere is not None:
        return _in_use(mac, elsewhere, remedy)
    if mac in nics:
        return Refusal(Reason.MAC_OF_NODE, f"{mac} is the MAC address of {nics[mac]}: {remedy}")
    return None


def _in_use(mac: str, key: VipKey, remedy: str) -> Refusal:
    words = f"{mac} is the MAC address of VirtualIP {key[0]}/{key[1]}: {remedy}"
    return Refusal(Reason.MAC_IN_USE, words)


def _draw(cluster_uid: str, waiting: Iterable[Wish], taken: Collection[str]) -> dict[VipKey, str | Refusal]:
    """New MACs that nobody in the cluster has."""
    taken = set(taken)
    found: dict[VipKey, str | Refusal] = {}
    for wish in waiting:
        if not cluster_uid:
            words = (
                "a MAC address is made from the UID of Namespace kube-system, which the operator may not read"
            )
            remedy = "apply its RBAC (charts/holdfast/files/operator-rbac.yaml), or give spec.macAddress"
            found[wish.key] = Refusal(Reason.NO_CLUSTER_UID, f"{words}: {remedy}")
            continue
        mac = next(mac for n in count() if (mac := drawn(cluster_uid, wish.key, n)) not in taken)
        taken.add(mac)
        found[wish.key] = mac
    return found


def _planned(world: World) -> dict[str, dict[str, VipKey]]:
    """MAC -> address -> owner, of every entry of a router: what is on its way out is not free yet."""
    found: dict[str, dict[str, VipKey]] = {}
    for router in world.routers.values():
        for entry in router.spec.addresses:
            if entry.mac_address is not None:
                owner = (entry.owner.namespace, entry.owner.name)
                found.setdefault(entry.mac_address, {})[entry.address] = owner
    return found


def _nics(world: World) -> dict[str, str]:
    """MAC -> the NIC that has it, in words."""
    return {
        nic.mac.lower(): f"{nic.name} of node {node}"
        for node, speaker in sorted({**world.ghosts, **world.speakers}.items())
        for nic in speaker.interfaces
    }


def blocked(world: World, router: str, address: str) -> bool:
    """Whether an Active says, of the plan as it is now, that the address's MAC reaches nobody."""
    stored = world.routers.get(router)
    return stored is not None and any(
        address in sighting.report.blocked
        and sighting.report.observed_generation >= stored.metadata.generation
        for sighting in world.actives(stored)
    )
