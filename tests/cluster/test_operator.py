# SPDX-License-Identifier: Apache-2.0
"""The operator against a real API server, with its own token and rights; the speakers are puppets."""

import json
import socket
import time
import urllib.request
from collections import Counter
from functools import partial

import pytest

from tests.cluster.puppets import Puppets
from tests.cluster.questions import (
    NODES,
    Operator,
    accepted_reason,
    at_rest,
    condition_of,
    events_of,
    holder,
    our_writes,
    ready,
    router_of,
    served,
    vip,
    wait,
)
from tests.rig.api import condition
from tests.rig.controlplane import ControlPlane
from tests.rig.process import Process

pytestmark = pytest.mark.cluster


@pytest.mark.usefixtures("puppets")
def test_a_virtual_ip_gets_a_router_and_its_status_tells_who_holds_it(
    clean_cluster: ControlPlane, operator: Operator
) -> None:
    operator("op1")
    wait("a leader of the operators", lambda: holder(clean_cluster))
    time.sleep(1)
    began = time.monotonic()
    clean_cluster.api.create(vip("web", "192.0.2.10"))
    wait("a router", lambda: clean_cluster.api.items("VirtualRouter"))
    routed_ms = (time.monotonic() - began) * 1000

    status = wait("Ready", lambda: ready(clean_cluster, "web"))
    (router,) = clean_cluster.api.items("VirtualRouter")
    events = wait(
        "an Event",
        lambda: [
            e["reason"]
            for e in clean_cluster.api.items("Event", "default")
            if e["regarding"]["name"] == "web"
        ],
    )

    print(f"apply to router: {routed_ms:.0f} ms")
    assert status["virtualRouter"] == router["metadata"]["name"]
    assert status["leader"] == status["active"][0]["node"]
    assert sorted([status["leader"], *status["standbys"]]) == list(NODES)
    assert [c["type"] for c in status["conditions"]] == ["Accepted", "Scheduled", "Ready", "Conflict"]
    assert router["spec"]["addresses"][0]["owner"]["name"] == "web"
    assert "Assigned" in events
    assert routed_ms < 500


@pytest.mark.usefixtures("puppets")
def test_without_news_nothing_is_written_and_a_restart_writes_nothing_either(
    clean_cluster: ControlPlane, operator: Operator
) -> None:
    """0 writes per VirtualIP in steady state; the Lease alone is renewed."""
    first = operator("op1")
    for number in range(1, 11):
        clean_cluster.api.create(vip(f"v{number}", f"192.0.2.{number}"))
    for number in range(1, 11):
        wait(f"v{number} Ready", partial(ready, clean_cluster, f"v{number}"))

    rest = at_rest(clean_cluster)
    time.sleep(6)
    first.terminate()
    assert holder(clean_cluster) == "", "SIGTERM releases the Lease"
    operator("op2")
    wait("the second to lead", lambda: holder(clean_cluster))
    time.sleep(6)

    assert our_writes(clean_cluster, rest) == []


def pair_at_rest(cluster: ControlPlane, operator: Operator) -> tuple[Process, str]:
    """Two operators, one VirtualIP that is Ready, and nothing more to write: the leader and its name."""
    first = operator("op1")
    led = wait("the first to lead", lambda: holder(cluster))
    operator("op2")
    cluster.api.create(vip("a", "192.0.2.10"))
    wait("a Ready", lambda: ready(cluster, "a"))
    at_rest(cluster)
    return first, led


@pytest.mark.usefixtures("puppets")
def test_the_second_operator_takes_over_within_ten_seconds_of_a_kill(
    clean_cluster: ControlPlane, operator: Operator
) -> None:
    first, led = pair_at_rest(clean_cluster, operator)

    first.kill()
    killed = time.monotonic()
    clean_cluster.api.create(vip("b", "192.0.2.11"))
    wait("b Ready", lambda: ready(clean_cluster, "b"), timeout_s=20)
    seconds = time.monotonic() - killed

    print(f"SIGKILL to the next VirtualIP Ready: {seconds:.1f} s")
    assert holder(clean_cluster) != led
    assert seconds <= 10


@pytest.mark.usefixtures("puppets")
def test_a_leader_that_was_stopped_and_woken_changes_nothing(
    clean_cluster: ControlPlane, operator: Operator
) -> None:
    first, led = pair_at_rest(clean_cluster, operator)

    clean_cluster.api.create(vip("b", "192.0.2.11"))
    first.pause()
    wait("the other to lead", lambda: holder(clean_cluster) not in ("", led))
    wait("b Ready", lambda: ready(clean_cluster, "b"))
    clean_cluster.api.create(vip("c", "192.0.2.12"))
    wait("c Ready", lambda: ready(clean_cluster, "c"))
    rest = at_rest(clean_cluster)
    epochs = {
        r["metadata"]["name"]: r["spec"]["plannerEpoch"] for r in clean_cluster.api.items("VirtualRouter")
    }
    first.resume()
    time.sleep(8)

    assert our_writes(clean_cluster, rest) == []
    assert max(epochs.values()) == 2
    assert first.running()


def test_a_router_deleted_by_hand_comes_back_the_same(
    clean_cluster: ControlPlane, operator: Operator, puppets: Puppets
) -> None:
    operator("op1")
    for name, address in (("a4", "192.0.2.10"), ("a6", "2001:db8::10")):
        clean_cluster.api.create(vip(name, address, group="edge"))
    wait("a6 Ready", lambda: ready(clean_cluster, "a4") and ready(clean_cluster, "a6"))
    puppets.dead.add(router_of(clean_cluster)["spec"]["candidates"][0]["node"])
    at_rest(clean_cluster)
    before = router_of(clean_cluster)

    clean_cluster.api.delete("VirtualRouter", before["metadata"]["name"])
    wait("the router again", lambda: clean_cluster.api.items("VirtualRouter"))
    at_rest(clean_cluster)
    after = router_of(clean_cluster)

    assert after["metadata"]["name"] == before["metadata"]["name"]
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    for field in ("virtualRouterID", "candidates", "addresses", "advertIntervalMilliseconds"):
        assert after["spec"][field] == before["spec"][field], field
    assert ready(clean_cluster, "a4")["active"][0]["node"] == after["spec"]["candidates"][0]["node"]


def test_a_deleted_address_is_given_to_the_next_only_when_its_holder_has_reported(
    clean_cluster: ControlPlane, operator: Operator, puppets: Puppets
) -> None:
    operator("op1")
    for name, address in (("old", "192.0.2.10"), ("stays", "192.0.2.11")):
        clean_cluster.api.create(vip(name, address))
    status = wait("old Ready", lambda: ready(clean_cluster, "stays") and ready(clean_cluster, "old"))
    holding = status["active"][0]["node"]
    puppets.deaf.add(holding)
    clean_cluster.api.delete("VirtualIP", "old")
    clean_cluster.api.create(vip("new", "192.0.2.10"))

    wait("the refusal", lambda: accepted_reason(clean_cluster, "new") == "AddressReleasing")
    message = condition(clean_cluster.api.get("VirtualIP", "new"), "Accepted")["message"]
    time.sleep(2)
    still = accepted_reason(clean_cluster, "new")
    puppets.deaf.clear()
    wait("new Ready", lambda: ready(clean_cluster, "new"))
    clean_cluster.api.delete("VirtualIP", "new")
    clean_cluster.api.delete("VirtualIP", "stays")

    assert holding in message
    assert "default/old" in message
    assert still == "AddressReleasing"
    wait("no router left", lambda: not clean_cluster.api.items("VirtualRouter"))


def test_when_the_active_dies_status_and_events_follow(
    clean_cluster: ControlPlane, operator: Operator, puppets: Puppets
) -> None:
    operator("op1")
    clean_cluster.api.create(vip("web", "192.0.2.10"))
    status = wait("Ready", lambda: ready(clean_cluster, "web"))
    dead = status["active"][0]["node"]
    at_rest(clean_cluster)

    puppets.dead.add(dead)
    told = wait(
        "the new Active",
        lambda: [
            s
            for s in [ready(clean_cluster, "web")]
            if s and s["active"][0]["node"] != dead and s["leader"] != dead
        ],
    )[0]
    events = wait("the Event", lambda: events_of(clean_cluster, "web", "FailedOver"))

    assert [holder["node"] for holder in told["active"]] == [status["standbys"][0]]
    assert told["leader"] == status["standbys"][0]
    assert told["standbys"][-1] == dead
    assert told["lastFailover"]["from"] == dead
    assert "ActiveSilent" in events[0]["note"]
    assert "302 ms" in events[0]["note"]


@pytest.mark.usefixtures("puppets")
def test_what_cannot_be_is_refused_with_a_reason_within_a_second(
    clean_cluster: ControlPlane, operator: Operator
) -> None:
    operator("op1")
    clean_cluster.api.create(vip("first", "192.0.2.10"))
    wait("first Ready", lambda: ready(clean_cluster, "first"))
    wanted = {
        "second": (vip("second", "192.0.2.10"), "Accepted", "AddressInUse", "default/first"),
        "node": (vip("node", "192.0.2.201"), "Accepted", "AddressOfNode", "n1"),
        "mac": (
            vip("mac", "192.0.2.11", mode="VirtualMAC", macAddress="02:00:00:00:00:01"),
            "Accepted",
            "MACOfNode",
            "n1",
        ),
        "pool": (vip("pool", "192.0.2.12", pool="p"), "Accepted", "PoolNotSupported", "spec.pool"),
        "far": (vip("far", "198.51.100.9"), "Scheduled", "NoNodeOnSubnet", "subnet"),
        "nic": (
            vip("nic", "192.0.2.13", interfaces=["wlan*"]),
            "Scheduled",
            "InterfaceNotFound",
            "interfaces",
        ),
        "nobody": (
            vip("nobody", "192.0.2.14", nodes={"selector": {"matchLabels": {"no": "where"}}}),
            "Scheduled",
            "NoNodeMatches",
            "no=where",
        ),
    }
    for name, (body, kind, reason, word) in wanted.items():
        began = time.monotonic()
        clean_cluster.api.create(body)
        found = wait(
            f"{name}: {reason}",
            partial(condition_of, clean_cluster, name, kind),
        )
        seconds = time.monotonic() - began

        assert (found["status"], found["reason"]) == ("False", reason), name
        assert word in found["message"], name
        assert seconds < 1, name


@pytest.mark.usefixtures("puppets")
def test_two_hundred_virtual_ips_are_spread_evenly_over_as_many_routers_as_there_are_ordered_pairs(
    clean_cluster: ControlPlane, operator: Operator
) -> None:
    process = operator("op1")
    wait("a leader", lambda: holder(clean_cluster))
    time.sleep(1)
    cpu = process.cpu_seconds()
    began = time.monotonic()
    for number in range(200):
        clean_cluster.api.create(
            vip(f"v{number:03}", f"192.0.2.{number + 1}" if number < 190 else f"192.0.1.{number}")
        )
    created = time.monotonic() - began
    wait(
        "all Ready",
        lambda: all(
            condition(v, "Ready").get("status") == "True" for v in clean_cluster.api.items("VirtualIP")
        ),
        timeout_s=60,
    )
    seconds = time.monotonic() - began
    load = Counter(v["status"]["active"][0]["node"] for v in clean_cluster.api.items("VirtualIP"))

    print(f"created in {created:.1f} s, Ready after {seconds:.1f} s, load {dict(load)}")
    print(f"operator: {process.cpu_seconds() - cpu:.1f} s CPU, {process.rss_bytes() >> 20} MiB")
    assert max(load.values()) - min(load.values()) <= 1
    assert len(clean_cluster.api.items("VirtualRouter")) == 6
    at_rest(clean_cluster, timeout_s=40)


@pytest.mark.usefixtures("puppets")
def test_an_api_server_that_freezes_or_dies_and_returns_finds_the_operator_at_work(
    clean_cluster: ControlPlane, operator: Operator
) -> None:
    process = operator("op1")
    clean_cluster.api.create(vip("a", "192.0.2.10"))
    wait("a Ready", lambda: ready(clean_cluster, "a"))
    rest = at_rest(clean_cluster)
    clean_cluster.freeze()
    time.sleep(8)
    clean_cluster.thaw()
    clean_cluster.api.close()
    clean_cluster.api.create(vip("b", "192.0.2.11"))
    wait("b Ready", lambda: ready(clean_cluster, "b"), timeout_s=20)
    clean_cluster.stop()
    time.sleep(6)
    clean_cluster.api.close()
    clean_cluster.start()
    clean_cluster.api.delete("VirtualIP", "b")  # before the watches are back: nobody will tell
    clean_cluster.api.create(vip("c", "192.0.2.12"))
    wait("c Ready", lambda: ready(clean_cluster, "c"), timeout_s=30)

    def b_is_gone() -> bool:
        routers = clean_cluster.api.items("VirtualRouter")
        return all(a["owner"]["name"] != "b" for r in routers for a in r["spec"]["addresses"])

    wait("b's address let go", b_is_gone, timeout_s=20)
    assert process.running()
    assert not [write for write in our_writes(clean_cluster, rest) if " a " in write]
    for kind in (
        "VirtualIP",
        "VirtualIPPool",
        "VirtualRouter",
        "Speaker",
        "Node",
    ):  # each cache fills by itself
        wait(f"{kind} served again", partial(served, clean_cluster, kind))


@pytest.mark.usefixtures("puppets")
def test_health_and_metrics_are_served_where_asked(clean_cluster: ControlPlane, operator: Operator) -> None:
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
        health, metrics = (f"127.0.0.1:{each.getsockname()[1]}" for each in (one, two))
    operator("op1", "--liveness-address", health, "--metrics-address", metrics)
    clean_cluster.api.create(vip("a", "192.0.2.10"))
    clean_cluster.api.create(vip("b", "192.0.2.10"))
    wait("a Ready", lambda: ready(clean_cluster, "a"))
    wait("b refused", lambda: accepted_reason(clean_cluster, "b"))
    alive = json.loads(fetch(f"http://{health}/healthz"))
    told = fetch(f"http://{metrics}/metrics")

    assert alive["idleSeconds"] < 10
    for line in (
        "holdfast_operator_leading 1.0",
        "holdfast_virtual_routers 1.0",
        'holdfast_virtual_ips{condition="Accepted",status="False"} 1.0',
        'holdfast_virtual_ips_not_true{reason="AddressInUse"} 1.0',
        'holdfast_operator_writes_total{kind="virtualrouters",verb="create"} 1.0',
    ):
        assert line in told, line


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
        body: bytes = answer.read()
    return body.decode()
