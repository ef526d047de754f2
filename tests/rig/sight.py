# SPDX-License-Identifier: Apache-2.0
"""What a client and a witness see of a fleet's addresses while something is done to a host."""

from collections.abc import Sequence
from typing import Self

from tests.rig.fleet import Fleet
from tests.rig.hosts import Host
from tests.rig.probe import Answers, Probe
from tests.rig.run import command
from tests.rig.witness import Witness


class Sight:
    """``with Sight(fleet, V4) as sight: ...``; afterwards who held, and each address's longest silence."""

    def __init__(self, fleet: Fleet, *addresses: str) -> None:
        self._fleet = fleet
        self._addresses = addresses
        self._witness = Witness(fleet.segment, *addresses)
        self._answers: dict[str, Answers] = {}

    def __enter__(self) -> Self:
        self._witness.__enter__()
        self._probe = Probe(self._fleet.run, self._fleet.client, self._addresses)
        for address in self._addresses:
            self._probe.wait_answer(address)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._answers = self._probe.results()
                self._witness.stop()
        finally:
            self._probe.__exit__()
            self._witness.__exit__()

    @property
    def witness(self) -> Witness:
        return self._witness

    def gap_ms(self, address: str) -> float:
        """The longest time without an answer; one that did not end counts too."""
        seen = self._answers[address]
        return max(seen.longest_gap_ms, seen.silent_ms)

    @property
    def double_ms(self) -> float:
        """How long two had an address."""
        return self._witness.double_ms

    def tell(self, what: str) -> None:
        """One line a person can read in the test's output."""
        gaps = ", ".join(f"{address} {self.gap_ms(address):.0f} ms" for address in self._addresses)
        late = max(seen.late_ms for seen in self._answers.values())
        print(f"{what}: longest gap {gaps}; two holders {self.double_ms:.0f} ms; probe late {late:.0f} ms")


def places(hosts: Sequence[Host], address: str) -> list[str]:
    """Every NIC of these hosts that has the address: ``HOST/NIC``."""
    found = []
    for host in hosts:
        for line in command("ip", "-n", host.namespace, "-o", "address", "show").splitlines():
            fields = line.split()
            if fields[3].partition("/")[0] == address:
                found.append(f"{host.name}/{fields[1]}")
    return found
