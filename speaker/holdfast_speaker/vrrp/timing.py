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


def lease_us(interval_us: int, jiffy_us: int) -> int:
    """How long the kernel's fence stays open after an advert (semantics R4.1): 2.8 intervals.

    At least two intervals and two ticks, so that one late advert costs nothing; at most three intervals
    less a tick, so that it ends before any peer's Active_Down_Interval. The upper limit counts more.
    """
    least_us, most_us = 2 * interval_us + 2 * jiffy_us, 3 * interval_us - jiffy_us
    return min(max(interval_us * 28 // 10, least_us), most_us)


def least_interval_us(jiffy_us: int) -> int:
    """The shortest interval, in whole centiseconds, whose lease outlives two intervals by a tick.

    A shorter one would end for a single advert that is lost or late: 10 ms down to HZ=200, 20 ms at HZ=100.
    """
    return max(1, -(-2 * jiffy_us // CENTISECOND_US)) * CENTISECOND_US
