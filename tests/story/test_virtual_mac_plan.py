# SPDX-License-Identifier: Apache-2.0
"""A VirtualIP in mode VirtualMAC from the API to the wire: allotted, moved, changed, blocked."""

import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.rig.api import condition
from tests.rig.caches import cached
from tests.rig.cluster import Cluster
from tests.rig.hosts import Host
from tests.rig.network import netns_path
from tests.rig.onlookers import Onlookers
from tests.rig.run import command, in_namespace
from tests.rig.wire import Wire
from tests.story.objects import vip

pytestmark = [pytest.mark.netns, pytest.mark.cluster]

V4 = "192.0.2.100"
PAUSE_MS = 1000.0  # what a change of the MAC may cost


def moved_to(cluster: Cluster, node: str) -> None:
    cluster.api.merge("VirtualIP", "dressed", {"metadata": {"annotations": {"holdfast.dev/move-to": node}}})
    cluster.wait_until(f"{node} has it", lambda: cluster.active("dressed") == [node], timeout_s=30)


def mac_of(cluster: Cluster) -> str | None:
    """What the client's cache says."""
    return cached(cluster.run.namespace_name("client"), V4)


def test_the_mac_is_allotted_once_and_moves_along(cluster: Cluster) -> None:
    cluster.apply(vip("dressed", V4, mode="VirtualMAC"))
    given = cluster.wait_ready("dressed")["status"]["macAddress"]
    giver = cluster.active("dressed")[0]
    heir = next(name for name in cluster.hosts if name != giver)
    with (
        Wire(cluster.segment, sorted(cluster.hosts), addresses=[V4], macs=[given]) as wire,
        Onlookers(cluster, V4) as seen,
    ):
        moved_to(cluster, heir)
        time.sleep(0.5)
    seen.tell(f"{given} from {giver} to {heir}")
    assert given.startswith("02:")
    assert mac_of(cluster) == given == cluster.vip("dressed")["status"]["macAddress"]
    assert seen.lost == seen.nothing_lost
    assert set(wire.ports_of(given)) == {giver, heir}
    # A change of the mode, there and back: the MAC is the same again.
    with Onlookers(cluster, V4) as seen:
        for mode, virtual in (("NodeMAC", False), ("VirtualMAC", True)):
            cluster.api.merge("VirtualIP", "dressed", {"spec": {"mode": mode}})
            known = partial(_is_known, cluster, given, virtual=virtual)
            cluster.wait_until(f"the client knows it in mode {mode}", known, timeout_s=30)
            time.sleep(0.5)
    seen.tell("to the NIC's MAC and back")
    assert seen.gap_ms(V4) <= PAUSE_MS
    assert cluster.vip("dressed")["status"]["macAddress"] == given
    cluster.api.delete("VirtualIP", "dressed")
    for host in cluster.hosts.values():
        cluster.wait_until(f"{host.name} has nothing left", partial(_is_bare, host))


def _is_known(cluster: Cluster, mac: str, *, virtual: bool) -> bool:
    return (mac_of(cluster) == mac) is virtual


def _is_bare(host: Host) -> bool:
    return host.macvlans() == []


@pytest.fixture
def guarded_ports(cluster: Cluster) -> Iterator[None]:
    """The switch's ports let through only what comes from the NIC's own MAC, as a hypervisor's may."""
    names = sorted(cluster.hosts)
    chains = "".join(
        f"""chain {name} {{
            type filter hook ingress device "{name}" priority -5;
            ether saddr != {cluster.hosts[name].mac} drop
        }}\n"""
        for name in names
    )
    load = in_namespace(netns_path(cluster.segment.namespace), ["nft", "-f", "-"])
    command(*load, stdin=f"table netdev security {{\n{chains}}}\n")
    yield
    command(*load, stdin="delete table netdev security\n")


@pytest.mark.usefixtures("guarded_ports")
def test_a_network_that_blocks_it_is_told_and_the_fallback_helps(cluster: Cluster) -> None:
    cluster.apply(vip("dressed", V4, mode="VirtualMAC"))
    cluster.wait_until(
        "the VirtualIP says that it is blocked",
        lambda: condition(cluster.vip("dressed"), "Ready").get("reason") == "VirtualMACBlocked",
        timeout_s=60,
    )
    told = condition(cluster.vip("dressed"), "Ready")
    assert told["status"] == "False"
    assert "macFallback" in told["message"]
    cluster.api.merge("VirtualIP", "dressed", {"spec": {"macFallback": "NodeMAC"}})
    cluster.wait_until(
        "it is ready by the NIC's MAC",
        lambda: condition(cluster.vip("dressed"), "Ready").get("status") == "True",
        timeout_s=60,
    )
    with Onlookers(cluster, V4) as seen:
        time.sleep(0.5)
    holder = cluster.active("dressed")[0]
    assert mac_of(cluster) == cluster.hosts[holder].mac
    assert seen.lost == seen.nothing_lost
