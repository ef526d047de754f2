# SPDX-License-Identifier: Apache-2.0
"""The shell around the brain: feed it, run what comes out, arm one timer. Decides nothing.

What waits on a socket is heard before a deadline is served, so that a late turn of this loop never
mistakes its own lateness for a peer's silence.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, assert_never

from holdfast_speaker import collector, effects, events
from holdfast_speaker.alarm import Alarm, now_us
from holdfast_speaker.chores import Chores
from holdfast_speaker.metrics import Metrics
from holdfast_speaker.ports import Addresses, Brain, Cluster, Fence, Frames, Plan, Wire

log = logging.getLogger(__name__)

_FRAMES_PER_TURN: Final = 64
_FRAMES_BEFORE_DEADLINE: Final = 1024
_SHORTEST_WAIT_US: Final = 1_000
_CHORE_PAUSE_S: Final = 0.002
_RESTART_S: Final = 1.0
_STOP_S: Final = 4.0
_FENCE_REFRESH_S: Final = 10.0
_MACS_S: Final = 1.0
_LAST_REPORT_S: Final = 1.0
_FAILURES: Final = 10  # of the brain, within
_FAILURES_US: Final = 60_000_000
_FAR_US: Final = 1 << 40


class Loop:
    """One speaker's life in one asyncio loop."""

    def __init__(
        self,
        brain: Brain,
        *,
        wire: Wire,
        addresses: Addresses,
        frames: Frames,
        fence: Fence,
        cluster: Cluster,
        plan: Plan,
        metrics: Metrics,
        beside: Iterable[Callable[[], Awaitable[None]]] = (),
    ) -> None:
        self._brain = brain
        self._beside = tuple(beside)
        self._wire = wire
        self._addresses = addresses
        self._frames = frames
        self._fence = fence
        self._cluster = cluster
        self._plan = plan
        self._metrics = metrics
        self._chores = Chores(addresses, frames, wire)
        self._chore_timer: asyncio.TimerHandle | None = None
        self._alarm = Alarm(self._on_deadline)
        self._failures: deque[int] = deque(maxlen=_FAILURES)
        self._stopping = False
        self._broken = False
        self._over = asyncio.Event()

    async def run(self) -> int:
        """Until stopped or broken; the process's exit status. Leaves no address behind."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._wire.fileno(), self._on_frames)
        restored = self._plan.restore()
        if restored is not None:
            self.feed(restored)
        beside = (
            self._watch_addresses,
            self._watch_cluster,
            self._cluster.run,
            self._plan.run,
            self._collect,
            self._refresh_fence,
            self._watch_macs,
            *self._beside,
        )
        tasks = [asyncio.create_task(self._for_ever(work)) for work in beside]
        await self._over.wait()
        loop.remove_reader(self._wire.fileno())
        self._alarm.close()
        if self._chore_timer is not None:
            self._chore_timer.cancel()
        left = await self._addresses.release_everything()
        self._fence.close()
        if left:
            log.warning("%d addresses were still bound at the end: released", left)
        await self._cluster.flush(_LAST_REPORT_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._plan.flush()
        return 1 if self._broken else 0

    def stop(self) -> None:
        """Give up what is held, then end; at the latest after 4 s. Asked a second time: end now."""
        if self._stopping:
            self._over.set()
            return
        self._stopping = True
        asyncio.get_running_loop().call_later(_STOP_S, self._over.set)
        self.feed(events.StopRequested())

    # --- feeding ----------------------------------------------------------------------------------

    def feed(self, event: events.Event) -> None:
        """Tell the brain, do what it says, tell it how that ended, and so on; then arm the timer."""
        if not self._over.is_set():  # nothing may be bound again behind the back of the end
            self._handle(event)
            self._arm()

    def _handle(self, event: events.Event) -> None:
        waiting = deque((event,))
        while waiting:
            event = waiting.popleft()
            try:
                wanted = self._brain.handle(event, now_us())
            except Exception:
                self._brain_failed(event)
                continue
            for effect in wanted:
                waiting.extend(self._run_effect(effect))
        if self._stopping and self._brain.stopped:
            self._over.set()

    def _brain_failed(self, event: events.Event) -> None:
        """One event lost is survived (what is held stays held); many in a row are not."""
        log.exception("the brain could not handle %s", type(event).__name__)
        self._metrics.brain_failed()
        now = now_us()
        self._failures.append(now)
        if len(self._failures) == _FAILURES and now - self._failures[0] < _FAILURES_US:
            log.critical("%d failures within a minute: giving up everything and ending", _FAILURES)
            self._broken = True
            self._over.set()

    def _arm(self) -> None:
        if not self._over.is_set():
            self._alarm.set(self._brain.deadline)

    def _on_deadline(self, rung_us: int) -> None:
        self._metrics.late((now_us() - rung_us) / 1e6)
        heard = _FRAMES_BEFORE_DEADLINE
        while heard > 0 and (frames := self._wire.drain(_FRAMES_PER_TURN)):
            self._hear(frames)
            heard -= len(frames)
        deadline = self._brain.deadline
        if deadline is not None and deadline <= now_us():
            self._handle(events.TimerFired())
            if self._brain.deadline == deadline and not self._over.is_set():
                self._alarm.set(now_us() + _SHORTEST_WAIT_US)  # served in vain: not in a tight circle
                return
        self._arm()

    def _on_frames(self) -> None:
        self._hear(self._wire.drain(_FRAMES_PER_TURN))
        self._arm()

    def _hear(self, frames: list[tuple[int, bytes]]) -> None:
        for index, frame in frames:
            self._handle(events.FrameReceived(index, frame))

    # --- effects ----------------------------------------------------------------------------------

    def _run_effect(self, effect: effects.Effect) -> Iterable[events.Event]:
        """Do one effect; what came of it, where the brain must know."""
        match effect:
            case effects.Send():
                return self._send(effect)
            case effects.Announce(index, form, addresses):
                self._announce(index, form, addresses)
            case effects.Take():
                return self._take(effect)
            case effects.Fence():
                self._turn_fence(effect)
            case effects.Guard(virtual_router_id, index, lease_us, addresses, macs, own):
                self._fence.guard(virtual_router_id, index, lease_us, addresses, dict(macs), own)
            case effects.Unguard(virtual_router_id):
                self._fence.unguard(virtual_router_id)
            case effects.Bind(id_, index, addresses):
                failed = self._addresses.bind(index, addresses)
                bound = tuple(address for address in addresses if address not in failed)
                return (events.Bound(id_, bound, tuple(failed.items())),)
            case effects.Release(id_, index, addresses):
                self._chores.forget(index, addresses)
                kept = self._addresses.release(index, addresses)
                for address in addresses:
                    if address not in kept:
                        self._fence.adopt(address)
                return (events.Released(id_, tuple(kept.items())),)
            case effects.Refresh(index, addresses):
                self._chores.refresh(index, addresses)
                self._start_chores()
            case effects.Prepare(index, addresses, macs):
                self._addresses.prepare(index, addresses, dict(macs))
                self._fence.shelter()
                forwarding = self._addresses.surroundings(index).forwarding
                self._frames.prepare(index, addresses, dict(macs), forwarding=forwarding)
            case effects.Hear(indexes):
                self._wire.hear(indexes)
            case effects.Cover(indexes):
                self._fence.cover(indexes)
            case effects.Report(status):
                self._metrics.routers(router.state for router in status.routers)
                self._cluster.report(status)
            case effects.SavePlan(routers, terms):
                self._plan.keep(routers, terms)
            case effects.Log(level, message, facts):
                text = " ".join((message, *(f"{name}={value}" for name, value in facts)))
                log.log(logging.getLevelNamesMapping()[level.upper()], "%s", text)
            case effects.Count(metric, label, amount):
                self._metrics.count(metric, label, amount)
            case _:
                assert_never(effect)
        return ()

    def _send(self, effect: effects.Send) -> Iterable[events.Event]:
        """An advert that did not leave: the NIC's queue was full, or the fence is shut."""
        sent = self._wire.send(effect.index, (effect.frame,))
        self._metrics.frames_lost(1 - sent)
        number = effect.virtual_router_id
        if sent or not number or self._fence.fault or self._fence.alive(number):
            return ()
        return (events.LeaseLost(number),)

    def _take(self, effect: effects.Take) -> Iterable[events.Event]:
        """What waits on the wire is heard first: a live Active in it undoes the decision."""
        late = now_us() > effect.until_us
        is_open = not late and self._fence.take(effect.virtual_router_id)
        waiting: list[events.Event] = []
        while len(waiting) < _FRAMES_BEFORE_DEADLINE and (frames := self._wire.drain(_FRAMES_PER_TURN)):
            waiting += [events.FrameReceived(index, frame) for index, frame in frames]
        return (*waiting, events.Taken(effect.id, is_open))

    def _turn_fence(self, effect: effects.Fence) -> None:
        number = effect.virtual_router_id
        match effect.verb:
            case "extend":
                self._fence.extend(number)
            case "quiet":
                self._fence.quiet(number)
            case "silence":
                self._fence.silent(number)
            case "release":
                self._fence.release(number)

    def _announce(self, index: int, form: effects.Form, addresses: tuple[str, ...]) -> None:
        if form == "ask":
            self._chores.ask(index, addresses)
            self._start_chores()
            return
        around = self._addresses.surroundings(index)
        frames = [f for address in addresses for f in self._frames.frames(index, form, address, around)]
        self._metrics.frames_lost(len(frames) - self._wire.send(index, frames))

    def _start_chores(self, wait_s: float = 0) -> None:
        if self._chore_timer is None:
            self._chore_timer = asyncio.get_running_loop().call_later(wait_s, self._do_chores)

    def _do_chores(self) -> None:
        self._chore_timer = None
        self._metrics.frames_lost(self._chores.step())
        if self._chores.waiting:
            self._start_chores(_CHORE_PAUSE_S)

    # --- what runs beside ---------------------------------------------------------------------------

    async def _watch_addresses(self) -> None:
        async for seen in self._addresses.watch():
            if isinstance(seen, events.LinksSeen):
                self._frames.see(seen.interfaces)
            self._wire.mend()
            for virtual_router_id in self._fence.mend():
                self.feed(events.LeaseLost(virtual_router_id, removed=True))
            self.feed(seen)

    async def _refresh_fence(self) -> None:
        """What is guarded is forgotten by the kernel a minute after a speaker's death, like its addresses."""
        while True:
            await asyncio.sleep(_FENCE_REFRESH_S)
            self._fence.refresh()

    async def _watch_macs(self) -> None:
        """Whether somebody else uses a virtual MAC of ours; the kernel keeps account of it."""
        while True:
            await asyncio.sleep(_MACS_S)
            heard = self._fence.heard_macs()
            if heard:
                self.feed(events.MacsHeard(heard))

    async def _watch_cluster(self) -> None:
        async for event in self._cluster.events():
            self.feed(event)
            if isinstance(event, events.RoutersListed):
                collector.freeze()

    async def _for_ever(self, work: Callable[[], Awaitable[None]]) -> None:
        """A door that breaks is opened again; the others go on meanwhile."""
        while True:
            try:
                await work()
            except Exception:
                log.exception("%s broke; starting it again", work.__qualname__)
            await asyncio.sleep(_RESTART_S)

    async def _collect(self) -> None:
        await collector.collect_in_slack(self._room_us)

    def _room_us(self) -> int:
        deadline = self._brain.deadline
        return _FAR_US if deadline is None else deadline - now_us()
