# SPDX-License-Identifier: Apache-2.0
"""How long the machine itself was away: a virtual processor that its host does not run keeps no promise.

A thread on each processor wants to run each 5 ms, ahead of all ordinary programs where that is allowed. What
it is late by, everybody there was late by, the kernel's own timers too. The threads have the priority of
whoever starts them.
"""

import os
import threading
import time
from typing import Final

EVERY_S: Final = 0.005
UNEXCUSED_MS: Final = 10.0  # whatever is promised must stand that


class Stalls:
    """``start``, then ``stop``: the worst of all processors, in ms."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._worst_s = dict.fromkeys(os.sched_getaffinity(0), 0.0)
        self._threads = [
            threading.Thread(target=self._watch, args=(cpu,), daemon=True) for cpu in self._worst_s
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> float:
        self._over.set()
        for thread in self._threads:
            thread.join()
        return max(self._worst_s.values()) * 1000

    def _watch(self, cpu: int) -> None:
        os.sched_setaffinity(threading.get_native_id(), {cpu})
        while not self._over.is_set():
            due = time.monotonic() + EVERY_S
            time.sleep(EVERY_S)
            self._worst_s[cpu] = max(self._worst_s[cpu], time.monotonic() - due)


def room_ms(bound_ms: float, *late_ms: float) -> float:
    """What a machine that was late by this may need for what is promised within ``bound_ms``."""
    worst_ms = max(late_ms, default=0.0)
    return bound_ms + (worst_ms if worst_ms > UNEXCUSED_MS else 0.0)
