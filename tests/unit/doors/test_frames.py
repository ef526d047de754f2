# SPDX-License-Identifier: Apache-2.0
"""Patched frames against frames that scapy builds for the very address: every byte the same."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.utils6 import in6_getnsma, in6_getnsmac

from holdfast_api.types import Interface
from holdfast_speaker.events import Link
from holdfast_speaker.frames import ScapyFrames
from holdfast_speaker.ports import Neighbour, Surroundings

MAC = "02:ab:cd:ef:01:23"
PEER = "02:00:00:00:00:77"
NONE = "00:00:00:00:00:00"
ALL = "ff:ff:ff:ff:ff:ff"
NIC = 3

v4 = st.integers(1, 0xFFFFFFFF).map(lambda n: str(IPv4Address(n)))
v6 = st.integers(1 << 64, (1 << 128) - 1).map(lambda n: str(IPv6Address(n)))
flags = st.booleans()


def door(mac: str = MAC) -> ScapyFrames:
    frames = ScapyFrames()
    frames.see([Link(NIC, Interface("eth0", mac))])
    return frames


def packed(address: str) -> bytes:
    return IPv6Address(address).packed


@given(v4)
def test_an_ipv4_announcement_is_a_request_and_a_reply(address: str) -> None:
    request = Ether(src=MAC, dst=ALL) / ARP(op=1, hwsrc=MAC, psrc=address, hwdst=NONE, pdst=address)
    reply = Ether(src=MAC, dst=ALL) / ARP(op=2, hwsrc=MAC, psrc=address, hwdst=MAC, pdst=address)
    made = door().frames(NIC, "announce", address, Surroundings())
    assert list(made) == [bytes(request), bytes(reply)]


@given(v4)
def test_an_ipv4_probe_names_no_sender(address: str) -> None:
    probe = Ether(src=MAC, dst=ALL) / ARP(op=1, hwsrc=MAC, psrc="0.0.0.0", hwdst=NONE, pdst=address)  # noqa: S104
    assert list(door().frames(NIC, "probe", address, Surroundings())) == [bytes(probe)]


@given(v4, v4, flags)
def test_an_ipv4_question_goes_to_its_target_alone_where_its_mac_is_known(
    address: str, target: str, known: bool
) -> None:
    around = Surroundings(gateways=(Neighbour(target, PEER if known else None),))
    destination = PEER if known else ALL
    question = Ether(src=MAC, dst=destination) / ARP(op=1, hwsrc=MAC, psrc=address, hwdst=NONE, pdst=target)
    made = list(door().frames(NIC, "ask", address, around))
    assert made == ([] if target == address else [bytes(question)])


@given(v6, flags)
def test_an_ipv6_announcement_is_an_unsolicited_advertisement(address: str, forwarding: bool) -> None:
    message = ICMPv6ND_NA(tgt=address, R=int(forwarding), S=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC)
    frame = Ether(src=MAC, dst="33:33:00:00:00:01") / IPv6(src=address, dst="ff02::1", hlim=255) / message
    made = door().frames(NIC, "announce", address, Surroundings(forwarding=forwarding))
    assert list(made) == [bytes(frame)]


@given(v6)
def test_an_ipv6_probe_is_what_duplicate_detection_sends(address: str) -> None:
    group = in6_getnsma(packed(address))
    ip = IPv6(src="::", dst=str(IPv6Address(group)), hlim=255)
    frame = Ether(src=MAC, dst=in6_getnsmac(group)) / ip / ICMPv6ND_NS(tgt=address)
    assert list(door().frames(NIC, "probe", address, Surroundings())) == [bytes(frame)]


@given(v6, v6, flags)
def test_an_ipv6_question_carries_our_mac(address: str, target: str, known: bool) -> None:
    group = in6_getnsma(packed(target))
    destination = target if known else str(IPv6Address(group))
    ether = Ether(src=MAC, dst=PEER if known else in6_getnsmac(group))
    message = ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=MAC)
    frame = ether / IPv6(src=address, dst=destination, hlim=255) / message
    around = Surroundings(neighbours=(Neighbour(target, PEER if known else None),))
    made = list(door().frames(NIC, "ask", address, around))
    assert made == ([] if target == address else [bytes(frame)])


def test_a_checksum_of_zero_sum_is_right() -> None:
    """The one residue where the sum modulo 0xffff could be read as 0 or 0xffff."""
    for last in range(0x10000):
        address = f"2001:db8::1:{last:x}"
        frame = door().frames(NIC, "announce", address, Surroundings())[0]
        if frame[56:58] in (b"\0\0", b"\xff\xff"):
            message = ICMPv6ND_NA(tgt=address, R=0, S=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC)
            whole = (
                Ether(src=MAC, dst="33:33:00:00:00:01") / IPv6(src=address, dst="ff02::1", hlim=255) / message
            )
            assert bytes(whole) == frame
            return
    raise AssertionError("no address with that checksum among 65,536")


def test_a_question_asks_only_neighbours_of_its_family() -> None:
    around = Surroundings(neighbours=(Neighbour("192.0.2.9", PEER), Neighbour("2001:db8::9", PEER)))
    assert len(door().frames(NIC, "ask", "192.0.2.10", around)) == 1
    assert len(door().frames(NIC, "ask", "2001:db8::10", around)) == 1


def test_with_1000_addresses_few_neighbours_are_asked_each_and_gateways_always() -> None:
    frames = door()
    many = frozenset(f"10.0.{i // 250}.{i % 250 + 1}" for i in range(1000))
    frames.prepare(NIC, many, forwarding=False)
    around = Surroundings(
        gateways=(Neighbour("10.0.9.1", PEER),),
        neighbours=tuple(Neighbour(f"10.0.8.{i}", PEER) for i in range(1, 65)),
    )
    each = len(frames.frames(NIC, "ask", "10.0.0.1", around))
    assert each > 1
    assert each * 1000 <= 5 * 1000  # one gateway and a fair share of 4,096


def test_an_unknown_nic_gives_no_frames() -> None:
    assert list(ScapyFrames().frames(NIC, "announce", "192.0.2.10", Surroundings())) == []


def test_a_new_mac_gives_new_frames() -> None:
    frames = door()
    frames.prepare(NIC, frozenset({"192.0.2.10"}), forwarding=False)
    frames.see([Link(NIC, Interface("eth0", PEER))])
    made = frames.frames(NIC, "announce", "192.0.2.10", Surroundings())
    assert list(made) == list(door(PEER).frames(NIC, "announce", "192.0.2.10", Surroundings()))


def test_prepared_frames_are_the_same_objects_each_time() -> None:
    frames = door()
    frames.prepare(NIC, frozenset({"192.0.2.10"}), forwarding=False)
    first = frames.frames(NIC, "announce", "192.0.2.10", Surroundings())
    assert frames.frames(NIC, "announce", "192.0.2.10", Surroundings()) is first
    frames.prepare(NIC, frozenset(), forwarding=False)
    assert frames.frames(NIC, "announce", "192.0.2.10", Surroundings()) is not first


def test_a_node_that_starts_to_forward_says_so_from_then_on() -> None:
    frames = door()
    frames.prepare(NIC, frozenset({"2001:db8::10"}), forwarding=False)
    made = frames.frames(NIC, "announce", "2001:db8::10", Surroundings(forwarding=True))
    assert ICMPv6ND_NA(made[0][54:]).R == 1


VIRTUAL = "02:aa:00:00:00:64"
BOTH = frozenset({"192.0.2.10", "192.0.2.11", "2001:db8::10"})
MACS = {"192.0.2.10": VIRTUAL, "2001:db8::10": VIRTUAL}


def dressed() -> ScapyFrames:
    frames = door()
    frames.prepare(NIC, BOTH, MACS, forwarding=False)
    return frames


@pytest.mark.parametrize("address", sorted(BOTH))
def test_what_has_a_virtual_mac_is_announced_and_asks_by_it_and_is_probed_for_by_the_nics(
    address: str,
) -> None:
    whom = Neighbour("2001:db8::9" if ":" in address else "192.0.2.9", PEER)
    around = Surroundings(neighbours=(whom,))
    mac = MACS.get(address, MAC)
    for form, wanted in (("announce", mac), ("ask", mac), ("probe", MAC)):
        made = list(dressed().frames(NIC, form, address, around))  # type: ignore[arg-type]
        assert made == list(door(wanted).frames(NIC, form, address, around))  # type: ignore[arg-type]
        assert made


@pytest.mark.parametrize("macs", [{}, {"192.0.2.10": PEER}, {"192.0.2.11": VIRTUAL}])
def test_another_virtual_mac_gives_other_frames(macs: dict[str, str]) -> None:
    frames = dressed()
    frames.prepare(NIC, BOTH, macs, forwarding=False)
    for address in ("192.0.2.10", "192.0.2.11"):
        made = frames.frames(NIC, "announce", address, Surroundings())
        same = door(macs.get(address, MAC)).frames(NIC, "announce", address, Surroundings())
        assert list(made) == list(same)


def test_another_mac_of_the_nic_leaves_the_virtual_one() -> None:
    frames = dressed()
    frames.see([Link(NIC, Interface("eth0", PEER))])
    made = frames.frames(NIC, "announce", "192.0.2.10", Surroundings())
    probes = frames.frames(NIC, "probe", "192.0.2.10", Surroundings())
    assert list(made) == list(door(VIRTUAL).frames(NIC, "announce", "192.0.2.10", Surroundings()))
    assert list(probes) == list(door(PEER).frames(NIC, "probe", "192.0.2.10", Surroundings()))


def test_a_virtual_mac_that_stays_keeps_its_frames() -> None:
    frames = dressed()
    first = frames.frames(NIC, "announce", "192.0.2.10", Surroundings())
    frames.prepare(NIC, BOTH, dict(MACS), forwarding=False)
    assert frames.frames(NIC, "announce", "192.0.2.10", Surroundings()) is first


def test_a_node_that_starts_to_forward_says_so_by_the_virtual_mac() -> None:
    made = dressed().frames(NIC, "announce", "2001:db8::10", Surroundings(forwarding=True))
    assert ICMPv6ND_NA(made[0][54:]).R == 1
    assert made[0][6:12].hex(":") == VIRTUAL
