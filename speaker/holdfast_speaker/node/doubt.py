# SPDX-License-Identifier: Apache-2.0
"""Is it the Active that is gone, or is it us? Asked while a silent Active's time runs out.

A Backup that missed two adverts asks the other candidates, and lets the gateways and neighbours be asked
whether they are there (semantics R4.7, R4.8). "I hear it" holds the takeover for five intervals from the
answer on. Where a gateway or a client used to be heard and now nobody is, it holds for three seconds: such a
host is cut off, and nobody could reach an address here. An Active that really died is missed by all, so this
adds no time: they answer "no" long before Active_Down.
"""

from typing import Final

from holdfast_speaker.units import MILLISECOND_US, NEVER_US, SECOND_US

HOLD_INTERVALS: Final = 5
ISOLATED_US: Final = 3 * SECOND_US
_ASK_AGAIN_US: Final = 20 * MILLISECOND_US  # at the shortest intervals; well within the hold


class Doubt:
    """``deadline_us``: when ``wake`` is wanted. ``hold`` says whether a takeover has to wait."""

    __slots__ = (
        "_answered_us",
        "_asked_us",
        "_first_asked_us",
        "_held_until_us",
        "_interval_us",
        "deadline_us",
    )

    def __init__(self) -> None:
        self._interval_us = 0
        self.clear()

    def clear(self) -> None:
        """Nothing to doubt: we are Active, or nobody was ever heard."""
        self.deadline_us = NEVER_US
        self._asked_us = self._first_asked_us = -NEVER_US
        self._held_until_us = self._answered_us = -NEVER_US

    def heard(self, now_us: int, interval_us: int) -> None:
        """The Active spoke; two of its adverts will be missed a little after two intervals."""
        self._interval_us = interval_us
        self._held_until_us = self._first_asked_us = -NEVER_US
        self.deadline_us = now_us + interval_us * 9 // 4

    def wake(self, now_us: int) -> bool:
        """Whether to ask now. Twice before Active_Down, then each interval while it holds."""
        if now_us < self.deadline_us:
            return False
        if now_us >= self._held_until_us >= 0 and self._answered_us >= self._asked_us:
            self._held_until_us = now_us + self._interval_us  # we are late: nobody could answer in time
        self._asked_us = now_us
        if self._first_asked_us < 0:
            self._first_asked_us = now_us
            self.deadline_us = now_us + self._interval_us // 2
        else:
            self.deadline_us = now_us + max(self._interval_us, _ASK_AGAIN_US)
        return True

    def answered(self, now_us: int) -> None:
        """Another candidate hears it."""
        if self._first_asked_us >= 0:
            self._answered_us = now_us
            self._held_until_us = now_us + HOLD_INTERVALS * self._interval_us

    def hears_others(self, anybody_us: int) -> bool:
        """Whether a frame of anybody came in since the first question; false while there was none."""
        return 0 <= self._first_asked_us <= anybody_us

    def is_heard_elsewhere(self, now_us: int) -> bool:
        return now_us < self._held_until_us

    def is_isolated(self, now_us: int, *, anybody_us: int, company: bool) -> bool:
        """``anybody_us``: when a frame came in last; ``company``: others than the Active used to be heard."""
        asked_us = self._first_asked_us
        return company and asked_us >= 0 and anybody_us < asked_us and now_us < asked_us + ISOLATED_US
