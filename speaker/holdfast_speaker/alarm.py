# SPDX-License-Identifier: Apache-2.0
"""The brain's clock and the one timer on it.

A timerfd, not ``loop.call_at``: asyncio rounds every wait up to the next millisecond of epoll, which a
10 ms advert interval feels. Both run on CLOCK_BOOTTIME, which goes on while the machine sleeps and never
jumps. (``os.timerfd_create`` comes with Python 3.13; until then through libc.)
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_CLOCK: Final = time.CLOCK_BOOTTIME
_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | os.O_CLOEXEC
_ABSOLUTE: Final = 1  # TFD_TIMER_ABSTIME

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _TimerSpec(ctypes.Structure):
    """struct itimerspec: interval, then value, each seconds and nanoseconds."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


def now_us() -> int:
    return time.clock_gettime_ns(_CLOCK) // 1000


class Alarm:
    """Calls ``due(deadline_us)`` from the running loop once ``now_us()`` has reached the deadline set."""

    def __init__(self, due: Callable[[int], None]) -> None:
        self._due = due
        self._set_us: int | None = None
        self._spec = _TimerSpec()
        self._fd: int = _libc.timerfd_create(_CLOCK, _NONBLOCK_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        asyncio.get_running_loop().add_reader(self._fd, self._ring)

    def set(self, deadline_us: int | None) -> None:
        """Ring then, and only then; None: not at all. A deadline in the past rings in the next turn."""
        if deadline_us == self._set_us:
            return
        self._set_us = deadline_us
        at = 0 if deadline_us is None else max(1, deadline_us)  # zero would disarm
        self._spec.value_s, rest_us = divmod(at, 1_000_000)
        self._spec.value_ns = rest_us * 1000
        _libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(self._spec), None)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # set anew between the ring and this turn
            os.read(self._fd, 8)
            rung, self._set_us = self._set_us, None
            if rung is not None:
                self._due(rung)
