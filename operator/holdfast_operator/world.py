# SPDX-License-Identifier: Apache-2.0
"""The planner's whole input: one frozen snapshot of what the API and the Leases say.

Nothing else reaches ``plan``. Times in it are seconds of one monotonic clock and are only compared with
each other: which came later, a sign of life or a takeover.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from holdfast_api.names import DRAIN_LABEL
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
    """A Node object, as far as planning asks.

    ``taints`` are keys. ``marked``: the version of the object in which it was seen to be drained anew; 0
    when it was drained already as we first saw it.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: frozenset[str] = frozenset()  # canonical text
    deleting: bool = False
    taints: frozenset[str] = frozenset()
    unschedulable: bool = False
    ready: bool = True  # or nobody says anything about it
    marked: int = 0


DRAIN_TAINTS = (
    "node.kubernetes.io/out-of-service",
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
)


@dataclass(frozen=True, slots=True)
class DrainRule:
    """What makes a node drained beside the label ``holdfast.dev/drain``. ``cordon``: unschedulable does."""

    taints: tuple[str, ...] = DRAIN_TAINTS
    cordon: bool = False

    def mark(self, node: Node) -> str:
        """What drains the node, in words that change when somebody marks it otherwise; "" for nothing."""
        value = node.labels.get(DRAIN_LABEL, "false")
        if value != "false":
            return f"label {DRAIN_LABEL}={value}"
        taint = next((taint for taint in self.taints if taint in node.taints), None)
        if taint is not None:
            return f"taint {taint}"
        return "cordon" if self.cordon and node.unschedulable else ""


@dataclass(frozen=True, slots=True)
class Vip:
    """A VirtualIP. ``spec`` is None when it can't be read, and ``errors`` say why, field by field.

    ``asked``: the version of the object in which a move was seen to be asked for anew, else 0.
    """

    metadata: Metadata
    spec: VirtualIPSpec | None
    status: VirtualIPStatus = field(default_factory=VirtualIPStatus)
    errors: tuple[str, ...] = ()
    asked: int = 0

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


@dataclass(frozen=True, slots=True)
class Timely:
    """What is true because time has passed; see ``memory``.

    ``spent``         orders that stood for 10 s: (uid of the router, id)
    ``overdue``       moves that were asked for 30 s ago
    ``lagging``       speakers that don't read the newest plan: (router, node)
    ``foreign``       strangers' VRIDs heard for 60 s: (node, NIC, VRID)
    ``unsteady``      nodes that lost a router three times in ten minutes
    ``may_renumber``  a minute has passed since a router was moved to another VRID
    """

    spent: frozenset[tuple[str, str]] = frozenset()
    overdue: frozenset[VipKey] = frozenset()
    lagging: frozenset[tuple[str, str]] = frozenset()
    foreign: frozenset[tuple[str, str, int]] = frozenset()
    unsteady: frozenset[str] = frozenset()
    may_renumber: bool = True


@dataclass(frozen=True)
class World:
    """Everything the planner knows.

    ``cluster_uid``  that of Namespace kube-system; "" when it can't be read
    ``live``      nodes whose speaker's Lease is renewed (or not yet judged)
    ``settling``  nodes whose speaker has begun to listen a moment ago: worth waiting for
    ``alive_at``  when each node's speaker gave its last sign of life
    ``taken_at``  when a node was first seen Active in a router with its present term: (router, node)
    ``unreadable_routers``  names of VirtualRouters that exist but can't be read
    ``ghosts``    what the Speakers said last whose object is gone while their Node is there
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
    ghosts: Mapping[str, SpeakerStatus] = field(default_factory=dict)
    drain_rule: DrainRule = DrainRule()
    timely: Timely = Timely()

    @cached_property
    def draining(self) -> Mapping[str, str]:
        """Node -> what drains it, for those that are drained."""
        marks = {name: self.drain_rule.mark(node) for name, node in self.nodes.items()}
        return {name: mark for name, mark in marks.items() if mark}

    def rank(self, node: str) -> int:
        """0: as good as any; 1: it flaps; 2: it is drained. The better come first."""
        return 2 if node in self.draining else int(node in self.timely.unsteady)

    def steady(self, nodes: Sequence[str]) -> tuple[str, ...]:
        """Those of the best rank there is among them."""
        best = min((self.rank(node) for node in nodes), default=0)
        return tuple(node for node in nodes if self.rank(node) == best)

    @cached_property
    def sightings(self) -> Mapping[str, tuple[Sighting, ...]]:
        """Router name -> what the speakers of Nodes that exist say of it, by node name."""
        found: dict[str, list[Sighting]] = {}
        told = {**self.ghosts, **self.speakers}
        for node in sorted(told):
            if node not in self.nodes:
                continue
            for report in told[node].routers:
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

    @cached_property
    def strangers(self) -> Mapping[tuple[str, str, int], str]:
        """(node, NIC, VRID) -> the stranger who is heard there now."""
        return {
            (node, heard.interface, heard.virtual_router_id): heard.source
            for node, speaker in self.speakers.items()
            for heard in speaker.heard_virtual_router_ids
        }

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
        names = spoken_of(router, node)
        return any(s.live and s.node != node and s.report.hears in names for s in self.of(router))


def spoken_of(router: VirtualRouter, node: str) -> frozenset[str]:
    """How reports call this candidate: by name, or by an address that its adverts come from."""
    sources = (c.sources for c in router.spec.candidates if c.node == node)
    return frozenset({node}).union(*sources)
