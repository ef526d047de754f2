# SPDX-License-Identifier: Apache-2.0
"""The loop: something changed, wait until it is quiet, plan everything, write what differs.

Routers are written before the next plan is made. Statuses trickle behind, latest version only, so that ten
thousand of them never keep a new VirtualIP from its router.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from holdfast_api.kube import ApiTrouble
from holdfast_api.types import Metadata
from holdfast_operator import changes, metrics, status
from holdfast_operator.cache import Cache
from holdfast_operator.cluster import AT_ONCE, Cluster
from holdfast_operator.election import Election, boottime_s
from holdfast_operator.notices import Notice, event_body, notices, released
from holdfast_operator.plan import plan
from holdfast_operator.world import VipKey, World

log = logging.getLogger(__name__)

FIRST_QUIET_S = 0.02  # after a rest: one VirtualIP alone is planned at once
QUIET_S = 0.05  # in a stream of changes
LONGEST_WAIT_S = 0.5
REST_S = 0.5  # without a plan for so long, the next change counts as the first
TICK_S = 0.5  # between two looks at what depends on time alone
PULSE_S = 5.0  # between two looks at the speakers' Leases
RELIST_S = 240.0  # against objects whose deletion the watch never told
RELIST_QUIET_S = 0.5
FRESH_S = 5.0  # a list this young is good enough to take the lead with
NEVER_S = -1e9
RETRY_S = (0.2, 5.0)  # after a write that failed: first and longest pause
MOST_UNLUCKY = 1000
EVENTS_KEPT = 500
EVENTS_PER_S = 20.0
EVENTS_AT_ONCE = 100  # after a rest: a node's death is told within a second


class Planner:
    """``run`` is everything the operator does beside listening. ``look_again`` wakes it."""

    def __init__(self, cache: Cache, cluster: Cluster, election: Election, *, reporter: str) -> None:
        self._cache = cache
        self._cluster = cluster
        self._election = election
        self._reporter = reporter
        self._dirty = asyncio.Event()
        self._leads = asyncio.Event()
        self._stale = asyncio.Event()
        self._listed_s = NEVER_S
        self._planned_s = NEVER_S
        self._failures = 0
        self._statuses: dict[VipKey, changes.ApplyStatus] = {}
        self._writing: set[VipKey] = set()
        self._unlucky: dict[VipKey, int] = {}
        self._status_waits = asyncio.Event()
        self._news: deque[tuple[Metadata, Notice]] = deque(maxlen=EVENTS_KEPT)
        self._news_waits = asyncio.Event()
        self.heartbeat_s = boottime_s()

    def look_again(self) -> None:
        self._dirty.set()

    def list_again(self) -> None:
        """A watch was broken: what it did not tell is in a list."""
        self._stale.set()

    def lead_changed(self, leading: bool) -> None:
        """Called by the election."""
        metrics.LEADING.set(leading)
        log.info("leading, epoch %d" if leading else "not leading (epoch %d)", self._election.epoch)
        if leading:
            now_s = boottime_s()
            self._cache.grace(now_s)
            if now_s - self._listed_s > FRESH_S:
                self._listed_s = NEVER_S  # a watch may have been asleep: list before the first plan
            self._leads.set()
            self._dirty.set()
        else:
            self._leads.clear()
            self._statuses.clear()

    async def run(self) -> None:
        """Ends only with an error: then the whole process starts anew."""
        async with asyncio.TaskGroup() as tasks:
            for work in self._works():
                tasks.create_task(work)

    def _works(self) -> tuple[Coroutine[Any, Any, None], ...]:
        statuses = tuple(self._write_statuses() for _ in range(AT_ONCE - 2))
        clocks = (self._watch_pulses(), self._watch_clock(), self._relist())
        return (self._plan_for_ever(), *clocks, self._tell_news(), *statuses)

    # --- planning -------------------------------------------------------------------------------

    async def _plan_for_ever(self) -> None:
        while True:
            self.heartbeat_s = boottime_s()
            with suppress(TimeoutError):
                async with asyncio.timeout(PULSE_S):
                    await self._leads.wait()
                    await self._dirty.wait()
            if not (self._dirty.is_set() and self._election.leading):
                continue
            await self._quiet()
            try:
                if self._listed_s == NEVER_S:
                    await self.list_all()
                good = await self._plan_once()
            except ApiTrouble as error:
                log.warning("no plan without complete lists: %s", error)
                good = False
            await self._rest_after(good=good)

    async def _quiet(self) -> None:
        """Returns when no change came for a moment, or when it has waited long enough."""
        now_s = boottime_s()
        quiet_s = FIRST_QUIET_S if now_s - self._planned_s > REST_S else QUIET_S
        deadline_s = now_s + (3 * FIRST_QUIET_S if quiet_s == FIRST_QUIET_S else LONGEST_WAIT_S)
        while self._dirty.is_set() and boottime_s() < deadline_s:
            self._dirty.clear()
            await asyncio.sleep(quiet_s)
        self._dirty.clear()

    async def list_all(self) -> bool:
        """Everything into the cache, completely. Whether a plan may depend on what is new."""
        began_s = boottime_s()
        changed = await self._cluster.list_all()
        self._listed_s = began_s
        return changed

    async def _plan_once(self) -> bool:
        """Whether everything that had to be written at once was written."""
        if not self._cache.complete or not self._election.leading:
            return False
        world = self._cache.snapshot(epoch=self._election.epoch, now_s=boottime_s())
        began_s = time.perf_counter()

        thought = await asyncio.to_thread(_think, world, _now("seconds"))  # the election must go on meanwhile
        metrics.PLANS.observe(time.perf_counter() - began_s)
        self._planned_s = boottime_s()
        good = await self._cluster.change_routers(thought.routers)
        if thought.routers:
            self._dirty.set()  # generations moved: what waits for a report must know which
        if thought.renumbered is not None and good:
            log.warning("VirtualRouter %s moves to another VRID: a stranger has its own", thought.renumbered)
            self._cache.memory.renumbered(boottime_s())
        if good:
            self._say(thought.released)
        self._statuses = {(c.stored.namespace, c.stored.name): c for c in thought.statuses}
        if self._statuses:
            self._status_waits.set()
        return good

    async def _rest_after(self, *, good: bool) -> None:
        if good:
            self._failures = 0
            return
        self._dirty.set()
        first_s, longest_s = RETRY_S
        await asyncio.sleep(min(first_s * 2**self._failures, longest_s))
        self._failures = min(self._failures + 1, 10)

    # --- statuses -------------------------------------------------------------------------------

    async def _write_statuses(self) -> None:
        while True:
            key = next((key for key in self._statuses if key not in self._writing), None)
            if key is None or not self._election.leading:
                self._status_waits.clear()
                await self._status_waits.wait()
                continue
            change = self._statuses.pop(key)
            if not self._cache.current("virtualips", change.stored):
                self._dirty.set()  # it has changed since it was planned for
                continue
            self._writing.add(key)
            try:
                if await self._cluster.change_status(change):
                    self._unlucky.pop(key, None)
                    if change.status.mac_fallback_generation != change.before.mac_fallback_generation:
                        self._dirty.set()  # it is on record, so it may be done
                    self._say((change.stored, news) for news in notices(change.before, change.status))
                else:
                    self._dirty.set()
                    await self._hold_back(key)
            finally:
                self._writing.discard(key)
                if self._statuses:
                    self._status_waits.set()

    async def _hold_back(self, key: VipKey) -> None:
        """A status that the API does not take is tried ever more rarely."""
        first_s, longest_s = RETRY_S
        failures = self._unlucky.get(key, 0)
        self._unlucky[key] = min(failures + 1, 10)
        if len(self._unlucky) > MOST_UNLUCKY:
            self._unlucky.clear()
        await asyncio.sleep(min(first_s * 2**failures, longest_s))

    def _say(self, news: Iterable[tuple[Metadata, Notice]]) -> None:
        for vip, notice in news:
            log.info("VirtualIP %s/%s: %s: %s", vip.namespace, vip.name, notice.reason, notice.note)
            if len(self._news) == EVENTS_KEPT:
                metrics.EVENTS_DROPPED.inc()
            self._news.append((vip, notice))
        if self._news:
            self._news_waits.set()

    async def _tell_news(self) -> None:
        """Kubernetes Events, at a pace that never hurts the API."""
        credit, counted_s = float(EVENTS_AT_ONCE), boottime_s()
        while True:
            if not self._news:
                self._news_waits.clear()
                await self._news_waits.wait()
            now_s = boottime_s()
            credit = min(credit + (now_s - counted_s) * EVENTS_PER_S, EVENTS_AT_ONCE)
            counted_s = now_s
            if credit < 1 or self._statuses:  # statuses come first
                await asyncio.sleep(1 / EVENTS_PER_S)
                continue
            credit -= 1
            vip, notice = self._news.popleft()
            await self._cluster.tell(
                vip.namespace, event_body(notice, vip, _now("microseconds"), self._reporter)
            )

    # --- the clock ------------------------------------------------------------------------------

    async def _watch_pulses(self) -> None:
        """Reads the speakers' Leases; who is silent by them ``_watch_clock`` sees."""
        answered_s = boottime_s()
        while True:
            await asyncio.sleep(PULSE_S)
            if not self._election.leading:
                continue
            try:
                await self._cluster.list_pulses()
            except ApiTrouble as error:
                log.info("the speakers' Leases can't be read: %s", error)
                continue
            now_s = boottime_s()
            if now_s - answered_s > 3 * PULSE_S:
                self._cache.grace(now_s)
            answered_s = now_s

    async def _watch_clock(self) -> None:
        """What becomes true by time alone: a silence, an order that nobody obeyed."""
        known: object = None
        while True:
            await asyncio.sleep(TICK_S)
            now_s = boottime_s()
            if not (self._election.leading and self._cache.complete):
                known = None
                continue
            seen = (self._cache.live(now_s), self._cache.settling(now_s), self._cache.timely(now_s))
            if seen != known:
                known = seen
                self._dirty.set()

    async def _relist(self) -> None:
        """kopf never tells of an object that was deleted while its watch was broken."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RELIST_S):
                    await self._stale.wait()
                    await asyncio.sleep(RELIST_QUIET_S)  # four watches break together
            self._stale.clear()
            try:
                if await self.list_all():
                    self._dirty.set()
            except ApiTrouble as error:
                log.info("the list against ghosts failed: %s", error)
                self._stale.set()
                await asyncio.sleep(PULSE_S)


@dataclass(frozen=True, slots=True)
class _Thought:
    """What one plan comes to."""

    routers: tuple[changes.RouterChange, ...]
    statuses: tuple[changes.ApplyStatus, ...]
    released: tuple[tuple[Metadata, Notice], ...]
    renumbered: str | None


def _think(world: World, now: str) -> _Thought:
    """Everything between a World and the writes; pure but for the gauges, and run in a thread."""
    made = plan(world)
    statuses = status.fold(world, made, now)
    metrics.planned(made, statuses)
    return _Thought(
        routers=changes.router_changes(made),
        statuses=changes.status_changes(world, statuses),
        released=tuple(released(entry) for entry in made.released),
        renumbered=made.renumbered,
    )


def _now(precision: str) -> str:
    now = datetime.now(UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if precision == "microseconds" else "%Y-%m-%dT%H:%M:%SZ")
