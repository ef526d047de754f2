# SPDX-License-Identifier: Apache-2.0
"""Mode VirtualMAC against a real API server; the speakers are puppets."""

from functools import partial

import pytest

from tests.cluster.puppets import Puppets
from tests.cluster.questions import (
    Operator,
    accepted_reason,
    at_rest_briefly,
    condition_of,
    events_of,
    holder,
    our_writes,
    ready,
    status_of,
    vip,
    wait,
)
from tests.rig.api import Object
from tests.rig.controlplane import ControlPlane

pytestmark = pytest.mark.cluster

MAC, OTHER = "02:11:22:33:44:55", "02:66:77:88:99:aa"
virtual = partial(vip, mode="VirtualMAC")


def router_with(plane: ControlPlane, address: str) -> Object:
    (router,) = (
        r
        for r in plane.api.items("VirtualRouter")
        if any(a["address"] == address for a in r["spec"]["addresses"])
    )
    return router


def planned_mac(plane: ControlPlane, address: str = "192.0.2.10") -> str:
    """The MAC in the router's plan; "" for the NIC's own."""
    entries = router_with(plane, address)["spec"]["addresses"]
    return str(next(a for a in entries if a["address"] == address).get("macAddress", ""))


def change(plane: ControlPlane, **spec: str | None) -> None:
    plane.api.merge("VirtualIP", "web", {"spec": spec})


def scheduled_reason(plane: ControlPlane, name: str) -> str:
    return str(condition_of(plane, name, "Scheduled").get("reason", ""))


def running_with(plane: ControlPlane, mac: str) -> bool:
    """Ready, with this MAC in plan and status, and all that is said is about the spec as it is."""
    found = plane.api.get("VirtualIP", "web") or {}
    seen = {c["observedGeneration"] for c in found.get("status", {}).get("conditions", [])}
    current = seen == {found["metadata"]["generation"]}
    return current and ready(plane, "web").get("macAddress") == mac == planned_mac(plane)


@pytest.mark.usefixtures("puppets")
def test_a_mac_is_allocated_and_stays_whoever_restarts_and_whatever_mode_was_between(
    clean_cluster: ControlPlane, operator: Operator
) -> None:
    first = operator("op1")
    clean_cluster.api.create(virtual("web", "192.0.2.10"))
    clean_cluster.api.create(vip("plain", "192.0.2.11"))
    mac = wait("Ready", lambda: ready(clean_cluster, "web"))["macAddress"]
    wait("the other Ready", lambda: ready(clean_cluster, "plain"))
    rest = at_rest_briefly(clean_cluster)
    router = router_with(clean_cluster, "192.0.2.10")
    wide = clean_cluster.kubectl("get", "vip", "web", "-o", "wide")
    first.terminate()
    operator("op2")
    wait("the second to lead", lambda: holder(clean_cluster))
    at_rest_briefly(clean_cluster)
    written = our_writes(clean_cluster, rest)

    change(clean_cluster, mode="NodeMAC")
    wait("NodeMAC", lambda: running_with_none(clean_cluster))
    kept = status_of(clean_cluster, "web").get("macAddress")
    change(clean_cluster, mode="VirtualMAC")
    wait("VirtualMAC again", lambda: running_with(clean_cluster, mac))

    assert mac.startswith("02:")
    assert len(mac) == 17
    assert mac in wide
    assert router["spec"]["mode"] == "VirtualMAC"
    assert [a["macAddress"] for a in router["spec"]["addresses"]] == [mac]
    assert router_with(clean_cluster, "192.0.2.11")["spec"]["mode"] == "NodeMAC"
    assert written == []
    assert kept == mac


def running_with_none(plane: ControlPlane) -> bool:
    """Ready, and in a router of mode NodeMAC."""
    router = status_of(plane, "web").get("virtualRouter")
    found = plane.api.get("VirtualRouter", router) if router and ready(plane, "web") else None
    return found is not None and found["spec"]["mode"] == "NodeMAC" and not planned_mac(plane)


@pytest.mark.usefixtures("puppets")
def test_a_given_mac_and_vrrps_are_taken_and_may_change_while_it_runs(
    clean_cluster: ControlPlane, operator: Operator
) -> None:
    operator("op1")
    clean_cluster.api.create(virtual("web", "192.0.2.10", macAddress=MAC))
    wait("the given one", lambda: running_with(clean_cluster, MAC))
    name = router_with(clean_cluster, "192.0.2.10")["metadata"]["name"]
    change(clean_cluster, macAddress=OTHER)
    wait("the other", lambda: running_with(clean_cluster, OTHER))
    change(clean_cluster, macAddress="VRRP")
    vrrp = f"00:00:5e:00:01:{int(name.removeprefix('vr-')):02x}"
    wait("VRRP's", lambda: running_with(clean_cluster, vrrp))
    clean_cluster.api.create(virtual("six", "2001:db8::10", macAddress="VRRP"))
    six = wait("IPv6 Ready", lambda: ready(clean_cluster, "six"))

    assert router_with(clean_cluster, "192.0.2.10")["metadata"]["name"] == name
    assert six["macAddress"] == f"00:00:5e:00:02:{int(six['virtualRouter'].removeprefix('vr-')):02x}"
    assert planned_mac(clean_cluster, "2001:db8::10") == six["macAddress"]


@pytest.mark.usefixtures("puppets")
def test_a_mac_that_another_has_is_refused_and_named(clean_cluster: ControlPlane, operator: Operator) -> None:
    operator("op1")
    clean_cluster.api.create(virtual("web", "192.0.2.10", macAddress=MAC))
    wait("the first", lambda: running_with(clean_cluster, MAC))
    clean_cluster.api.create(virtual("late", "192.0.2.11", macAddress=MAC))
    clean_cluster.api.create(virtual("node", "192.0.2.12", macAddress="02:00:00:00:00:02"))
    wait("MACInUse", lambda: accepted_reason(clean_cluster, "late") == "MACInUse")
    wait("MACOfNode", lambda: accepted_reason(clean_cluster, "node") == "MACOfNode")
    (event,) = wait("the Event", lambda: events_of(clean_cluster, "late", "Refused"))
    in_use = condition_of(clean_cluster, "late", "Accepted")["message"]
    of_node = condition_of(clean_cluster, "node", "Accepted")["message"]
    clean_cluster.api.delete("VirtualIP", "web")
    wait("it is free", lambda: ready(clean_cluster, "late"))

    assert event["note"].startswith("MACInUse: ")
    for words, named in ((in_use, "VirtualIP default/web"), (of_node, "eth0 of node n2")):
        assert named in words
        assert "spec.macAddress" in words
    assert planned_mac(clean_cluster, "192.0.2.11") == MAC


def test_where_the_network_carries_no_frame_of_it_it_is_not_ready_and_says_what_to_do(
    clean_cluster: ControlPlane, operator: Operator, puppets: Puppets
) -> None:
    operator("op1")
    clean_cluster.api.create(virtual("web", "192.0.2.10", macAddress=MAC))
    wait("Ready", lambda: running_with(clean_cluster, MAC))
    puppets.blocked.add("192.0.2.10")
    wait("blocked", lambda: not ready(clean_cluster, "web"))
    found = condition_of(clean_cluster, "web", "Ready")
    at_rest_briefly(clean_cluster)
    events = events_of(clean_cluster, "web", "Blocked")
    puppets.blocked.clear()
    wait("Ready again", lambda: running_with(clean_cluster, MAC))

    assert (found["status"], found["reason"]) == ("False", "VirtualMACBlocked")
    for word in (MAC, "forged transmits", "spec.macFallback: NodeMAC"):
        assert word in found["message"]
    assert len(events) == 1
    assert events[0]["note"].startswith("VirtualMACBlocked: ")


def test_with_a_fallback_it_goes_on_with_the_nodes_mac_over_a_restart_until_the_spec_changes(
    clean_cluster: ControlPlane, operator: Operator, puppets: Puppets
) -> None:
    first = operator("op1")
    clean_cluster.api.create(virtual("web", "192.0.2.10", macFallback="NodeMAC"))
    mac = wait("Ready", lambda: ready(clean_cluster, "web"))["macAddress"]
    at_rest_briefly(clean_cluster)
    puppets.blocked.add("192.0.2.10")
    wait("the MAC taken out", lambda: not planned_mac(clean_cluster))
    wait("Ready again", lambda: ready(clean_cluster, "web"))
    rest = at_rest_briefly(clean_cluster)
    told = condition_of(clean_cluster, "web", "Ready")
    events = events_of(clean_cluster, "web", "FellBack")
    first.terminate()
    operator("op2")
    wait("the second to lead", lambda: holder(clean_cluster))
    at_rest_briefly(clean_cluster)
    written = our_writes(clean_cluster, rest)
    puppets.blocked.clear()
    at_rest_briefly(clean_cluster)
    still = planned_mac(clean_cluster)
    change(clean_cluster, macFallback="Never")
    wait("another try", lambda: running_with(clean_cluster, mac))

    assert (told["status"], told["reason"]) == ("True", "VirtualMACBlocked")
    assert "spec.macFallback" in told["message"]
    assert len(events) == 1
    assert mac in events[0]["note"]
    assert written == []
    assert still == ""


def test_a_node_without_a_fence_is_no_candidate_and_a_doubled_mac_is_a_conflict(
    clean_cluster: ControlPlane, operator: Operator, puppets: Puppets
) -> None:
    puppets.unfenced.update(("n1", "n3"))
    operator("op1")
    clean_cluster.api.create(virtual("web", "192.0.2.10", macAddress=MAC))
    status = wait("Ready", lambda: ready(clean_cluster, "web"))
    puppets.claimed["192.0.2.10"] = (MAC, "MACDoubled")
    wait("the conflict", lambda: condition_of(clean_cluster, "web", "Conflict")["status"] == "True")
    conflict = condition_of(clean_cluster, "web", "Conflict")
    (event,) = wait("the Event", lambda: events_of(clean_cluster, "web", "Conflict"))
    clean_cluster.api.merge("Node", "n1", {"metadata": {"labels": {"edge": "yes"}}})
    only_n1 = {"selector": {"matchLabels": {"edge": "yes"}}}
    clean_cluster.api.create(virtual("none", "192.0.2.11", nodes=only_n1))
    wait("nobody can", lambda: scheduled_reason(clean_cluster, "none") == "VirtualMACUnavailable")
    refused = condition_of(clean_cluster, "none", "Scheduled")

    assert (status["leader"], status.get("standbys", [])) == ("n2", [])
    assert conflict["reason"] == "MACDoubled"
    assert f"another host on the segment sends with its virtual MAC {MAC}" in conflict["message"]
    assert event["note"].startswith("MACDoubled: ")
    assert ready(clean_cluster, "web")
    assert refused["status"] == "False"
    assert "no nftables egress hook" in refused["message"]
