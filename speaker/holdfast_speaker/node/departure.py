# SPDX-License-Identifier: Apache-2.0
"""Going without a gap: what a node that was Active does until its successor has everything.

offered --successor's advert--> ceding --all listed, or a second--> gone
   |
   +-- nobody took it: stay Active (an order is never repeated; a plan without us, each ten seconds)
"""

from typing import Final, Literal

from holdfast_api.conditions import Reason
from holdfast_api.types import Handover
from holdfast_speaker.units import NEVER_US, SECOND_US

CEDING_US: Final = SECOND_US
LINGER_US: Final = 200_000  # the successor has announced itself twice by then: who missed it once is served
_OFFER_AGAIN_US: Final = 10 * SECOND_US
_OFFERED: Final = frozenset({Reason.STOPPING, Reason.NOT_CANDIDATE})


class Departure:
    """``reason``: why this node is to leave the router. ``order``: the last hand-over order read."""

    __slots__ = ("_ceding_until_us", "_extend_us", "_offer_us", "_since_us", "order", "reason")

    def __init__(self, order: Handover | None) -> None:
        self.order = order.id if order is not None else ""  # an order older than we are is not for us
        self.reason: Reason | None = None
        self._ceding_until_us = self._extend_us = self._offer_us = NEVER_US
        self._since_us = 0

    @property
    def ceding(self) -> bool:
        """Another is Active; what he does not list yet is still served here."""
        return self._ceding_until_us != NEVER_US

    @property
    def deadline_us(self) -> int:
        return min(self._ceding_until_us, self._extend_us, self._offer_us)

    def ordered(self, order: Handover | None, node: str) -> bool:
        """Whether this is a new order to this node. Each is read once, whatever comes of it."""
        if order is None or order.id == self.order:
            return False
        self.order = order.id
        return order.from_ == node

    def offers(self, reason: Reason) -> bool:
        """Whether there is time for a hand-over; without a NIC, say, there is none."""
        return reason in _OFFERED

    def go(self, reason: Reason, now_us: int) -> bool:
        """Leave for this reason; whether it is to be offered now."""
        fresh, self.reason = self.reason is not reason, reason
        if fresh:
            self._since_us = now_us
        return fresh

    def stay(self) -> None:
        """The plan wants this node (again)."""
        self.reason, self._offer_us = None, NEVER_US

    def refused(self, now_us: int) -> Reason | None:
        """Nobody took it over. The reason to stop nevertheless, if there is one."""
        if self.reason is Reason.NOT_CANDIDATE:
            self._offer_us = now_us + _OFFER_AGAIN_US  # the others may not have read the plan yet
            return None
        if self.reason is Reason.STOPPING and now_us - self._since_us < CEDING_US:
            self._offer_us = now_us  # a busy successor may need longer than its Active_Down_Interval
            return None
        return self.reason

    def again(self, at_us: int) -> None:
        """Active again, since the successor failed: whoever wants to go offers it once more."""
        if self.reason is not None:
            self._offer_us = at_us

    def cede(self, now_us: int) -> None:
        self._ceding_until_us, self._extend_us = now_us + CEDING_US, now_us

    def lingers(self, now_us: int) -> bool:
        """Whether what the successor has by now is to be served here a little longer."""
        return self.ceding and now_us < self._ceding_until_us - CEDING_US + LINGER_US

    def over(self) -> None:
        """Nothing is on a NIC any more, or it is ours again."""
        self._ceding_until_us = self._extend_us = NEVER_US

    def wake(self, now_us: int, *, extend_us: int) -> Literal["extend", "over", "offer"] | None:
        """What is due. ``extend_us``: how often the kernel's lease must be re-armed."""
        if now_us >= self._ceding_until_us:
            self.over()
            return "over"
        if now_us >= self._extend_us:
            self._extend_us = now_us + max(extend_us, 1)
            return "extend"
        if now_us >= self._offer_us:
            self._offer_us = NEVER_US
            return "offer"
        return None
