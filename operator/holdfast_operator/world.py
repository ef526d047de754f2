# SPDX-License-Identifier: Apache-2.0
"""The planner's whole input: one frozen snapshot of what the API and the Leases say.

Nothing else reaches ``plan``. Times in it are seconds of one monotonic clock and are only compared with
each other: which came later, a sign of life or a takeover.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from holdfast_api.types import (
    Metadata,
    RouterReport,
    SpeakerStatus,
    VirtualIPSpec,
    VirtualIPStatus,
    VirtualRouter,
)

ALIVE_MARGIN_S = 2.0  # a sign of life this long after the next one's takeover: both are Active, not one dead

VipKey = tuple[str, str]  # namespace, name


@dataclass(frozen=True, slots=True)
class Node:
    """A Node object, as far as planning asks."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: frozenset[str] = frozenset()  # canonical text
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class Vip:
    """A VirtualIP. ``spec`` is None when it can't be read, and ``errors`` say why, field by field."""

    metadata: Metadata
    spec: VirtualIPSpec | None
    status: VirtualIPStatus = field(default_factory=VirtualIPStatus)
    errors: tuple[str, ...] = ()

    @property
    def key(self) -> VipKey:
        return (self.metadata.namespace, self.metadata.name)

    @property
    def age_key(self) -> tuple[str, str, str]:
        """Who came first: creation, then namespace and name."""
        return (self.metadata.creation_timestamp, self.metadata.namespace, self.metadata.name)


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one node's speaker says of one router. ``live``: its Lease is renewed."""

    node: str
    report: RouterReport
    live: bool


@dataclass(frozen=True)
class World:
    """Everything the planner knows.

    ``live``      nodes whose speaker's Lease is renewed (or not yet judged)
    ``settling``  nodes whose speaker has begun to listen a moment ago: worth waiting for
    ``alive_at``  when each node's speaker gave its last sign of life
    ``taken_at``  when a node was first seen Active in a router with its present term: (router, node)
    ``unreadable_routers``  names of VirtualRouters that exist but can't be read
    """

    cluster_uid: str
    nodes: Mapping[str, Node]
    speakers: Mapping[str, SpeakerStatus]
    live: frozenset[str]
    vips: tuple[Vip, ...]
    routers: Mapping[str, VirtualRouter]
    virtual_router_ids: range = range(1, 256)
    epoch: int = 0
    settling: frozenset[str] = frozenset()
    alive_at: Mapping[str, float] = field(default_factory=dict)
    taken_at: Mapping[tuple[str, str], float] = field(default_factory=dict)
    unreadable_routers: frozenset[str] = frozenset()

    @cached_property
    def sightings(self) -> Mapping[str, tuple[Sighting, ...]]:
        """Router name -> what the speakers of Nodes that exist say of it, by node name."""
        found: dict[str, list[Sighting]] = {}
        for node in sorted(self.speakers):
            if node not in self.nodes:
                continue
            for report in self.speakers[node].routers:
                found.setdefault(report.name, []).append(Sighting(node, report, node in self.live))
        return {name: tuple(seen) for name, seen in found.items()}

    @cached_property
    def holders(self) -> Mapping[str, tuple[tuple[str, str], ...]]:
        """Address -> (router name, node) of every report that it is bound, whoever it is."""
        found: dict[str, list[tuple[str, str]]] = {}
        for router, seen in self.sightings.items():
            for sighting in seen:
                for address in sighting.report.held:
                    found.setdefault(address, []).append((router, sighting.node))
        return {address: tuple(sorted(held)) for address, held in found.items()}

    def of(self, router: VirtualRouter) -> tuple[Sighting, ...]:
        """The reports on this very object, not on an earlier one of its name."""
        uid = router.metadata.uid
        return tuple(s for s in self.sightings.get(router.metadata.name, ()) if s.report.uid == uid)

    def actives(self, router: VirtualRouter) -> tuple[Sighting, ...]:
        """Candidates believed Active, the most believable first: highest term, then a live Lease.

        One that was overtaken and gave no sign of life since is left out: it died. One that did is
        still Active beside the other: the segment is split.
        """
        candidates = {c.node for c in router.spec.candidates}
        claims = [s for s in self.of(router) if s.report.state == "Active" and s.node in candidates]
        claims.sort(key=lambda s: (-s.report.term, not s.live, s.node))
        if not claims:
            return ()
        first = claims[0]
        since = self.taken_at.get((router.metadata.name, first.node), 0.0)
        return (first, *(s for s in claims[1:] if self._stands_beside(s, first, since)))

    def _stands_beside(self, other: Sighting, first: Sighting, since: float) -> bool:
        if not other.live:
            return False
        if other.report.term == first.report.term:
            return True
        return self.alive_at.get(other.node, 0.0) > since + ALIVE_MARGIN_S

    def heard(self, router: VirtualRouter, node: str) -> bool:
        """Whether another live speaker hears this candidate's adverts (so it is no dead one)."""
        names = {node}
        for candidate in router.spec.candidates:
            if candidate.node == node:
                names.update(candidate.sources)
        return any(s.live and s.node != node and s.report.hears in names for s in self.of(router))
