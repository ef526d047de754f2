# SPDX-License-Identifier: Apache-2.0
"""The fence against the kernel: who is answered when, what leaves, what keeps a lease and what does not."""

import contextlib
import socket
import time
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from holdfast_speaker.fence.kernel import KernelFence, jiffy_us
from holdfast_speaker.vrrp.advert import Family
from tests.netns.fence_field import (
    A_MAC,
    ALL,
    B4,
    B6,
    B_MAC,
    BROADCAST,
    LEASE_US,
    NOBODY,
    SLACK_S,
    V4,
    V6,
    Field,
    advert,
    answer_in,
    answering,
    dead,
    patched,
    sending,
)

pytestmark = pytest.mark.netns

C_MAC = "02:00:00:00:00:0c"


# --- leases ------------------------------------------------------------------------------------------


def test_without_a_take_everything_is_as_without_a_fence(field: Field, fence: KernelFence) -> None:
    assert not fence.alive(7)
    assert field.asked() == ALL


def test_a_lease_is_answered_and_over_in_time_for_good(field: Field, fence: KernelFence) -> None:
    fence.guard(7, field.home, 400_000, (V4, V6))
    assert fence.take(7)
    assert field.asked(0.3) == ALL
    dead(fence)
    assert field.asked() == NOBODY
    time.sleep(0.3)
    assert field.asked() == NOBODY
    assert fence.take(7)
    assert field.asked(0.3) == ALL


@pytest.mark.parametrize("family", [4, 6])
def test_marked_adverts_alone_keep_both_families_alive(
    field: Field, fence: KernelFence, family: Family
) -> None:
    fence.guard(7, field.home, 200_000, (V4, V6))
    mouth = field.mouth(fence.mark)
    assert fence.take(7)
    with sending(mouth, advert(family), 0.03):
        for _ in range(15):
            time.sleep(0.1)
            assert fence.alive(7)
        assert field.asked(0.5) == ALL
    dead(fence)
    assert field.asked() == NOBODY


def test_a_stalled_speaker_is_silent_when_its_lease_is_over_and_stays_so_when_it_wakes(
    field: Field, fence: KernelFence
) -> None:
    fence.guard(7, field.home, 280_000, (V4, V6))
    mouth = field.mouth(fence.mark)
    assert fence.take(7)
    with sending(mouth, advert(), 0.05):
        time.sleep(0.3)
    last = time.monotonic()
    answered = dict.fromkeys(ALL, 0.0)
    with field.net.inside("b"):
        while (now := time.monotonic()) < last + 0.8:
            for frame in field.questions().values():
                field.ear.send(frame)
            for frame in field.heard(0.004):
                if answer := answer_in(frame):
                    answered[answer] = now - last
    assert max(answered.values()) < 0.280 + 2 * jiffy_us() / 1e6 + SLACK_S, answered
    assert min(answered.values()) > 0.1, answered  # the last advert was at most 50 ms before

    for family in (4, 6):
        with pytest.raises(OSError, match="No buffer space"):
            mouth.send(advert(family))
    assert not fence.alive(7)


def _talk_as_the_address(field: Field) -> None:
    """Everything that host a could say with the addresses as source: announcements, UDP, a TCP SYN."""
    a = A_MAC
    mouth = field.mouth()
    frames = (
        Ether(src=a, dst=BROADCAST) / ARP(op=1, hwsrc=a, psrc=V4, pdst=V4),
        Ether(src=a, dst=BROADCAST) / ARP(op=2, hwsrc=a, psrc=V4, hwdst=a, pdst=V4),
        Ether(src=a, dst="33:33:00:00:00:01") / IPv6(src=V6, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=V6),
        Ether(src=a, dst="33:33:00:00:00:01")
        / IPv6(src="fe80::a", dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(tgt=V6),
        Ether(src=a, dst=BROADCAST) / IP(src=V4, dst=B4) / UDP(sport=7, dport=7),
    )
    for frame in frames:
        with contextlib.suppress(OSError):
            mouth.send(bytes(frame))
    for family, own, other in ((socket.AF_INET, V4, B4), (socket.AF_INET6, V6, B6)):
        with socket.socket(family, socket.SOCK_DGRAM) as udp, contextlib.suppress(OSError):
            udp.bind((own, 0))
            udp.sendto(b"x", (other, 9))
        with socket.socket(family, socket.SOCK_STREAM) as tcp, contextlib.suppress(OSError):
            tcp.setblocking(False)
            tcp.bind((own, 0))
            tcp.connect((other, 9))


def of_the_address(frame: bytes) -> bool:
    """ARP or IP from one of the addresses, or an advertisement for it."""
    v4, v6 = ip_address(V4).packed, ip_address(V6).packed
    return v4 in (frame[28:32], frame[26:30]) or v6 in (frame[22:38], frame[62:78])


def test_nothing_leaves_with_the_address_once_the_lease_is_over(field: Field, fence: KernelFence) -> None:
    fence.guard(7, field.home, 500_000, (V4, V6))
    assert fence.take(7)
    field.heard(0)
    _talk_as_the_address(field)
    assert len([f for f in field.heard(0.1) if of_the_address(f)]) >= 9  # the test itself can see them
    dead(fence)
    field.heard(0.02)
    _talk_as_the_address(field)
    assert [f for f in field.heard(0.1) if of_the_address(f)] == []


def test_silent_ends_it_at_once_and_only_a_take_begins_it_again(field: Field, fence: KernelFence) -> None:
    mouth = field.mouth(fence.mark)
    fence.guard(7, field.home, 5_000_000, (V4, V6))
    assert fence.take(7)
    fence.silent(7)
    assert not fence.alive(7)
    assert not fence.extend(7)
    with pytest.raises(OSError, match="No buffer space"):
        mouth.send(advert())
    assert field.asked() == NOBODY
    assert fence.take(7)
    mouth.send(advert())
    assert field.asked(0.5) == ALL


def test_extend_prolongs_what_lives(fence: KernelFence) -> None:
    assert fence.take(7)
    began = time.monotonic()
    while time.monotonic() < began + 0.4:
        alive = fence.extend(7)
        time.sleep(0.02)
        if not alive:
            break
    assert time.monotonic() - began > 0.3
    dead(fence)
    assert not fence.extend(7)
    assert not fence.alive(7)


def test_another_lease_or_home_keeps_the_one_that_runs(field: Field, fence: KernelFence) -> None:
    fence.guard(7, field.home, 1_000_000, (V4, V6))
    assert fence.take(7)
    fence.guard(7, field.second, 150_000, (V4, V6, "192.0.2.11"))
    assert fence.alive(7)
    field.mouth(fence.mark).send(advert())  # no longer its home: passes, renews nothing
    time.sleep(0.3)
    assert fence.alive(7)
    field.mouth(fence.mark, nic="eth1").send(advert())
    time.sleep(0.2)
    assert not fence.alive(7)


# --- what does not keep a lease ----------------------------------------------------------------------

NO_ADVERTS: dict[str, bytes] = {
    "by unicast": patched(advert(4), 30, ip_address(B4).packed),
    "with a low TTL": patched(advert(4), 22, b"\xfe"),
    "of another type": patched(advert(4), 34, b"\x32"),
    "of version 2": patched(advert(4), 34, b"\x21"),
    "of another router": patched(advert(4), 35, b"\x08"),
    "of another protocol": patched(advert(4), 23, b"\x11"),
    "by IPv6 unicast": patched(advert(6), 38, ip_address(B6).packed),
    "with a low hop limit": patched(advert(6), 21, b"\xfe"),
    "of another IPv6 router": patched(advert(6), 55, b"\x08"),
}


def survives(fence: KernelFence, sock: socket.socket, frame: bytes) -> bool:
    """Whether a lease outlives itself by these frames."""
    assert fence.take(7)
    with sending(sock, frame, 0.01):
        time.sleep(LEASE_US * 1.6 / 1e6)
        return fence.alive(7)


def test_a_marked_frame_that_is_no_advert_does_not_keep_it(field: Field, fence: KernelFence) -> None:
    mouth = field.mouth(fence.mark)
    assert survives(fence, mouth, advert(4))
    assert survives(fence, mouth, advert(6))
    assert [what for what, frame in NO_ADVERTS.items() if survives(fence, mouth, frame)] == []


@pytest.mark.parametrize("family", [4, 6])
def test_adverts_without_the_mark_pass_but_keep_nothing(
    field: Field, fence: KernelFence, family: Family
) -> None:
    for mark in (0, 1, fence.mark ^ 0x10):
        field.heard(0)
        assert not survives(fence, field.mouth(mark), advert(family))
        assert advert(family) in field.heard()


def test_adverts_of_another_nic_of_a_pod_or_of_a_peer_keep_nothing(field: Field, fence: KernelFence) -> None:
    assert not survives(fence, field.mouth(fence.mark, nic="eth1"), advert())
    field.net.add("pod")
    field.net.cable("pod", "eth0", "a", "veth0")
    assert not survives(fence, field.mouth(fence.mark, host="pod"), advert())
    assert not survives(fence, field.mouth(fence.mark, host="b"), advert())


def test_what_a_dead_lease_drops_is_only_ours(field: Field, fence: KernelFence) -> None:
    """keepalived on this host, on the same VRID, is none of the fence's business."""
    assert fence.take(7)
    dead(fence)
    field.heard(0)
    field.mouth().send(advert())
    assert advert() in field.heard()


# --- other NICs, tags ---------------------------------------------------------------------------------


def test_a_second_nic_on_the_segment_never_answers(field: Field, fence: KernelFence) -> None:
    assert "eth1" in answering(field)  # what Linux does without a fence
    fence.guard(7, field.home, 2_000_000, (V4, V6))
    assert fence.take(7)
    assert answering(field) == {"eth0"}
    fence.silent(7)
    assert answering(field) == set()


def test_answers_may_leave_by_another_nic_and_ask_for_their_way_while_alive(
    field: Field, fence: KernelFence
) -> None:
    """Routes are the host's business: Linux asks for a gateway with the address that it answers from."""
    fence.guard(7, field.home, 5_000_000, (V4, V6))
    field.net.ip("a", f"neigh del {B4} dev eth0", f"route add {B4}/32 dev eth1")
    assert fence.take(7)
    assert "ping4" in field.asked(0.5, frozenset({"ping4"}))
    fence.silent(7)
    field.net.ip("a", "neigh flush dev eth1")
    assert field.asked() == NOBODY


def test_nothing_comes_in_for_a_dead_lease(field: Field, fence: KernelFence) -> None:
    """Not only its answers are lost. 802.1Q: VLAN 0 is no VLAN, the kernel takes what is tagged so."""
    fence.guard(7, field.home, 5_000_000, (V4, V6))
    frame = bytes(Ether(src=B_MAC, dst=A_MAC) / IP(src=B4, dst=V4) / UDP(sport=7, dport=7007) / b"x")
    tagged = frame[:12] + b"\x81\x00\xc0\x00" + frame[12:]

    def solicited() -> int:
        counters = dict(line.split() for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines())
        return int(counters["Icmp6InNeighborSolicits"])

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind((V4, 7007))
        for verb, comes_in in ((fence.take, True), (fence.silent, False)):
            verb(7)
            before = solicited()
            for _ in range(20):
                field.ear.send(field.questions()["nd"])
            time.sleep(0.03)
            assert (solicited() - before >= 20) == comes_in
            for each in (frame, tagged):
                field.ear.send(each)
                time.sleep(0.02)
                with contextlib.suppress(BlockingIOError):
                    assert service.recv(9, socket.MSG_DONTWAIT) == b"x"
                    assert comes_in
                    continue
                assert not comes_in


# --- handing over ------------------------------------------------------------------------------------


def test_quiet_answers_no_question_and_serves_on(field: Field, fence: KernelFence) -> None:
    fence.guard(7, field.home, 5_000_000, (V4, V6))
    assert fence.take(7)
    fence.quiet(7)
    assert field.asked(enough=ALL | {"never"}) == {"ping4", "ping6"}
    field.heard(0)
    a = A_MAC
    for claim in (
        Ether(src=a, dst=BROADCAST) / ARP(op=1, hwsrc=a, psrc=V4, pdst=B4),
        Ether(src=a, dst="33:33:ff:00:00:02")
        / IPv6(src=V6, dst="ff02::1:ff00:2", hlim=255)
        / ICMPv6ND_NS(tgt=B6)
        / ICMPv6NDOptSrcLLAddr(lladdr=a),
    ):
        with contextlib.suppress(OSError):
            field.mouth().send(bytes(claim))
    assert [f for f in field.heard() if of_the_address(f)] == []
    assert fence.take(7)
    assert field.asked(0.5) == ALL


def test_after_a_release_who_still_believes_in_us_is_forwarded(field: Field, fence: KernelFence) -> None:
    net = field.net
    fence.guard(7, field.home, 5_000_000, (V4, V6))
    assert fence.take(7)
    net.ip("a", f"addr del {V4}/32 dev eth0")
    net.run("a", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    field.add_host("c", {"eth0": C_MAC})
    net.ip("a", f"neigh replace {V4} dev eth0 lladdr {C_MAC} nud permanent")
    net.ip("c", f"addr add {V4}/24 dev eth0", f"neigh replace {B4} dev eth0 lladdr {B_MAC}")

    def reached() -> bool:
        field.heard(0)
        field.ear.send(field.questions()["ping4"])
        return any(answer_in(frame) == "ping4" for frame in field.heard(SLACK_S))

    fence.silent(7)
    assert not reached()
    fence.release(7)
    assert reached()
