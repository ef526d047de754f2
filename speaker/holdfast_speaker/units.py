# SPDX-License-Identifier: Apache-2.0
"""Time inside the speaker: whole microseconds of a monotonic clock, always an argument."""

from typing import Final

MILLISECOND_US: Final = 1_000
SECOND_US: Final = 1_000_000
NEVER_US: Final = 1 << 62  # a deadline that does not come; an integer, so that min() needs no special case
