# SPDX-License-Identifier: Apache-2.0
"""Which NICs are told, and who counts as around."""

import socket
import struct
from dataclasses import replace
from ipaddress import IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from holdfast_speaker.addresses import snapshot
from holdfast_speaker.addresses.snapshot import KernelAddress, KernelLink, KernelNeighbour
from holdfast_speaker.netlink import attribute
from holdfast_speaker.virtual_mac import ALIAS

UP = 0x1 | 0x10000
NIC = KernelLink(
    index=2,
    name="eth0",
    mac="02:00:00:00:00:01",
    flags=UP,
    mtu=1500,
    kind="",
    port=False,
    forwarding=False,
)
OWN = KernelAddress(index=2, address="192.0.2.1", prefix=24, mark=0, usable=True)


def names(*links: KernelLink, own: tuple[KernelAddress, ...] = ()) -> list[str]:
    return [link.interface.name for link in snapshot.links_seen(links, own)]


@given(st.binary(min_size=16, max_size=16))
def test_ipv6_text_is_canonical(packed: bytes) -> None:
    assert snapshot.text(packed) == str(IPv6Address(packed))


def test_ipv4_mapped_addresses_are_written_without_dots() -> None:
    assert snapshot.text(IPv6Address("::ffff:192.0.2.1").packed) == str(IPv6Address("::ffff:192.0.2.1"))


def test_hardware_is_told_with_or_without_an_address() -> None:
    assert names(NIC) == ["eth0"]
    assert names(NIC, own=(OWN,)) == ["eth0"]


def test_ports_loopback_and_what_resolves_nothing_are_not_told() -> None:
    assert names(replace(NIC, port=True)) == []
    assert names(replace(NIC, flags=UP | 0x8)) == []
    assert names(replace(NIC, flags=UP | 0x80)) == []
    assert names(replace(NIC, kind="dummy"), own=(OWN,)) == []


def test_a_veth_needs_a_subnet_of_its_own() -> None:
    veth = replace(NIC, kind="veth")
    assert names(veth) == []
    assert names(veth, own=(replace(OWN, prefix=32),)) == []
    assert names(veth, own=(replace(OWN, address="fe80::1", prefix=64),)) == []
    assert names(veth, own=(replace(OWN, address="169.254.3.4", prefix=16),)) == []
    assert names(veth, own=(OWN,)) == ["eth0"]


def test_of_more_than_64_those_with_a_subnet_stay_in_the_order_of_their_index() -> None:
    links = [replace(NIC, index=i, name=f"nic{i}") for i in range(1, 101)]
    own = tuple(replace(OWN, index=i) for i in range(90, 101))
    told = names(*links, own=own)
    assert len(told) == 64
    assert told[-11:] == [f"nic{i}" for i in range(90, 101)]
    assert told[0] == "nic1"


def test_addresses_that_may_yet_fail_are_not_told() -> None:
    tentative = replace(OWN, address="2001:db8::1", prefix=64, usable=False)
    (link,) = snapshot.links_seen([NIC], [OWN, tentative])
    assert link.interface.addresses == ("192.0.2.1/24",)


def test_carrier_is_told_only_of_a_nic_that_is_up() -> None:
    (no_carrier,) = snapshot.links_seen([replace(NIC, flags=0x1)], [])
    (down,) = snapshot.links_seen([replace(NIC, flags=0x10000)], [])
    assert (no_carrier.up, no_carrier.interface.carrier) == (True, False)
    assert (down.up, down.interface.carrier) == (False, False)


def test_the_slave_of_a_vrf_is_no_port() -> None:
    def body(slave_kind: bytes) -> bytes:
        info = attribute(18, attribute(4, slave_kind + b"\0"))
        name, mac = attribute(3, b"eth0\0"), attribute(1, bytes(6))
        return struct.pack("=BxHiII", 0, 1, 2, UP, 0) + name + mac + attribute(10, b"\1\0\0\0") + info

    vrf, bridge = snapshot.read_link(body(b"vrf")), snapshot.read_link(body(b"bridge"))
    assert vrf is not None
    assert not vrf.port
    assert bridge is not None
    assert bridge.port


OURS = replace(NIC, index=7, name="hf-020000000001", kind="macvlan", parent=2, alias=ALIAS)


def test_virtual_macs_macvlans_are_not_told_and_foreign_ones_are() -> None:
    assert names(NIC, OURS) == ["eth0"]
    assert names(NIC, replace(OURS, alias="", name="pod0")) == ["eth0", "pod0"]


def test_ours_is_known_by_its_alias_or_before_it_has_one_by_name_and_mac() -> None:
    assert OURS.is_ours
    assert replace(OURS, name="renamed").is_ours
    assert replace(OURS, alias="").is_ours
    assert not replace(OURS, alias="", mac="02:00:00:00:00:02").is_ours
    assert not replace(OURS, alias="a guest").is_ours
    assert not replace(OURS, kind="veth").is_ours


def test_a_macvlans_nic_settings_and_alias_are_read() -> None:
    conf = struct.pack("=33i", *(2 if at == 7 else int(at == 18) for at in range(33)))
    families = attribute(socket.AF_INET, attribute(1, conf)) + attribute(socket.AF_INET6, attribute(8, b"\1"))
    body = struct.pack("=BxHiII", 0, 1, 7, UP, 0)
    body += attribute(3, b"hf-020000000001\0") + attribute(1, bytes.fromhex("020000000001"))
    body += attribute(5, b"\2\0\0\0") + attribute(18, attribute(1, b"macvlan\0"))
    body += attribute(20, ALIAS.encode() + b"\0") + attribute(26, families)
    read = snapshot.read_link(body)
    assert read == replace(OURS, arp_ignore=1, rp_filter=2, addr_gen_mode=1)
    elsewhere = snapshot.read_link(body + attribute(37, bytes(4)))  # the NIC is in another network namespace
    assert elsewhere is not None
    assert elsewhere.parent == 0


@given(st.binary(max_size=80))
def test_no_bytes_break_the_readers(tail: bytes) -> None:
    """The kernel is trusted, its future attributes are not known."""
    link = struct.pack("=BxHiII", 0, 1, 2, UP, 0) + tail
    address = struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, 2)
    try:
        snapshot.read_link(link)
        snapshot.read_address(address + tail)
        snapshot.read_gateways(bytes((2, 0, 0, 0, 254, 0, 0, 1)) + bytes(4) + tail)
        snapshot.read_neighbour(struct.pack("=BxxxiHBB", 2, 2, 2, 0, 1) + tail)
    except (struct.error, IndexError):
        return  # the watch leaves such a message out


def test_a_multipath_default_route_gives_all_its_gateways() -> None:
    hops = b"".join(
        struct.pack("=HBBi", 16, 0, 0, index) + attribute(5, socket.inet_aton(f"192.0.2.{index}"))
        for index in (3, 4)
    )
    route = bytes((2, 0, 0, 0, 254, 0, 0, 1)) + bytes(4) + attribute(9, hops)
    assert snapshot.read_gateways(route) == [(3, "192.0.2.3"), (4, "192.0.2.4")]


def neighbour(number: int, *, age: int = 0, router: bool = False) -> KernelNeighbour:
    return KernelNeighbour(2, f"192.0.2.{number}", f"02:00:00:00:00:{number:02x}", age, router)


def test_gateways_come_first_then_the_64_heard_of_last() -> None:
    known = [neighbour(i, age=i) for i in range(1, 101)]
    around = snapshot.surroundings(forwarding=False, gateways=["192.0.2.100"], known=known, ours=frozenset())
    assert [n.address for n in around.gateways] == ["192.0.2.100"]
    assert [n.address for n in around.neighbours] == [f"192.0.2.{i}" for i in range(1, 65)]


def test_a_gateway_nobody_talked_to_is_known_by_address_only() -> None:
    around = snapshot.surroundings(forwarding=False, gateways=["192.0.2.9"], known=[], ours=frozenset())
    assert around.gateways[0].mac is None


def test_our_own_addresses_are_no_neighbours_and_routers_are_gateways() -> None:
    known = [neighbour(1), neighbour(2), neighbour(3, router=True)]
    around = snapshot.surroundings(forwarding=False, gateways=[], known=known, ours=frozenset({"192.0.2.1"}))
    assert [n.address for n in around.neighbours] == ["192.0.2.2"]
    assert [n.address for n in around.gateways] == ["192.0.2.3"]
