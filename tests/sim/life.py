# SPDX-License-Identifier: Apache-2.0
"""What a seed means: a cluster, its faults one after the other, its changes of plan; then quiet."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import msgspec

from holdfast_api.types import (
    Candidate,
    Handover,
    Metadata,
    Mode,
    Owner,
    RouterAddress,
    VirtualRouter,
    VirtualRouterSpec,
)
from holdfast_speaker import events as on
from holdfast_speaker.vrrp.advert import Advert, build
from tests.sim import checkers, wire
from tests.sim.host import SimHost
from tests.sim.world import World

INTERVALS_MS = (10, 50, 100, 200)
QUIET_US = (
    30_000_000  # the longest retry is 10 s (answered), then a probe; a failed bind's backoff is 8 s here
)
REFRESH_US = 40_000_000
FIRST_DRESSED = 1000  # from this seed on there are virtual MACs; the lives before it are what they were
SECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class Outcome:
    digest: str
    faults: int
    longest_pair_us: int


def address_of(router: int, number: int, *, six: bool) -> str:
    return f"2001:db8::{router}:{number}" if six else f"10.0.0.{100 + router * 10 + number}"


class Life:
    def __init__(self, seed: int, *, lines: list[str] | None = None) -> None:
        rng = Random(seed * 7919 + 1)
        self.rng = rng
        self.world = World(seed, rng.randrange(2, 6))
        self.world.lines = lines
        self.world.loss = rng.choice((0.0, 0.0, 0.01, 0.05))
        self.world.duplicates = rng.choice((0.0, 0.0, 0.05))
        self.world.slow = rng.choice((0.0, 0.05, 0.3))
        self.faults = 0
        self.pair = checkers.OneHolder()
        self.world.watchers += [self.pair, checkers.Bounded(), checkers.Silent()]
        self.world.on_take = (checkers.Respected(),)
        self.world.on_bind = (checkers.Planned(), checkers.NotTaken(), checkers.Probed())
        self._loss = self.world.loss
        self._dressing = Random(seed) if seed >= FIRST_DRESSED else None
        if self._dressing is not None:
            self.world.watchers += [checkers.OnePort(), self.world.switch.traffic]
            self.world.switch.watchers.append(checkers.NotStolenBack())
            for host in self.world.hosts:
                self.world.schedule(self.world.now_us + rng.randrange(0, SECOND), host.tell_macs)
        self._objects = self._orders = 0
        self._undo: list[Callable[[], None]] = []
        for host in self.world.hosts:
            self.world.api_delay_us[host.name] = rng.randrange(1_000, 400_000)
            host.drift_ppm = rng.choice((-500, 0, 0, 200))

    # --- the cluster ----------------------------------------------------------------------------

    def spec(self, number: int) -> VirtualRouterSpec:
        rng = self.rng
        names = [host.name for host in self.world.hosts]
        rng.shuffle(names)
        names = names[: rng.randrange(2, len(names) + 1)]
        steps = (250, 248, 220, 190, 150)
        candidates = tuple(
            Candidate(name, steps[at], self.sources(name), (self.mac(name),)) for at, name in enumerate(names)
        )
        addresses = tuple(
            RouterAddress(
                address_of(number, at, six=rng.random() < 0.3), Owner("default", f"vip-{number}-{at}", "u")
            )
            for at in range(rng.randrange(1, 4))
        )
        return VirtualRouterSpec(
            50 + number,
            addresses,
            candidates,
            rng.choice(INTERVALS_MS),
            rng.choice(("Never", "Never", "Immediate", "Delayed")),
            failback_delay_seconds=rng.randrange(1, 5),
        )

    def _dress(self, spec: VirtualRouterSpec, known: VirtualRouter | None) -> VirtualRouterSpec:
        """Some addresses have a MAC of their own, which mostly stays; some get another, or lose it."""
        rng = self._dressing
        if rng is None:
            return spec
        old = {each.address: each.mac_address for each in known.spec.addresses} if known else {}
        addresses: list[RouterAddress] = []
        dressed = rng.random() < 0.7
        for each in spec.addresses:
            mac = old.get(each.address)
            if each.address not in old or rng.random() < 0.4:
                number = len(self.world.switch.macs) + 1
                mac = f"02:aa:00:00:{number >> 8:02x}:{number & 255:02x}" if dressed else None
            if mac is not None:
                self.world.switch.macs.setdefault(bytes.fromhex(mac.replace(":", "")), each.address)
            addresses.append(msgspec.structs.replace(each, mac_address=mac))
        mode: Mode = "VirtualMAC" if any(each.mac_address for each in addresses) else "NodeMAC"
        return msgspec.structs.replace(spec, addresses=tuple(addresses), mode=mode)

    def host(self, name: str) -> SimHost:
        return next(host for host in self.world.hosts if host.name == name)

    def sources(self, name: str) -> tuple[str, ...]:
        return (f"10.0.0.{self.host(name).number}", f"fe80::{self.host(name).number}")

    def mac(self, name: str) -> str:
        return self.host(name).mac.hex(":")

    def apply(self, number: int, spec: VirtualRouterSpec) -> None:
        name = f"vr-{50 + number}"
        for each in spec.addresses:
            recent = self.world.recent_intervals_us.get(each.address, ())
            interval_us = spec.advert_interval_milliseconds * 1000
            self.world.recent_intervals_us[each.address] = (*recent[-2:], interval_us)
        known = self.world.routers.get(name)
        spec = self._dress(spec, known)
        self._objects += known is None
        uid = known.metadata.uid if known else f"uid-{self._objects}"
        self.world.apply(VirtualRouter(Metadata(name, uid=uid), spec))

    # --- a life ---------------------------------------------------------------------------------

    def live(self, seconds: int) -> Outcome:
        world, rng = self.world, self.rng
        for host in world.hosts:
            world.schedule(world.now_us + rng.randrange(0, 2 * SECOND), self._starter(host))
        for number in range(1, rng.randrange(2, 5)):
            at_us = world.now_us + rng.randrange(0, 6 * SECOND)
            world.schedule(at_us, self._applier(number, self.spec(number)))
        if self.rng.random() < 0.5:
            self._stranger(world.hosts[0])
        end_us = world.now_us + seconds * SECOND
        world.run(world.now_us + 8 * SECOND)
        while world.now_us < end_us:
            self._fault()
            self._run(rng.choice((20_000, 150_000, 400_000, SECOND, 3 * SECOND)))
        self._heal()
        self._run(QUIET_US)
        checkers.settled(world)
        try:
            checkers.reachable(world)
        except checkers.WrongError:
            # A holder that was cut off from the client alone can't know: the refresh mends it.
            self._run(REFRESH_US)
            checkers.reachable(world)
        return Outcome(world.digest, self.faults, self.pair.longest_us)

    def _run(self, duration_us: int) -> None:
        until_us = self.world.now_us + duration_us
        while self.world.now_us < until_us:
            self.world.run(min(until_us, self.world.now_us + SECOND // 2))
            self.world.operate()

    def _starter(self, host: SimHost) -> Callable[[int], None]:
        def start(now_us: int) -> None:
            host.start(now_us)
            self.world.relist(host)

        return start

    def _applier(self, number: int, spec: VirtualRouterSpec) -> Callable[[int], None]:
        return lambda _: self.apply(number, spec)

    def _heal(self) -> None:
        self.world.disturbed_us = self.world.now_us
        for undo in self._undo:
            undo()
        self._undo.clear()
        self.world.loss = 0.0

    # --- faults ---------------------------------------------------------------------------------

    def _fault(self) -> None:
        self.faults += 1
        self.world.disturbed_us = self.world.now_us
        faults: tuple[Callable[[SimHost], None], ...] = (
            self._crash,
            self._restart,
            self._pause,
            self._cut,
            self._one_way,
            self._one_way_to_one,
            self._slow_bind,
            self._failing_bind,
            self._api_away,
            self._carrier,
            self._flush,
            self._stranger,
            self._change_plan,
            self._change_plan,
            self._stop,
            self._order,
            self._order,
            self._stall_at_take,
            self._failing_take,
            self._foreigner,
        )
        fault = self.rng.choice(faults)
        host = self.rng.choice(self.world.hosts)
        self.world.trace(host.name, f"fault {fault.__name__.strip('_')}", self.world.now_us)
        if len(self._undo) > 3 or self.rng.random() < 0.3:
            self._undo.pop(0)() if self._undo else None
        fault(host)

    def _later(self, undo: Callable[[], None]) -> None:
        self._undo.append(undo)

    def _revive(self, host: SimHost) -> Callable[[], None]:
        def revive() -> None:
            if host.node is None or host.node.stopped:
                self._starter(host)(self.world.now_us)

        return revive

    def _crash(self, host: SimHost) -> None:
        host.crash()
        self._later(self._revive(host))

    def _restart(self, host: SimHost) -> None:
        host.kill()
        self.world.schedule(
            self.world.now_us + self.rng.randrange(1_000, 3 * SECOND), lambda _: self._revive(host)()
        )

    def _stop(self, host: SimHost) -> None:
        host.deliver(on.StopRequested(), self.world.now_us)
        self._later(self._revive(host))

    def _pause(self, host: SimHost) -> None:
        if not host.running:
            return
        host.paused = True

        def resume(now_us: int) -> None:
            host.paused = False
            host.busy_until_us = max(host.busy_until_us, now_us)
            host.turn(now_us)

        length_us = self.rng.choice((50_000, 250_000, 350_000, SECOND, 4 * SECOND))
        self.world.schedule(self.world.now_us + length_us, resume)

    def _cut(self, host: SimHost) -> None:
        """A host, or it and another, fall off the segment."""
        side = {host.name, self.rng.choice(self.world.hosts).name}
        others = [*(other.name for other in self.world.hosts if other.name not in side), "client"]
        cut = {(a, b) for a in sorted(side) for b in others} | {(b, a) for a in sorted(side) for b in others}
        new = cut - self.world.cut
        self.world.cut |= new
        self._later(lambda: self.world.cut.difference_update(new))

    def _one_way(self, host: SimHost) -> None:
        new = {(host.name, other.name) for other in self.world.hosts if other is not host} - self.world.cut
        self.world.cut |= new
        self._later(lambda: self.world.cut.difference_update(new))

    def _one_way_to_one(self, host: SimHost) -> None:
        """One host does not hear one other, and everybody else does."""
        other = self.rng.choice(self.world.hosts)
        if other is not host:
            new = {(host.name, other.name)} - self.world.cut
            self.world.cut |= new
            self._later(lambda: self.world.cut.difference_update(new))

    def _slow_bind(self, host: SimHost) -> None:
        host.bind_delay_us = self.rng.choice((5_000, 60_000, 500_000))
        self._later(lambda: setattr(host, "bind_delay_us", 0))

    def _failing_bind(self, host: SimHost) -> None:
        host.bind_fails = self.rng.choice((1.0, 0.5))
        self.world.schedule(self.world.now_us + 3 * SECOND, lambda _: setattr(host, "bind_fails", 0.0))

    def _api_away(self, host: SimHost) -> None:
        away = {host.name} if self.rng.random() < 0.5 else {each.name for each in self.world.hosts}
        new = away - self.world.api_away
        self.world.api_away |= new

        def back() -> None:
            self.world.api_away -= new
            for each in self.world.hosts:
                if each.name in new:
                    self.world.relist(each)

        self._later(back)

    def _failing_take(self, host: SimHost) -> None:
        """The kernel refuses the lease for a while."""
        host.take_fails = True
        self.world.schedule(self.world.now_us + 2 * SECOND, lambda _: setattr(host, "take_fails", False))

    def _stall_at_take(self, host: SimHost) -> None:
        """Frozen between the decision to take over and the lease, or between the lease and the rest."""
        lengths = (0, 0, 4_000, 60_000, 350_000, 2 * SECOND)
        host.stall_at_take_us = (self.rng.choice(lengths), self.rng.choice(lengths))

    def _order(self, host: SimHost) -> None:
        """A hand-over order to whoever is Active, good or bad; withdrawn after a while."""
        for name in sorted(self.world.routers):
            router = self.world.routers[name]
            nodes = [each.node for each in router.spec.candidates]
            if host.name in nodes and self.rng.random() < 0.7:
                self._orders += 1
                to = self.rng.choice(nodes)
                order = Handover(f"order-{self._orders}", host.name, to)
                if self.rng.random() < 0.4:  # an heir that can bind only a part
                    heir = self.host(to)
                    heir.bind_fails = 0.5
                    self.world.schedule(
                        self.world.now_us + 3 * SECOND,
                        lambda _, heir=heir: setattr(heir, "bind_fails", 0.0),  # type: ignore[misc]
                    )
                self._hand_over(name, order)
                self.world.schedule(
                    self.world.now_us + 3 * SECOND,
                    lambda _, name=name: self._hand_over(name, None),  # type: ignore[misc]
                )

    def _hand_over(self, name: str, order: Handover | None) -> None:
        router = self.world.routers.get(name)
        if router is not None and router.spec.handover != order:
            spec = msgspec.structs.replace(router.spec, handover=order)
            self.world.apply(msgspec.structs.replace(router, spec=spec))

    def _foreigner(self, host: SimHost) -> None:
        """Somebody else's router with a VRID of ours, for some seconds."""
        del host
        number = self.rng.randrange(1, 5)
        priority = self.rng.choice((1, 100, 249, 254))
        source = wire.packed("10.0.0.99")
        advert = Advert(4, source, 50 + number, priority, 100_000, wire.packed("10.0.0.98"))
        frame = build(advert, bytes((2, 0xBB, 0, 0, 0, number)))
        until_us = self.world.now_us + self.rng.choice((1, 3, 6)) * SECOND

        def speak(now_us: int) -> None:
            if now_us < until_us:
                self.world.shout(frame, now_us)
                self.world.schedule(now_us + 100_000, speak)

        speak(self.world.now_us)

    def _carrier(self, host: SimHost) -> None:
        host.carrier = False
        host.deliver(host.link(), self.world.now_us)

        def back() -> None:
            host.carrier = True
            host.deliver(host.link(), self.world.now_us)

        self._later(back)

    def _flush(self, host: SimHost) -> None:
        """Another program removes all addresses with our mark."""
        host.kernel.bound.clear()
        host.deliver(host.addresses(self.world.now_us), self.world.now_us)

    def _stranger(self, host: SimHost) -> None:
        del host
        number = self.rng.randrange(1, 5)
        address = address_of(number, self.rng.randrange(0, 3), six=False)
        if address in self.world.ever_held:
            return
        self.world.strangers[address] = bytes((2, 0xAA, 0, 0, 0, number))

        def leave() -> None:
            self.world.strangers.pop(address, None)

        self._later(leave)

    def _change_plan(self, host: SimHost) -> None:
        del host
        number = self.rng.randrange(1, 5)
        known = self.world.routers.get(f"vr-{50 + number}")
        fresh = self.spec(number)
        if known is None:
            self.apply(number, fresh)
        elif self.rng.random() < 0.15:
            self.world.delete(known.metadata.name)
        else:
            old = {each.address: each for each in known.spec.addresses}
            addresses = tuple(old.get(each.address, each) for each in fresh.addresses)
            if self.rng.random() < 0.5:
                fresh = msgspec.structs.replace(fresh, candidates=known.spec.candidates)
            self.apply(number, msgspec.structs.replace(fresh, addresses=addresses))
