# SPDX-License-Identifier: Apache-2.0
"""When the watch over NICs and addresses looks again."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from holdfast_speaker import netlink

CALM_S: Final = 0.1  # between two looks because of others: pods come and go
_QUIET_S: Final = 0.005  # between two looks at NICs we know


class News:
    """When to look again: at once for NICs we know, more calmly for others, after a while anyway."""

    def __init__(self, monitor: netlink.Monitor, known: Callable[[int], bool]) -> None:
        self._monitor = monitor
        self._known = known
        self._near = asyncio.Event()
        self._far = asyncio.Event()
        self._looked_at = 0.0
        self._own: asyncio.TimerHandle | None = None

    def read(self) -> None:
        indexes, lost = self._monitor.drain()
        if lost or any(map(self._known, indexes)):
            self._near.set()
            self._far.set()
        elif indexes:
            self._far.set()

    def soon(self) -> None:
        """We changed something ourselves, which the monitor does not tell: see it once from outside."""
        if self._own is None:
            self._own = asyncio.get_running_loop().call_later(CALM_S, self._see_own)

    def _see_own(self) -> None:
        self._own = None
        self._far.set()

    async def wait(self, at_most_s: float) -> None:
        loop = asyncio.get_running_loop()
        await within(self._far, at_most_s)
        if self._far.is_set():
            await within(self._near, self._looked_at + CALM_S - loop.time())
            await asyncio.sleep(max(0.0, self._looked_at + _QUIET_S - loop.time()))
        self._near.clear()
        self._far.clear()
        self._looked_at = loop.time()


async def within(event: asyncio.Event, seconds: float) -> None:
    if seconds > 0:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for of Python 3.11 may swallow a cancellation
                await event.wait()
