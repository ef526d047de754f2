# SPDX-License-Identifier: Apache-2.0
"""When which address is announced on one NIC (semantics R1.1 to R1.4).

A burst at 0, 0.15, 1.1, 2.2 and 5 s, then each minute with a jitter that follows from node and address.
The first copy of every address goes out at once and first; questions ("ask") and later copies are paced,
so that a thousand addresses neither flood the segment nor wait for each other. Whether an address is
still ours is looked up for each frame.
"""

from collections import OrderedDict
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Final
from zlib import crc32

from holdfast_speaker.effects import Announce, Effect, Form
from holdfast_speaker.units import NEVER_US

BURST_US: Final = (0, 150_000, 1_100_000, 2_200_000, 5_000_000)
REFRESH_US: Final = 60_000_000
CHUNK: Final = 64  # addresses in one effect
PACE_US: Final = 20_000
ASKS_EACH_PACE: Final = 8  # one ask is a frame to every gateway and recent neighbour
_FIRST_REFRESH: Final = len(BURST_US)


class _Owned:
    """An address of ours: which burst it is in, and how far."""

    __slots__ = ("asking", "serial", "started_us", "step")

    def __init__(self, serial: int, started_us: int, *, asking: bool) -> None:
        self.serial = serial
        self.started_us = started_us
        self.step = 0
        self.asking = asking


class Announcer:
    """One NIC's schedule. ``deadline_us``: when ``wake`` is to be called."""

    __slots__ = (
        "_again",
        "_asks",
        "_due",
        "_index",
        "_node",
        "_owned",
        "_paced_at_us",
        "_probes",
        "_serial",
        "armed_us",
        "deadline_us",
    )

    def __init__(self, index: int, node: str) -> None:
        self._index = index
        self._node = node
        self._owned: dict[str, _Owned] = {}
        self._due: list[tuple[int, int, str]] = []  # (when, serial, address); a serial of old is skipped
        # Queues without duplicates: however often a burst is started, they hold each address once.
        self._again: OrderedDict[str, None] = OrderedDict()
        self._probes: OrderedDict[str, None] = OrderedDict()
        self._asks: OrderedDict[str, None] = OrderedDict()
        self._paced_at_us = 0
        self._serial = 0
        self.deadline_us = NEVER_US
        self.armed_us = NEVER_US

    def __len__(self) -> int:
        """Everything remembered: addresses, schedule, queues."""
        return sum(map(len, (self._owned, self._due, self._again, self._probes, self._asks)))

    def start(self, addresses: Iterable[str], at_us: int, *, asking: bool = False) -> None:
        """These are ours: the whole burst from ``at_us`` on, again if one is under way.

        ``asking``: with a probe, since nobody said that he let them go (semantics R6.2).
        """
        for address in addresses:
            self._serial += 1
            self._owned[address] = _Owned(self._serial, at_us, asking=asking)
            heappush(self._due, (at_us, self._serial, address))
            self.deadline_us = min(self.deadline_us, at_us)
        if len(self._due) > 4 * len(self._owned) + CHUNK:
            self._due = sorted(entry for entry in self._due if self._is_current(entry))

    def again(self, at_us: int) -> None:
        """Everything that is ours, as if it were new: the NIC has another MAC."""
        self.start(tuple(self._owned), at_us)

    def stop(self, addresses: Iterable[str]) -> None:
        """No longer ours: nothing more is said of them."""
        for address in addresses:
            self._owned.pop(address, None)

    def wake(self, now_us: int, out: list[Effect]) -> None:
        """Say what is due."""
        first: list[str] = []
        while self._due and self._due[0][0] <= now_us:
            entry = heappop(self._due)
            if self._is_current(entry):
                self._step(entry[2], now_us, first)
        for at in range(0, len(first), CHUNK):
            out.append(Announce(self._index, "announce", tuple(first[at : at + CHUNK])))
        if now_us >= self._paced_at_us:
            self._pace(now_us, out)
        waiting = bool(self._asks or self._again or self._probes)
        self.deadline_us = min(
            self._due[0][0] if self._due else NEVER_US, self._paced_at_us if waiting else NEVER_US
        )

    def _is_current(self, entry: tuple[int, int, str]) -> bool:
        owned = self._owned.get(entry[2])
        return owned is not None and owned.serial == entry[1]

    def _step(self, address: str, now_us: int, first: list[str]) -> None:
        owned = self._owned[address]
        if owned.step == 0:
            first.append(address)
        else:
            self._again[address] = None
        if owned.step >= _FIRST_REFRESH or (owned.step == 1 and owned.asking):
            # Harmless to every cache; only another holder of the address answers it (semantics R6.2).
            self._probes[address] = None
        self._asks[address] = None
        owned.step += 1
        if owned.step < _FIRST_REFRESH:
            # Never two copies at once after a pause: what was missed is not made up for.
            at_us = max(owned.started_us + BURST_US[owned.step], now_us + BURST_US[1])
        else:
            jitter = crc32(f"{self._node} {address} {owned.step}".encode()) % 2001 - 1000
            at_us = now_us + REFRESH_US + jitter * (REFRESH_US // 10_000)
        heappush(self._due, (at_us, owned.serial, address))

    def _pace(self, now_us: int, out: list[Effect]) -> None:
        """One slice of what is paced."""
        forms: tuple[tuple[Form, OrderedDict[str, None], int], ...] = (
            ("announce", self._again, CHUNK),
            ("probe", self._probes, CHUNK),
            ("ask", self._asks, ASKS_EACH_PACE),
        )
        for form, queue, room in forms:
            chunk: list[str] = []
            while queue and len(chunk) < room:
                address, _ = queue.popitem(last=False)
                if address in self._owned:
                    chunk.append(address)
            if chunk:
                out.append(Announce(self._index, form, tuple(chunk)))
                self._paced_at_us = now_us + PACE_US
