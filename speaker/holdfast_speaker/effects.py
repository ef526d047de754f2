# SPDX-License-Identifier: Apache-2.0
"""What shall be done, said by the brain and carried out by the loop, in the order given.

Effects say *ensure*: a Bind of what is bound is no error. Only Bind, Release and Take come back as events
(``Bound``, ``Released``, ``Taken``), since only they can fail in a way that changes what the brain decides.
"""

from dataclasses import dataclass
from typing import Literal

from holdfast_api.types import SpeakerStatus, VirtualRouter

Form = Literal["announce", "probe", "ask"]
# announce: ARP request + reply forms (R1.1), or an unsolicited NA (R1.2)
# probe:    ARP with sender 0 (RFC 5227), or an NS from :: for the address (RFC 4862 DAD form)
# ask:      "who-has X tell VIP" unicast to gateways and recent neighbours (R1.1), NS for IPv6 (R1.2)


@dataclass(frozen=True, slots=True)
class Prepare:
    """The addresses that may soon be bound and announced on this NIC: build bytes for them beforehand.

    The whole set for the NIC; what is no longer in it may be forgotten. ``macs``: the virtual MAC of
    each address that has one; it needs a place on this NIC from now on.
    """

    index: int
    addresses: frozenset[str]
    macs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Hear:
    """Listen on exactly these NICs: VRRP, ARP and ND, with the multicast groups joined."""

    indexes: frozenset[int]


@dataclass(frozen=True, slots=True)
class Send:
    """Put this whole Ethernet frame on the NIC: an advert of this VRID, or (0) a question or an answer.

    An advert that the fence holds back is told by ``LeaseLost``.
    """

    index: int
    frame: bytes
    virtual_router_id: int = 0


@dataclass(frozen=True, slots=True)
class Announce:
    """Send one form of ARP or ND frames for each of these addresses, in this order."""

    index: int
    form: Form
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bind:
    """Ensure the addresses on the NIC, marked, with a 30 s lifetime; again refreshes the lifetime."""

    id: int
    index: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Ensure the addresses are not on the NIC (only ones that carry our mark are touched)."""

    id: int
    index: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refresh:
    """Renew the 30 s lifetime of bound addresses; the kernel watch tells what is lost."""

    index: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The Speaker's status from now on; the cluster door writes it when it differs from the last one."""

    status: SpeakerStatus


@dataclass(frozen=True, slots=True)
class SavePlan:
    """Keep the plan for the next start (/run/holdfast)."""

    routers: tuple[VirtualRouter, ...]
    terms: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Log:
    """A sentence for the operator of the node, with its facts."""

    level: Literal["debug", "info", "warning", "error"]
    message: str
    facts: tuple[tuple[str, str | int], ...] = ()


@dataclass(frozen=True, slots=True)
class Count:
    """Add to a counter: adverts sent and received, discards by reason, transitions."""

    metric: Literal[
        "adverts_sent", "adverts_received", "discards", "transitions", "announcements", "conflicts"
    ]
    label: str = ""
    amount: int = 1


@dataclass(frozen=True, slots=True)
class Cover:
    """The kernel's fence stands on exactly these NICs: all that may be on a segment with our addresses."""

    indexes: frozenset[int]


@dataclass(frozen=True, slots=True)
class Guard:
    """From now on the kernel's fence judges these addresses, on this NIC, by this VRID's lease.

    The whole list for the VRID. While it is not taken, nothing changes for anybody; but frames of a virtual
    MAC of ``macs``, (address, MAC), pass only while it is. ``own``: the NIC's own IPv4 address, which asks
    where the kernel would ask in the name of an address that has a virtual MAC.
    """

    virtual_router_id: int
    index: int
    lease_us: int
    addresses: tuple[str, ...]
    macs: tuple[tuple[str, str], ...] = ()
    own: str | None = None


@dataclass(frozen=True, slots=True)
class Unguard:
    """Nothing of this VRID is or will be on a NIC here."""

    virtual_router_id: int


@dataclass(frozen=True, slots=True)
class Take:
    """Open the fence for this VRID, unless it is later than ``until_us``; then hear what came in meanwhile.

    Comes back as ``Taken``.
    """

    id: int
    virtual_router_id: int
    until_us: int


@dataclass(frozen=True, slots=True)
class Fence:
    """extend: re-arm a living lease; quiet: no more ARP and ND answers; silence: nothing in or out;
    release: no fence any more, so that frames of stale clients are forwarded (semantics R4.4).
    """

    virtual_router_id: int
    verb: Literal["extend", "quiet", "silence", "release"]


Effect = (
    Cover
    | Guard
    | Unguard
    | Take
    | Fence
    | Prepare
    | Hear
    | Send
    | Announce
    | Bind
    | Release
    | Refresh
    | Report
    | SavePlan
    | Log
    | Count
)
