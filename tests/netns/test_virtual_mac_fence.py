# SPDX-License-Identifier: Apache-2.0
"""Virtual MACs in the fence: who answers, which MAC what leaves has, what comes in, in every state."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether

from holdfast_speaker import virtual_mac
from holdfast_speaker.fence.kernel import KernelFence
from tests.netns.fence_field import (
    A_MAC,
    ALL,
    B4,
    B6,
    B_MAC,
    BROADCAST,
    LONG_US,
    MACS,
    OWN,
    SLACK_S,
    V4,
    V6,
    V_MAC,
    W_MAC,
    Field,
    advert,
    answer_in,
    dead,
    killed,
    mac_bytes,
    patched,
    wait_until,
)

PARENTS = os.environ.get("PARENTS", "bridge").split(",")
pytestmark = pytest.mark.netns


@pytest.fixture
def device(field: Field) -> str:
    return field.plant(V_MAC, V4, V6)


@pytest.fixture
def fence(field: Field, device: str) -> Iterator[KernelFence]:  # noqa: ARG001  the macvlan is there
    with contextlib.closing(field.fence(LONG_US, MACS, OWN)) as made:
        yield made


def to_mac(frame: bytes, mac: str = V_MAC) -> bytes:
    return patched(frame, 0, mac_bytes(mac))


def source_of(frames: list[bytes], address: str) -> set[str]:
    """The MACs that IP packets from this address came with."""
    packed = ip_address(address).packed
    at, kind = (22, b"\x86\xdd") if ":" in address else (26, b"\x08\x00")
    return {f[6:12].hex(":") for f in frames if f[12:14] == kind and f[at : at + len(packed)] == packed}


# --- questions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_the_virtual_mac_alone_answers_whoever_is_asked(
    field: Field, fence: KernelFence, rp_filter: int
) -> None:
    """By broadcast, as by a unicast to the NIC's MAC or its own; never from a second NIC."""
    field.net.run("a", "sysctl", "-qw", f"net.ipv4.conf.all.rp_filter={rp_filter}")
    asked = field.questions()
    tap, second = field.tap(), field.tap(port="a-eth1")
    assert fence.take(7)
    for what, mac_at in (("arp", 22), ("nd", 80)):
        for frame in (asked[what], to_mac(asked[what], A_MAC), to_mac(asked[what])):
            field.ear.send(frame)
            answers = [f for f in tap.frames(SLACK_S) if answer_in(f) == what]
            said = {(f[6:12].hex(":"), f[mac_at : mac_at + 6].hex(":")) for f in answers}
            assert (len(answers), said) == (1, {(V_MAC, V_MAC)}), what
    assert [f for f in second.frames() if answer_in(f)] == []
    field.ear.send(to_mac(asked["ping4"]))
    field.ear.send(to_mac(asked["ping6"]))
    frames = tap.frames(SLACK_S)
    assert (source_of(frames, V4), source_of(frames, V6)) == ({V_MAC}, {V_MAC})


def test_questions_of_a_vlan_and_for_others_are_left_alone(field: Field, fence: KernelFence) -> None:
    assert fence.take(7)
    tap = field.tap()
    field.ear.send(bytes(Ether(src=B_MAC, dst=BROADCAST) / Dot1Q(vlan=5) / ARP(op=1, psrc=B4, pdst=V4)))
    assert [f for f in tap.frames(SLACK_S) if answer_in(f)] == []
    field.ear.send(bytes(Ether(src=B_MAC, dst=BROADCAST) / ARP(op=1, hwsrc=B_MAC, psrc=B4, pdst=OWN)))
    assert [f[6:12].hex(":") for f in tap.frames(SLACK_S) if f[28:32] == ip_address(OWN).packed] == [A_MAC]


def test_nothing_but_what_is_for_its_addresses_gets_into_a_macvlan(
    field: Field, fence: KernelFence, device: str
) -> None:
    """It is seen first what gets in without the fence."""
    for key in ("ipv6.conf.{}.accept_ra=2", "ipv4.conf.{}.arp_ignore=0"):
        field.net.run("a", "sysctl", "-qw", "net." + key.format(device))
    link_local = ICMPv6NDOptSrcLLAddr(lladdr=B_MAC)
    prefix = ICMPv6NDOptPrefixInfo(prefix="2001:db8:7::", prefixlen=64, L=1, A=1)
    noise = {
        "advertisement": Ether(src=B_MAC, dst="33:33:00:00:00:01")
        / IPv6(src="fe80::b", dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(routerlifetime=600)
        / prefix
        / link_local,
        "broadcast": Ether(src=B_MAC, dst=BROADCAST)
        / IP(src=B4, dst="255.255.255.255")
        / UDP(sport=9, dport=7009)
        / b"x",
        "question": Ether(src=B_MAC, dst=V_MAC) / ARP(op=1, hwsrc=B_MAC, psrc=B4, pdst=OWN),
    }

    def gets_in(service: socket.socket) -> set[str]:
        tap, found = field.tap(V_MAC), set()
        for frame in noise.values():
            field.ear.send(bytes(frame))
        frames = tap.frames(SLACK_S)
        if any(f[20:22] == b"\0\2" and f[28:32] == ip_address(OWN).packed for f in frames):
            found.add("question")
        with contextlib.suppress(BlockingIOError):
            found |= {"broadcast"} if service.recv(9, socket.MSG_DONTWAIT) else set()
        if "ra" in field.net.run("a", "ip", "-6", "route", "show", "dev", device):
            found.add("advertisement")
        return found

    assert fence.take(7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        service.bind(("", 7009))
        assert gets_in(service) == set()
        field.net.run("a", "nft", "delete", "chain", "netdev", "holdfast", _chain_of(device))
        assert gets_in(service) == set(noise)


def _chain_of(device: str) -> str:
    return f"mac{socket.if_nametoindex(device)}"


# --- what leaves -------------------------------------------------------------------------------------


def _forget_neighbours(field: Field) -> None:
    """What b and a know of each other, so that both have to ask."""
    field.net.run("a", "ip", "neigh", "flush", "all", "nud", "permanent", "dev", "eth0")
    field.net.ip("b", "neigh flush all")


def _answered(listener: socket.socket, server: tuple[str, int], field: Field) -> bytes:
    """What b is told by a server that tells everyone something."""
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    with field.net.inside("b"):
        client = socket.socket(family, socket.SOCK_STREAM)
    with client:
        client.settimeout(3)
        client.connect(server)
        listener.settimeout(3)
        connection, _ = listener.accept()
        with connection:
            connection.send(b"hello")
        return client.recv(9)


@pytest.mark.parametrize("rp_filter", [0, 1, 2])
@pytest.mark.parametrize("own", [OWN, None])
def test_replies_leave_with_the_virtual_mac_and_nobody_learns_another(
    field: Field, fence: KernelFence, rp_filter: int, own: str | None
) -> None:
    """The node asks for b in its own name: Linux would ask by the address that it answers from."""
    field.net.run("a", "sysctl", "-qw", f"net.ipv4.conf.all.rp_filter={rp_filter}")
    fence.guard(7, field.home, LONG_US, (V4, V6), MACS, own)
    assert fence.take(7)
    tap = field.tap()
    for address, family in ((V4, socket.AF_INET), (V6, socket.AF_INET6)):
        _forget_neighbours(field)
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((address, 7080))
            listener.listen()
            assert _answered(listener, (address, 7080), field) == b"hello"
        frames = tap.frames()
        assert source_of(frames, address) == {V_MAC}
        asked = {f[28:32] for f in frames if f[12:14] == b"\x08\x06" and f[20:22] == b"\0\1"}
        if family == socket.AF_INET:
            assert asked == {ip_address(own or "0.0.0.0").packed}  # noqa: S104
        assert V_MAC in field.net.ip("b", f"neigh show {address}")


@pytest.mark.parametrize("rp_filter", [0, 1])
def test_so_does_what_a_backend_answers(field: Field, fence: KernelFence, rp_filter: int) -> None:
    """As kube-proxy sends it there: the address becomes the source only behind all routing."""
    net = field.net
    net.add("pod")
    net.cable("pod", "eth0", "a", "veth0")
    net.ip("a", "addr add 10.0.0.1/24 dev veth0", "addr add fd00::1/64 dev veth0 nodad")
    net.ip("pod", "addr add 10.0.0.2/24 dev eth0", "addr add fd00::2/64 dev eth0 nodad")
    net.ip("pod", "route add default via 10.0.0.1", "route add default via fd00::1")
    rules = f"ip daddr {V4} tcp dport 80 dnat to 10.0.0.2:7080; "
    net.run("a", "nft", "table ip n { chain p { type nat hook prerouting priority -100; " + rules + "}; }")
    rules = f"ip6 daddr {V6} tcp dport 80 dnat to [fd00::2]:7080; "
    net.run("a", "nft", "table ip6 n { chain p { type nat hook prerouting priority -100; " + rules + "}; }")
    for key in ("ipv4.ip_forward=1", "ipv6.conf.all.forwarding=1", f"ipv4.conf.all.rp_filter={rp_filter}"):
        net.run("a", "sysctl", "-qw", f"net.{key}")
    assert fence.take(7)
    tap = field.tap()
    for address, backend, family in ((V4, "10.0.0.2", socket.AF_INET), (V6, "fd00::2", socket.AF_INET6)):
        _forget_neighbours(field)
        with net.inside("pod"):
            listener = socket.socket(family, socket.SOCK_STREAM)
        with listener:
            listener.bind((backend, 7080))
            listener.listen()
            assert _answered(listener, (address, 80), field) == b"hello"
        assert source_of(tap.frames(), address) == {V_MAC}
        assert V_MAC in field.net.ip("b", f"neigh show {address}")


def test_on_another_nic_its_mac_is_not_used_and_nobody_is_asked_in_its_name(
    field: Field, fence: KernelFence
) -> None:
    """The switch would take the port behind that NIC for its home."""
    assert fence.take(7)
    field.net.ip("a", f"neigh del {B4} dev eth0", f"route add {B4}/32 dev eth1")
    home, other = field.tap(), field.tap(port="a-eth1")
    field.ear.send(to_mac(field.questions()["ping4"]))
    frames = other.frames(SLACK_S)
    assert source_of(frames, V4) == {"02:00:00:00:00:1a"}
    assert {f[28:32] for f in frames if f[12:14] == b"\x08\x06"} == {bytes(4)}
    assert source_of(home.frames(), V4) == set()


# --- states ------------------------------------------------------------------------------------------


def _talk(field: Field, *nics: str) -> None:
    """Everything that could carry the virtual MAC: the macvlan itself, the speaker's frames, the kernel's."""
    claim = Ether(src=V_MAC, dst=BROADCAST) / ARP(op=2, hwsrc=V_MAC, psrc=V4, hwdst=V_MAC, pdst=V4)
    other = Ether(src=V_MAC, dst=BROADCAST, type=0x88B6) / bytes(46)
    for nic in nics:
        mouth = field.mouth(nic=nic)
        for said in (claim, other):
            with contextlib.suppress(OSError):
                mouth.send(bytes(said))
    for family, address, peer in ((socket.AF_INET, V4, B4), (socket.AF_INET6, V6, B6)):
        with socket.socket(family, socket.SOCK_DGRAM) as udp, contextlib.suppress(OSError):
            udp.bind((address, 0))
            udp.sendto(b"x", (peer, 9))
    for what in ("ping4", "ping6"):
        field.ear.send(to_mac(field.questions()[what], A_MAC))
    for frame in field.questions().values():
        field.ear.send(to_mac(frame))


def test_without_a_lease_and_in_quiet_nothing_leaves_with_it(
    field: Field, fence: KernelFence, device: str
) -> None:
    home, second = field.tap(V_MAC), field.tap(V_MAC, "a-eth1")

    def leaves() -> int:
        home.frames(0), second.frames(0)
        _talk(field, device, "eth0", "eth1")
        return len(home.frames(SLACK_S)) + len(second.frames(0))

    def heard_nothing(what: str) -> None:
        assert leaves() == 0, what

    heard_nothing("before it was ever taken")
    assert fence.take(7)
    assert leaves() >= 12  # the test itself can see them
    fence.quiet(7)
    heard_nothing("in quiet")
    assert fence.take(7)
    assert leaves() >= 12
    fence.silent(7)
    heard_nothing("silent")
    assert fence.take(7)
    fence.release(7)
    heard_nothing("released")
    fence.guard(7, field.home, 200_000, (V4, V6), MACS, OWN)
    assert fence.take(7)
    dead(fence)  # nobody says anything any more: a speaker that stands still
    heard_nothing("dead")
    with pytest.raises(OSError, match="No buffer space"):
        field.mouth(fence.mark).send(advert(mac=V_MAC))
    killed(fence)
    heir = KernelFence()
    heir.open((V4, V6), MACS)
    heard_nothing("left behind")
    heir.adopt(V4)
    heard_nothing("left behind by one address")
    heir.cover(field.both)
    heir.guard(7, field.home, LONG_US, (V4, V6), MACS, OWN)
    heard_nothing("guarded by the next one")
    assert heir.take(7)
    assert leaves() >= 12
    heir.close()
    fence._kernel = heir._kernel


def test_in_quiet_all_are_served_on_with_the_nics_mac(field: Field, fence: KernelFence) -> None:
    assert fence.take(7)
    fence.quiet(7)
    tap = field.tap()
    asked = field.questions()
    for what in ("ping4", "ping6"):
        field.ear.send(to_mac(asked[what]))
    frames = tap.frames(SLACK_S)
    assert (source_of(frames, V4), source_of(frames, V6)) == ({A_MAC}, {A_MAC})
    for what in ("arp", "nd"):
        field.ear.send(asked[what])
    assert [f for f in tap.frames(SLACK_S) if answer_in(f) in ("arp", "nd")] == []


def test_what_is_for_it_comes_in_while_the_lease_lives(field: Field, fence: KernelFence) -> None:
    frame = bytes(Ether(src=B_MAC, dst=V_MAC) / IP(src=B4, dst=V4) / UDP(sport=7, dport=7007) / b"x")
    other = bytes(Ether(src=B_MAC, dst=V_MAC) / IP(src=B4, dst=OWN) / UDP(sport=7, dport=7007) / b"x")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(("", 7007))

        def comes_in(sent: bytes) -> bool:
            field.ear.send(sent)
            time.sleep(0.02)
            with contextlib.suppress(BlockingIOError):
                return service.recv(9, socket.MSG_DONTWAIT) == b"x"
            return False

        for verb, wanted in (
            (lambda _: None, False),
            (fence.take, True),
            (fence.quiet, True),
            (fence.silent, False),
            (fence.take, True),
            (fence.release, False),
        ):
            verb(7)
            assert [comes_in(frame), comes_in(other)] == [wanted, wanted]


def test_an_address_that_loses_its_virtual_mac_answers_by_the_nics(
    field: Field, fence: KernelFence, device: str
) -> None:
    assert fence.take(7)
    field.net.ip("a", f"link del {device}", f"addr add {V4}/32 dev eth0", f"addr add {V6}/128 dev eth0 nodad")
    field.reach_b("eth0")
    fence.guard(7, field.home, LONG_US, (V4, V6))
    fence.shelter()
    tap = field.tap()
    assert field.asked(0.5) == ALL
    frames = tap.frames()
    assert source_of(frames, V4) | source_of(frames, V6) == {A_MAC}
    assert fence.mend() == frozenset()


# --- somebody else has it ------------------------------------------------------------------------------


def test_frames_of_others_with_our_mac_are_noticed_for_a_second(
    field: Field, fence: KernelFence, device: str
) -> None:
    fence.guard(8, field.home, LONG_US, ("192.0.2.11",), {"192.0.2.11": W_MAC}, OWN)
    assert fence.heard_macs() == frozenset()
    assert fence.take(7)
    _talk(field, device)  # our own, which come in by the second NIC
    tagged = Ether(src=W_MAC, dst=BROADCAST) / Dot1Q(vlan=5) / ARP(op=1, psrc=B4, pdst=V4)
    for frame in (tagged, Ether(src="02:00:00:00:aa:99", dst=BROADCAST) / ARP(op=1, psrc=B4, pdst=V4)):
        field.ear.send(bytes(frame))
    time.sleep(0.02)
    assert fence.heard_macs() == frozenset()
    for mac in (V_MAC, W_MAC):
        field.ear.send(bytes(Ether(src=mac, dst=BROADCAST) / IP(src=B4, dst="192.0.2.255") / ICMP()))
    began = time.monotonic()
    wait_until(lambda: fence.heard_macs() == {V_MAC, W_MAC})
    wait_until(lambda: fence.heard_macs() == frozenset())
    assert time.monotonic() - began > 0.9
    fence.close()
    assert fence.heard_macs() == frozenset()


# --- parents -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PARENTS)
def test_the_parent_may_be_no_plain_nic(field: Field, kind: str) -> None:
    """A bridge or a bond above eth0, or a VLAN of it (then b is in that VLAN, too).

    ``PARENTS=bridge,vlan,bond`` promises what the kernel of the rig must have then.
    """
    net, vlan = field.net, "type vlan id 5"
    made = {"bridge": "type bridge", "bond": "type bond mode active-backup", "vlan": f"link eth0 {vlan}"}
    net.ip("a", f"link add up0 {made[kind]}")
    if kind == "vlan":
        net.ip("b", f"link add up0 link eth0 {vlan}", "link set up0 up", "addr flush dev eth0")
        net.ip("b", f"addr add {B4}/24 dev up0", f"addr add {B6}/64 dev up0 nodad")
    else:
        net.ip("a", "link set eth0 down", "link set eth0 master up0", "link set eth0 up")
    net.ip("a", "link set up0 up", "addr flush dev eth0", f"addr add {OWN}/24 dev up0")
    net.ip("a", "addr add 2001:db8::1/64 dev up0 nodad", "link set eth1 down")
    field.plant(V_MAC, V4, V6, parent="up0")
    home = socket.if_nametoindex("up0")
    fence = KernelFence()
    fence.open(())
    fence.cover(frozenset({home}))
    fence.guard(7, home, LONG_US, (V4, V6), MACS, OWN)
    assert fence.take(7)
    tap = field.tap()
    for address, family in ((V4, socket.AF_INET), (V6, socket.AF_INET6)):
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((address, 7080))
            listener.listen()
            assert _answered(listener, (address, 7080), field) == b"hello"
        assert V_MAC in net.ip("b", f"neigh show {address}")
    frames = tap.frames()
    if kind != "vlan":
        assert (source_of(frames, V4), source_of(frames, V6)) == ({V_MAC}, {V_MAC})
    silent = field.tap(V_MAC)
    fence.silent(7)
    _talk(field, "up0", virtual_mac.device(V_MAC))
    assert silent.frames(SLACK_S) == []
    fence.close()
