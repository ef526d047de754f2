# SPDX-License-Identifier: Apache-2.0
"""What the loop asks of each door. The simulator and the tests of the loop bring their own."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from holdfast_api.types import SpeakerStatus, VirtualRouter
from holdfast_speaker.effects import Effect, Form
from holdfast_speaker.events import AddressesSeen, Event, Link, LinksSeen, PlanRestored


class Brain(Protocol):
    """The pure half (``node.Node``): events in, effects out, one deadline (us, same clock as now_us)."""

    @property
    def deadline(self) -> int | None: ...
    @property
    def stopped(self) -> bool: ...
    def handle(self, event: Event, now_us: int) -> tuple[Effect, ...]: ...


class Wire(Protocol):
    """Packet sockets on the NICs that are heard (``link.py``). Nothing here raises or waits."""

    def hear(self, indexes: frozenset[int]) -> None: ...
    def mend(self) -> None:
        """Open again what a NIC that went away and came back has closed."""
        ...

    def fileno(self) -> int:
        """Readable while a frame waits on any NIC."""
        ...

    def drain(self, limit: int) -> list[tuple[int, bytes]]:
        """At most ``limit`` waiting frames with their ifindex, oldest first on each NIC."""
        ...

    def send(self, index: int, frames: Iterable[bytes]) -> int:
        """Number of frames that left; a full queue or a NIC that is gone loses the rest."""
        ...


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Somebody on the segment. ``mac`` None: known by address only (a gateway nobody talked to yet)."""

    address: str
    mac: str | None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Who is told by name that an address has moved (R1.1): gateways first, then recent neighbours.

    ``forwarding``: the kernel forwards IPv6 from this NIC, so its advertisements say router (R1.2).
    """

    forwarding: bool = False
    gateways: tuple[Neighbour, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()


class Addresses(Protocol):
    """rtnetlink (``addresses/``). bind, release, refresh block about 10 us an address and never raise.

    An address with a virtual MAC lives on a macvlan of its MAC; everybody else says and hears its NIC.
    """

    def prepare(self, index: int, addresses: frozenset[str], macs: Mapping[str, str] = {}) -> None:
        """``macs``: address to virtual MAC, for those that have one. Never waits for a macvlan to go."""
        ...

    def bind(self, index: int, addresses: Sequence[str]) -> dict[str, str]:
        """Why not, for each address that is not bound afterwards."""
        ...

    def release(self, index: int, addresses: Sequence[str]) -> dict[str, str]:
        """Why, for each address of ours that is still there. What lacks our mark is not touched."""
        ...

    def refresh(self, index: int, addresses: Sequence[str]) -> None: ...
    def watch(self) -> AsyncIterator[LinksSeen | AddressesSeen]:
        """First everything as it is, then again whenever it changes, and every 10 s."""
        ...

    def surroundings(self, index: int) -> Surroundings: ...
    async def release_everything(self) -> int:
        """Remove every address with our mark from every NIC; how many there were."""
        ...


class Fence(Protocol):
    """The kernel's fence (``fence/``). Nothing here raises; each verb takes a fraction of a millisecond.

    Where the kernel has none (``fault`` says why), all verbs do nothing, and ``take`` says yes.
    """

    @property
    def fault(self) -> str: ...
    def cover(self, indexes: frozenset[int]) -> None:
        """Stand on exactly these NICs."""
        ...

    def guard(
        self,
        virtual_router_id: int,
        index: int,
        lease_us: int,
        addresses: Sequence[str],
        macs: Mapping[str, str] = {},
        own: str | None = None,
    ) -> None: ...
    def unguard(self, virtual_router_id: int) -> None: ...
    def take(self, virtual_router_id: int) -> bool: ...
    def extend(self, virtual_router_id: int) -> bool:
        """Re-arm a living lease; False: it is dead."""
        ...

    def quiet(self, virtual_router_id: int) -> None: ...
    def silent(self, virtual_router_id: int) -> None: ...
    def release(self, virtual_router_id: int) -> None: ...
    def alive(self, virtual_router_id: int) -> bool: ...
    def adopt(self, address: str) -> None:
        """An address left by an earlier life is removed, or ours again."""
        ...

    def refresh(self) -> None: ...
    def shelter(self) -> None:
        """Virtual MACs' macvlans came or went: they hear nothing but what is for their addresses."""
        ...

    def heard_macs(self) -> frozenset[str]:
        """Virtual MACs of ours that were the sender of frames that came in within the last second."""
        ...

    def mend(self) -> frozenset[int]:
        """Build again what somebody removed; the VRIDs whose leases went with it."""
        ...

    def close(self) -> None: ...


class Frames(Protocol):
    """Ready-made ARP and ND frames (``frames.py``)."""

    def see(self, links: Sequence[Link]) -> None:
        """The NICs with their MACs: frames made for another MAC are forgotten."""
        ...

    def prepare(
        self, index: int, addresses: frozenset[str], macs: Mapping[str, str] = {}, *, forwarding: bool
    ) -> None:
        """What has a virtual MAC is announced and asks by it; it is probed for by the NIC's own."""
        ...

    def frames(self, index: int, form: Form, address: str, around: Surroundings) -> Sequence[bytes]:
        """The frames of one form for one address; none when the NIC is not known."""
        ...


class Cluster(Protocol):
    """The API (``cluster.py``): events in, the latest report out."""

    def events(self) -> AsyncIterator[Event]: ...
    def report(self, status: SpeakerStatus) -> None: ...
    async def run(self) -> None:
        """Write reports and renew the Lease until cancelled."""
        ...

    async def flush(self, at_most_s: float) -> None:
        """Wait until the latest report is written, or give up."""
        ...


class Plan(Protocol):
    """The plan's copy on this host (``plan_file.py``)."""

    def restore(self) -> PlanRestored | None: ...
    def keep(self, routers: tuple[VirtualRouter, ...], terms: tuple[tuple[str, int], ...]) -> None:
        """To be saved soon by ``run``, or by ``flush`` at the end."""
        ...

    async def run(self) -> None: ...
    def flush(self) -> None: ...
