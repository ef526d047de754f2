# SPDX-License-Identifier: Apache-2.0
"""The four kinds as frozen structs, field for field as in ``crds/*.yaml`` (camelCase there, snake_case here).

Unknown fields are ignored, so that a speaker reads what a newer operator wrote. Addresses are text in
canonical form (RFC 5952 for IPv6), as they stand in the API; who needs bytes parses them once.
"""

from typing import Literal

import msgspec

Mode = Literal["NodeMAC", "VirtualMAC"]
MACFallback = Literal["Never", "NodeMAC"]
Failback = Literal["Never", "Immediate", "Delayed"]
AddressState = Literal["Held", "Releasing"]
RouterState = Literal["Initialize", "Backup", "Active"]
ConditionStatus = Literal["True", "False", "Unknown"]


class Part(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Base of every part of an object: immutable, camelCase in the API, defaults left out."""


# --- metadata -----------------------------------------------------------------------------------


class Metadata(Part, frozen=True):
    """The part of ObjectMeta that Holdfast reads."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Condition(Part, frozen=True, omit_defaults=False):
    """metav1.Condition."""

    type: str
    status: ConditionStatus
    reason: str
    message: str
    observed_generation: int
    last_transition_time: str


# --- VirtualIP ----------------------------------------------------------------------------------


class LabelSelectorRequirement(Part, frozen=True):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()


class LabelSelector(Part, frozen=True):
    """metav1.LabelSelector; empty selects everything."""

    match_labels: dict[str, str] = {}
    match_expressions: tuple[LabelSelectorRequirement, ...] = ()


class PreferredNodes(Part, frozen=True):
    weight: int
    selector: LabelSelector


class NodeChoice(Part, frozen=True):
    selector: LabelSelector | None = None
    preferred: tuple[PreferredNodes, ...] = ()


class Failover(Part, frozen=True, omit_defaults=False):
    """How fast a failure is seen, and whether a returning node takes over again."""

    advert_interval_milliseconds: int = 100
    failback: Failback = "Never"
    failback_delay_seconds: int = 300


class VirtualIPSpec(Part, frozen=True):
    address: str | None = None
    pool: str | None = None
    interfaces: tuple[str, ...] = ()
    mode: Mode = "NodeMAC"
    mac_address: str | None = None
    mac_fallback: MACFallback = "Never"
    group: str | None = None
    nodes: NodeChoice = NodeChoice()
    failover: Failover = Failover()


class Holder(Part, frozen=True):
    """A node observed to hold the address."""

    node: str
    interface: str
    since: str


class Transition(Part, frozen=True):
    """A takeover as the new Active tells it. ``time`` is RFC 3339 with microseconds."""

    to: str
    reason: str
    time: str
    from_: str | None = msgspec.field(name="from", default=None)
    detection_milliseconds: int | None = None
    takeover_milliseconds: int | None = None
    announcements_sent: int | None = None


class Move(Part, frozen=True):
    """What became of the annotation ``holdfast.dev/move-to``. ``reason``: HandedOver, or why not."""

    to: str
    reason: str
    message: str = ""


class VirtualIPStatus(Part, frozen=True):
    """What was planned and seen. ``mac_fallback_generation``: of the spec whose MAC is not carried."""

    address: str | None = None
    mac_address: str | None = None
    mac_fallback_generation: int | None = None
    virtual_router: str | None = None
    leader: str | None = None
    standbys: tuple[str, ...] = ()
    active: tuple[Holder, ...] = ()
    last_failover: Transition | None = None
    move: Move | None = None
    conditions: tuple[Condition, ...] = ()


class VirtualIP(Part, frozen=True):
    metadata: Metadata
    spec: VirtualIPSpec
    status: VirtualIPStatus = VirtualIPStatus()


# --- VirtualIPPool (served now, planned later) ---------------------------------------------------


class VirtualIPPoolSpec(Part, frozen=True):
    cidrs: tuple[str, ...]
    exclude_cidrs: tuple[str, ...] = msgspec.field(name="excludeCIDRs", default=())
    namespace_selector: LabelSelector | None = None
    auto_assign: bool = True
    default: bool = False


class VirtualIPPoolStatus(Part, frozen=True):
    conditions: tuple[Condition, ...] = ()


class VirtualIPPool(Part, frozen=True):
    metadata: Metadata
    spec: VirtualIPPoolSpec
    status: VirtualIPPoolStatus = VirtualIPPoolStatus()


# --- VirtualRouter ------------------------------------------------------------------------------


class Candidate(Part, frozen=True):
    """A node that may become Active. ``sources`` and ``macs`` are those of the NIC it would use.

    ``meek``: it takes over from a dead Active only, whatever failback says.
    """

    node: str
    priority: int
    sources: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    meek: bool = False


class Owner(Part, frozen=True):
    """The VirtualIP an address was given to."""

    namespace: str
    name: str
    uid: str


class RouterAddress(Part, frozen=True, omit_defaults=False):
    """One address of a router. ``claimed`` False: new to the cluster, probed for before it is bound."""

    address: str
    owner: Owner
    state: AddressState = "Held"
    claimed: bool = False
    mac_address: str | None = None


class Handover(Part, frozen=True):
    id: str
    from_: str = msgspec.field(name="from")
    to: str


class PlannedFrom(Part, frozen=True, omit_defaults=False):
    """What the planner had seen: the Active (or nobody) and its term."""

    active: str | None = None
    term: int = 0


class VirtualRouterSpec(Part, frozen=True, omit_defaults=False):
    virtual_router_id: int = msgspec.field(name="virtualRouterID")
    addresses: tuple[RouterAddress, ...]
    candidates: tuple[Candidate, ...] = ()
    advert_interval_milliseconds: int = 100
    failback: Failback = "Never"
    failback_delay_seconds: int = 300
    interfaces: tuple[str, ...] = ()
    mode: Mode = "NodeMAC"
    handover: Handover | None = None
    planned_from: PlannedFrom = PlannedFrom()
    planner_epoch: int = 0


class VirtualRouter(Part, frozen=True):
    metadata: Metadata
    spec: VirtualRouterSpec


# --- Speaker ------------------------------------------------------------------------------------


class Interface(Part, frozen=True, omit_defaults=False):
    """A NIC a virtual IP could live on. ``addresses`` are CIDRs (``192.0.2.5/24``), never our own VIPs.

    ``listened``: the speaker has heard this NIC's adverts for at least 4 s, so a VRID it does not
    report is free here.
    """

    name: str
    mac: str
    addresses: tuple[str, ...] = ()
    carrier: bool = True
    listened: bool = False


class FailedAddress(Part, frozen=True):
    """An address that a router should hold here but does not, and why (a Reason)."""

    address: str
    reason: str
    message: str = ""


class ReportedConflict(Part, frozen=True):
    """Somebody else who claims an address that a router holds here. ``reason`` is a Reason."""

    address: str
    mac: str
    reason: str
    since: str


MOST_CONFLICTS = 16  # in one router's report


class RouterReport(Part, frozen=True):
    """What one speaker says of one router.

    ``reason`` explains Initialize, or why a Backup holds back; ``held`` are bound addresses; ``handover`` is
    the id of the last order that was obeyed, finished or refused here as its ``from``. ``blocked``
    are held addresses whose virtual MAC reaches nobody on the segment.
    """

    name: str
    uid: str
    observed_generation: int
    state: RouterState
    term: int
    since: str
    interface: str = ""
    held: tuple[str, ...] = ()
    failed: tuple[FailedAddress, ...] = ()
    conflicts: tuple[ReportedConflict, ...] = ()
    blocked: tuple[str, ...] = ()
    reason: str = ""
    hears: str | None = None
    handover: str = ""
    last_transition: Transition | None = None


class HeardVirtualRouterID(Part, frozen=True):
    """A VRID of somebody else's, heard on a NIC of ours within the last minute."""

    interface: str
    virtual_router_id: int = msgspec.field(name="virtualRouterID")
    source: str = ""


class SpeakerStatus(Part, frozen=True, omit_defaults=False):
    version: str = ""
    interfaces: tuple[Interface, ...] = ()
    routers: tuple[RouterReport, ...] = ()
    heard_virtual_router_ids: tuple[HeardVirtualRouterID, ...] = msgspec.field(
        name="heardVirtualRouterIDs", default=()
    )
    preflight: tuple[Condition, ...] = ()


class Speaker(Part, frozen=True):
    metadata: Metadata
    status: SpeakerStatus = SpeakerStatus()
