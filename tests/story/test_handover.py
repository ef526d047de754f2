# SPDX-License-Identifier: Apache-2.0
"""Planned moves lose nothing: asked for, drained, stopped, restarted; and when they fail, nothing moves.

``MOVES=100 make rig`` moves a hundred times in a row. A client asks 1,000 times a second throughout.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from tests.rig.api import Object, condition
from tests.rig.cluster import Cluster
from tests.rig.fleet import LEADERS, Fleet, router
from tests.rig.hosts import Host
from tests.rig.network import netns_path
from tests.rig.onlookers import Onlookers
from tests.rig.run import Run, command, in_namespace
from tests.story.connections import PORT, Talk, listen
from tests.story.objects import vip

pytestmark = [pytest.mark.netns, pytest.mark.cluster]

V4, V6 = "192.0.2.100", "fd00:192:0:2::100"
MOVES = int(os.environ.get("MOVES", "6"))
LONG = MOVES >= 100
NOISE_MS = 200.0  # of a busy machine
LINGER_MS = 200.0  # who gave way serves on so long
PAUSE_MS = 1000.0  # what a VirtualIP that changes its router may be away
DRAIN_LABEL = "holdfast.dev/drain"
MOVE_TO = "holdfast.dev/move-to"
DRAIN_TAINT = {"key": "node.kubernetes.io/out-of-service", "value": "x", "effect": "NoExecute"}


@pytest.fixture
def group(cluster: Cluster) -> str:
    """One IPv4 and one IPv6 address in one group, held and announced; the name of their router."""
    cluster.apply(vip("four", V4, group="edge") + vip("six", V6, group="edge"))
    cluster.wait_ready("four")
    name: str = cluster.wait_ready("six")["status"]["virtualRouter"]
    cluster.wait_until("both are held by one", lambda: holder(cluster) is not None)
    return name


def holder(cluster: Cluster) -> str | None:
    """The one host that has both addresses on its NIC, and no other has either."""
    held = {address: cluster.holders(address) for address in (V4, V6)}
    return held[V4][0] if len(held[V4]) == 1 and held[V4] == held[V6] else None


def until_moved(cluster: Cluster, away_from: str, *, to: str | None = None) -> str:
    """Until another host (or ``to``) alone holds both and the status says so; its name."""

    def moved() -> str | None:
        now = holder(cluster)
        if now is None or now == away_from or (to is not None and now != to):
            return None
        return now if cluster.active("four") == cluster.active("six") == [now] else None

    return cluster.wait_until(f"both have left {away_from}", moved)


def ask(cluster: Cluster, to: str | None, name: str = "four") -> None:
    cluster.api.merge("VirtualIP", name, {"metadata": {"annotations": {MOVE_TO: to}}})


def other(cluster: Cluster, than: str) -> str:
    """The first standby."""
    standbys: list[str] = cluster.vip("four")["status"]["standbys"]
    return next(name for name in standbys if name != than)


# --- moves in a row -----------------------------------------------------------------------------


@pytest.mark.usefixtures("group")
@pytest.mark.timeout(120 + 5 * MOVES)
def test_moves_in_a_row_lose_nothing(cluster: Cluster) -> None:
    ring = sorted(cluster.hosts)
    took = []
    with Onlookers(cluster, V4, V6) as seen:
        for _ in range(MOVES):
            giver = holder(cluster)
            assert giver is not None
            heir = ring[(ring.index(giver) + 1) % len(ring)]
            begun = time.monotonic()
            ask(cluster, heir)
            until_moved(cluster, giver, to=heir)
            took.append(time.monotonic() - begun)
            time.sleep(0.2)
        told = cluster.wait_until("the answer", lambda: _answer(cluster, heir))
    seen.tell(f"{MOVES} moves, each {min(took):.2f} to {max(took):.2f} s from request to status")
    last = [cluster.vip(name)["status"]["lastFailover"] for name in ("four", "six")]
    assert seen.lost == seen.nothing_lost
    assert told["reason"] == "HandedOver"
    assert [(each["to"], each["reason"]) for each in last] == [(heir, "HandedOver")] * 2
    # Usually the giver; a third host that took an offer meant for the heir hands it on.
    assert {each["from"] for each in last} <= set(cluster.hosts) - {heir}
    assert len(took) == MOVES


def _answer(cluster: Cluster, heir: str) -> Object | None:
    move: Object = cluster.vip("four")["status"].get("move") or {}
    return move if move.get("to") == heir else None


# --- speakers that stop -------------------------------------------------------------------------


@pytest.mark.usefixtures("group")
def test_all_speakers_restarted_one_by_one_lose_nothing(cluster: Cluster) -> None:
    """As a rolling update does: each new one is ready before the next stops; the Active goes first."""
    first = holder(cluster)
    assert first is not None
    order = [first, *(name for name in cluster.hosts if name != first)]
    moves = []
    with Onlookers(cluster, V4, V6) as seen:
        for name in order:
            before = holder(cluster)
            assert cluster.hosts[name].stop_speaker() == 0
            moves += [name] if before == name else []
            assert cluster.hosts[name].addresses() == []
            cluster.start_speaker(name)
            cluster.wait_speakers([name])
            cluster.wait_until("held by one", lambda: holder(cluster) is not None)
    seen.tell(f"rolling restart of {order}, moved away from {moves}")
    assert seen.lost == seen.nothing_lost
    assert moves, "the Active was among them"


# --- drained nodes ------------------------------------------------------------------------------


def label(cluster: Cluster, node: str, *, on: bool) -> None:
    cluster.api.merge("Node", node, {"metadata": {"labels": {DRAIN_LABEL: "true" if on else None}}})


def taint(cluster: Cluster, node: str, *, on: bool) -> None:
    cluster.api.merge("Node", node, {"spec": {"taints": [DRAIN_TAINT] if on else None}})


def cordon(cluster: Cluster, node: str, *, on: bool) -> None:
    cluster.api.merge("Node", node, {"spec": {"unschedulable": True if on else None}})


Mark = Callable[..., None]


@pytest.fixture
def unmarked(cluster: Cluster) -> Iterator[None]:
    """Whatever the test did to the Nodes is undone."""
    yield
    for name in cluster.hosts:
        cluster.api.merge("Node", name, {"metadata": {"labels": {DRAIN_LABEL: None}}})
        cluster.api.merge("Node", name, {"spec": {"taints": None, "unschedulable": None}})


def drained_and_back(cluster: Cluster, mark: Mark) -> None:
    """A drained node hands over, stays empty while it is marked, and is a standby when it isn't."""
    giver = holder(cluster)
    assert giver is not None
    with Onlookers(cluster, V4, V6) as seen:
        mark(cluster, giver, on=True)
        heir = until_moved(cluster, giver)
        cluster.apply(vip("new", "192.0.2.101"))
        cluster.wait_ready("new")
        assert cluster.leader("new") != giver, "nothing new comes to a drained node"
        assert cluster.vip("four")["status"]["standbys"][-1] == giver, "last of all"
        (third,) = set(cluster.hosts) - {giver, heir}
        cluster.hosts[heir].stop_speaker()  # planned too: it goes to the one that isn't drained
        assert until_moved(cluster, heir, to=third) == third
        cluster.start_speaker(heir)
        empty = cluster.hosts[giver].addresses()
        mark(cluster, giver, on=False)
        time.sleep(1.5)
        stayed = holder(cluster)
        cluster.wait_until(
            "an ordinary standby again", lambda: giver in cluster.vip("four")["status"]["standbys"]
        )
    seen.tell(f"{mark.__name__}: {giver} drained to {heir}, then {heir} stopped")
    assert seen.lost == seen.nothing_lost
    assert empty == []
    assert stayed == third, "the end of a drain moves nothing"
    cluster.api.delete("VirtualIP", "new")


@pytest.mark.usefixtures("group", "unmarked")
@pytest.mark.parametrize("mark", [label, taint])
def test_a_drained_node_hands_over_and_stays_empty(cluster: Cluster, mark: Mark) -> None:
    drained_and_back(cluster, mark)


@pytest.mark.usefixtures("group", "unmarked")
def test_a_cordoned_node_is_drained_only_where_the_operator_is_told_so(cluster: Cluster) -> None:
    giver = holder(cluster)
    assert giver is not None
    with Onlookers(cluster, V4, V6) as seen:
        cordon(cluster, giver, on=True)
        time.sleep(2)
    assert (holder(cluster), seen.lost) == (giver, seen.nothing_lost)
    cordon(cluster, giver, on=False)
    cluster.operators["op1"].terminate()
    cluster.start_operator("op1", "--drain-on", "Cordon")
    try:
        drained_and_back(cluster, cordon)
    finally:
        cluster.operators["op1"].terminate()  # the next test's reset starts the usual one


# --- hand-overs that can't be -------------------------------------------------------------------


class Planner:
    """We, in place of the operator: orders at the very moment that a story wants."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self._orders = 0

    def order(self, giver: str, heir: str) -> None:
        self._orders += 1
        self._write({"id": f"by-hand-{self._orders}", "from": giver, "to": heir})

    def withdraw(self) -> None:
        self._write(None)

    def _write(self, order: Object | None) -> None:
        self.cluster.api.merge("VirtualRouter", self.name, {"spec": {"handover": order}})


@pytest.fixture
def planner(cluster: Cluster, group: str) -> Planner:
    """The operator is stopped until the next test's reset."""
    cluster.wait_quiet(1.0)
    cluster.operators["op1"].pause()
    return Planner(cluster, group)


def test_an_heir_that_is_dead_or_frozen_makes_no_hole(cluster: Cluster, planner: Planner) -> None:
    """When nobody takes it the giver goes on; a third host may take what the heir does not."""
    giver = holder(cluster)
    assert giver is not None
    heir = other(cluster, giver)
    (third,) = set(cluster.hosts) - {giver, heir}
    with Onlookers(cluster, V4, V6) as seen:
        cluster.hosts[third].pause_speaker()
        cluster.hosts[heir].pause_speaker()
        planner.order(giver, heir)
        time.sleep(1.2)
        frozen = holder(cluster)
        cluster.hosts[heir].resume_speaker()
        time.sleep(1.0)
        woken = holder(cluster)
        cluster.hosts[heir].kill_speaker()
        planner.order(giver, heir)
        time.sleep(1.2)
        dead = holder(cluster)
        cluster.hosts[third].resume_speaker()
        time.sleep(0.8)
        planner.order(giver, heir)
        last = cluster.wait_until("it has moved", lambda: _moved(cluster, giver))
        time.sleep(0.5)
    seen.tell("heir frozen, then dead, and the third one frozen with it; at last the third one takes it")
    assert (frozen, woken, dead, last) == (giver, giver, giver, third)
    assert seen.lost == seen.nothing_lost


def _moved(cluster: Cluster, giver: str) -> str | None:
    now = holder(cluster)
    return now if now != giver else None


def test_orders_withdrawn_at_once_and_adverts_lost_make_no_hole(cluster: Cluster, planner: Planner) -> None:
    """The order is gone before all have read it; the offer, or the heir's first advert, is lost for 100 ms.

    Everything but the adverts still comes through: a client is led astray by nothing but us.
    """
    found = {}
    for wait_s in (0.0, 0.003, 0.01, 0.03) if LONG else (0.003,):
        giver, heir = pair_of(cluster)
        with Onlookers(cluster, V4, V6) as seen:
            planner.order(giver, heir)
            time.sleep(wait_s)
            planner.withdraw()
            time.sleep(1.0)
        seen.tell(f"withdrawn after {wait_s * 1000:.0f} ms: {giver} to {heir}, held by {until_one(cluster)}")
        found[f"withdrawn {wait_s}"] = seen.lost
    for who, way, before_s in CUTS if LONG else CUTS[:3]:
        giver, heir = pair_of(cluster)
        cable = cluster.hosts[giver if who == "giver" else heir].cable
        with Onlookers(cluster, V4, V6) as seen:
            cable.lose_adverts(way)
            time.sleep(before_s)
            planner.order(giver, heir)
            time.sleep(0.1 - before_s)
            cable.mend()
            time.sleep(1.2)
        seen.tell(f"no adverts {way} at the {who} ({before_s:.2f} s before): held by {until_one(cluster)}")
        found[f"{who} {way} {before_s}"] = seen.lost
    assert found == dict.fromkeys(found, seen.nothing_lost)


CUTS: list[tuple[str, Literal["in", "out"], float]] = [  # the everyday ones first
    ("giver", "in", 0.0),
    ("heir", "out", 0.0),
    ("heir", "in", 0.0),
    ("giver", "out", 0.0),
    ("heir", "out", 0.05),
]


@pytest.mark.parametrize("lost_s", [0.05, 0.1, 0.2, 0.35] if LONG else [0.1])
def test_two_that_take_what_one_was_offered_lead_no_client_astray(
    cluster: Cluster, planner: Planner, lost_s: float
) -> None:
    """The third host has not read the order, and does not hear the heir's adverts for so long.

    Each of the two announces what it has, and who gives way may have said the last word. It serves on for
    0.2 s; whoever believed it must have heard the winner by then, not at the copy after 1.1 s.
    """
    giver = holder(cluster)
    assert giver is not None
    heir, third = (name for name in by_priority(cluster, planner.name) if name != giver)
    cluster.cut_api(third)
    with Onlookers(cluster, V4, V6) as seen:
        cluster.hosts[heir].cable.lose_adverts("out")
        planner.order(giver, heir)
        time.sleep(lost_s)
        cluster.hosts[heir].cable.mend()
        time.sleep(1.5)
    seen.tell(f"{giver} to {heir}, and {third} took it too, for {lost_s:.2f} s: held by {until_one(cluster)}")
    took = {mac for account in seen.witness.accounts for mac in account.macs}
    assert took == {host.mac for host in cluster.hosts.values()}, "two took it"
    assert holder(cluster) == heir
    assert seen.double_ms <= seen.room_ms(1000 * lost_s + LINGER_MS + NOISE_MS)
    assert seen.lost == seen.nothing_lost


def by_priority(cluster: Cluster, name: str) -> list[str]:
    """The candidates of a router, the highest first."""
    found = cluster.api.get("VirtualRouter", name)
    assert found is not None
    candidates = sorted(found["spec"]["candidates"], key=lambda each: -each["priority"])
    return [each["node"] for each in candidates]


def until_one(cluster: Cluster) -> str:
    """Who has both in the end; who gave way may still be removing them."""
    return cluster.wait_until("one holder", lambda: holder(cluster))


def pair_of(cluster: Cluster) -> tuple[str, str]:
    """Who has both addresses, and another one."""
    giver = until_one(cluster)
    return giver, next(name for name in cluster.hosts if name != giver)


# --- open connections ---------------------------------------------------------------------------


@pytest.mark.usefixtures("group")
def test_a_connection_to_the_host_itself_is_reset_by_a_move(cluster: Cluster) -> None:
    """Its state is in one host's kernel. The other one resets it at once, and serves new ones."""
    giver = holder(cluster)
    assert giver is not None
    heir = other(cluster, giver)
    services = [listen(host) for host in cluster.hosts.values()]
    client = cluster.run.namespace_name("client")
    talk = Talk(client, V4)
    talk.on(0.2)
    before = talk.end
    begun = time.monotonic()
    ask(cluster, heir)
    talk.on(8)
    ended = time.monotonic()
    fresh = Talk(client, V4)
    fresh.on(0.2)
    held = cluster.holders(V4)
    for each in (talk, fresh):
        each.close()
    for service in services:
        service.kill()
    print(
        f"open connection: {talk.end} {ended - begun:.2f} s after the request, "
        f"waited {talk.longest_ms:.0f} ms"
    )
    assert (before, talk.end, fresh.end) == ("alive", "ConnectionResetError", "alive")
    assert heir in held
    assert talk.longest_ms < 1000


def test_a_connection_to_a_third_host_behind_survives_unless_it_is_masqueraded(rig_ready: None) -> None:  # noqa: ARG001
    """DNAT to a backend that answers through the address: the heir's conntrack picks it up in mid-stream.

    With masquerading, as kube-proxy does it for externalTrafficPolicy Cluster, the backend sees another
    peer after the move, and resets.
    """
    with Run() as run:
        fleet = Fleet(run)
        *routers, backend = fleet.hosts
        fleet.start(router(7, V4, candidates=LEADERS[:2]), hosts=routers)
        for host in routers:
            _forward(host, backend)
        listen(backend)
        to_client = ["route", "add", f"{fleet.segment.addresses(250)[0]}/32", "via", V4]
        command("ip", "-n", backend.namespace, *to_client)
        giver = fleet.until_held(V4)
        time.sleep(0.5)
        client = run.namespace_name("client")
        plain, masked = Talk(client, V4, PORT), Talk(client, V4, PORT + 1)
        for talk in (plain, masked):
            talk.on(0.2)
        before = (plain.end, masked.end)
        assert giver.stop_speaker() == 0
        for talk in (plain, masked):
            talk.on(1.0)
        held = fleet.holders(V4)
        for talk in (plain, masked):
            talk.close()
    print(f"behind: {plain.end}, waited {plain.longest_ms:.0f} ms; masqueraded: {masked.end}")
    assert held != [giver.name]
    assert before == ("alive", "alive")
    assert (plain.end, masked.end) == ("alive", "ConnectionResetError")


def _forward(host: Host, backend: Host) -> None:
    """kube-proxy in small: PORT to the backend, PORT + 1 too, but with the host's own address as source."""
    settings = ["net.ipv4.ip_forward=1"]
    settings += [f"net.ipv4.conf.{where}.send_redirects=0" for where in ("all", "eth0")]
    command("ip", "netns", "exec", host.namespace, "sysctl", "-q", "-w", *settings)
    rules = f"""table ip behind {{
        chain prerouting {{
            type nat hook prerouting priority dstnat
            ip daddr {V4} tcp dport {PORT} dnat to {backend.v4}:{PORT}
            ip daddr {V4} tcp dport {PORT + 1} meta mark set 1 dnat to {backend.v4}:{PORT}
        }}
        chain postrouting {{
            type nat hook postrouting priority srcnat
            meta mark 1 snat to {host.v4}
        }}
    }}\n"""
    command(*in_namespace(netns_path(host.namespace), ["nft", "-f", "-"]), stdin=rules)


# --- another router -----------------------------------------------------------------------------


def test_an_address_that_changes_its_router_pauses_below_a_second_and_never_has_two_holders(
    cluster: Cluster,
) -> None:
    """Out of a router that it shares: by its group, by its interval. Alone in one, that changes in place."""
    names = [f"v{i}" for i in range(7)]  # three hosts make six routers at most
    addresses = {name: f"192.0.2.{110 + i}" for i, name in enumerate(names)}
    pair = vip("web", V4, group="one") + vip("stays", "192.0.2.120", group="one")
    cluster.apply("".join(vip(name, addresses[name]) for name in names) + pair)
    places = {name: cluster.wait_ready(name)["status"]["virtualRouter"] for name in [*names, "web"]}
    shared = next(name for name in names if list(places.values()).count(places[name]) == 2)
    time.sleep(1)
    with Onlookers(cluster, V4, addresses[shared]) as seen:
        cluster.apply(vip("web", V4, group="two"))
        regrouped = _elsewhere(cluster, "web", places["web"])
        cluster.apply(vip(shared, addresses[shared], interval_ms=200))
        _elsewhere(cluster, shared, places[shared])
        time.sleep(1)
    seen.tell("another group, another interval")
    with Onlookers(cluster, V4) as alone:
        cluster.apply(vip("web", V4, group="two", interval_ms=300))
        cluster.wait_until("read", lambda: _interval(cluster, regrouped) == 300)
        time.sleep(1)
    alone.tell("another interval, alone in its router")
    assert cluster.vip("web")["status"]["virtualRouter"] == regrouped
    assert seen.double_ms <= seen.room_ms()
    assert max(seen.gap_ms(V4), seen.gap_ms(addresses[shared])) < PAUSE_MS
    assert alone.lost == alone.nothing_lost


def _elsewhere(cluster: Cluster, name: str, before: str) -> str:
    """Until it is Ready in another router; that router's name."""

    def moved() -> str | None:
        router_name: str | None = cluster.vip(name)["status"].get("virtualRouter")
        ready = condition(cluster.vip(name), "Ready").get("status") == "True"
        return router_name if ready and router_name not in (None, before) else None

    return cluster.wait_until(f"{name} has left {before}", moved)


def _interval(cluster: Cluster, name: str) -> int | None:
    found = cluster.api.get("VirtualRouter", name)
    return None if found is None else found["spec"]["advertIntervalMilliseconds"]
