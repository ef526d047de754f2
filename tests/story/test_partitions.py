# SPDX-License-Identifier: Apache-2.0
"""The segment falls apart and heals, again and again: one Active on each side, then one, and no wrong cache.

Each side has hosts and a client. A witness on a port of its own hears both sides all the time. A partition
lasts 0.5 to 3 s. ``PARTITIONS=50 .venv/bin/pytest tests/story/test_partitions.py -s`` makes fifty, each
tenth of 20 s; without, it is four, and two with two plan generations.
"""

import os
import random
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from tests.rig.api import socket_in
from tests.rig.fleet import V4, V6, Fleet, router
from tests.rig.network import Station, mac_of, neighbour, netns_path
from tests.rig.probe import Answers, Probe
from tests.rig.run import Run
from tests.rig.witness import Account, Witness

pytestmark = pytest.mark.netns

PARTITIONS = int(os.environ.get("PARTITIONS", "4"))
LONG_EACH, LONG_S = 10, 20.0  # in a long run
SHORTEST_S, LONGEST_S = 0.5, 3.0
SETTLED_S = 0.8  # a Backup takes over after 0.3 s; who is Active on a side is asked of longer partitions only
LAST_S = 0.25  # of a partition: who advertises then is Active
WATCHED_S = 1.2  # after healing
TAKEN_MS = 320.0  # Active_Down, the longest skew of these candidates, the takeover
NOISE_MS = 400.0  # one interval is promised; a busy machine may be late by this much more


@dataclass(frozen=True, slots=True)
class Client:
    """Asks 200 times a second: 5 ms is fine enough for what is measured here."""

    namespace: str
    station: Station
    probe: Probe


@dataclass(frozen=True, slots=True)
class Partition:
    """When (monotonic) it began, when it was over, and the MACs of the hosts on each side."""

    begin: float
    cut: float
    heal: float
    end: float
    sides: tuple[frozenset[str], frozenset[str]]


@pytest.fixture
def fleet(rig_ready: None) -> Iterator[Fleet]:  # noqa: ARG001  root and tools, or a failure that says so
    with Run() as run:
        yield Fleet(run, hosts=4)


@pytest.fixture
def clients(fleet: Fleet) -> Iterator[list[Client]]:
    """One for each side."""
    second = fleet.run.add_namespace("client2")
    cable = fleet.segment.connect("client2", 251, port="client2", careful=False)
    places = [(fleet.client, fleet.client_cable), (second, cable)]
    made: list[Client] = []
    try:
        for netns, cable in places:
            station = Station(cable, mac_of(netns.name, "eth0"))
            probe = Probe(fleet.run, netns, [V4, V6], rate_hz=200)
            made.append(Client(netns.name, station, probe))
        yield made
    finally:
        for client in made:
            client.probe.__exit__()


@pytest.mark.timeout(120 + 10 * PARTITIONS)
def test_after_each_healing_there_is_one_active_and_no_cache_is_wrong(
    fleet: Fleet, clients: list[Client]
) -> None:
    fleet.start(router(7, V4, V6, candidates=fleet.candidates()))
    story(fleet, clients, PARTITIONS, interval_ms=100, seed=4)


@pytest.mark.timeout(120 + 10 * PARTITIONS)
def test_the_same_with_two_generations_of_the_plan(fleet: Fleet, clients: list[Client]) -> None:
    """Half of the hosts have read of 50 ms adverts, the others still say 100 ms."""
    for interval_ms, hosts in ((100, fleet.hosts[::2]), (50, fleet.hosts[1::2])):
        plan = router(7, V4, V6, interval_ms=interval_ms, candidates=fleet.candidates())
        fleet.start(plan, hosts=hosts)
    story(fleet, clients, max(1, PARTITIONS // 2), interval_ms=100, seed=5)


def test_a_host_alone_with_a_client_serves_it_at_once(fleet: Fleet, clients: list[Client]) -> None:
    """It hears none of the other hosts any more, but the client that it knows answers: it is not cut off.

    Without a witness, whose questions would come in there.
    """
    fleet.start(router(7, V4, V6, candidates=fleet.candidates()))
    first = fleet.until_held(V4, V6)
    alone = fleet.hosts[-1] if first is not fleet.hosts[-1] else fleet.hosts[0]
    for client in clients:
        for address in (V4, V6):
            client.probe.wait_answer(address)
    time.sleep(1.0)
    with socket_in(netns_path(clients[1].namespace), socket.AF_INET, socket.SOCK_DGRAM, 0) as sock:
        sock.sendto(b"", ("192.0.2.77", 9))  # who has it? Everybody hears this client
    time.sleep(0.5)
    rest = [fleet.station(host) for host in fleet.hosts if host is not alone]
    begin = time.monotonic()
    fleet.segment.part([*rest, clients[0].station], [fleet.station(alone), clients[1].station])
    gaps = [clients[1].probe.wait_gap(address, after=begin) for address in (V4, V6)]
    print(f"alone with a client: served after {max(gap.ms for gap in gaps):.0f} ms")
    assert {gap.mac_after for gap in gaps} == {alone.mac}
    assert max(gap.ms for gap in gaps) <= TAKEN_MS + NOISE_MS


def story(fleet: Fleet, clients: list[Client], count: int, *, interval_ms: int, seed: int) -> None:
    """Falls apart and heals so often; then what the witness and the clients saw is judged."""
    fleet.until_held(V4, V6)
    for client in clients:
        for address in (V4, V6):
            client.probe.wait_answer(address)
    chance = random.Random(seed)
    done: list[Partition] = []
    stale: list[str] = []
    with Witness(fleet.segment, V4, V6) as witness:
        time.sleep(0.5)
        for number in range(1, count + 1):
            seconds = chance.uniform(SHORTEST_S, LONGEST_S)
            if PARTITIONS >= LONG_EACH and number % LONG_EACH == 0:
                seconds = LONG_S
            done.append(part(fleet, clients, chance, seconds))
            time.sleep((interval_ms + NOISE_MS) / 1000)
            stale += wrong_caches(fleet, clients, done[-1])
            time.sleep(WATCHED_S - (interval_ms + NOISE_MS) / 1000 + chance.uniform(0.0, 0.3))
    seen = [client.probe.results() for client in clients]
    sources = {host.mac: (host.v4, host.v6) for host in fleet.hosts}
    figures = [Healing(each, witness, seen, sources) for each in done]
    tell(figures)
    print(f"takeovers: {fleet.takeovers()}; machine late {witness.stalled_ms:.0f} ms")
    assert stale == []
    allowed_ms = witness.room_ms(interval_ms + NOISE_MS)
    for figure in figures:
        assert figure.bad_sides == [], str(figure)
        assert len(figure.actives) == 1, str(figure)
        assert figure.one_active_ms <= allowed_ms, str(figure)
        assert figure.one_answers_ms <= allowed_ms, str(figure)
        assert figure.clients_ms <= allowed_ms, str(figure)


def part(fleet: Fleet, clients: list[Client], chance: random.Random, seconds: float) -> Partition:
    """In two, by chance: at least one host and one client on each side; and together again."""
    hosts = fleet.hosts.copy()
    chance.shuffle(hosts)
    middle = chance.randrange(1, len(hosts))
    halves = [hosts[:middle], hosts[middle:]]
    sides = [
        [*map(fleet.station, half), client.station] for half, client in zip(halves, clients, strict=True)
    ]
    begin = time.monotonic()
    fleet.segment.part(*sides)
    cut = time.monotonic()
    time.sleep(seconds)
    heal = time.monotonic()
    fleet.segment.part([station for side in sides for station in side])
    end = time.monotonic()
    macs = [frozenset(host.mac for host in half) for half in halves]
    return Partition(begin, cut, heal, end, (macs[0], macs[1]))


def wrong_caches(fleet: Fleet, clients: Sequence[Client], partition: Partition) -> list[str]:
    """What the kernels of the clients believe, against who has the addresses."""
    wrong = []
    for address in (V4, V6):
        macs = [host.mac for host in fleet.hosts if host.holds(address)]
        entries = [neighbour(client.namespace, address) for client in clients]
        if len(macs) != 1 or any(macs[0] not in entry for entry in entries):
            wrong.append(f"{address}: held by {macs}, clients say {entries}, after {partition}")
    return wrong


class Healing:
    """What one partition and its end looked like from outside."""

    def __init__(
        self,
        partition: Partition,
        witness: Witness,
        seen: Sequence[dict[str, Answers]],
        sources: dict[str, tuple[str, str]],
    ) -> None:
        self.partition = partition
        self._witness = witness
        self._macs = tuple(sources)
        heal, end = partition.heal, partition.end
        settled = end + 0.8
        self.actives = self._advertisers(settled, end + WATCHED_S)
        winner = next(iter(self.actives), "")
        others = [at for mac, at in self._adverts(heal, end + WATCHED_S) if mac != winner]
        self.one_active_ms = max([0.0, *((at - heal) * 1000 for at in others)])
        late = [_last_answer(account, winner, heal, end + WATCHED_S) for account in witness.accounts]
        self.one_answers_ms = max((at - heal) * 1000 if at else 0.0 for at in late)
        self.clients_ms = max(
            _silence_ms(answers, heal, end + WATCHED_S) for client in seen for answers in client.values()
        )
        self.bad_sides: list[str] = []
        if heal - partition.cut >= SETTLED_S:
            active = self._advertisers(heal - LAST_S, heal)
            for side in partition.sides:
                if len(active & side) != 1:
                    self.bad_sides.append(f"{sorted(active & side)} advertise among {sorted(side)}")

    def _adverts(self, since: float, until: float) -> list[tuple[str, float]]:
        heard = self._witness.every_advert(since=since, until=until)
        return [(advert.mac, advert.at) for advert in heard if advert.mac in self._macs]

    def _advertisers(self, since: float, until: float) -> frozenset[str]:
        return frozenset(mac for mac, _ in self._adverts(since, until))

    def __str__(self) -> str:
        seconds = self.partition.heal - self.partition.cut
        sizes = "+".join(str(len(side)) for side in self.partition.sides)
        return (
            f"{seconds:5.2f} s, {sizes} hosts; healed: one Active after {self.one_active_ms:3.0f} ms, "
            f"one answers after {self.one_answers_ms:3.0f} ms, clients served after {self.clients_ms:3.0f} ms"
            + "".join(f"; {bad}" for bad in self.bad_sides)
        )


def _last_answer(account: Account, winner: str, since: float, until: float) -> float | None:
    """When another one than the winner answered for the last time."""
    return max((a.at for a in account.answers if a.mac != winner and since <= a.at <= until), default=None)


def _silence_ms(answers: Answers, heal: float, until: float) -> float:
    """From healing to the end of the last gap of a client that began after it."""
    ends = [gap.start + gap.ms / 1000 for gap in answers.gaps if heal - 0.01 <= gap.start <= until]
    return max([0.0, *((end - heal) * 1000 for end in ends if end > heal)])


def tell(figures: Sequence[Healing]) -> None:
    for number, figure in enumerate(figures, 1):
        print(f"{number:3} {figure}")
    for what in ("one_active_ms", "one_answers_ms", "clients_ms"):
        values = sorted(getattr(figure, what) for figure in figures)
        print(f"{what}: median {values[len(values) // 2]:.0f}, worst {values[-1]:.0f}")
