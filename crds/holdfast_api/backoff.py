# SPDX-License-Identifier: Apache-2.0
"""How long to wait before the next connection. Pure: chance comes in as an argument."""

from typing import Final

FIRST_S: Final = 0.2
LONGEST_S: Final = 15.0
LIVED_S: Final = 10.0  # a stream that lived this long was a good one: the next wait is the first again


def delay_s(failures: int, chance: float) -> float:
    """Seconds to wait after ``failures`` connections in a row (0 or more) that did not live.

    Doubles from FIRST_S to LONGEST_S; ``chance`` in [0, 1) spreads each wait over its upper half, so
    that the nodes of a cluster do not come back in step. Never below FIRST_S, never above LONGEST_S.
    """
    doublings = min(failures, 10)  # 0.4 s * 2**10 is far beyond the cap: no big numbers for a long outage
    longest = min(LONGEST_S, 2 * FIRST_S * float(1 << doublings))
    return longest / 2 * (1 + chance)


def failures_after(failures: int, lived_s: float) -> int:
    """The count of failures in a row once a connection ended that had lived ``lived_s`` seconds."""
    return 0 if lived_s >= LIVED_S else failures + 1
