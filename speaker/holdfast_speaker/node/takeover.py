# SPDX-License-Identifier: Apache-2.0
"""A takeover, from the decision to the first announcement, as the new Active tells it."""

from dataclasses import dataclass

from holdfast_api.conditions import Reason
from holdfast_api.types import Transition
from holdfast_speaker.node.host import Host
from holdfast_speaker.units import MILLISECOND_US


@dataclass(frozen=True, slots=True)
class Takeover:
    """``since_us``: when it was decided; ``detection_us``: how long the last word of the old one was past."""

    since_us: int
    why: Reason
    predecessor: str | None
    detection_us: int | None

    def report(self, host: Host, now_us: int, *, announced: int) -> Transition:
        """It is done: that many addresses were announced just now."""
        detection_us = self.detection_us
        return Transition(
            to=host.name,
            reason=self.why.value,
            time=host.wall(now_us),
            from_=self.predecessor,
            detection_milliseconds=None if detection_us is None else detection_us // MILLISECOND_US,
            takeover_milliseconds=(now_us - self.since_us) // MILLISECOND_US,
            announcements_sent=announced,
        )
