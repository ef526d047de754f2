# SPDX-License-Identifier: Apache-2.0
"""The whole brain, fed with anything for a while: it raises nothing, always gets on, and stays small.

An input is one byte that says what it is, and the rest:

    0..218    a frame on NIC 2 (even) or 3 (odd); from 200 on signed at this moment, where keys are in use
    219       a frame on NIC 9, which is not there
    220..229  time: the next three bytes in units of 10 us
    230..239  a VirtualRouter as the API sends it: RouterChanged or RouterRejected
    240..243  a list of them
    244, 245  one is deleted: its name
    246, 247  the kernel's list of addresses with our mark: four bytes each
    248       the API confirms
    249       the kernel refuses addresses, or takes them again
    250       the frame fifteen hundred times, each time from somebody else
    251       frames by virtual MACs of ours have come in: six bytes each
"""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from random import Random
from typing import Any, Final, Literal

import msgspec
from msgspec.structs import replace

from holdfast_api.types import Interface, VirtualRouter
from holdfast_speaker import effects as do
from holdfast_speaker import events as on
from holdfast_speaker.cluster import read_router
from holdfast_speaker.node import Node
from holdfast_speaker.vrrp.advert import Discard, build, parse
from tests.fuzz import frames
from tests.fuzz.mutate import damaged_json
from tests.fuzz.targets import Target, objects
from tests.scripts.stage import INDEX, Stage

MOST_WAKES: Final = 2_000  # of one passage of time, at most 21 s
LARGEST_TABLE: Final = 20_000  # entries of one container: 255 routers, 255 addresses, two NICs
LARGEST_TABLE_OF_STRANGERS: Final = 1_200  # where the plan stood still: 255 VRIDs on two NICs, twice
HEAVY: Final = frozenset(bytes((kind,)) for kind in (*range(220, 230), 250))  # many events in one input
_FLOOD: Final = 1_500

_PLAN: Final = (
    f"plan vr-51 10.0.0.100={frames.VIRTUAL_MAC.hex(':')} claimed 10.0.0.101 2001:db8::100 claimed "
    "candidates=a:250,b:248,c:246",
    "plan vr-52 10.0.0.102 claimed candidates=b:250,a:248 failback=Immediate",
    "plan vr-53 2001:db8::101 candidates=a:250,b:248 interval=10",
)


class _Quiet(Stage):
    """Keeps no record of what the brain does: a campaign is long."""

    def _tell(self, effect: do.Effect) -> None:
        del effect


class Brain(Target):
    """``brain``: everything changes. ``strangers``: the plan stands still, and the tables may grow only as
    far as frames may make them. ``sealed``: the same among speakers that have keys and enforce them.
    """

    batch = 250
    life = 2_500

    def __init__(self, name: Literal["brain", "strangers", "sealed"]) -> None:
        self.name = name  # type: ignore[misc]
        self._strangers = name != "brain"
        self._sealed = name == "sealed"

    def seeds(self) -> Sequence[bytes]:
        routers = [msgspec.json.encode(each) for each in objects() if each["kind"] == "VirtualRouter"]
        return [
            *(bytes((2 * number % 200,)) + frame for number, frame in enumerate(frames.recorded())),
            *(b"\xe6" + raw for raw in routers),
            b"\xf0[" + b",".join(routers[:3]) + b"]",
            b"\xf4vr-51",
            b"\xf6" + ip_address("10.0.0.100").packed,
            b"\xfb" + frames.VIRTUAL_MAC,
        ]

    def make(self, rng: Random, pool: Sequence[bytes]) -> bytes:
        kind = int(rng.random() * 252)
        if self._strangers and 229 < kind < 249:
            kind -= 229
        if kind >= 220 and rng.random() < 0.5:
            kind = int(rng.random() * 230)
        head = bytes((kind,))
        if kind < 220:
            return head + frames.random_frame(rng, (_one(rng, pool, 0, 220),))
        if kind == 250:
            return head + build(frames.random_advert(rng), frames.MAC)
        if kind == 251:
            several = (frames.VIRTUAL_MAC, frames.MAC, rng.randbytes(6), rng.randbytes(int(rng.random() * 9)))
            return head + b"".join(several[int(rng.random() * 4) :])
        if kind < 230:
            return head + int(rng.random() ** 6 * 2**21).to_bytes(3, "big")
        if kind < 244:
            known = _one(rng, pool, *((230, 240) if kind < 240 else (240, 244)))
            return head + damaged_json(rng, known, (known,))
        if kind < 246:
            return head + (b"vr-51", b"vr-52", b"vr-53", b"vr-255", rng.randbytes(3))[int(rng.random() * 5)]
        if kind < 248:
            return head + b"".join(
                frames.ADDRESSES4[int(rng.random() * 4)] for _ in range(int(rng.random() * 4))
            )
        return head

    def begin(self) -> None:
        self._stage = stage = _Quiet()
        seal, self._peer = frames.fresh_seal(), frames.fresh_seal()
        stage.node = Node(
            stage.name, "fuzz", wall_offset_us=frames.WALL_US, seal=seal if self._sealed else None
        )
        cidrs = ("10.0.0.1/16", "2001:db8::1/64", "fe80::1/64")
        other = ("192.0.2.1/24", "fe80::2/64")
        links = (
            on.Link(INDEX, Interface("eth0", "02:00:00:00:00:01", cidrs, True)),
            on.Link(INDEX + 1, Interface("eth1", "02:00:00:00:01:01", other, True)),
        )
        stage.handle(on.LinksSeen(links))
        for command in _PLAN:
            stage.perform(command)
        stage.plans["vr-52"] = _without_ipv6_sources(stage.plans["vr-52"])
        stage.perform("list")
        self._pass(2_000_000)

    def run(self, data: bytes) -> Hashable:
        kind, rest = (data[0], data[1:]) if data else (0, b"")
        stage = self._stage
        stage.effects.clear()
        if kind < 220:
            frame = self._signed(rest) if self._sealed and kind >= 200 else rest
            stage.handle(on.FrameReceived(9 if kind == 219 else INDEX + kind % 2, frame))
        elif kind < 230:
            self._pass(int.from_bytes(rest[:3]) * 10)
        elif kind == 249:
            stage.bind_fails = "" if stage.bind_fails else "refused"
        elif kind == 251:
            macs = (rest[at : at + 6].hex(":") for at in range(0, len(rest), 6))
            stage.handle(on.MacsHeard(frozenset(macs)))
        elif kind == 250:
            for number in range(_FLOOD):
                frame = _from_somebody(rest, number)
                stage.handle(on.FrameReceived(INDEX, self._signed(frame) if self._sealed else frame))
        else:
            for event in _told(kind, rest):
                stage.handle(event)
        self._pass(100)
        return kind // 10, tuple(type(effect).__name__ for effect in stage.effects[:3])

    def _signed(self, frame: bytes) -> bytes:
        """The same advert from somebody who has the key; what is no advert stays as it is."""
        advert = parse(frame)
        if isinstance(advert, Discard):
            return frame
        return self._peer.sign(advert, frames.MAC, self._stage.now_us)

    def _pass(self, by_us: int) -> None:
        """Time passes and deadlines are served, as the loop does."""
        stage = self._stage
        until_us = stage.now_us + by_us
        wakes = 0
        while (deadline_us := stage.node.deadline) is not None and deadline_us <= until_us:
            stage.now_us = max(stage.now_us + 1_000 * (wakes > MOST_WAKES // 2), deadline_us)
            stage.handle(on.TimerFired())
            stage.effects.clear()
            wakes += 1
            assert wakes <= MOST_WAKES + by_us // 1_000, "the deadline does not get on"
        stage.now_us = max(stage.now_us, until_us)

    def bounded(self) -> None:
        """AssertionError when a table is larger than what can be in it."""
        largest = LARGEST_TABLE_OF_STRANGERS if self._strangers else LARGEST_TABLE
        for where, size in sizes(self._stage.node):
            assert size <= largest, f"{where} has {size} entries"


def _one(rng: Random, pool: Sequence[bytes], least: int, end: int) -> bytes:
    """The rest of some input of these kinds; of the seeds there is always one."""
    for _ in range(20):
        data = pool[int(rng.random() * len(pool))]
        if least <= data[0] < end:
            return data[1:]
    return next(data for data in pool if least <= data[0] < end)[1:]


def _without_ipv6_sources(router: VirtualRouter) -> VirtualRouter:
    """Candidates may have NICs without IPv6; everybody else on the segment may not."""
    candidates = (replace(each, sources=each.sources[:1]) for each in router.spec.candidates)
    return replace(router, spec=replace(router.spec, candidates=tuple(candidates)))


def _from_somebody(frame: bytes, number: int) -> bytes:
    """The same from another source."""
    whole, four = bytearray(frame), frame[12:14] == b"\x08\x00"
    place = 28 if four else 36
    if len(whole) >= place + 2:
        whole[place : place + 2] = number.to_bytes(2, "big")
    return frames.mended(bytes(whole))


def _told(kind: int, rest: bytes) -> Iterator[on.Event]:
    if kind < 240:
        read = read_router(msgspec.Raw(rest))
        yield read if isinstance(read, on.RouterRejected) else on.RouterChanged(read)
    elif kind < 244:
        try:
            each = [read_router(raw) for raw in msgspec.json.decode(rest, type=list[msgspec.Raw])]
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return  # the watch takes no such list for one
        rejected = tuple((bad.name, bad.why) for bad in each if isinstance(bad, on.RouterRejected))
        yield on.RoutersListed(
            tuple(good for good in each if not isinstance(good, on.RouterRejected)), rejected
        )
    elif kind < 246:
        yield on.RouterDeleted(rest.decode(errors="replace"))
    elif kind < 248:
        packed = [rest[at : at + 4] for at in range(0, len(rest) - 3, 4)]
        yield on.AddressesSeen(frozenset((INDEX, str(ip_address(each))) for each in packed))
    else:
        yield on.ApiConfirmed()


def sizes(root: object) -> Iterator[tuple[str, int]]:
    """Where and how many: every container that can be reached from an object of ours."""
    seen: set[int] = set()
    waiting: deque[tuple[str, Any]] = deque([(type(root).__name__, root)])
    while waiting:
        where, value = waiting.popleft()
        if id(value) in seen or isinstance(value, str | bytes | int | float | type | None):
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            yield where, len(value)
            waiting.extend((f"{where}[]", each) for pair in value.items() for each in pair)
        elif isinstance(value, list | tuple | set | frozenset | deque):
            yield where, len(value)
            waiting.extend((f"{where}[]", each) for each in value)
        elif type(value).__module__.startswith("holdfast"):
            names = [name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())]
            names += [*getattr(value, "__dict__", ()), *getattr(value, "__struct_fields__", ())]
            waiting.extend(
                (f"{type(value).__name__}.{name}", getattr(value, name, None))
                for name in dict.fromkeys(names)
            )
