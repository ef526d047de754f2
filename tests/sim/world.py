# SPDX-License-Identifier: Apache-2.0
"""The segment, the API and the clock of a simulated cluster: one queue of events, in order."""

import hashlib
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

import msgspec

from holdfast_api.types import RouterAddress, VirtualRouter
from holdfast_speaker import effects as do
from holdfast_speaker import events as on
from tests.sim import text, wire
from tests.sim.host import SimHost
from tests.sim.switch import Switch

ROUND_US = 10_000


class World:
    """Time in microseconds. ``watchers`` are called each 10 ms; they raise when something is wrong."""

    def __init__(self, seed: int, hosts: int) -> None:
        self.rng = Random(seed)
        self.now_us = 1_000_000
        self.loss = 0.0
        self.duplicates = 0.0
        self.slow = 0.0  # the share of frames that others overtake
        self.cut: set[tuple[str, str]] = set()  # (from, to): nothing passes
        self.routers: dict[str, VirtualRouter] = {}
        self.api_away: set[str] = set()
        self.api_delay_us = dict.fromkeys((f"n{number}" for number in range(1, hosts + 1)), 0)
        self.watchers: list[Callable[[World], None]] = []
        self.cache: dict[str, bytes] = {}  # the client's: address -> MAC
        self.switch = Switch()
        self.strangers: dict[str, bytes] = {}  # address -> MAC of a host that is none of ours
        self.recent_intervals_us: dict[str, tuple[int, ...]] = {}  # of an address's router, old ones too
        self.answered_at_us: dict[tuple[str, str], int] = {}  # (host, address): a stranger did
        self.ever_held: set[str] = set()
        self.disturbed_us = 0  # the last fault, or the end of one
        self.lines: list[str] | None = None
        self._digest = hashlib.sha256()
        self._queue: list[tuple[int, int, Callable[[int], None]]] = []
        self._serial = 0
        self.hosts = [SimHost(f"n{n}", n, Random(self.rng.random())) for n in range(1, hosts + 1)]
        self.own = frozenset(wire.packed(f"10.0.0.{host.number}") for host in self.hosts)
        for host in self.hosts:
            host.send = self._send
            host.announce = self._announce
            host.observe = self._observe
            host.taking = self._taking
            host.schedule = self.schedule

    # --- time -----------------------------------------------------------------------------------

    def schedule(self, at_us: int, call: Callable[[int], None]) -> None:
        self._serial += 1
        heappush(self._queue, (at_us, self._serial, call))

    def run(self, until_us: int) -> None:
        next_round_us = self.now_us
        while self._queue and self._queue[0][0] <= until_us:
            at_us, _, call = heappop(self._queue)
            while next_round_us < at_us:
                self.now_us = max(self.now_us, next_round_us)
                for watcher in self.watchers:
                    watcher(self)
                next_round_us += ROUND_US
            self.now_us = max(self.now_us, at_us)
            call(self.now_us)
        self.now_us = until_us

    def trace(self, host: str, line: str, at_us: int) -> None:
        entry = f"{at_us / 1e6:12.6f} {host:4} {line}"
        self._digest.update(entry.encode())
        if self.lines is not None:
            self.lines.append(entry)

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    # --- the segment ----------------------------------------------------------------------------

    def reaches(self, source: str, target: str) -> bool:
        return (source, target) not in self.cut

    def connected(self, a: SimHost, b: SimHost) -> bool:
        return a.carrier and b.carrier and self.reaches(a.name, b.name) and self.reaches(b.name, a.name)

    def _send(self, host: SimHost, frame: bytes, at_us: int) -> None:
        self.trace(host.name, f"send {text.frame(frame)}", at_us)
        virtual = frame[6:12] in self.switch.macs
        if virtual and not self.switch.passes(self, host, frame[6:12], at_us, to_all=False):
            return
        if wire.is_question(frame):
            self._greet(host, frame, at_us)
            return
        self._broadcast(host, frame, at_us)

    def _greet(self, host: SimHost, frame: bytes, at_us: int) -> None:
        """The kernel of whoever is asked answers, whatever its speaker does."""
        for other in self.hosts:
            there = other is not host and other.mac == frame[:6] and other.up
            if there and self.connected(host, other) and self.rng.random() >= 2 * self.loss:
                self._deliver(host, wire.answer(frame, other.mac), at_us + 50)

    def _broadcast(self, host: SimHost, frame: bytes, at_us: int) -> None:
        for other in self.hosts:
            if other is not host and self.reaches(host.name, other.name) and self.rng.random() >= self.loss:
                self._deliver(other, frame, at_us)
                if self.duplicates and self.rng.random() < self.duplicates:
                    self._deliver(other, frame, at_us + self.rng.randrange(0, 50_000))

    def shout(self, frame: bytes, at_us: int) -> None:
        """From a station that is none of ours."""
        for host in self.hosts:
            if self.reaches("client", host.name) and self.rng.random() >= self.loss:
                self._deliver(host, frame, at_us)

    def _deliver(self, host: SimHost, frame: bytes, at_us: int) -> None:
        event = on.FrameReceived(host.INDEX, frame)
        arrives_us = at_us + self.rng.randrange(20, 300)
        if self.slow and self.rng.random() < self.slow:
            arrives_us += self.rng.randrange(300, 6_000)
        self.schedule(arrives_us, lambda now_us: self._arrive(host, event, now_us))

    def _arrive(self, host: SimHost, event: on.FrameReceived, now_us: int) -> None:
        if host.carrier:
            host.deliver(event, now_us)

    def _announce(self, host: SimHost, effect: do.Announce, at_us: int) -> None:
        self.trace(host.name, f"announce {effect.form} {' '.join(effect.addresses)}", at_us)
        for address in effect.addresses:
            if effect.form == "probe":
                self._ask(host, address, at_us)
            elif not self._speak_for(host, address, at_us, to_all=effect.form == "announce"):
                return  # the socket gave ENOBUFS: the rest of the batch is not sent either

    def _speak_for(self, host: SimHost, address: str, at_us: int, *, to_all: bool) -> bool:
        """An announcement, or a question to the client."""
        mac = host.kernel.macs.get(address)
        if mac is not None and not self.switch.passes(self, host, mac, at_us, to_all=to_all):
            return False
        if self.reaches(host.name, "client"):
            self.cache[address] = mac or host.mac
        if to_all:
            self._broadcast(host, wire.claim(address, mac or host.mac), at_us)
        return True

    def _ask(self, host: SimHost, address: str, at_us: int) -> None:
        """A kernel that has the address answers, whatever its speaker does."""
        self._broadcast(host, wire.probe(address, host.mac), at_us)
        for other in self.hosts:
            if other is not host and other.kernel.answers(address, at_us) and self.connected(host, other):
                mac = other.kernel.placed.get(address, other.mac)
                if mac is not other.mac:
                    self.switch.passes(self, other, mac, at_us, to_all=False)
                self._deliver(host, wire.claim(address, mac), at_us)
        if address in self.strangers and self.reaches(host.name, "client"):
            self._deliver(host, wire.claim(address, self.strangers[address]), at_us)
            self.answered_at_us[host.name, address] = at_us

    def _observe(self, host: SimHost, line: str, at_us: int) -> None:
        self.trace(host.name, line, at_us)
        verb, _, address = line.partition(" ")
        if verb == "bind":
            for watcher in self.on_bind:
                watcher(self, host, address, at_us)
            self.ever_held.add(address)

    def _taking(self, host: SimHost, virtual_router_id: int, at_us: int) -> None:
        for watcher in self.on_take:
            watcher(self, host, virtual_router_id, at_us)

    on_take: tuple[Callable[["World", SimHost, int, int], None], ...] = ()
    on_bind: tuple[Callable[["World", SimHost, str, int], None], ...] = ()

    # --- the API --------------------------------------------------------------------------------

    def apply(self, router: VirtualRouter) -> None:
        """Create or replace; every host that the API reaches hears of it after its delay."""
        name = router.metadata.name
        known = self.routers.get(name)
        generation = known.metadata.generation + 1 if known else 1
        router = msgspec.structs.replace(
            router, metadata=msgspec.structs.replace(router.metadata, generation=generation)
        )
        self.routers[name] = router
        self._tell(on.RouterChanged(router))

    def delete(self, name: str) -> None:
        if self.routers.pop(name, None) is not None:
            self._tell(on.RouterDeleted(name))

    def _tell(self, event: on.RouterChanged | on.RouterDeleted) -> None:
        for host in self.hosts:
            if host.name not in self.api_away:
                at_us = self.now_us + self.api_delay_us[host.name]
                self.schedule(at_us, lambda now_us, host=host: self._hear(host, event, now_us))  # type: ignore[misc]

    def _hear(self, host: SimHost, event: on.RouterChanged | on.RouterDeleted, now_us: int) -> None:
        if host.name in self.api_away or host.node is None:
            return
        host.deliver(event, now_us)

    def relist(self, host: SimHost) -> None:
        """The API is reachable (again): a complete list first."""
        routers = tuple(self.routers[name] for name in sorted(self.routers))
        self.schedule(
            self.now_us + self.api_delay_us[host.name], lambda now_us: self._list(host, routers, now_us)
        )

    def _list(self, host: SimHost, routers: tuple[VirtualRouter, ...], now_us: int) -> None:
        if host.name in self.api_away or host.node is None:
            return
        host.deliver(on.RoutersListed(routers), now_us)

    def operate(self) -> None:
        """The operator's part: what was seen held is claimed from now on."""
        held = {
            address
            for host in self.hosts
            if host.running and host.status is not None and host.name not in self.api_away
            for router in host.status.routers
            for address in router.held
        }
        for router in list(self.routers.values()):
            addresses = tuple(self._claim(each, held) for each in router.spec.addresses)
            if addresses != router.spec.addresses:
                spec = msgspec.structs.replace(router.spec, addresses=addresses)
                self.apply(msgspec.structs.replace(router, spec=spec))

    @staticmethod
    def _claim(each: RouterAddress, held: set[str]) -> RouterAddress:
        return msgspec.structs.replace(each, claimed=each.claimed or each.address in held)
