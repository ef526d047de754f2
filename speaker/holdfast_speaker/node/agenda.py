# SPDX-License-Identifier: Apache-2.0
"""One deadline out of many: a heap that forgives deadlines moving later.

An owner whose deadline only moves later (a Backup that hears adverts) costs nothing: its entry is put
right when it comes to the top. The heap has at most two entries an owner, and some room.
"""

from heapq import heappop, heappush, heapreplace
from typing import Final, Generic, Protocol, TypeVar

from holdfast_speaker.units import NEVER_US


class Owner(Protocol):
    """Something with a deadline. ``armed_us`` belongs to the agenda: its earliest entry in the heap."""

    deadline_us: int
    armed_us: int


_LEAST_ROOM: Final = 32

T = TypeVar("T", bound=Owner)


class Agenda(Generic[T]):
    __slots__ = ("_heap", "_room", "_serial")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, T]] = []
        self._serial = 0
        self._room = _LEAST_ROOM

    def __len__(self) -> int:
        return len(self._heap)

    def arm(self, owner: T) -> None:
        """The owner's deadline may have changed."""
        if owner.deadline_us < owner.armed_us:
            owner.armed_us = owner.deadline_us
            self._serial += 1
            heappush(self._heap, (owner.deadline_us, self._serial, owner))
            if len(self._heap) > self._room:
                self._tidy()

    def _tidy(self) -> None:
        """Drop what deadlines that moved to and fro have left behind."""
        valid: dict[int, tuple[int, int, T]] = {}
        for entry in self._heap:
            if entry[0] == entry[2].armed_us:
                valid.setdefault(id(entry[2]), entry)
        self._heap = sorted(valid.values(), key=lambda entry: entry[:2])
        self._room = 2 * len(self._heap) + _LEAST_ROOM

    def next_us(self) -> int:
        """The earliest deadline of all, NEVER_US if there is none."""
        heap = self._heap
        while heap:
            at_us, serial, owner = heap[0]
            if at_us != owner.armed_us:
                heappop(heap)
            elif owner.deadline_us == at_us:
                return at_us
            elif owner.deadline_us == NEVER_US:
                owner.armed_us = NEVER_US
                heappop(heap)
            else:
                owner.armed_us = owner.deadline_us
                heapreplace(heap, (owner.deadline_us, serial, owner))
        return NEVER_US

    def due(self, now_us: int) -> T | None:
        """The owner that has waited longest, taken off; ``arm`` it again after it was woken."""
        if self.next_us() > now_us:
            return None
        owner = heappop(self._heap)[2]
        owner.armed_us = NEVER_US
        return owner
