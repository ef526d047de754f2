# SPDX-License-Identifier: Apache-2.0
"""The switch before the client: on whose port each virtual MAC was seen last, and traffic that goes there.

What the client sends to a virtual MAC goes to that port, whatever its cache says of the address.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.sim.host import SimHost

if TYPE_CHECKING:
    from tests.sim.world import World


class Switch:
    """``ports``: virtual MAC -> host. ``spoke_us``: (MAC, host) -> its last frame with that MAC.

    ``macs``: all that a plan ever had, with their addresses. ``watchers`` are told of each frame.
    """

    def __init__(self) -> None:
        self.ports: dict[bytes, SimHost] = {}
        self.spoke_us: dict[tuple[bytes, str], int] = {}
        self.macs: dict[bytes, str] = {}
        self.watchers: list[Callable[[World, SimHost, bytes, int], None]] = []

    def passes(self, world: "World", host: SimHost, mac: bytes, at_us: int, *, to_all: bool) -> bool:
        """A frame with this source, if the host's fence lets it leave."""
        if not host.kernel.speaks(mac, at_us):
            return False
        for watcher in self.watchers:
            watcher(world, host, mac, at_us)
        self.spoke_us[mac, host.name] = at_us
        if world.reaches(host.name, "client"):
            self.ports[mac] = host
        for other in world.hosts if to_all else ():
            if other is not host and other.carrier and world.reaches(host.name, other.name):
                other.note_mac(mac, at_us)
        return True

    def traffic(self, world: "World") -> None:
        """The client has a packet for each address; the answer leaves with the virtual MAC, if it may."""
        now_us = world.now_us
        for mac, address in self.macs.items():
            host = self.ports.get(mac)
            if host is None or not host.carrier or not world.reaches("client", host.name):
                continue
            if host.kernel.placed.get(address) == mac and host.kernel.serves(address, now_us):
                self.passes(world, host, mac, now_us, to_all=False)
