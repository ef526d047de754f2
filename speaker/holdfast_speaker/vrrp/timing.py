# SPDX-License-Identifier: Apache-2.0
"""The intervals of RFC 9568 6.1, in whole microseconds."""

from typing import Final

CENTISECOND_US: Final = 10_000


def skew_us(priority: int, interval_us: int) -> int:
    """Skew_Time: ((256 - priority) * interval) / 256."""
    return (256 - priority) * interval_us // 256


def active_down_us(priority: int, interval_us: int) -> int:
    """Active_Down_Interval: three intervals and the skew; ``interval_us`` is the one received."""
    return 3 * interval_us + skew_us(priority, interval_us)
