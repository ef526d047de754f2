# SPDX-License-Identifier: Apache-2.0
"""The question to one neighbour, byte for byte as scapy makes it; and nobody takes it for a claim of ours."""

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from holdfast_speaker.arp import claim, greeting

OWN, PEER = "02:00:00:00:00:01", "02:00:00:00:00:fe"
OWN_MAC, PEER_MAC = bytes.fromhex(OWN.replace(":", "")), bytes.fromhex(PEER.replace(":", ""))
fours, sixes = st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)


@given(fours, fours)
def test_an_arp_request_to_one_mac(own: bytes, address: bytes) -> None:
    expected = Ether(src=OWN, dst=PEER) / ARP(
        op=1,
        hwsrc=OWN,
        psrc=str(IPv4Address(own)),
        hwdst="00:00:00:00:00:00",
        pdst=str(IPv4Address(address)),
    )

    assert greeting.build(address=address, mac=PEER_MAC, own=own, own_mac=OWN_MAC) == bytes(expected)


@given(sixes, sixes)
def test_a_neighbour_solicitation_to_one_mac(own: bytes, address: bytes) -> None:
    expected = (
        Ether(src=OWN, dst=PEER)
        / IPv6(src=str(IPv6Address(own)), dst=str(IPv6Address(address)), hlim=255)
        / ICMPv6ND_NS(tgt=str(IPv6Address(address)))
        / ICMPv6NDOptSrcLLAddr(lladdr=OWN)
    )

    assert greeting.build(address=address, mac=PEER_MAC, own=own, own_mac=OWN_MAC) == bytes(expected)


@given(st.one_of(st.tuples(fours, sixes), st.tuples(sixes, fours)))
def test_nobody_asks_across_families(pair: tuple[bytes, bytes]) -> None:
    assert greeting.build(address=pair[0], mac=PEER_MAC, own=pair[1], own_mac=OWN_MAC) is None


def test_it_says_who_asks_and_claims_no_more() -> None:
    four, six = b"\x0a\0\0\1", b"\xfe\x80" + bytes(13) + b"\1"
    for own, address in ((four, b"\x0a\0\0\xfe"), (six, b"\xfe\x80" + bytes(13) + b"\xfe")):
        frame = greeting.build(address=address, mac=PEER_MAC, own=own, own_mac=OWN_MAC)
        assert frame is not None
        assert claim.parse(frame) == claim.Claim(own, OWN_MAC)
