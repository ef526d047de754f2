# SPDX-License-Identifier: Apache-2.0
"""What the operator remembers of time: when it first saw an order, a stranger, a loss, a new generation.

Pure: monotonic seconds come in as an argument. All of it may be lost (a restart, another replica): then an
order that nobody obeyed may be given once more, and a host that flaps is found out anew. What must not be
lost is in the API.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from holdfast_api.conditions import Reason
from holdfast_api.types import SpeakerStatus, VirtualRouter
from holdfast_operator.world import Timely, VipKey

ORDER_S = 10.0  # an order that was not carried out by then is withdrawn
ANSWER_S = 30.0  # a move that was asked for is carried out by then, or refused
LAG_S = 3.0  # a speaker that has not reported a generation by then is not waited for
FOREIGN_S = 60.0  # a stranger on a VRID of ours is believed to stay
RENUMBER_S = 60.0  # between two routers that get another VRID
FLAP_S = 600.0  # so many losses within it make a node unsteady, for as long
FLAP_LOSSES = 3
MOST_REMEMBERED = 4096
K = TypeVar("K")
V = TypeVar("V")
_LOST = frozenset({Reason.ACTIVE_SILENT.value, Reason.ACTIVE_RESIGNED.value})


@dataclass(slots=True)
class Memory:
    """Mutable, for one event loop. ``timely`` is what a World takes from it."""

    _orders: dict[tuple[str, str], float] = field(default_factory=dict)  # (router uid, id) -> first seen
    _generations: dict[str, tuple[int, float]] = field(default_factory=dict)  # router uid
    _requests: dict[tuple[VipKey, str], float] = field(default_factory=dict)
    _strangers: dict[tuple[str, str, int], float] = field(default_factory=dict)  # node, NIC, VRID
    _losses: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)  # node, router
    _renumbered_s: float | None = None

    # --- what is seen ---------------------------------------------------------------------------

    def router(self, router: VirtualRouter, now_s: float) -> None:
        uid, generation = router.metadata.uid, router.metadata.generation
        known = self._generations.get(uid)
        if known is None or known[0] != generation:
            self._remember(self._generations, uid, (generation, now_s))
        if router.spec.handover is not None and (uid, router.spec.handover.id) not in self._orders:
            self._remember(self._orders, (uid, router.spec.handover.id), now_s)

    def speaker(
        self, node: str, before: SpeakerStatus | None, status: SpeakerStatus, now_s: float, *, listed: bool
    ) -> None:
        """``listed``: from a list, where its stories may be old ones."""
        heard = {(node, h.interface, h.virtual_router_id) for h in status.heard_virtual_router_ids}
        for key in [key for key in self._strangers if key[0] == node and key not in heard]:
            del self._strangers[key]
        for key in heard - self._strangers.keys():
            self._remember(self._strangers, key, now_s)
        if listed or before is None:
            return
        told = {report.name: report.last_transition for report in before.routers}
        for report in status.routers:
            story = report.last_transition
            if story is None or story.from_ is None or story.reason not in _LOST:
                continue
            old = told.get(report.name)
            if story.to == node and (old is None or old.time != story.time):
                losses = (*self._losses.get((story.from_, report.name), ()), now_s)
                self._remember(self._losses, (story.from_, report.name), losses[-FLAP_LOSSES:])

    def request(self, key: VipKey, wanted: str, now_s: float) -> None:
        """An annotation that asks for a move; "" when there is none."""
        for known in [known for known in self._requests if known[0] == key and known[1] != wanted]:
            del self._requests[known]
        if wanted and (key, wanted) not in self._requests:
            self._remember(self._requests, (key, wanted), now_s)

    def renumbered(self, now_s: float) -> None:
        """A router begins to move to another VRID."""
        self._renumbered_s = now_s

    def forget_node(self, node: str) -> None:
        """Its Speaker is gone."""
        for key in [key for key in self._strangers if key[0] == node]:
            del self._strangers[key]

    def _remember(self, shelf: dict[K, V], key: K, value: V) -> None:
        """The oldest is forgotten when there is too much."""
        shelf.pop(key, None)
        if len(shelf) >= MOST_REMEMBERED:
            del shelf[next(iter(shelf))]
        shelf[key] = value

    # --- what follows ---------------------------------------------------------------------------

    def timely(
        self, routers: Mapping[str, VirtualRouter], speakers: Mapping[str, SpeakerStatus], now_s: float
    ) -> Timely:
        last_s = self._renumbered_s
        return Timely(
            spent=frozenset(key for key, at in self._orders.items() if now_s >= at + ORDER_S),
            overdue=frozenset(key for (key, _), at in self._requests.items() if now_s >= at + ANSWER_S),
            lagging=frozenset(self._lagging(routers, speakers, now_s)),
            foreign=frozenset(key for key, at in self._strangers.items() if now_s >= at + FOREIGN_S),
            unsteady=frozenset(
                node
                for (node, _), at in self._losses.items()
                if len(at) == FLAP_LOSSES and at[-1] - at[0] < FLAP_S and now_s < at[-1] + FLAP_S
            ),
            may_renumber=last_s is None or now_s >= last_s + RENUMBER_S,
        )

    def _lagging(
        self, routers: Mapping[str, VirtualRouter], speakers: Mapping[str, SpeakerStatus], now_s: float
    ) -> Iterable[tuple[str, str]]:
        """(router, node) of reports that are behind for too long."""
        old = {uid: generation for uid, (generation, at) in self._generations.items() if now_s >= at + LAG_S}
        for node, status in speakers.items():
            for report in status.routers:
                router = routers.get(report.name)
                if router is None or router.metadata.uid != report.uid:
                    continue
                behind = report.observed_generation < router.metadata.generation
                if behind and old.get(report.uid) == router.metadata.generation:
                    yield report.name, node
