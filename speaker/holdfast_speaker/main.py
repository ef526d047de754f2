# SPDX-License-Identifier: Apache-2.0
"""Wiring: rights checked, doors opened, signals heard, the loop run. Nothing is decided here."""

import asyncio
import logging
import os
import queue
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Final

from holdfast_api.conditions import Reason
from holdfast_api.kube import Config, ConfigError, Kube
from holdfast_api.types import Condition
from holdfast_speaker import collector
from holdfast_speaker.addresses.kernel import KernelAddresses
from holdfast_speaker.alarm import now_us
from holdfast_speaker.cluster import ApiCluster
from holdfast_speaker.fence.kernel import KernelFence, jiffy_us
from holdfast_speaker.frames import ScapyFrames
from holdfast_speaker.keys import KeyFiles, KeysError
from holdfast_speaker.link import Link
from holdfast_speaker.loop import Loop
from holdfast_speaker.metrics import Metrics
from holdfast_speaker.node import Node
from holdfast_speaker.plan_file import PlanFile
from holdfast_speaker.settings import Settings
from holdfast_speaker.units import MILLISECOND_US
from holdfast_speaker.vrrp.seal import Seal
from holdfast_speaker.vrrp.timing import least_interval_us

log = logging.getLogger("holdfast_speaker")

_WRONG_USE: Final = 2
_NEEDED: Final = {"NET_ADMIN": 12, "NET_RAW": 13}  # linux/capability.h
_FIFO_PRIORITY: Final = 10
_SHORTEST_US: Final = 10 * MILLISECOND_US
LEAST_UNHURRIED_US: Final = 50 * MILLISECOND_US  # without SCHED_FIFO a busy host is late by 20 ms at times
_NICENESS: Final = -10
_LOG_QUEUE: Final = 10_000  # records; beyond, they are dropped rather than waited for


def run(settings: Settings) -> int:
    """The whole life of a speaker; its exit status."""
    missing = missing_capabilities(_effective_capabilities())
    if missing:
        names = " and ".join(missing)
        return _refuse(f"missing capability {names}: run as root, or add {names} to the container")
    try:
        config = Config.load(settings.environ)
    except ConfigError as error:
        return _refuse(str(error))
    listener = _log_through_a_thread(settings.log_level)
    try:
        return asyncio.run(_live(settings, config))
    except KeysError as error:
        return _refuse(f"--advert-keys: {error}")
    finally:
        listener.stop()


async def _live(settings: Settings, config: Config) -> int:
    wall_offset_us = time.time_ns() // 1000 - now_us()
    keys: KeyFiles | None = None
    seal: Seal | None = None
    if settings.advert_keys is not None:
        seal = Seal(settings.advert_auth, wall_offset_us=wall_offset_us)
        keys = KeyFiles(settings.advert_keys, seal)
        keys.start()
    metrics = Metrics(settings.version, settings.node)
    _serve(metrics, settings.metrics)
    prompt = _hurry()
    fence, addresses = KernelFence(), KernelAddresses()
    left = [address for _, address in addresses.marked()]
    fence.open(left, macs=addresses.leftover_macs())  # silent from here on, whatever comes
    link = Link(fence.mark)
    tick_us = jiffy_us()
    least_us = least_interval_us(tick_us)
    if not prompt:
        least_us = max(least_us, LEAST_UNHURRIED_US)
    async with Kube(config, f"holdfast-speaker/{settings.version}") as api:
        loop = Loop(
            Node(
                settings.node,
                settings.version,
                wall_offset_us=wall_offset_us,
                jiffy_us=tick_us,
                least_interval_us=least_us,
                seal=seal,
                preflight=tuple(_faults(fence.fault, least_us, prompt=prompt)),
                virtual_macs=not fence.fault,
            ),
            wire=link,
            addresses=addresses,
            fence=fence,
            frames=ScapyFrames(),
            cluster=ApiCluster(api, settings.node, lambda up: metrics.api(up=up)),
            plan=PlanFile(settings.run_dir, settings.node),
            metrics=metrics,
            beside=() if keys is None else (keys.run,),
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, loop.stop)
        log.info("holdfast-speaker %s on node %s", settings.version, settings.node)
        collector.freeze()  # before the first deadline: the libraries' 100,000 objects are never walked again
        status = await loop.run()
    link.close()
    addresses.close()
    log.info("ended with status %d", status)
    return status


def _refuse(why: str) -> int:
    sys.stderr.write(f"holdfast-speaker: {why}\n")
    return _WRONG_USE


# --- rights ---------------------------------------------------------------------------------------


def _effective_capabilities() -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("CapEff:"))
    return int(line.split()[1], 16)


def missing_capabilities(effective: int) -> list[str]:
    """The names of the capabilities a speaker cannot work without that are not in the set."""
    return [name for name, bit in _NEEDED.items() if not effective >> bit & 1]


def _hurry() -> bool:
    """Run before others where SYS_NICE allows it, and whether it does; threads do not inherit it."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(_FIFO_PRIORITY))
    except OSError:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
        return False
    return True


def _faults(fence_fault: str, least_us: int, *, prompt: bool) -> Iterable[Condition]:
    """What this host does not give us, for the Speaker object and the log."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if fence_fault:
        words = (
            f"{fence_fault}: a speaker that dies here goes on answering until its addresses' lifetime ends"
        )
        log.warning("%s: %s", Reason.FENCE_UNAVAILABLE, words)
        yield Condition("Fence", "False", Reason.FENCE_UNAVAILABLE.value, words, 0, now)
    if least_us > _SHORTEST_US:
        why = "the kernel's tick allows no shorter lease"
        if not prompt:
            why = "no real-time scheduling (it needs the capability SYS_NICE)"
        words = f"adverts go out each {least_us // MILLISECOND_US} ms at the most: {why}"
        log.info("%s: %s", Reason.INTERVAL_RAISED, words)
        yield Condition("FastAdverts", "False", Reason.INTERVAL_RAISED.value, words, 0, now)


# --- outside --------------------------------------------------------------------------------------


def _serve(metrics: Metrics, where: tuple[str, int] | None) -> None:
    """Metrics are worth a warning, never an address: a taken port does not stop a speaker."""
    if where is None:
        return
    try:
        metrics.serve(*where)
    except OSError as error:
        log.warning("no metrics on %s:%d: %s; set --metrics-address", *where, error)


class _DroppingHandler(QueueHandler):
    """Never waits: a full queue loses the record."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(queue.Full):
            self.queue.put_nowait(record)


def _log_through_a_thread(level: int) -> QueueListener:
    """A slow reader of our log must not stop the loop."""
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", _DATE))
    logging.Formatter.converter = time.gmtime
    records: queue.Queue[logging.LogRecord] = queue.Queue(_LOG_QUEUE)
    listener = QueueListener(records, out)
    root = logging.getLogger()
    root.handlers[:] = [_DroppingHandler(records)]
    root.setLevel(level)
    for quiet in _too_talkative(level):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    listener.start()
    return listener


_DATE: Final = "%Y-%m-%dT%H:%M:%S"


def _too_talkative(level: int) -> Iterable[str]:
    return () if level <= logging.DEBUG else ("asyncio", "aiohttp", "pyroute2", "scapy")
