# SPDX-License-Identifier: Apache-2.0
"""Doors that open on nothing, and a brain that does what a test tells it."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

from holdfast_api.types import SpeakerStatus, VirtualRouter
from holdfast_speaker.effects import Effect, Form, Guard
from holdfast_speaker.events import AddressesSeen, Event, Link, LinksSeen, PlanRestored, StopRequested
from holdfast_speaker.loop import Loop
from holdfast_speaker.metrics import Metrics
from holdfast_speaker.ports import Surroundings

Answer = Callable[[Event, int], Sequence[Effect]]


class FakeBrain:
    """Writes down every event; ``answer`` says what to do. Stops at once when asked."""

    def __init__(self, answer: Answer = lambda _event, _now: ()) -> None:
        self.answer = answer
        self.handled: list[Event] = []
        self.deadline: int | None = None
        self.stopped = False
        self.stops = True

    def handle(self, event: Event, now_us: int) -> tuple[Effect, ...]:
        self.handled.append(event)
        wanted = tuple(self.answer(event, now_us))
        if isinstance(event, StopRequested) and self.stops:
            self.stopped = True
        return wanted

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.handled]


class FakeWire:
    """A pipe stands for the sockets: ``arrive`` makes it readable."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self.waiting: list[tuple[int, bytes]] = []
        self.sent: list[tuple[int, bytes]] = []
        self.heard: frozenset[int] = frozenset()
        self.mended = 0
        self.takes = True

    def arrive(self, *frames: tuple[int, bytes]) -> None:
        self.waiting += frames
        os.write(self._write, b"x")

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)

    def hear(self, indexes: frozenset[int]) -> None:
        self.heard = indexes

    def mend(self) -> None:
        self.mended += 1

    def fileno(self) -> int:
        return self._read

    def drain(self, limit: int) -> list[tuple[int, bytes]]:
        now, self.waiting = self.waiting[:limit], self.waiting[limit:]
        if now and not self.waiting:
            os.read(self._read, 65536)
        return now

    def send(self, index: int, frames: Iterable[bytes]) -> int:
        frames = list(frames) if self.takes else []
        self.sent += [(index, frame) for frame in frames]
        return len(frames)


class FakeAddresses:
    """Remembers what is bound; ``refuse`` names what cannot be."""

    def __init__(self) -> None:
        self.bound: set[tuple[int, str]] = set()
        self.refuse: dict[str, str] = {}
        self.calls: list[tuple[str, int, tuple[str, ...]]] = []
        self.seen: asyncio.Queue[LinksSeen | AddressesSeen] = asyncio.Queue()
        self.around = Surroundings()
        self.macs: dict[int, Mapping[str, str]] = {}

    def prepare(self, index: int, addresses: frozenset[str], macs: Mapping[str, str] = {}) -> None:
        self.calls.append(("prepare", index, tuple(sorted(addresses))))
        self.macs[index] = macs

    def bind(self, index: int, addresses: Sequence[str]) -> dict[str, str]:
        self.calls.append(("bind", index, tuple(addresses)))
        self.bound |= {(index, a) for a in addresses if a not in self.refuse}
        return {a: self.refuse[a] for a in addresses if a in self.refuse}

    def release(self, index: int, addresses: Sequence[str]) -> dict[str, str]:
        self.calls.append(("release", index, tuple(addresses)))
        self.bound -= {(index, a) for a in addresses}
        return {}

    def refresh(self, index: int, addresses: Sequence[str]) -> None:
        self.calls.append(("refresh", index, tuple(addresses)))

    async def watch(self) -> AsyncIterator[LinksSeen | AddressesSeen]:
        while True:
            yield await self.seen.get()

    def surroundings(self, index: int) -> Surroundings:  # noqa: ARG002 - the same on every NIC
        return self.around

    async def release_everything(self) -> int:
        left, self.bound = len(self.bound), set()
        return left


class FakeFrames:
    """A frame is its form and its address."""

    def __init__(self) -> None:
        self.links: Sequence[Link] = ()
        self.prepared: list[tuple[int, frozenset[str], Mapping[str, str], bool]] = []

    def see(self, links: Sequence[Link]) -> None:
        self.links = links

    def prepare(
        self, index: int, addresses: frozenset[str], macs: Mapping[str, str] = {}, *, forwarding: bool
    ) -> None:
        self.prepared.append((index, addresses, macs, forwarding))

    def frames(self, index: int, form: Form, address: str, around: Surroundings) -> Sequence[bytes]:  # noqa: ARG002
        targets = [*around.gateways, *around.neighbours] if form == "ask" else [None]
        return [f"{form} {address}".encode() for _ in targets]


class FakeFence:
    """Open once taken; ``refuses`` and ``dead`` do as they say."""

    def __init__(self) -> None:
        self.fault = ""
        self.calls: list[tuple[str, int]] = []
        self.refuses = self.dead = self.closed = False
        self.lost: frozenset[int] = frozenset()
        self.heard: frozenset[str] = frozenset()
        self.sheltered = 0
        self.guards: list[Guard] = []
        self.covered: frozenset[int] = frozenset()
        self.adopted: list[str] = []

    def cover(self, indexes: frozenset[int]) -> None:
        self.covered = indexes

    def guard(
        self,
        virtual_router_id: int,
        index: int,
        lease_us: int,
        addresses: Iterable[str],
        macs: Mapping[str, str] = {},
        own: str | None = None,
    ) -> None:
        self.calls.append(("guard", virtual_router_id))
        self.guards.append(
            Guard(virtual_router_id, index, lease_us, tuple(addresses), tuple(macs.items()), own)
        )

    def shelter(self) -> None:
        self.sheltered += 1

    def heard_macs(self) -> frozenset[str]:
        return self.heard

    def unguard(self, virtual_router_id: int) -> None:
        self.calls.append(("unguard", virtual_router_id))

    def take(self, virtual_router_id: int) -> bool:
        self.calls.append(("take", virtual_router_id))
        return not self.refuses

    def extend(self, virtual_router_id: int) -> bool:
        self.calls.append(("extend", virtual_router_id))
        return not self.dead

    def quiet(self, virtual_router_id: int) -> None:
        self.calls.append(("quiet", virtual_router_id))

    def silent(self, virtual_router_id: int) -> None:
        self.calls.append(("silent", virtual_router_id))

    def release(self, virtual_router_id: int) -> None:
        self.calls.append(("release", virtual_router_id))

    def alive(self, virtual_router_id: int) -> bool:  # noqa: ARG002 - all live or none
        return not self.dead

    def adopt(self, address: str) -> None:
        self.adopted.append(address)

    def refresh(self) -> None:
        self.calls.append(("refresh", 0))

    def mend(self) -> frozenset[int]:
        lost, self.lost = self.lost, frozenset()
        return lost

    def close(self) -> None:
        self.closed = True


class FakeCluster:
    def __init__(self) -> None:
        self.news: asyncio.Queue[Event] = asyncio.Queue()
        self.reports: list[SpeakerStatus] = []
        self.flushed = False

    async def events(self) -> AsyncIterator[Event]:
        while True:
            yield await self.news.get()

    def report(self, status: SpeakerStatus) -> None:
        self.reports.append(status)

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def flush(self, at_most_s: float) -> None:  # noqa: ARG002 - nothing to wait for
        self.flushed = True


class FakePlan:
    def __init__(self, restored: PlanRestored | None = None) -> None:
        self.restored = restored
        self.kept: tuple[tuple[VirtualRouter, ...], tuple[tuple[str, int], ...]] | None = None
        self.flushed = False

    def restore(self) -> PlanRestored | None:
        return self.restored

    def keep(self, routers: tuple[VirtualRouter, ...], terms: tuple[tuple[str, int], ...]) -> None:
        self.kept = (routers, terms)

    async def run(self) -> None:
        await asyncio.Event().wait()

    def flush(self) -> None:
        self.flushed = True


class House:
    """A loop with all doors faked. Make it inside a running asyncio loop."""

    def __init__(self, brain: FakeBrain, restored: PlanRestored | None = None) -> None:
        self.brain = brain
        self.wire = FakeWire()
        self.addresses = FakeAddresses()
        self.frames = FakeFrames()
        self.fence = FakeFence()
        self.cluster = FakeCluster()
        self.plan = FakePlan(restored)
        self.metrics = Metrics("test", "h1")
        self.loop = Loop(
            brain,
            wire=self.wire,
            addresses=self.addresses,
            frames=self.frames,
            fence=self.fence,
            cluster=self.cluster,
            plan=self.plan,
            metrics=self.metrics,
        )

    async def live(self, story: Callable[[], object] | None = None, seconds: float = 0.05) -> int:
        """Run, do ``story`` soon, stop after ``seconds``; the exit status."""
        running = asyncio.get_running_loop()
        if story is not None:
            running.call_later(0.01, story)
        running.call_later(seconds, self.loop.stop)
        try:
            return await self.loop.run()
        finally:
            self.wire.close()

    def sample(self, name: str, **labels: str) -> float:
        found = self.metrics.registry.get_sample_value(f"holdfast_{name}", labels)
        assert found is not None
        return found
