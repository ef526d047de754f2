# SPDX-License-Identifier: Apache-2.0
"""Who is around on a NIC, asked of the kernel: gateways from its routes, neighbours from its caches."""

import asyncio
import logging
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from holdfast_speaker import netlink
from holdfast_speaker.addresses import snapshot
from holdfast_speaker.addresses.news import CALM_S, within
from holdfast_speaker.addresses.snapshot import KernelNeighbour
from holdfast_speaker.ports import Surroundings

log = logging.getLogger(__name__)

_LOOK_AGAIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """A NIC with the addresses wanted on it. ``shared``: macvlans on it have caches of their own."""

    index: int
    addresses: frozenset[str]
    forwarding: bool
    shared: bool


class Around:
    """Looked at every 10 s, and soon after ``soon`` is set. ``places`` tells which NICs matter."""

    def __init__(self, places: Callable[[], list[Place]], parent_of: Callable[[int], int]) -> None:
        self.soon = asyncio.Event()
        self._places = places
        self._parent_of = parent_of
        self._found: dict[int, Surroundings] = {}

    def on(self, index: int) -> Surroundings | None:
        return self._found.get(index)

    async def look_often(self) -> None:
        while True:
            self.soon.clear()
            places = self._places()
            try:
                self._found = await _look_around(places, self._parent_of) if places else {}
            except OSError as error:
                log.warning("cannot read the host's gateways and neighbours: %s", error)
            await within(self.soon, _LOOK_AGAIN_S)
            await asyncio.sleep(CALM_S)


async def _look_around(places: Iterable[Place], parent_of: Callable[[int], int]) -> dict[int, Surroundings]:
    """Surroundings of each NIC by its index. Raises OSError."""
    gateways: dict[int, list[str]] = {}
    for body in await netlink.dump(netlink.RTM_GETROUTE, bytes(12)):
        for index, gateway in snapshot.read_gateways(body):
            gateways.setdefault(parent_of(index), []).append(gateway)
    everybody: list[KernelNeighbour] | None = None
    found: dict[int, Surroundings] = {}
    for place in places:
        if place.shared and everybody is None:
            everybody = await _neighbours(b"")
        if place.shared and everybody is not None:
            known = [n for n in everybody if parent_of(n.index) == place.index]
        else:
            only = netlink.attribute(8, struct.pack("=i", place.index))  # NDA_IFINDEX
            known = [n for n in await _neighbours(only) if n.index == place.index]
        known.sort(key=lambda n: -n.age)  # of one address the account of the NIC that heard of it last counts
        found[place.index] = snapshot.surroundings(
            forwarding=place.forwarding,
            gateways=gateways.get(place.index, ()),
            known=known,
            ours=place.addresses,
        )
    return found


async def _neighbours(only: bytes) -> list[KernelNeighbour]:
    bodies = await netlink.dump(netlink.RTM_GETNEIGH, bytes(12) + only)
    return snapshot.read_all(snapshot.read_neighbour, bodies)
