# SPDX-License-Identifier: Apache-2.0
"""Hand-over orders, moves, conflicts and strangers against a real API server; the speakers are puppets."""

import time
from datetime import datetime
from functools import partial
from typing import Any

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
    router_of,
    status_of,
    vip,
    wait,
)
from tests.rig.api import Object
from tests.rig.controlplane import ControlPlane

pytestmark = pytest.mark.cluster


def running(plane: ControlPlane, operator: Operator, *flags: str) -> Object:
    """One VirtualIP that is Ready, and nothing more to write; its status."""
    operator("op1", *flags)
    wait("a leader", lambda: holder(plane))
    plane.api.create(vip("web", "192.0.2.10"))
    wait("Ready", lambda: ready(plane, "web"))
    at_rest_briefly(plane)
    return status_of(plane, "web")


def mark(plane: ControlPlane, node: str, value: str | None = "true") -> None:
    plane.api.merge("Node", node, {"metadata": {"labels": {"holdfast.dev/drain": value}}})


def ask_for(plane: ControlPlane, to: str | None) -> None:
    plane.api.merge("VirtualIP", "web", {"metadata": {"annotations": {"holdfast.dev/move-to": to}}})


def order(plane: ControlPlane) -> Any:
    return router_of(plane)["spec"].get("handover")


def active(plane: ControlPlane) -> str:
    held = ready(plane, "web").get("active") or [{"node": ""}]
    return str(held[0]["node"])


@pytest.mark.usefixtures("puppets")
def test_a_drained_node_hands_over_the_status_and_an_event_tell_it_within_a_second(
    clean_cluster: ControlPlane, operator: Operator
) -> None:
    before = running(clean_cluster, operator)
    giver, heir = before["leader"], before["standbys"][0]

    mark(clean_cluster, giver)
    wait("the heir to hold it", lambda: active(clean_cluster) == heir)
    wait("the order to be withdrawn", lambda: order(clean_cluster) is None)
    (event,) = wait("the Event", lambda: events_of(clean_cluster, "web", "FailedOver"))
    at_rest_briefly(clean_cluster)
    told = status_of(clean_cluster, "web")
    story = told["lastFailover"]
    seconds = datetime.fromisoformat(event["eventTime"]) - datetime.fromisoformat(story["time"])
    mark(clean_cluster, giver, None)
    at_rest_briefly(clean_cluster)

    print(f"takeover to Event: {seconds.total_seconds():.2f} s")
    assert (story["from"], story["to"], story["reason"]) == (giver, heir, "HandedOver")
    assert (story["detectionMilliseconds"], story["takeoverMilliseconds"]) == (0, 2)
    for word in ("HandedOver", f"from {giver} to {heir}", story["time"], "2 ms"):
        assert word in event["note"]
    assert told["leader"] == heir
    assert told["standbys"][-1] == giver
    assert seconds.total_seconds() < 2, "1 s, and what a busy machine adds"
    assert active(clean_cluster) == heir, "it stays when the mark is gone"


def test_an_order_that_nobody_obeys_is_withdrawn_and_never_repeated_by_itself(
    clean_cluster: ControlPlane, operator: Operator, puppets: Puppets
) -> None:
    before = running(clean_cluster, operator)
    giver, others = before["leader"], set(before["standbys"])
    puppets.stubborn.add(giver)
    seen: dict[str, tuple[str, float]] = {}
    began = time.monotonic()

    mark(clean_cluster, giver)
    while time.monotonic() - began < 26:
        found = order(clean_cluster)
        if found is not None:
            seen.setdefault(found["id"], (found["to"], time.monotonic()))
        time.sleep(0.1)
    rest = at_rest_briefly(clean_cluster)
    time.sleep(4)
    quiet = our_writes(clean_cluster, rest)
    mark(clean_cluster, giver, None)
    puppets.stubborn.clear()
    mark(clean_cluster, giver)
    wait("another order, obeyed", lambda: active(clean_cluster) in others)

    times = [at for _, at in seen.values()]
    print("orders to", [to for to, _ in seen.values()], [f"{at - began:.1f} s" for at in times])
    assert {to for to, _ in seen.values()} == others, "each heir once"
    assert len(seen) == 2
    assert 9.5 <= times[1] - times[0] <= 14
    assert quiet == []


@pytest.mark.usefixtures("puppets")
def test_kubectl_cordon_drains_only_where_it_was_asked_to(
    clean_cluster: ControlPlane, operator: Operator
) -> None:
    first = operator("op1")
    wait("a leader", lambda: holder(clean_cluster))
    clean_cluster.api.create(vip("web", "192.0.2.10"))
    giver = wait("Ready", lambda: active(clean_cluster))
    rest = at_rest_briefly(clean_cluster)
    clean_cluster.api.merge("Node", giver, {"spec": {"unschedulable": True}})
    time.sleep(3)
    ignored = our_writes(clean_cluster, rest)
    first.terminate()
    operator("op2", "--drain-on", "Cordon", "--drain-taints", "example.com/going")
    wait("another holder", lambda: active(clean_cluster) not in ("", giver))
    heir = active(clean_cluster)
    at_rest_briefly(clean_cluster)
    taint = {"key": "example.com/going", "effect": "NoSchedule"}
    clean_cluster.api.merge("Node", heir, {"spec": {"taints": [taint]}})
    wait("a third holder", lambda: active(clean_cluster) not in ("", giver, heir))

    assert ignored == []


@pytest.mark.usefixtures("puppets")
def test_a_move_is_carried_out_once_and_answered_in_status_and_event(
    clean_cluster: ControlPlane, operator: Operator
) -> None:
    before = running(clean_cluster, operator)
    first, last = before["leader"], before["standbys"][-1]

    began = time.monotonic()
    ask_for(clean_cluster, last)
    wait("the last standby to hold it", lambda: active(clean_cluster) == last)
    seconds = time.monotonic() - began
    wait("the answer", lambda: status_of(clean_cluster, "web").get("move"))
    moved = status_of(clean_cluster, "web")["move"]
    ask_for(clean_cluster, "n9")
    wait("the refusal", lambda: status_of(clean_cluster, "web").get("move", {}).get("to") == "n9")
    refused = status_of(clean_cluster, "web")["move"]
    ask_for(clean_cluster, None)
    wait("no answer without a question", lambda: "move" not in status_of(clean_cluster, "web"))
    ask_for(clean_cluster, first)
    wait("it to be back", lambda: active(clean_cluster) == first)
    at_rest_briefly(clean_cluster)

    print(f"asked to moved: {seconds:.2f} s")
    assert (moved["to"], moved["reason"]) == (last, "HandedOver")
    assert refused["reason"] == "NotCandidate"
    wait(
        "the Events",
        lambda: events_of(clean_cluster, "web", "Moved") and events_of(clean_cluster, "web", "NotMoved"),
    )


def test_a_conflict_comes_and_goes_and_readiness_stays(
    clean_cluster: ControlPlane, operator: Operator, puppets: Puppets
) -> None:
    running(clean_cluster, operator)

    def conflict(reason: str) -> bool:
        return str(condition_of(clean_cluster, "web", "Conflict").get("reason", "")) == reason

    for kind in ("AddressClaimed", "AddressClaimedByPeer"):
        puppets.claimed["192.0.2.10"] = ("02:99:00:00:00:01", kind)
        wait(kind, partial(conflict, kind))
        message = condition_of(clean_cluster, "web", "Conflict")["message"]
        assert "02:99:00:00:00:01" in message
        assert ready(clean_cluster, "web")
        puppets.claimed.clear()
        wait("it to be over", partial(conflict, "NoConflict"))
    puppets.strangers["n2"] = {int(router_of(clean_cluster)["spec"]["virtualRouterID"])}
    wait("the stranger", partial(conflict, "ForeignRouter"))
    puppets.strangers.clear()
    wait("him to be gone", partial(conflict, "NoConflict"))
    assert ready(clean_cluster, "web")
    wait("the Events", lambda: len(events_of(clean_cluster, "web", "Conflict")) == 3)
    wait("their ends", lambda: len(events_of(clean_cluster, "web", "ConflictOver")) == 3)


def test_deleted_while_the_operator_is_away_and_its_holders_api_is_cut_then_claimed_by_another(
    clean_cluster: ControlPlane, operator: Operator, puppets: Puppets
) -> None:
    first = operator("op1")
    for name, address in (("web", "192.0.2.10"), ("other", "192.0.2.11")):
        clean_cluster.api.create(vip(name, address))
        wait(f"{name} Ready", partial(ready, clean_cluster, name))
    holding = active(clean_cluster)
    at_rest_briefly(clean_cluster)
    first.kill()
    puppets.deaf.add(holding)
    clean_cluster.api.delete("VirtualIP", "web")
    thief = vip("thief", "192.0.2.10")
    thief["metadata"]["annotations"] = {"holdfast.dev/force-release": holding}
    clean_cluster.api.create(thief)
    operator("op2")
    wait("the refusal", lambda: accepted_reason(clean_cluster, "thief") == "AddressReleasing")
    time.sleep(5)
    still = accepted_reason(clean_cluster, "thief")
    where = [
        (r["metadata"]["name"], a["state"], a["owner"]["name"])
        for r in clean_cluster.api.items("VirtualRouter")
        for a in r["spec"]["addresses"]
        if a["address"] == "192.0.2.10"
    ]
    puppets.deaf.clear()
    wait("the thief Ready", lambda: ready(clean_cluster, "thief"))

    assert still == "AddressReleasing", "a live speaker speaks for itself, whatever is annotated"
    assert [(state, owner) for _, state, owner in where] == [("Releasing", "web")]
