# SPDX-License-Identifier: Apache-2.0
"""Strangers on the VRIDs of our routers: keepalived, a hardware router, another cluster.

One advert is a Conflict; who stays makes the router move to another VRID, once two candidates hear him.
"""

from collections.abc import Iterator

from holdfast_api.types import Interface, VirtualRouter
from holdfast_operator.candidates import Needed
from holdfast_operator.eligibility import Atlas
from holdfast_operator.world import World

WITNESSES = 2


def haunted(world: World, atlas: Atlas, router: VirtualRouter, needed: Needed) -> bool:
    """Whether two of its candidates have heard a stranger on its VRID for a minute."""
    if not world.timely.foreign:
        return False
    vrid = router.spec.virtual_router_id
    heard = ((node, nic) for node, nic in _nics(world, atlas, router, needed))
    return sum((node, nic, vrid) in world.timely.foreign for node, nic in heard) >= WITNESSES


def stranger(world: World, atlas: Atlas, router: VirtualRouter, needed: Needed) -> tuple[str, str] | None:
    """(candidate, address): who hears a stranger on the router's VRID now, and whom."""
    vrid = router.spec.virtual_router_id
    for node, nic in _nics(world, atlas, router, needed):
        source = world.strangers.get((node, nic, vrid))
        if source is not None:
            return node, source
    return None


def _nics(world: World, atlas: Atlas, router: VirtualRouter, needed: Needed) -> Iterator[tuple[str, str]]:
    """The candidates that live, each with its NIC."""
    for candidate in router.spec.candidates:
        nic = atlas.interface(candidate.node, needed.interfaces, needed.addresses)
        if candidate.node in world.live and isinstance(nic, Interface):
            yield candidate.node, nic.name
