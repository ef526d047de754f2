# SPDX-License-Identifier: Apache-2.0
"""Hand-over orders: which router shall change hands without loss, to whom, and when the order is given.

Two causes: the Active's node is drained, or somebody asked for it (``holdfast.dev/move-to``). An order is
given when its heir is the first standby of a plan that it has reported, and hears the Active. It is one
shot: its id follows from router, both nodes, cause and term, so the same order is the same after a restart;
one that stood for 10 s, or that the Active reports as dealt with, is never given again.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from holdfast_api.conditions import Reason
from holdfast_api.names import MOVE_TO_ANNOTATION
from holdfast_api.types import Handover, Interface, Move, VirtualRouter
from holdfast_operator.candidates import Needed, Wish, home_order
from holdfast_operator.claims import Claim
from holdfast_operator.eligibility import Atlas
from holdfast_operator.world import Sighting, VipKey, World, spoken_of

MOST_AT_ONCE = 4  # orders that concern one node, as giver or as heir


@dataclass(frozen=True, slots=True)
class _Scene:
    """One router: who is Active, alone, and what its live standbys say."""

    router: VirtualRouter
    active: Sighting
    standbys: dict[str, Sighting]  # fit to take over, in home order
    needed: Needed


@dataclass(frozen=True, slots=True)
class _Cause:
    """``text`` and ``round`` go into the id; a later round is a new request for the same."""

    text: str
    round: int


class Orders:
    """All orders of one plan. ``answers``: what became of the moves that were asked for."""

    def __init__(self, world: World, atlas: Atlas) -> None:
        self._world = world
        self._atlas = atlas
        self.answers: dict[VipKey, Move] = {}
        self._busy: Counter[str] = Counter()
        for router in world.routers.values():
            if router.spec.handover is not None:
                self._busy.update((router.spec.handover.from_, router.spec.handover.to))

    def wish(self, router: VirtualRouter, needed: Needed, members: Sequence[Claim]) -> Wish | None:
        """What is wished for this router, a move that was asked for first."""
        asked = [c for c in members if c.vip.metadata.annotations.get(MOVE_TO_ANNOTATION)]
        found: Wish | None = None
        if asked or self._world.draining:
            scene = self._scene(router, needed)
            found = self._asked(router, scene, needed, asked)
            if found is None and scene is not None:
                found = self._drained(scene)
        standing = router.spec.handover
        if standing is not None and (found is None or found.order != standing):
            self._busy.subtract((standing.from_, standing.to))
        return found

    def _scene(self, router: VirtualRouter, needed: Needed) -> _Scene | None:
        """None unless there is just one Active, and its speaker would read an order."""
        world = self._world
        actives = world.actives(router)
        if len(actives) != 1 or not actives[0].live:
            return None
        active = actives[0]
        said = {s.node: s for s in world.of(router) if s.live and s.report.state == "Backup"}
        standbys = {
            node: said[node]
            for node in home_order(router)
            if node in said and node in world.nodes and not world.nodes[node].deleting
        }
        fit = {node: s for node, s in standbys.items() if self._carries(node, needed)}
        return _Scene(router, active, fit, needed)

    def _carries(self, node: str, needed: Needed) -> bool:
        nic = self._atlas.interface(node, needed.interfaces, needed.addresses)
        admitted = needed.selector is None or node in self._atlas.selected(needed.selector)
        equipped = not self._atlas.lacks(node, needed.mode)
        return isinstance(nic, Interface) and nic.carrier and admitted and equipped

    # --- a drained node -------------------------------------------------------------------------

    def _drained(self, scene: _Scene) -> Wish | None:
        world, giver = self._world, scene.active.node
        mark = world.draining.get(giver)
        if mark is None:
            return None
        cause = _Cause(f"drain {mark}", world.nodes[giver].marked)
        name = scene.router.metadata.name
        standing = self._standing(scene, cause)
        if standing is not None:
            return standing
        heirs = [
            node
            for node, said in scene.standbys.items()
            if node not in world.draining
            and (name, node) not in world.timely.lagging
            and said.report.hears in spoken_of(scene.router, giver)
            and not self._spent(scene, node, cause)
        ]
        if not heirs:
            return None
        return self._given(scene, min(heirs, key=world.rank), cause)  # the first of the best

    # --- a move that was asked for --------------------------------------------------------------

    def _asked(
        self, router: VirtualRouter, scene: _Scene | None, needed: Needed, members: Sequence[Claim]
    ) -> Wish | None:
        found: Wish | None = None
        for claim in sorted(members, key=lambda claim: claim.key):
            to = claim.vip.metadata.annotations[MOVE_TO_ANNOTATION]
            served = claim.vip.status.move
            if served is not None and served.to == to:
                self.answers[claim.key] = served
                continue
            wish, answer = self._judge(router, scene, needed, claim, to)
            if (
                answer is None
                and claim.key in self._world.timely.overdue
                and (wish is None or not wish.order)
            ):
                answer, wish = Move(to, Reason.HANDOVER_FAILED.value, _waited(router, scene, to)), None
            if answer is not None:
                self.answers[claim.key] = answer
            elif found is None:
                found = wish
        return found

    def _judge(
        self, router: VirtualRouter, scene: _Scene | None, needed: Needed, claim: Claim, to: str
    ) -> tuple[Wish | None, Move | None]:
        """A wish, or an answer, or neither: wait."""
        world = self._world
        actives = world.actives(router)
        if len(actives) == 1 and actives[0].node == to:
            return None, Move(to, Reason.HANDED_OVER.value, f"{to} is the Active of {router.metadata.name}")
        candidates = home_order(router)
        if to not in world.nodes or (candidates and to not in candidates):
            words = (
                f"{to} is no candidate of {router.metadata.name}: choose one of {', '.join(candidates[:5])}"
            )
            return None, Move(to, Reason.NOT_CANDIDATE.value, words)
        if to in world.draining:
            words = f"{to} is drained: {world.draining[to]}"
            return None, Move(to, Reason.DRAINING.value, words)
        if to not in world.live or (actives and not actives[0].live):
            silent = to if to not in world.live else actives[0].node
            return None, Move(to, Reason.SPEAKER_SILENT.value, f"the speaker of {silent} is silent")
        if not self._carries(to, needed):
            words = f"no NIC of {to} can carry {claim.address} now"
            return None, Move(to, Reason.NOT_CANDIDATE.value, words)
        if scene is None or to not in scene.standbys:
            return None, None
        cause = _Cause(f"move {claim.key[0]}/{claim.key[1]}", claim.vip.asked)
        standing = self._standing(scene, cause)
        if standing is not None and standing.heir == to:
            return standing, None
        if self._spent(scene, to, cause):
            words = f"{scene.active.node} was told to hand over to {to}, and is still the Active"
            return None, Move(to, Reason.HANDOVER_FAILED.value, words)
        if scene.standbys[to].report.hears not in spoken_of(router, scene.active.node):
            return None, None
        return self._given(scene, to, cause), None

    # --- the order itself -----------------------------------------------------------------------

    def _id(self, scene: _Scene, heir: str, cause: _Cause) -> str:
        uid, active = scene.router.metadata.uid, scene.active
        text = f"{uid}/{active.node}/{heir}/{cause.text}/{active.report.term}"
        return f"{blake2b(text.encode(), digest_size=8).hexdigest()}-{cause.round}"

    def _standing(self, scene: _Scene, cause: _Cause) -> Wish | None:
        """The order that stands, when it stands for this cause and may still be obeyed."""
        order = scene.router.spec.handover
        if order is None or order.from_ != scene.active.node or order.to not in scene.standbys:
            return None
        spent = (scene.router.metadata.uid, order.id) in self._world.timely.spent
        if spent or order.to in self._world.draining or order.id != self._id(scene, order.to, cause):
            return None
        return Wish(order.from_, order.to, order)

    def _spent(self, scene: _Scene, heir: str, cause: _Cause) -> bool:
        """Whether this very order stood long enough, or was dealt with. A later round is another."""
        uid, id_ = scene.router.metadata.uid, self._id(scene, heir, cause)
        if (uid, id_) in self._world.timely.spent:
            return True
        base, _, number = scene.active.report.handover.rpartition("-")
        return base == id_.rpartition("-")[0] and number.isdecimal() and int(number) >= cause.round

    def _given(self, scene: _Scene, heir: str, cause: _Cause) -> Wish:
        """The wish, with its order when the heir has read a plan in which it comes first."""
        router, giver = scene.router, scene.active.node
        first = next((node for node in home_order(router) if node != giver), None)
        told = scene.standbys[heir].report.observed_generation >= router.metadata.generation
        free = max(self._busy[giver], self._busy[heir]) < MOST_AT_ONCE
        if not (told and free and first == heir):
            return Wish(giver, heir, None)
        self._busy.update((giver, heir))
        return Wish(giver, heir, Handover(self._id(scene, heir, cause), giver, heir))


def _waited(router: VirtualRouter, scene: _Scene | None, to: str) -> str:
    """What a move waited for in vain."""
    name = router.metadata.name
    if scene is None:
        return f"{name} has no Active, or several"
    if to not in scene.standbys:
        return f"{to} is no standby of {name}: see kubectl get speaker {to} -o yaml"
    if scene.standbys[to].report.hears not in spoken_of(router, scene.active.node):
        return f"{to} does not hear the adverts of {scene.active.node}"
    return f"{to} has not read the newest plan, or too many routers move at once"
