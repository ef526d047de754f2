# SPDX-License-Identifier: Apache-2.0
"""Apply, answer, crash, answer again: what Holdfast is for, as a client sees it 1,000 times a second."""

import time

import pytest

from tests.rig.cluster import Cluster
from tests.story.objects import vip

pytestmark = [pytest.mark.netns, pytest.mark.cluster]

V4 = "192.0.2.100"
V6 = "fd00:192:0:2::100"
FIRST_ANSWER_S = 1.2  # 0.6 is promised, 1.4 is what duplicate address detection would make of it
INTERVAL_MS = 100.0
NOISE_MS = 200.0
GAP_MS = 1000.0  # 350 is promised and `make bench` measures it; a busy machine may be late by more


@pytest.mark.parametrize("address", [V4, V6], ids=["IPv4", "IPv6"])
def test_an_applied_address_answers_within_its_time_and_without_a_dad_delay(
    cluster: Cluster, address: str
) -> None:
    """An IPv6 address with duplicate address detection would be tentative for a second."""
    with cluster.probe(address) as probe:
        applied = time.monotonic()
        cluster.apply(vip("web", address))
        waited = probe.wait_answer(address) - applied
    ready = cluster.wait_ready("web")
    assert waited <= FIRST_ANSWER_S
    assert cluster.holders(address) == cluster.active("web") == [ready["status"]["leader"]]


def test_a_silent_crash_is_over_within_the_promised_gap(cluster: Cluster) -> None:
    cluster.apply(vip("web", V4))
    ready = cluster.wait_ready("web")
    leader, standbys = ready["status"]["leader"], ready["status"]["standbys"]
    with cluster.probe(V4) as probe:
        probe.wait_answer(V4)
        moment = cluster.crash(leader)
        gap = probe.wait_gap(V4, after=moment)
        (successor,) = (name for name, host in cluster.hosts.items() if host.mac == gap.mac_after)
        cluster.wait_active("web", successor)
        time.sleep(1)
        answers = probe.result()
    assert gap.ms <= GAP_MS
    assert gap.mac_before == cluster.hosts[leader].mac
    assert successor in standbys, "usually the first: their turns are 3 ms apart"
    assert len(answers.silences()) == 1, "one move, and no other silence"
    assert answers.doubled == 0, "never two answers to one request"
    assert gap.mac_after in cluster.neighbour(V4)


def test_the_status_tells_the_failover_as_the_client_saw_it(cluster: Cluster) -> None:
    """Detection counts from the last advert, the client's gap from the crash: up to an interval later."""
    cluster.apply(vip("web", V4))
    leader = cluster.wait_ready("web")["status"]["leader"]
    with cluster.probe(V4) as probe:
        probe.wait_answer(V4)
        moment = cluster.crash(leader)
        gap = probe.wait_gap(V4, after=moment)
        (successor,) = cluster.wait_until("another is active", lambda: _others(cluster, "web", leader))
    last = cluster.vip("web")["status"]["lastFailover"]
    told_ms = last["detectionMilliseconds"] + last["takeoverMilliseconds"]
    print(f"client: {gap.ms:.0f} ms; detection and takeover as told: {told_ms} ms")
    assert (last["from"], last["to"], last["reason"]) == (leader, successor, "ActiveSilent")
    assert last["announcementsSent"] >= 1
    assert -INTERVAL_MS - NOISE_MS <= gap.ms - told_ms <= NOISE_MS
    begins = f"ActiveSilent: from {leader} to {successor} at {last['time']}"
    story = cluster.wait_until("its Event", lambda: _failover_note(cluster, begins))
    assert f"detected in {last['detectionMilliseconds']} ms" in story


def _failover_note(cluster: Cluster, begins: str) -> str | None:
    notes = [e["note"] for e in cluster.api.items("Event", "default") if e["reason"] == "FailedOver"]
    return next((note for note in notes if note.startswith(begins)), None)


def _others(cluster: Cluster, name: str, than: str) -> list[str]:
    active = cluster.active(name)
    return active if active and than not in active else []


def test_a_crash_with_the_link_down_is_over_as_fast(cluster: Cluster) -> None:
    cluster.apply(vip("web", V4))
    leader = cluster.wait_ready("web")["status"]["leader"]
    with cluster.probe(V4) as probe:
        probe.wait_answer(V4)
        moment = cluster.crash(leader, silent=False)
        assert probe.wait_gap(V4, after=moment).ms <= GAP_MS


def test_both_families_of_a_group_move_together(cluster: Cluster) -> None:
    cluster.apply(vip("four", V4, group="edge") + vip("six", V6, group="edge"))
    leader = cluster.wait_ready("four")["status"]["leader"]
    six = cluster.wait_ready("six")["status"]
    assert six["leader"] == leader
    assert six["virtualRouter"] == cluster.vip("four")["status"]["virtualRouter"]
    with cluster.probe(V4, V6) as probe:
        for address in (V4, V6):
            probe.wait_answer(address)
        moment = cluster.crash(leader)
        gaps = [probe.wait_gap(address, after=moment) for address in (V4, V6)]
    assert all(gap.ms <= GAP_MS for gap in gaps)
    assert len({gap.mac_after for gap in gaps}) == 1


def test_a_returning_node_takes_nothing_back(cluster: Cluster) -> None:
    cluster.apply(vip("web", V4))
    leader = cluster.wait_ready("web")["status"]["leader"]
    cluster.crash(leader)
    (successor,) = cluster.wait_until("another node is active", lambda: _others(cluster, "web", leader))
    with cluster.probe(V4) as probe:
        probe.wait_answer(V4)
        cluster.restore(leader)
        cluster.wait_speakers([leader])
        time.sleep(3)
        answers = probe.result()
    assert answers.lost == 0
    assert cluster.active("web") == cluster.holders(V4) == [successor]


def test_a_deleted_virtual_ip_is_released(cluster: Cluster) -> None:
    cluster.apply(vip("web", V4))
    cluster.wait_ready("web")
    cluster.api.delete("VirtualIP", "web")
    cluster.wait_until("nobody holds it", lambda: not cluster.holders(V4))
    cluster.wait_until("its router is gone", lambda: not cluster.api.items("VirtualRouter"))


def test_a_bridge_carries_the_address_and_not_its_port(cluster: Cluster) -> None:
    """Hosts with virtual machines put their NIC into a bridge, which then has the address."""
    host = cluster.hosts["h3"]
    host.stop_speaker()
    host.add_bridge("br0")
    try:
        cluster.start_speaker("h3")
        cluster.wait_speakers(["h3"], nic="br0")
        cluster.apply(vip("web", V4, node="h3"))
        cluster.wait_ready("web")
        assert cluster.vip("web")["status"]["active"][0]["interface"] == "br0"
        assert host.addresses("br0") == [V4]
    finally:
        cluster.api.delete("VirtualIP", "web")
        cluster.wait_until("nobody holds it", lambda: not host.addresses("br0"))
        host.stop_speaker()
        host.remove_bridge("br0")
        cluster.start_speaker("h3")
