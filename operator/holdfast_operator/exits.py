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
from holdfast_operator.world import Sighting, VipKey, World


class Exits:
    """``leaving``: address -> its router and the entry as stored. ``gone``: let go for good by this plan."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.leaving: dict[str, tuple[Draft, RouterAddress]] = {}
        self.gone: list[RouterAddress] = []

    def let_go(self, drafts: Mapping[str, Draft], claims: Claims, movers: set[VipKey]) -> None:
        """Stored addresses that nobody keeps: Releasing until nobody holds them, then gone."""
        forced = {c.address: self._disbelieved(c) for c in claims.by_key.values() if c.refused is None}
        for draft in drafts.values():
            for entry in draft.stored.spec.addresses if draft.exists else ():
                if entry.address in draft.entries:
                    continue
                moves = (entry.owner.namespace, entry.owner.name) in movers
                blockers = self._blockers(draft, entry, forced.get(entry.address, frozenset()))
                if entry.state == "Releasing" and not blockers and not moves:
                    self.gone.append(entry)
                    continue
                draft.put(msgspec.structs.replace(entry, state="Releasing"))
                self.leaving[entry.address] = (draft, entry)

    def _blockers(self, draft: Draft, entry: RouterAddress, forced: frozenset[str]) -> set[str]:
        """Nodes that may still hold the address in this router, or take it by an older plan.

        They say that they hold it, or were Active by what they said last and have not read the plan. A live
        standby that has not read it is waited for too, a few seconds. A former Active without a Speaker
        object has said nothing.
        """
        world, router = self._world, draft.stored
        candidates = {candidate.node for candidate in router.spec.candidates}
        behind = {
            s.node
            for s in world.of(router)
            if s.report.observed_generation < router.metadata.generation
            and (s.report.state == "Active" or (s.node in candidates and self._reads(s, draft.name)))
        }
        holding = {node for name, node in world.holders.get(entry.address, ()) if name == draft.name}
        last = router.spec.planned_from.active
        mute = {last} if last in world.nodes and last not in world.speakers else set()
        return (behind | holding | {node for node in mute if node is not None}) - forced

    def _reads(self, sighting: Sighting, router: str) -> bool:
        return sighting.live and (router, sighting.node) not in self._world.timely.lagging

    def obstacles(self, claim: Claim) -> tuple[str, ...] | None:
        """Nodes that must let the address go before the claim may have it elsewhere; None: it may now.

        Empty: nobody is known to hold it, but the speakers have not been told to release it yet.
        """
        forced = self._disbelieved(claim)
        nodes = {node for _, node in self._world.holders.get(claim.address, ())} - forced
        leaving = self.leaving.get(claim.address)
        if leaving is not None:
            nodes |= self._blockers(*leaving, forced)
        if nodes or (leaving is not None and leaving[1].state == "Held"):
            return tuple(sorted(nodes))
        return None

    def stay(self, claim: Claim) -> str | None:
        """The claim remains in the router it was to leave; its name, or None when it was in none."""
        if claim.place is None or claim.address not in self.leaving:
            return None
        draft, entry = self.leaving.pop(claim.address)
        draft.hold(claim, claimed=entry.claimed, stays=True)
        return draft.name

    def leave(self, claim: Claim) -> RouterAddress | None:
        """The claim's address is out of its old router; the entry it had there."""
        leaving = self.leaving.pop(claim.address, None)
        if leaving is None:
            return None
        leaving[0].entries.pop(claim.address, None)
        return leaving[1]

    def _disbelieved(self, claim: Claim) -> frozenset[str]:
        """Nodes whose reports its owner told us to disbelieve, by annotation: only silent ones.

        A live speaker says by itself what it holds; nobody may take an address from under it.
        """
        named = claim.vip.metadata.annotations.get(FORCE_RELEASE_ANNOTATION, "")
        return frozenset(node.strip() for node in named.split(",") if node.strip()) - self._world.live
