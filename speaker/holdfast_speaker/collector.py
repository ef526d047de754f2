# SPDX-License-Identifier: Apache-2.0
"""Garbage is collected when no deadline is near, never by chance in the middle of a takeover."""

import asyncio
import gc
from collections.abc import Callable
from typing import Final

_EVERY_S: Final = 5.0
_SOON_S: Final = 0.05
_ALL_EVERY: Final = 120  # collections: ten minutes
_ROOM_US: Final = 3_000  # a young collection takes less


def freeze() -> None:
    """What is alive now stays: the collector need not walk it again. Automatic collection ends."""
    gc.collect()
    gc.freeze()
    gc.disable()


async def collect_in_slack(room_us: Callable[[], int]) -> None:
    """For ever. ``room_us`` tells how far away the next deadline is."""
    count = 0
    wait_s = _EVERY_S
    while True:
        await asyncio.sleep(wait_s)
        if room_us() < _ROOM_US:
            wait_s = _SOON_S
            continue
        wait_s = _EVERY_S
        count += 1
        gc.collect(2 if count % _ALL_EVERY == 0 else 1)
