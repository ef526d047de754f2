# SPDX-License-Identifier: Apache-2.0
"""The packet sockets against the kernel: what is heard, what is not, and NICs that go away."""

import re
import socket
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NA, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vrrp import VRRPv3

from holdfast_speaker.link import Link
from tests.netns.small_net import Net

pytestmark = pytest.mark.netns

B = "02:00:00:00:00:0b"
VRRP_MAC = "01:00:5e:00:00:12"
V4_ADVERT = bytes(
    Ether(src=B, dst=VRRP_MAC)
    / IP(src="192.0.2.2", dst="224.0.0.18", ttl=255, proto=112)
    / VRRPv3(vrid=7, addrlist=["192.0.2.10"])
)
V6_ADVERT = bytes(
    Ether(src=B, dst="33:33:00:00:00:12")
    / IPv6(src="fe80::b", dst="ff02::12", hlim=255, nh=112)
    / VRRPv3(vrid=7, addrlist=["2001:db8::10"])
)
ARP_QUESTION = bytes(
    Ether(src=B, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=B, psrc="192.0.2.2", pdst="192.0.2.10")
)
SOLICITATION = bytes(
    Ether(src=B, dst="33:33:00:00:00:01")
    / IPv6(src="fe80::b", dst="ff02::1", hlim=255)
    / ICMPv6ND_NS(tgt="2001:db8::10")
)
ADVERTISEMENT = bytes(
    Ether(src=B, dst="33:33:00:00:00:01")
    / IPv6(src="fe80::b", dst="ff02::1", hlim=255)
    / ICMPv6ND_NA(tgt="2001:db8::10")
)
WANTED = {
    "an IPv4 advert": V4_ADVERT,
    "an IPv6 advert": V6_ADVERT,
    "an ARP question": ARP_QUESTION,
    "a neighbour solicitation": SOLICITATION,
    "a neighbour advertisement": ADVERTISEMENT,
    "an ARP answer to another, perhaps a virtual MAC of ours": bytes(
        Ether(src=B, dst="02:00:00:00:00:99") / ARP(op=2, hwsrc=B, psrc="192.0.2.2", pdst="192.0.2.9")
    ),
    "a neighbour advertisement to another": bytes.fromhex("020000000099") + ADVERTISEMENT[6:],
}
UNWANTED = {
    "UDP": bytes(Ether(src=B, dst="ff:ff:ff:ff:ff:ff") / IP(src="192.0.2.2", dst="255.255.255.255") / UDP()),
    "a ping": bytes(
        Ether(src=B, dst="33:33:00:00:00:01") / IPv6(src="fe80::b", dst="ff02::1") / ICMPv6EchoRequest()
    ),
    "another ethertype": bytes(Ether(src=B, dst="ff:ff:ff:ff:ff:ff", type=0x88B5) / b"hello"),
    "an advert with a vlan tag": bytes(
        Ether(src=B, dst=VRRP_MAC) / Dot1Q(vlan=5, type=0x0800) / V4_ADVERT[14:]
    ),
    "a question to another host": bytes(
        Ether(src=B, dst="02:00:00:00:00:99") / ARP(op=1, hwsrc=B, psrc="192.0.2.2", pdst="192.0.2.9")
    ),
    "an advert to another host": bytes(Ether(src=B, dst="02:00:00:00:00:99", type=0x0800)) + V4_ADVERT[14:],
}


@pytest.fixture
def on_a(pair: Net) -> Iterator[tuple[Net, Link, int]]:
    """The wire of host a, hearing eth0, and that NIC's index."""
    with pair.inside("a"):
        link = Link()
        index = socket.if_nametoindex("eth0")
        link.hear(frozenset({index}))
        try:
            yield pair, link, index
        finally:
            link.close()


def send_from_b(net: Net, *frames: bytes) -> None:
    with net.inside("b"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind(("eth0", 0))
        for frame in frames:
            sock.send(frame)


def heard(link: Link, seconds: float = 0.05) -> list[bytes]:
    """Frames heard within that time, but for the hosts' own ND chatter."""
    frames: list[bytes] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        frames += [frame for _, frame in link.drain(64)]
        time.sleep(0.002)
    return [frame for frame in frames if frame[6:12] == bytes.fromhex(B.replace(":", ""))]


@pytest.mark.parametrize("what", WANTED)
def test_is_heard(on_a: tuple[Net, Link, int], what: str) -> None:
    net, link, _ = on_a
    send_from_b(net, WANTED[what])
    assert heard(link) == [WANTED[what]]


@pytest.mark.parametrize("what", UNWANTED)
def test_is_not_heard(on_a: tuple[Net, Link, int], what: str) -> None:
    net, link, _ = on_a
    send_from_b(net, UNWANTED[what], V4_ADVERT)
    assert heard(link) == [V4_ADVERT]


def test_an_advert_with_only_a_priority_tag_is_heard_without_it(on_a: tuple[Net, Link, int]) -> None:
    net, link, _ = on_a
    tagged = Ether(src=B, dst=VRRP_MAC) / Dot1Q(vlan=0, prio=6, type=0x0800) / V4_ADVERT[14:]
    send_from_b(net, bytes(tagged))
    assert heard(link) == [V4_ADVERT]


def test_what_we_send_ourselves_is_not_heard(on_a: tuple[Net, Link, int]) -> None:
    _, link, index = on_a
    assert link.send(index, [V4_ADVERT, ARP_QUESTION]) == 2
    assert heard(link) == []


def test_a_host_firewall_does_not_deafen(on_a: tuple[Net, Link, int]) -> None:
    net, link, _ = on_a
    net.run("a", "nft", "table ip t { chain c { type filter hook prerouting priority -400; policy drop; }; }")
    send_from_b(net, V4_ADVERT)
    assert heard(link) == [V4_ADVERT]


def test_the_multicast_groups_are_joined_for_switches_that_snoop(on_a: tuple[Net, Link, int]) -> None:
    net, _, _ = on_a
    groups = net.run("a", "ip", "maddr", "show", "dev", "eth0")
    for group in ("224.0.0.18", "ff02::12", "01:00:5e:00:00:12", "33:33:00:00:00:12"):
        assert group in groups


def test_a_nic_no_longer_heard_is_left_with_its_groups(on_a: tuple[Net, Link, int]) -> None:
    net, link, _ = on_a
    link.hear(frozenset())
    send_from_b(net, V4_ADVERT)
    assert heard(link) == []
    groups = net.run("a", "ip", "maddr", "show", "dev", "eth0")
    assert "224.0.0.18" not in groups
    assert "ff02::12" not in groups


def test_hearing_goes_on_after_the_nic_was_down(on_a: tuple[Net, Link, int]) -> None:
    net, link, index = on_a
    net.ip("a", "link set eth0 down")
    assert heard(link) == []
    assert link.send(index, [V4_ADVERT]) == 0
    net.ip("a", "link set eth0 up")
    link.mend()
    send_from_b(net, V4_ADVERT)
    assert heard(link, 0.2) == [V4_ADVERT]
    assert link.send(index, [V4_ADVERT]) == 1


def test_a_nic_that_vanishes_and_one_that_never_was_raise_nothing(on_a: tuple[Net, Link, int]) -> None:
    net, link, index = on_a
    assert link.send(index, [V4_ADVERT]) == 1
    net.ip("a", "link del eth0")
    assert heard(link) == []
    assert link.send(index, [V4_ADVERT]) == 0
    link.mend()
    link.hear(frozenset({index, 4711}))
    assert link.send(4711, [V4_ADVERT]) == 0
    assert heard(link) == []


def test_a_nic_whose_opening_failed_is_heard_once_it_is_there(pair: Net) -> None:
    with pair.inside("a"):
        link = Link()
        index = 4242
        link.hear(frozenset({index}))
        pair.ip("a", "link del eth0")
        pair.ip("a", f"link add eth0 index {index} type veth peer name eth0 netns {pair.full('b')}")
        pair.ip("a", "link set eth0 up")
        pair.ip("b", "link set eth0 up")
        link.mend()
        send_from_b(pair, V4_ADVERT)
        assert heard(link) == [V4_ADVERT]
        link.close()


def test_a_full_queue_loses_frames_and_says_how_many(on_a: tuple[Net, Link, int]) -> None:
    net, link, index = on_a
    net.run(
        "a",
        "nft",
        "table netdev t { chain c { type filter hook egress device eth0 priority 0; policy drop; }; }",
    )
    assert not link.held_back(index)
    assert link.send(index, [V4_ADVERT] * 10) == 0
    assert link.held_back(index)
    net.run("a", "nft", "delete table netdev t")
    assert link.send(index, [V4_ADVERT]) == 1
    assert not link.held_back(index)


def test_what_does_not_leave_because_the_nic_is_down_was_not_held_back(on_a: tuple[Net, Link, int]) -> None:
    net, link, index = on_a
    net.ip("a", "link set eth0 down")
    assert link.send(index, [V4_ADVERT]) == 0
    assert not link.held_back(index)


@pytest.mark.parametrize(("mark", "passed"), [(0, 0), (0xBA000112, 2)])
def test_what_leaves_carries_the_mark(pair: Net, mark: int, passed: int) -> None:
    """The fence tells our adverts from those of other programs by it."""
    counts = "meta mark 0xba000112 counter accept; meta mark 0 counter accept; counter drop"
    hook = "type filter hook egress device eth0 priority 0"
    chains = f"chain d {{ {counts}; }}; chain c {{ {hook}; ip protocol 112 jump d; }};"
    pair.run("a", "nft", f"table netdev t {{ {chains} }}")
    with pair.inside("a"):
        link = Link(mark)
        index = socket.if_nametoindex("eth0")
        assert link.send(index, [V4_ADVERT, ARP_QUESTION, V4_ADVERT]) == 3
        link.close()
    told = pair.run("a", "nft", "list chain netdev t d")
    assert [int(n) for n in re.findall(r"counter packets (\d+)", told)] == [passed, 2 - passed, 0]


def test_a_burst_is_drained_in_bounded_batches(on_a: tuple[Net, Link, int]) -> None:
    net, link, _ = on_a
    send_from_b(net, *[V4_ADVERT] * 1000)
    sizes = [len(link.drain(64)) for _ in range(20)]
    assert max(sizes) == 64
    assert sum(sizes) >= 1000
