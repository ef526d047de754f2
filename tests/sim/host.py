# SPDX-License-Identifier: Apache-2.0
"""One simulated host: the real brain, a loop that feeds it, a kernel that holds addresses."""

from collections import deque
from collections.abc import Callable
from random import Random

from holdfast_api.types import Interface, SpeakerStatus, VirtualRouter
from holdfast_speaker import effects as do
from holdfast_speaker import events as on
from holdfast_speaker.node import Node
from holdfast_speaker.units import NEVER_US
from holdfast_speaker.vrrp.advert import Advert, parse
from tests.sim.kernel import Kernel

WALL_OFFSET_US = 1_700_000_000_000_000
MAX_INBOX = 2_000  # frames; a socket's buffer is finite as well
MAX_WAKES_AT_ONCE = 20
JIFFY_US = 1_000  # so that 10 ms adverts can be fenced
DUMP_US = 10_000_000
STALL_US = 5_000
MACS_US = 1_000_000


def _is_resignation(frame: bytes) -> bool:
    advert = parse(frame)
    return isinstance(advert, Advert) and advert.priority == 0


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
        self.bind_fails = 0.0  # the share of addresses that the kernel refuses
        self.started_us = 0
        self.take_fails = False
        self.fresh_takes: set[int] = set()  # without an advert as yet
        self.stall_at_take_us: tuple[int, int] = (0, 0)  # once: before the kernel's lease, and after it
        self.drift_ppm = 0
        self.saved: tuple[tuple[VirtualRouter, ...], dict[str, int]] = ((), {})
        self.plan: dict[str, VirtualRouter] = {}  # as the API has told this host
        self.status: SpeakerStatus | None = None
        self.wakes = (0, 0)
        self.armed_us = NEVER_US  # the next turn
        self.up = True  # the machine, whatever its speaker does
        self.life = 0  # counts starts: what was scheduled for an earlier one is void
        self.probed_at_us: dict[str, list[int]] = {}
        self.offered_us: dict[int, int] = {}  # VRID -> when priority 0 was said, until it is taken anew
        self.heard_macs: dict[str, int] = {}  # virtual MACs of ours as senders of what came in: when last
        self.send: Callable[[SimHost, bytes, int], None]
        self.announce: Callable[[SimHost, do.Announce, int], None]
        self.observe: Callable[[SimHost, str, int], None]
        self.taking: Callable[[SimHost, int, int], None]
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
        self.node = Node(self.name, "sim", wall_offset_us=WALL_OFFSET_US, jiffy_us=JIFFY_US)
        self.up, self.started_us = True, now_us
        self.kernel.open_anew(now_us)
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

    def note_mac(self, mac: bytes, now_us: int) -> None:
        """A frame came in from somebody with this virtual MAC."""
        if self.kernel.fenced_by(mac) is not None:
            self.heard_macs[mac.hex(":")] = now_us

    def tell_macs(self, now_us: int) -> None:
        """Each second, as the loop does."""
        heard = frozenset(mac for mac, at_us in self.heard_macs.items() if now_us - at_us < MACS_US)
        if heard and self.node is not None:
            self.deliver(on.MacsHeard(heard), now_us)
        self.schedule(now_us + MACS_US, self.tell_macs)

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
        self.up = False
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
        if self.node is None:
            return
        if self.inbox or now_us < self.busy_until_us:
            self._arm(self.busy_until_us)
            return
        deadline = self.deadline()
        if deadline is not None and deadline <= now_us:
            at, count = self.wakes
            self.wakes = (now_us, count + 1 if at == now_us else 1)
            assert self.wakes[1] <= MAX_WAKES_AT_ONCE, f"{self.name}: the deadline stands still at {deadline}"
            self._handle(on.TimerFired(), now_us)
            deadline = self.deadline()
        if deadline is not None:
            late_us = self.rng.randrange(50, 1500)
            at_us = max(deadline + late_us, self.busy_until_us, now_us)
            self._arm(at_us)

    def local(self, now_us: int) -> int:
        """This host's clock: it runs a little too fast or too slow."""
        return now_us + now_us * self.drift_ppm // 1_000_000

    def deadline(self) -> int | None:
        """The brain's, in the world's time; never too early."""
        deadline = self.node.deadline if self.node is not None else None
        return None if deadline is None else -(-deadline * 1_000_000 // (1_000_000 + self.drift_ppm)) + 1

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
        for effect in self.node.handle(event, self.local(now_us)):
            at_us = self._carry_out(effect, at_us)
        self.busy_until_us = max(self.busy_until_us, at_us)
        if self.node.stopped:
            self._end(at_us)

    def _end(self, at_us: int) -> None:
        """The process ends, and leaves neither address nor fence behind."""
        self.kill()
        for address in list(self.kernel.bound):
            self.kernel.release(address, at_us)
        self.kernel.bound = {a: times for a, times in self.kernel.bound.items() if times[1] > at_us}
        self.kernel.open_anew(at_us)

    def _carry_out(self, effect: do.Effect, at_us: int) -> int:
        """The time after it."""
        match effect:
            case do.Send():
                number = effect.virtual_router_id
                if number and not self.kernel.extend(number, at_us):
                    self.inbox.appendleft(on.LeaseLost(number))
                    return at_us
                if number and _is_resignation(effect.frame):
                    self.offered_us[number] = at_us
                elif number not in self.kernel.quiet:
                    self.offered_us.pop(number, None)  # nobody took it
                if number in self.fresh_takes:
                    self.fresh_takes.discard(number)
                    self.taking(self, number, at_us)
                if self.carrier:
                    self.send(self, effect.frame, at_us)
            case do.Take():
                return self._take(effect, at_us)
            case do.Guard():
                self.kernel.guard(effect)
            case do.Prepare():
                self.kernel.prepare(effect)
            case do.Unguard():
                self.kernel.unguard(effect.virtual_router_id)
            case do.Fence():
                self._turn_fence(effect, at_us)
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
                    self.kernel.orphans.discard(address)
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

    def _take(self, effect: do.Take, at_us: int) -> int:
        """What came in meanwhile is told first: it waits in the inbox already."""
        before_us, after_us = self.stall_at_take_us
        self.stall_at_take_us = (0, 0)
        taken = on.Taken(effect.id, self._open(effect, at_us + before_us))
        if not before_us and not after_us:
            self.inbox.append(taken)
            return at_us
        self.blocked_until_us = at_us + before_us + after_us
        life = self.life
        self.schedule(
            at_us + before_us, lambda now_us: self.deliver(taken, now_us) if life == self.life else None
        )
        return self.blocked_until_us

    def _open(self, effect: do.Take, at_us: int) -> bool:
        number = effect.virtual_router_id
        if self.take_fails or self.local(at_us) > effect.until_us or number not in self.kernel.guards:
            return False
        self.kernel.take(effect.virtual_router_id, at_us)
        self.offered_us.pop(effect.virtual_router_id, None)
        self.fresh_takes.add(effect.virtual_router_id)
        return True

    def _turn_fence(self, effect: do.Fence, at_us: int) -> None:
        number = effect.virtual_router_id
        match effect.verb:
            case "extend":
                self.kernel.extend(number, at_us)
            case "quiet":
                self.kernel.quiet.add(number)
            case "silence":
                self.kernel.end(number, at_us)
            case "release":
                self.kernel.end(number, at_us)
                self.fresh_takes.discard(number)
                self.kernel.guarded.discard(number)
                self.kernel.quiet.discard(number)

    def _bind(self, effect: do.Bind, at_us: int) -> int:
        at_us += self.rng.randrange(50, 500) + self.bind_delay_us
        if self.bind_delay_us:
            self.blocked_until_us = at_us
        refused = {a for a in effect.addresses if self.bind_fails and self.rng.random() < self.bind_fails}
        bound = tuple(address for address in effect.addresses if address not in refused)
        for address in bound:
            self.kernel.bind(address, at_us)
            self.observe(self, f"bind {address}", at_us)
        failed = tuple((address, "no buffer space available") for address in sorted(refused))
        self.inbox.appendleft(on.Bound(effect.id, bound, failed))
        self._news(at_us)
        return at_us
