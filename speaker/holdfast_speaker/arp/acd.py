# SPDX-License-Identifier: Apache-2.0
"""The probe before a first claim (semantics R6.1): three questions, 100 ms apart, then 200 ms of silence.

RFC 5227's own constants take 4 to 7 s; a node that has the address answers within a millisecond.
"""

from typing import Final

PROBES: Final = 3
PROBE_INTERVAL_US: Final = 100_000
PROBE_WAIT_US: Final = 200_000
PROBE_DURATION_US: Final = (PROBES - 1) * PROBE_INTERVAL_US + PROBE_WAIT_US


class Probe:
    """Addresses being probed for together, in order. ``deadline_us``: when ``wake`` is to be called."""

    __slots__ = ("_sent", "addresses", "deadline_us")

    def __init__(self, addresses: tuple[str, ...], now_us: int) -> None:
        self.addresses = addresses
        self.deadline_us = now_us
        self._sent = 0

    def wake(self, now_us: int) -> tuple[str, ...]:
        """The addresses to ask for now; nothing more to ask and past the deadline means ``ended``."""
        if self.ended or now_us < self.deadline_us:
            return ()
        if self._sent == PROBES:
            self._sent += 1
            return ()
        self._sent += 1
        self.deadline_us = now_us + (PROBE_INTERVAL_US if self._sent < PROBES else PROBE_WAIT_US)
        return self.addresses

    @property
    def ended(self) -> bool:
        """Nobody answered for the addresses that are left."""
        return self._sent > PROBES

    def drop(self, address: str) -> None:
        """No longer probed for: answered, or not wanted any more."""
        self.addresses = tuple(a for a in self.addresses if a != address)
