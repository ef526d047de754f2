# SPDX-License-Identifier: Apache-2.0
"""Addresses on their way out of a router, and when they are out.

An address that left its router must be reported released before anybody else may bind it: there are never
two holders. A dead node blocks until its Node is deleted, or until the next owner says to disbelieve it.
"""

from collections.abc import Mapping

import msgspec

from holdfast_api.names import FORCE_RELEASE_ANNOTATION
from holdfast_api.types import RouterAddress
from holdfast_operator.claims import Claim, Claims
from holdfast_operator.drafts import Draft
from holdfast_operator.world import VipKey, World


class Exits:
    """``leaving``: address -> its router and the entry as stored. ``gone``: let go for good by this plan."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.leaving: dict[str, tuple[Draft, RouterAddress]] = {}
        self.gone: list[RouterAddress] = []

    def let_go(self, drafts: Mapping[str, Draft], claims: Claims, movers: set[VipKey]) -> None:
        """Stored addresses that nobody keeps: Releasing until nobody holds them, then gone."""
        forced = {c.address: disbelieved(c) for c in claims.by_key.values() if c.refused is None}
        for draft in drafts.values():
            for entry in draft.stored.spec.addresses if draft.exists else ():
                if entry.address in draft.entries:
                    continue
                moves = (entry.owner.namespace, entry.owner.name) in movers
                blockers = self._blockers(draft, entry.address, forced.get(entry.address, frozenset()))
                if entry.state == "Releasing" and not blockers and not moves:
                    self.gone.append(entry)
                    continue
                draft.put(msgspec.structs.replace(entry, state="Releasing"))
                self.leaving[entry.address] = (draft, entry)

    def _blockers(self, draft: Draft, address: str, forced: frozenset[str]) -> set[str]:
        """Nodes that may still hold the address in this router: they say so, or have not seen the plan."""
        router = draft.stored
        behind = {
            s.node
            for s in self._world.of(router)
            if s.report.state == "Active" and s.report.observed_generation < router.metadata.generation
        }
        holding = {node for name, node in self._world.holders.get(address, ()) if name == draft.name}
        return (behind | holding) - forced

    def obstacles(self, claim: Claim) -> tuple[str, ...] | None:
        """Nodes that must let the address go before the claim may have it elsewhere; None: it may now.

        Empty: nobody is known to hold it, but the speakers have not been told to release it yet.
        """
        forced = disbelieved(claim)
        nodes = {node for _, node in self._world.holders.get(claim.address, ())} - forced
        leaving = self.leaving.get(claim.address)
        if leaving is not None:
            nodes |= self._blockers(leaving[0], claim.address, forced)
        if nodes or (leaving is not None and leaving[1].state == "Held"):
            return tuple(sorted(nodes))
        return None

    def stay(self, claim: Claim) -> str | None:
        """The claim remains in the router it was to leave; its name, or None when it was in none."""
        if claim.place is None or claim.address not in self.leaving:
            return None
        draft, entry = self.leaving.pop(claim.address)
        draft.hold(claim, claimed=entry.claimed)
        return draft.name

    def leave(self, claim: Claim) -> RouterAddress | None:
        """The claim's address is out of its old router; the entry it had there."""
        leaving = self.leaving.pop(claim.address, None)
        if leaving is None:
            return None
        leaving[0].entries.pop(claim.address, None)
        return leaving[1]


def disbelieved(claim: Claim) -> frozenset[str]:
    """Nodes whose reports its owner told us to disbelieve, by annotation."""
    named = claim.vip.metadata.annotations.get(FORCE_RELEASE_ANNOTATION, "")
    return frozenset(node.strip() for node in named.split(",") if node.strip())
