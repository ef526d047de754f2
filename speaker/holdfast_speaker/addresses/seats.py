# SPDX-License-Identifier: Apache-2.0
"""Where addresses belong and where they sit: on a NIC, or on the macvlan of their virtual MAC above it."""

from collections.abc import Iterable, Mapping, Sequence

from holdfast_speaker.addresses.macvlans import Macvlans

Spot = tuple[int, str]  # the index of the device an address really sits on, and the address


class Seats:
    """What was prepared, and what of ours is in the kernel. "Index" is the NIC's, "seat" the device's."""

    def __init__(self, macvlans: Macvlans) -> None:
        self._macvlans = macvlans
        self._prepared: dict[int, frozenset[str]] = {}
        self._macs: dict[int, dict[str, str]] = {}
        self._ours: dict[str, set[int]] = {}

    @property
    def prepared(self) -> Mapping[int, frozenset[str]]:
        return self._prepared

    @property
    def spots(self) -> set[Spot]:
        return {(seat, address) for address, seats in self._ours.items() for seat in seats}

    def prepare(self, index: int, addresses: frozenset[str], macs: Mapping[str, str]) -> bool:
        """Whether what is bound may sit in the wrong place from now on. Macvlans are made, or go."""
        mine = {address: mac for address, mac in macs.items() if address in addresses}
        moved = mine != self._macs.get(index, {})
        self._prepared[index], self._macs[index] = addresses, mine
        self._macvlans.prepare(index, set(mine.values()))
        self.sweep()
        return moved

    def unprepare(self, indexes: Iterable[int]) -> None:
        for index in list(indexes):
            self._prepared.pop(index, None)
            self._macs.pop(index, None)

    def assign(self, index: int, addresses: Sequence[str]) -> tuple[dict[str, int], dict[str, str]]:
        """Where each belongs; why there is no place for the others. Macvlans that are missing are made."""
        macs = self._macs.get(index, {})
        faults = self._macvlans.make(index, dict.fromkeys(macs[a] for a in addresses if a in macs))
        seats: dict[str, int] = {}
        failed: dict[str, str] = {}
        for address in addresses:
            seat = self._home(index, address)
            if seat is None:
                failed[address] = faults.get(macs[address], "the macvlan of its virtual MAC is missing")
            else:
                seats[address] = seat
        return seats, failed

    def _home(self, index: int, address: str) -> int | None:
        """Where it belongs; what nobody prepared belongs where it was left."""
        mac = self._macs.get(index, {}).get(address)
        if mac is not None:
            return self._macvlans.place(index, mac)
        left = [] if address in self._prepared.get(index, ()) else self.where(index, address)
        return left[0] if left else index

    def where(self, index: int, address: str) -> list[int]:
        """The seats where it is."""
        return [seat for seat in self._ours.get(address, ()) if self._macvlans.parent_of(seat) == index]

    def has(self, spot: Spot) -> bool:
        return spot[0] in self._ours.get(spot[1], ())

    def note(self, spot: Spot, *, bound: bool) -> None:
        seat, address = spot
        if bound:
            self._ours.setdefault(address, set()).add(seat)
        elif address in self._ours:
            self._ours[address].discard(seat)
            if not self._ours[address]:
                del self._ours[address]

    def found(self, spots: Iterable[Spot]) -> None:
        """All there is, as the kernel has it."""
        self._ours = {}
        for spot in spots:
            self.note(spot, bound=True)
        self.sweep()

    def sweep(self) -> None:
        """Macvlans that are neither wanted nor carry an address go, in the background."""
        self._macvlans.sweep({seat for seats in self._ours.values() for seat in seats})

    def in_place(self, suspects: frozenset[int]) -> frozenset[tuple[int, str]]:
        """(NIC, address) of what is where it belongs, and not on one of the suspects."""
        return frozenset(
            (index, address)
            for seat, address in self.spots
            if seat not in suspects and self._home(index := self._macvlans.parent_of(seat), address) == seat
        )
