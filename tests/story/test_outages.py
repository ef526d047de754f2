# SPDX-License-Identifier: Apache-2.0
"""The API server, the operator or a token is away: nothing moves, and what must move still does.

Outages last as long as it takes to be seen by all; ``OUTAGE_SECONDS=300 make rig`` makes them longer.
"""

import os
import time

import pytest

from tests.rig.api import condition
from tests.rig.cluster import Cluster
from tests.story.objects import vip

pytestmark = [pytest.mark.netns, pytest.mark.cluster]

V4 = "192.0.2.100"
SECOND = "192.0.2.101"
LEASE_SECONDS = 25
OUTAGE_SECONDS = float(os.environ.get("OUTAGE_SECONDS", "0"))
TIMEOUT_SECONDS = 240 + 3 * OUTAGE_SECONDS


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_a_host_that_dies_while_the_api_is_away_is_replaced_and_told_afterwards(cluster: Cluster) -> None:
    cluster.apply(vip("web", V4))
    leader = cluster.wait_ready("web")["status"]["leader"]
    with cluster.probe(V4) as probe:
        probe.wait_answer(V4)
        cluster.control_plane.stop()
        time.sleep(max(2, OUTAGE_SECONDS / 2))
        moment = cluster.crash(leader)
        gap = probe.wait_gap(V4, after=moment)
        time.sleep(max(3, OUTAGE_SECONDS / 2))
        cluster.control_plane.start()
        (successor,) = [name for name, host in cluster.hosts.items() if host.mac == gap.mac_after]
        status = cluster.wait_active("web", successor, timeout_s=40)["status"]
        answers = probe.result()
    assert gap.ms <= 1000
    assert len(answers.silences()) == 1, "the API's return moves nothing"
    assert status["lastFailover"]["from"] == leader
    assert condition(cluster.wait_ready("web", timeout_s=40), "Ready")["status"] == "True"


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_an_operator_that_is_back_before_the_speakers_releases_nothing(cluster: Cluster) -> None:
    """After a long outage every speaker looks dead; an operator that believed it would empty all routers."""
    cluster.apply(vip("web", V4))
    cluster.wait_ready("web")
    with cluster.probe(V4) as probe:
        probe.wait_answer(V4)
        for host in cluster.hosts:
            cluster.cut_api(host)
        cluster.control_plane.stop()
        time.sleep(max(LEASE_SECONDS + 5, OUTAGE_SECONDS))
        cluster.control_plane.start()
        _until_silent(cluster)
        time.sleep(max(3, OUTAGE_SECONDS / 5))
        silent = condition(cluster.vip("web"), "Ready")
        for machine in cluster.hosts.values():
            machine.cable.mend()
        cluster.wait_ready("web", timeout_s=60)
        answers = probe.result()
    assert silent["status"] == "Unknown"
    assert answers.gaps == ()
    assert answers.lost == 0


def _until_silent(cluster: Cluster) -> None:
    """The operator sees that nobody renews: a Lease's duration, counted from when it can know."""
    cluster.wait_until(
        "nobody is known to hold it",
        lambda: condition(cluster.vip("web"), "Ready").get("status") == "Unknown",
        timeout_s=90,
    )


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_revoked_tokens_release_nothing(cluster: Cluster) -> None:
    cluster.apply(vip("web", V4))
    leader = cluster.wait_ready("web")["status"]["leader"]
    with cluster.probe(V4) as probe:
        probe.wait_answer(V4)
        cluster.control_plane.revoke_speaker_tokens()
        _until_silent(cluster)
        time.sleep(3)
        held = cluster.holders(V4)
        for name in cluster.hosts:
            cluster.renew_token(name)
        cluster.wait_ready("web", timeout_s=90)
        answers = probe.result()
    assert held == [leader]
    assert answers.gaps == ()
    assert cluster.active("web") == [leader]


def test_a_killed_operator_moves_nothing_and_writes_nothing_when_it_is_back(cluster: Cluster) -> None:
    cluster.apply(vip("web", V4) + vip("shop", SECOND))
    for name in ("web", "shop"):
        cluster.wait_ready(name)
    cluster.wait_quiet()
    before = {name: cluster.vip(name) for name in ("web", "shop")}
    with cluster.probe(V4, SECOND) as probe:
        mark = cluster.control_plane.mark()
        cluster.operators["op1"].kill()
        time.sleep(2)
        cluster.start_operator("op1")
        cluster.apply(vip("late", "192.0.2.102"))
        cluster.wait_ready("late", timeout_s=60)  # it leads, and plans
        time.sleep(2)
        results = probe.results()
    assert all(answers.lost == 0 for answers in results.values())
    for name, vip_before in before.items():
        after = cluster.vip(name)
        assert after["status"]["active"] == vip_before["status"]["active"]
        assert after["metadata"]["resourceVersion"] == vip_before["metadata"]["resourceVersion"]
    touched = {w.name for w in cluster.control_plane.writes(mark) if w.resource == "virtualips"}
    assert touched == {"late"}


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_nothing_is_written_per_address_while_nothing_happens(cluster: Cluster) -> None:
    count = 20
    cluster.apply("".join(vip(f"v{i}", f"192.0.2.{100 + i}") for i in range(count)))
    for i in range(count):
        cluster.wait_ready(f"v{i}", timeout_s=30)
    cluster.wait_quiet()
    mark = cluster.control_plane.mark()
    span_s = 15.0
    time.sleep(span_s)
    writes = cluster.control_plane.writes(mark)
    ours = [w for w in writes if w.user.startswith("system:serviceaccount:holdfast-system:")]
    assert {w.resource for w in ours} == {"leases"}
    speakers = [w for w in ours if w.node]
    assert len(speakers) <= len(cluster.hosts) * (span_s / 10 + 1), "one Lease each 10 s and node"


def test_a_restarted_speaker_moves_its_own_addresses_once_and_no_others(cluster: Cluster) -> None:
    names = [f"v{i}" for i in range(6)]
    addresses = {name: f"192.0.2.{100 + i}" for i, name in enumerate(names)}
    cluster.apply("".join(vip(name, address) for name, address in addresses.items()))
    leaders = {name: cluster.wait_ready(name)["status"]["leader"] for name in names}
    assert set(leaders.values()) == set(cluster.hosts), "spread over all"
    with cluster.probe(*addresses.values()) as probe:
        for address in addresses.values():
            probe.wait_answer(address)
        cluster.restart_speaker("h1")
        cluster.wait_speakers(["h1"])
        time.sleep(2)
        results = probe.results()
    for name, address in addresses.items():
        moved = len(results[address].macs) > 1
        assert moved == (leaders[name] == "h1"), name
        assert len(results[address].silences()) <= 1, "once"
        if not moved:
            assert results[address].lost == 0


def test_a_stopped_speaker_leaves_only_its_plan(cluster: Cluster) -> None:
    cluster.apply(vip("four", V4, group="edge") + vip("six", "fd00:192:0:2::100", group="edge"))
    leader = cluster.wait_ready("four")["status"]["leader"]
    host = cluster.hosts[leader]
    rules_before = cluster.hosts[leader].ruleset()
    assert host.stop_speaker() == 0, host.speaker_log()
    assert host.addresses() == []
    assert host.ruleset() == "", f"it had {rules_before}"
    kept = sorted(p.name for p in (host.run_folder / "holdfast").iterdir())
    assert len(kept) == 1, kept
    assert "plan" in kept[0]


def test_a_router_deleted_by_hand_comes_back_the_same(cluster: Cluster) -> None:
    cluster.apply(vip("web", V4))
    name = cluster.wait_ready("web")["status"]["virtualRouter"]
    before = cluster.api.get("VirtualRouter", name)
    assert before is not None
    cluster.api.delete("VirtualRouter", name)

    def again() -> bool:
        """It is made empty and filled by a second write."""
        found = cluster.api.get("VirtualRouter", name)
        return (
            found is not None
            and found["metadata"]["uid"] != before["metadata"]["uid"]
            and bool(found["spec"]["addresses"])
        )

    cluster.wait_until("the router is back", again)
    after = cluster.api.get("VirtualRouter", name)
    assert after is not None
    assert after["spec"]["virtualRouterID"] == before["spec"]["virtualRouterID"]
    assert [a["address"] for a in after["spec"]["addresses"]] == [V4]
    cluster.wait_ready("web")
    with cluster.probe(V4) as probe:
        probe.wait_answer(V4)


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_a_second_operator_takes_over_and_a_woken_first_one_changes_nothing(cluster: Cluster) -> None:
    cluster.start_operator("op2")
    try:
        cluster.apply(vip("web", V4))
        cluster.wait_ready("web")
        cluster.operators["op1"].pause()
        stopped = time.monotonic()
        cluster.apply(vip("shop", SECOND))
        cluster.wait_ready("shop", timeout_s=40)
        took = time.monotonic() - stopped
        cluster.wait_quiet()
        mark = cluster.control_plane.mark()
        cluster.operators["op1"].resume()
        time.sleep(8)
        changed = [w for w in cluster.control_plane.writes(mark) if w.resource.startswith("virtual")]
        cluster.operators["op2"].kill()
        killed = time.monotonic()
        if not cluster.operators["op1"].running():  # one that lost its Lease while asleep may start afresh
            cluster.start_operator("op1")
        cluster.apply(vip("late", "192.0.2.102"))
        cluster.wait_ready("late", timeout_s=40)
        took_again = time.monotonic() - killed
    finally:
        cluster.operators.pop("op2").kill()
    assert took <= 12
    assert took_again <= 12
    assert changed == []
