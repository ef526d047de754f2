# SPDX-License-Identifier: Apache-2.0
"""Work that may take a while, cut into slices so that no advert waits for it.

Refreshing 1,000 IPv6 addresses costs the kernel 300 ms (it walks its list for each, measured), and an
address with 64 neighbours to ask makes 64 frames. Each slice takes a few milliseconds at most. What is
released before its turn came is forgotten: no frame and no refresh for an address given up.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from holdfast_speaker.ports import Addresses, Frames, Wire

_REFRESH_AT_ONCE: Final = 16
_FRAMES_AT_ONCE: Final = 256


class Chores:
    """Queues bounded by the addresses there are: an address stands in each at most once."""

    def __init__(self, addresses: Addresses, frames: Frames, wire: Wire) -> None:
        self._addresses = addresses
        self._frames = frames
        self._wire = wire
        self._refresh: dict[tuple[int, str], None] = {}
        self._ask: dict[tuple[int, str], None] = {}

    @property
    def waiting(self) -> bool:
        return bool(self._refresh or self._ask)

    def refresh(self, index: int, addresses: Iterable[str]) -> None:
        self._refresh.update(dict.fromkeys((index, address) for address in addresses))

    def ask(self, index: int, addresses: Iterable[str]) -> None:
        self._ask.update(dict.fromkeys((index, address) for address in addresses))

    def forget(self, index: int, addresses: Sequence[str]) -> None:
        for address in addresses:
            self._refresh.pop((index, address), None)
            self._ask.pop((index, address), None)

    def step(self) -> int:
        """One slice; the number of frames that did not leave."""
        if self._refresh:
            self._step_refresh()
        lost = sent = 0
        while self._ask and sent + lost < _FRAMES_AT_ONCE:
            index, address = next(iter(self._ask))
            del self._ask[index, address]
            frames = self._frames.frames(index, "ask", address, self._addresses.surroundings(index))
            left = self._wire.send(index, frames)
            sent += max(1, left)
            lost += len(frames) - left
        return lost

    def _step_refresh(self) -> None:
        index, _ = next(iter(self._refresh))
        slice_: list[str] = []
        for at, address in self._refresh:
            if at != index or len(slice_) >= _REFRESH_AT_ONCE:
                break
            slice_.append(address)
        for address in slice_:
            del self._refresh[index, address]
        self._addresses.refresh(index, slice_)
