# SPDX-License-Identifier: Apache-2.0
"""Somebody else has the address: refused at first, defended later, told to the user until it is over."""

import socket
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from holdfast_speaker.vrrp.advert import Advert, build
from tests.rig.api import condition, socket_in
from tests.rig.cluster import Cluster
from tests.rig.network import mac_of
from tests.rig.run import NETNS, command
from tests.story.objects import vip

pytestmark = [pytest.mark.netns, pytest.mark.cluster]

V4 = "192.0.2.100"
V6 = "fd00:192:0:2::100"
OVER_S = 20.0  # 5 s without a claim, on a busy machine


class Stranger:
    """A station of nobody's cluster on the same switch."""

    def __init__(self, cluster: Cluster, number: int = 240) -> None:
        self.name = cluster.run.namespace_name("stranger")
        cluster.run.add_namespace("stranger")
        cluster.segment.connect("stranger", number, port="stranger", careful=False)
        self.mac = mac_of(self.name, "eth0")

    def has(self, address: str) -> None:
        """Its kernel holds the address and answers for it."""
        prefix = "128 nodad" if ":" in address else "32"
        command("ip", "-n", self.name, "address", "add", *f"{address}/{prefix}".split(), "dev", "eth0")

    def lets_go(self, address: str) -> None:
        prefix = "128" if ":" in address else "32"
        command("ip", "-n", self.name, "address", "del", f"{address}/{prefix}", "dev", "eth0")

    def speaks(self, address: str, to: str) -> None:
        """It sends something from the address, so that its kernel asks for ``to`` with it as the sender."""
        command("ip", "-n", self.name, "neighbour", "flush", "dev", "eth0")
        inside = ["ip", "netns", "exec", self.name, "ping", "-c1", "-W1", "-I", address, to]
        command(*inside, check=False)


@pytest.fixture
def stranger(cluster: Cluster) -> Iterator[Stranger]:
    stranger = Stranger(cluster)
    yield stranger
    command("ip", "-n", cluster.segment.namespace, "link", "del", "stranger")
    command("ip", "netns", "del", stranger.name)


def conflict(cluster: Cluster) -> tuple[str, str, str]:
    found = condition(cluster.vip("web"), "Conflict")
    return found.get("status", ""), found.get("reason", ""), found.get("message", "")


@pytest.mark.parametrize("address", [V4, V6], ids=["IPv4", "IPv6"])
def test_a_held_address_is_defended_and_the_user_told_until_it_is_over(
    cluster: Cluster, stranger: Stranger, address: str
) -> None:
    cluster.apply(vip("web", address))
    leader = cluster.wait_ready("web")["status"]["leader"]
    own = cluster.segment.addresses(11)[1 if ":" in address else 0]
    with cluster.probe(address) as probe:
        probe.wait_answer(address)
        stranger.has(address)
        stranger.speaks(address, own)
        cluster.wait_until("a conflict", lambda: conflict(cluster)[0] == "True")
        status, reason, message = conflict(cluster)
        time.sleep(3)  # the client is won back each second
        stranger.lets_go(address)
        cluster.wait_until("it is over", lambda: conflict(cluster)[0] == "False", timeout_s=OVER_S)
        time.sleep(1.5)
        answers = probe.result()
    assert (status, reason) == ("True", "AddressClaimed")
    assert stranger.mac in message
    assert cluster.holders(address) == cluster.active("web") == [leader], "defended, never given up"
    assert condition(cluster.vip("web"), "Ready")["status"] == "True"
    told = [e for e in cluster.api.items("Event", "default") if e["reason"] == "Conflict"]
    assert any(stranger.mac in event["note"] for event in told)
    assert cluster.hosts[leader].mac in cluster.neighbour(address)
    late = [gap for gap in answers.silences() if gap.start > time.monotonic() - 1.0]
    assert late == [], "and the client is where it belongs"


def test_an_address_somebody_has_is_not_taken_until_it_is_free(cluster: Cluster, stranger: Stranger) -> None:
    stranger.has(V4)
    cluster.apply(vip("web", V4))
    cluster.wait_until("a conflict", lambda: conflict(cluster)[0] == "True")
    assert conflict(cluster)[1] == "AddressAnswered"
    assert cluster.holders(V4) == []
    stranger.lets_go(V4)
    cluster.wait_until("held", lambda: len(cluster.holders(V4)) == 1)
    cluster.wait_until("no conflict", lambda: conflict(cluster)[0] == "False")


def test_a_foreign_router_with_our_vrid_is_told_of(cluster: Cluster, stranger: Stranger) -> None:
    """A lesser one, that heeds nobody: ours answers, asks the others whether they hear it, and stays."""
    cluster.apply(vip("web", V4))
    ready = cluster.wait_ready("web")
    number = int(ready["status"]["virtualRouter"].removeprefix("vr-"))
    leader = ready["status"]["leader"]
    source = IPv4Address("192.0.2.240").packed
    advert = Advert(4, source, number, 1, 100_000, IPv4Address("192.0.2.239").packed)
    frame = build(advert, bytes.fromhex(stranger.mac.replace(":", "")))
    with (
        cluster.probe(V4) as probe,
        socket_in(NETNS / stranger.name, socket.AF_PACKET, socket.SOCK_RAW) as out,
    ):
        probe.wait_answer(V4)
        out.bind(("eth0", 0))
        deadline = time.monotonic() + 20
        while conflict(cluster)[0] != "True":
            assert time.monotonic() < deadline, conflict(cluster)
            for _ in range(5):
                out.send(frame)
                time.sleep(0.1)
        answers = probe.result()
    assert conflict(cluster)[1] == "ForeignRouter"
    assert "192.0.2.240" in conflict(cluster)[2]
    assert answers.lost == 0
    assert cluster.active("web") == cluster.holders(V4) == [leader]
