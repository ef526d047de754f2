# SPDX-License-Identifier: Apache-2.0
"""What the tests of the address door ask of it, and of the kernel."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from holdfast_speaker.addresses.kernel import KernelAddresses
from holdfast_speaker.events import AddressesSeen, LinksSeen
from tests.netns.small_net import Net

Told = list[tuple[float, LinksSeen | AddressesSeen]]  # and when
On = tuple[Net, KernelAddresses, int]  # the door of host a, and the index of its NIC


def shown(net: Net, address: str, name: str = "a") -> dict[str, object]:
    """The kernel's own words for one address, as ``ip`` reads them; empty when it is not there."""
    for nic in json.loads(net.run(name, "ip", "-json", "-details", "addr")):
        for info in nic["addr_info"]:
            if info["local"] == address:
                return {**info, "nic": nic["ifname"]}
    return {}


@asynccontextmanager
async def watching(door: KernelAddresses) -> AsyncIterator[Told]:
    """What the door tells, with the moment it was told."""
    told: Told = []

    async def listen() -> None:
        async for seen in door.watch():
            told.append((time.monotonic(), seen))

    task = asyncio.create_task(listen())
    try:
        await until(lambda: len(told) >= 2)
        yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(look: Callable[[], object], seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.002)


def latest(told: Told) -> tuple[frozenset[str], frozenset[tuple[int, str]]]:
    """Names of the NICs and our addresses, as told last."""
    links = [seen for _, seen in told if isinstance(seen, LinksSeen)][-1]
    bound = [seen for _, seen in told if isinstance(seen, AddressesSeen)][-1]
    return frozenset(link.interface.name for link in links.interfaces), bound.bound


def to_bridge(net: Net) -> None:
    """Host a has its addresses on br0, of which eth0 is a port."""
    net.ip(
        "a",
        "link add br0 type bridge",
        "addr flush dev eth0",
        "link set eth0 master br0",
        "link set br0 up",
        "addr add 192.0.2.1/24 dev br0",
        "addr add 2001:db8::1/64 dev br0 nodad",
    )
