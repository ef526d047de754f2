# SPDX-License-Identifier: Apache-2.0
"""One simulated host: the real brain, a loop that feeds it, a kernel that holds addresses."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from holdfast_api.types import Interface, SpeakerStatus, VirtualRouter
from holdfast_speaker import effects as do
from holdfast_speaker import events as on
from holdfast_speaker.node import Node
from holdfast_speaker.units import NEVER_US

WALL_OFFSET_US = 1_700_000_000_000_000
MAX_INBOX = 2_000  # frames; a socket's buffer is finite as well
MAX_WAKES_AT_ONCE = 20
LIFETIME_US = 30_000_000
DUMP_US = 10_000_000
STALL_US = 5_000


@dataclass(slots=True)
class Kernel:
    """What survives the speaker: bound addresses, each from when until when (its lifetime's end)."""

    bound: dict[str, tuple[int, int]] = field(default_factory=dict)

    def holds(self, address: str, now_us: int) -> bool:
        since_us, until_us = self.bound.get(address, (0, 0))
        return since_us <= now_us < until_us

    def bind(self, address: str, at_us: int) -> None:
        since_us = self.bound[address][0] if self.holds(address, at_us) else at_us
        self.bound[address] = (since_us, at_us + LIFETIME_US)

    def release(self, address: str, at_us: int) -> None:
        since_us, until_us = self.bound.get(address, (0, 0))
        self.bound[address] = (since_us, min(until_us, at_us))


class SimHost:
    """``send`` and ``announce`` put something on the segment; ``trace`` writes a line."""

    INDEX = 2

    def __init__(self, name: str, number: int, rng: Random) -> None:
        self.name = name
        self.number = number
        self.rng = rng
        self.mac = bytes((2, 0, 0, 0, 0, number))
        self.kernel = Kernel()
        self.node: Node | None = None
        self.carrier = True
        self.paused = False
        self.inbox: deque[on.Event] = deque()
        self.busy_until_us = 0
        self.bind_delay_us = 0
        self.blocked_until_us = 0  # by a slow bind: what the brain said then left later than it thinks
        self.bind_fails = False
        self.saved: tuple[tuple[VirtualRouter, ...], dict[str, int]] = ((), {})
        self.plan: dict[str, VirtualRouter] = {}  # as the API has told this host
        self.status: SpeakerStatus | None = None
        self.wakes = (0, 0)
        self.armed_us = NEVER_US  # the next turn
        self.life = 0  # counts starts: what was scheduled for an earlier one is void
        self.probed_at_us: dict[str, list[int]] = {}
        self.send: Callable[[SimHost, bytes, int], None]
        self.announce: Callable[[SimHost, do.Announce, int], None]
        self.observe: Callable[[SimHost, str, int], None]
        self.schedule: Callable[[int, Callable[[int], None]], None]

    @property
    def running(self) -> bool:
        return self.node is not None and not self.paused

    def is_awake(self, now_us: int) -> bool:
        """Its loop runs; not even the kernel blocks it for long."""
        return self.running and self.busy_until_us - now_us < STALL_US

    def link(self) -> on.LinksSeen:
        interface = Interface(
            "eth0",
            self.mac.hex(":"),
            (f"10.0.0.{self.number}/24", f"2001:db8::ff:{self.number}/64", f"fe80::{self.number}/64"),
            self.carrier,
        )
        return on.LinksSeen((on.Link(self.INDEX, interface),))

    def addresses(self, now_us: int) -> on.AddressesSeen:
        held = [address for address in self.kernel.bound if self.kernel.holds(address, now_us)]
        return on.AddressesSeen(frozenset((self.INDEX, address) for address in held))

    # --- life -----------------------------------------------------------------------------------

    def start(self, now_us: int) -> None:
        self.node = Node(self.name, "sim", wall_offset_us=WALL_OFFSET_US)
        self.inbox.clear()
        self.paused = False
        self.busy_until_us = now_us
        routers, terms = self.saved
        self.plan = {}
        self.deliver(self.link(), now_us)
        self.deliver(on.PlanRestored(routers, dict(terms)), now_us)
        self.life += 1
        self._dump(now_us, self.life)

    def _dump(self, now_us: int, life: int) -> None:
        """The kernel's whole list each 10 s, besides its news."""
        if life == self.life and self.node is not None:
            self.deliver(self.addresses(now_us), now_us)
            self.schedule(now_us + DUMP_US, lambda at_us: self._dump(at_us, life))

    def _news(self, at_us: int) -> None:
        """The kernel tells of its changes a little later."""
        self.schedule(
            at_us + self.rng.randrange(10, 2000), lambda now_us: self.deliver(self.addresses(now_us), now_us)
        )

    def kill(self) -> None:
        """The process dies; the kernel keeps what it has until the lifetimes end."""
        self.node, self.paused = None, False
        self.inbox.clear()

    def crash(self) -> None:
        """The whole host: nothing is left."""
        self.kill()
        self.kernel = Kernel()

    # --- the loop -------------------------------------------------------------------------------

    def deliver(self, event: on.Event, now_us: int) -> None:
        if self.node is None:
            return
        if isinstance(event, on.FrameReceived) and len(self.inbox) >= MAX_INBOX:
            return
        self.inbox.append(event)
        if not self.paused:
            self._arm(max(now_us, self.busy_until_us))

    def _arm(self, at_us: int) -> None:
        if at_us < self.armed_us:
            self.armed_us = at_us
            self.schedule(at_us, self._armed)

    def _armed(self, now_us: int) -> None:
        if now_us == self.armed_us:
            self.turn(now_us)

    def turn(self, now_us: int) -> None:
        """Drain what came in, then serve the deadline: the real loop's order."""
        self.armed_us = NEVER_US
        if not self.running:
            return
        while self.inbox and now_us >= self.busy_until_us:
            self._handle(self.inbox.popleft(), now_us)
        if self.inbox or now_us < self.busy_until_us:
            self._arm(self.busy_until_us)
            return
        assert self.node is not None
        deadline = self.node.deadline
        if deadline is not None and deadline <= now_us:
            at, count = self.wakes
            self.wakes = (now_us, count + 1 if at == now_us else 1)
            assert self.wakes[1] <= MAX_WAKES_AT_ONCE, f"{self.name}: the deadline stands still at {deadline}"
            self._handle(on.TimerFired(), now_us)
            deadline = self.node.deadline
        if deadline is not None:
            late_us = self.rng.randrange(50, 1500)
            at_us = max(deadline + late_us, self.busy_until_us, now_us)
            self._arm(at_us)

    def _handle(self, event: on.Event, now_us: int) -> None:
        assert self.node is not None
        match event:
            case on.RouterChanged():
                known = self.plan.get(event.router.metadata.name)
                if known is None or known.metadata.generation <= event.router.metadata.generation:
                    self.plan[event.router.metadata.name] = event.router
            case on.RouterDeleted():
                self.plan.pop(event.name, None)
            case on.RoutersListed():
                self.plan = {router.metadata.name: router for router in event.routers}
            case on.PlanRestored():
                self.plan = self.plan or {router.metadata.name: router for router in event.routers}
            case _:
                pass
        at_us = now_us
        for effect in self.node.handle(event, now_us):
            at_us = self._carry_out(effect, at_us)
        self.busy_until_us = max(self.busy_until_us, at_us)

    def _carry_out(self, effect: do.Effect, at_us: int) -> int:
        """The time after it."""
        match effect:
            case do.Send():
                if self.carrier:
                    self.send(self, effect.frame, at_us)
            case do.Announce():
                if effect.form == "probe":
                    for address in effect.addresses:
                        self.probed_at_us.setdefault(address, []).append(at_us)
                        del self.probed_at_us[address][:-3]
                if self.carrier:
                    self.announce(self, effect, at_us)
            case do.Bind():
                return self._bind(effect, at_us)
            case do.Release():
                at_us += self.rng.randrange(20, 400)
                for address in effect.addresses:
                    self.kernel.release(address, at_us)
                    self.observe(self, f"release {address}", at_us)
                self.inbox.appendleft(on.Released(effect.id))
                self._news(at_us)
            case do.Refresh():
                for address in effect.addresses:
                    if self.kernel.holds(address, at_us):
                        self.kernel.bind(address, at_us)
            case do.SavePlan():
                self.saved = (effect.routers, dict(effect.terms))
            case do.Report():
                self.status = effect.status
            case _:
                pass
        return at_us

    def _bind(self, effect: do.Bind, at_us: int) -> int:
        at_us += self.rng.randrange(50, 500) + self.bind_delay_us
        if self.bind_delay_us:
            self.blocked_until_us = at_us
        if self.bind_fails:
            failed = tuple((address, "no buffer space available") for address in effect.addresses)
            self.inbox.appendleft(on.Bound(effect.id, (), failed))
            return at_us
        for address in effect.addresses:
            self.kernel.bind(address, at_us)
            self.observe(self, f"bind {address}", at_us)
        self.inbox.appendleft(on.Bound(effect.id, effect.addresses))
        self._news(at_us)
        return at_us
