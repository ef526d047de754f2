# SPDX-License-Identifier: Apache-2.0
"""What happened, told to the brain (``node.Node.handle``): facts in the past tense, or snapshots."""

from dataclasses import dataclass

from holdfast_api.types import Interface, VirtualRouter


@dataclass(frozen=True, slots=True)
class RoutersListed:
    """Every VirtualRouter there is: a complete list (also the first); what is missing is withdrawn."""

    routers: tuple[VirtualRouter, ...]
    rejected: tuple[tuple[str, str], ...] = ()  # (name, why): there, but unreadable; the last good one stays


@dataclass(frozen=True, slots=True)
class RouterChanged:
    router: VirtualRouter


@dataclass(frozen=True, slots=True)
class RouterRejected:
    """A VirtualRouter that could not be read: its last good version stays in force, its report says so."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class RouterDeleted:
    name: str


@dataclass(frozen=True, slots=True)
class PlanRestored:
    """The plan of /run/holdfast, at start, before the API has said anything. Not confirmed."""

    routers: tuple[VirtualRouter, ...]
    terms: dict[str, int]  # router name -> highest term seen


@dataclass(frozen=True, slots=True)
class ApiConfirmed:
    """The API answered just now (a list, a watch event or a bookmark): the plan held is the current one."""


@dataclass(frozen=True, slots=True)
class LinksSeen:
    """All NICs as they are now, each time any of them changed. Without our own VIPs, without ports."""

    interfaces: tuple["Link", ...]


@dataclass(frozen=True, slots=True)
class Link:
    """A NIC with what only this node needs of it."""

    index: int
    interface: Interface
    mtu: int = 1500
    up: bool = True


@dataclass(frozen=True, slots=True)
class AddressesSeen:
    """Every address with our mark, on every NIC, as the kernel has it now: (ifindex, address)."""

    bound: frozenset[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """A whole Ethernet frame from a NIC: VRRP (IPv4 or IPv6), ARP or a neighbour advertisement/solicitation.

    ``at_us`` is when the socket was read; the kernel's vlan tag is already off. Our own frames that
    loop back are not delivered.
    """

    index: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class Bound:
    """The effect ``Bind`` with this ``id`` ended: these are bound, these are not and why."""

    id: int
    bound: tuple[str, ...]
    failed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Released:
    """The effect ``Release`` with this ``id`` ended."""

    id: int
    failed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Taken:
    """The effect ``Take`` with this ``id`` ended; what waited on the wire was told before."""

    id: int
    open: bool


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """The kernel's fence held back an advert of this VRID.

    ``removed``: no, another program removed the fence; it stands again, shut.
    """

    virtual_router_id: int
    removed: bool = False


@dataclass(frozen=True, slots=True)
class MacsHeard:
    """Frames came in, within the last second, whose sender has one of our virtual MACs."""

    macs: frozenset[str]


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The deadline has come (or is past)."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """SIGTERM: give up what is held, in good order. ``Node.stopped`` tells when it is done."""


Event = (
    RoutersListed
    | RouterChanged
    | RouterRejected
    | RouterDeleted
    | PlanRestored
    | ApiConfirmed
    | LinksSeen
    | AddressesSeen
    | FrameReceived
    | Bound
    | Released
    | Taken
    | LeaseLost
    | MacsHeard
    | TimerFired
    | StopRequested
)
