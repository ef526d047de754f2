# SPDX-License-Identifier: Apache-2.0
"""One router's part of the kernel's fence: what is guarded, whether it is open, the lease asked for.

Closed until it is taken, and by itself a lease after the last advert. What is on a NIC is always guarded,
so that a speaker that dies leaves a silent host behind.
"""

from typing import Final

from holdfast_speaker.effects import Fence, Guard, Take, Unguard
from holdfast_speaker.node.host import Host

_Macs = tuple[tuple[str, str], ...]  # address, virtual MAC
_Wanted = tuple[int, int, tuple[str, ...], _Macs, str | None]  # ifindex, lease, addresses, MACs, own address
RETRY_US: Final = 100_000


class Gate:
    """``asked``: the id of the Take that has not been answered. ``again_us``: no other one before."""

    __slots__ = ("_guarded", "_host", "_name", "_retaken", "_virtual_router_id", "again_us", "asked")

    def __init__(self, host: Host, name: str, virtual_router_id: int) -> None:
        self._host = host
        self._name = name
        self._virtual_router_id = virtual_router_id
        self._guarded: _Wanted | None = None
        self.asked: int | None = None
        self._retaken: int | None = None
        self.again_us = 0

    def guard(
        self,
        index: int,
        lease_us: int,
        addresses: tuple[str, ...],
        macs: _Macs = (),
        own: str | None = None,
    ) -> None:
        wanted = (index, lease_us, addresses, macs, own if macs else None)
        if wanted != self._guarded:
            self._guarded = wanted
            self._host.out.append(Guard(self._virtual_router_id, *wanted))

    @property
    def macs(self) -> list[tuple[int, str, str]]:
        """What the fence judges by its MAC: ifindex, address, virtual MAC."""
        if self._guarded is None:
            return []
        return [(self._guarded[0], address, mac) for address, mac in self._guarded[3]]

    def unguard(self) -> None:
        if self._guarded is not None:
            self._guarded = None
            self._host.out.append(Unguard(self._virtual_router_id))

    def ask(self, until_us: int) -> None:
        """Open it; ``taken`` follows."""
        if self.asked is None:
            self.asked = self._host.next_id(self._name)
            self._host.out.append(Take(self.asked, self._virtual_router_id, until_us))

    def answered(self, number: int, *, is_open: bool, now_us: int) -> bool:
        """Whether the answer is to the question that waits, and it is open."""
        if number != self.asked:
            return False
        self.asked = None
        self.again_us = 0 if is_open else now_us + RETRY_US
        return is_open

    def refused(self, number: int, *, is_open: bool) -> bool:
        """Whether the answer is to the last ``retake``, and it stays shut, or quiet."""
        return number == self._retaken and not is_open

    def forget(self) -> None:
        """Nobody waits for the answer any more."""
        self.asked = None

    def retake(self, now_us: int, lease_us: int) -> None:
        """Open it again, without asking: the lease ran out, and nobody else is there."""
        self._retaken = number = self._host.next_id(self._name)
        self._host.out.append(Take(number, self._virtual_router_id, now_us + lease_us))

    def extend(self) -> None:
        self._host.out.append(Fence(self._virtual_router_id, "extend"))

    def quiet(self) -> None:
        self._host.out.append(Fence(self._virtual_router_id, "quiet"))

    def silence(self) -> None:
        self._host.out.append(Fence(self._virtual_router_id, "silence"))

    def release(self) -> None:
        self._host.out.append(Fence(self._virtual_router_id, "release"))
