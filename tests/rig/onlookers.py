# SPDX-License-Identifier: Apache-2.0
"""A client that asks 1,000 times a second and a witness that sees who answers, around an event.

Neither takes a stall of the machine for a fault: ``lost`` and ``room_ms`` know how late everybody was.
"""

from typing import Self

from tests.rig.cluster import Cluster
from tests.rig.fleet import Fleet
from tests.rig.probe import Answers, Probe
from tests.rig.stalls import room_ms
from tests.rig.witness import Witness


class Onlookers:
    """``with Onlookers(place, V4, V6) as seen: ...``; afterwards what was lost, and how long two answered."""

    def __init__(self, place: Cluster | Fleet, *addresses: str) -> None:
        self._place = place
        self._addresses = addresses
        self._witness = Witness(place.segment, *addresses)
        self._answers: dict[str, Answers] = {}

    def __enter__(self) -> Self:
        self._witness.__enter__()
        self._probe = Probe(self._place.run, self._place.client, self._addresses)
        try:
            for address in self._addresses:
                self._probe.wait_answer(address)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._answers = self._probe.results()
                self._witness.stop()
        finally:
            self._end()

    def _end(self) -> None:
        self._probe.__exit__()
        self._witness.__exit__()

    @property
    def probe(self) -> Probe:
        return self._probe

    @property
    def witness(self) -> Witness:
        return self._witness

    @property
    def lost(self) -> dict[str, int]:
        """Requests without an answer by address, those at the end too; none in a stall of the machine."""
        found = {}
        for address, seen in self._answers.items():
            trailing = round(seen.silent_ms) if seen.silent_ms > self.room_ms(50) else 0
            inside = seen.lost if seen.longest_gap_ms > self.room_ms() else 0
            found[address] = inside + trailing
        return found

    @property
    def nothing_lost(self) -> dict[str, int]:
        """What ``lost`` is when all is well."""
        return dict.fromkeys(self._addresses, 0)

    def gap_ms(self, address: str) -> float:
        """The longest time without an answer; one that did not end counts too."""
        seen = self._answers[address]
        return max(seen.longest_gap_ms, seen.silent_ms)

    @property
    def double_ms(self) -> float:
        """How long two had an address."""
        return self._witness.double_ms

    @property
    def late_ms(self) -> float:
        """How late the machine was at worst: the probe, the witness, or one of its processors."""
        return max(self._witness.stalled_ms, *(seen.late_ms for seen in self._answers.values()))

    def room_ms(self, bound_ms: float = 0.0) -> float:
        """The bound, and what a machine that was so late may need beyond it."""
        return room_ms(bound_ms, self.late_ms)

    def last_macs(self, seconds: float) -> list[set[str]]:
        """Who answered the witness in its last seconds, for each address."""
        return self._witness.last_macs(seconds)

    def tell(self, what: str) -> None:
        """One line for whoever reads the test's output."""
        gaps = ", ".join(f"{a}: lost {n}, gap {self.gap_ms(a):.0f} ms" for a, n in self.lost.items())
        double = f"two answered {self._witness.doubled} questions, {self.double_ms:.0f} ms"
        print(f"{what}: {gaps}; {double}; machine late {self.late_ms:.0f} ms")
        for address, seen in self._answers.items():
            for gap in seen.gaps if self.lost[address] else ():
                after_s = gap.start - (seen.first_answer or 0.0)
                moved = f"{gap.mac_before} to {gap.mac_after}"
                print(f"  {address}: {gap.ms:.0f} ms after {after_s:.3f} s, {gap.lost} lost, {moved}")
