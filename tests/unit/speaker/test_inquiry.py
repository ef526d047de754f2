# SPDX-License-Identifier: Apache-2.0
"""The question and the answer on the wire: what goes out comes in, what is damaged does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils import checksum

from holdfast_speaker.vrrp import advert
from holdfast_speaker.vrrp.advert import Discard
from holdfast_speaker.vrrp.inquiry import ANSWER, QUESTION, Inquiry, build, parse

OWN, PEER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
FOUR = Inquiry(QUESTION, 4, b"\x0a\0\0\x01", b"\x0a\0\0\x02", 51)
SIX = Inquiry(ANSWER, 6, b"\xfe\x80" + bytes(13) + b"\1", b"\xfe\x80" + bytes(13) + b"\2", 255, hears=True)
FRAMES = {4: build(FOUR, mac=OWN, to_mac=PEER), 6: build(SIX, mac=OWN, to_mac=PEER)}

kinds, numbers, flags = st.sampled_from([QUESTION, ANSWER]), st.integers(0, 255), st.booleans()
fours = st.binary(min_size=4, max_size=4)
sixes = st.binary(min_size=8, max_size=8).map(lambda host: b"\xfe\x80" + bytes(6) + host)
inquiries = st.one_of(
    st.builds(Inquiry, kinds, st.just(4), fours, fours, numbers, flags),
    st.builds(Inquiry, kinds, st.just(6), sixes, sixes, numbers, flags),
)


@given(inquiries)
def test_what_is_said_is_understood(inquiry: Inquiry) -> None:
    frame = build(inquiry, mac=OWN, to_mac=PEER)

    assert parse(frame) == inquiry
    assert parse(frame.ljust(60, b"\0")) == inquiry  # padded by a NIC
    assert frame[:12] == PEER + OWN


@given(inquiries)
def test_to_everybody_else_it_is_no_advert(inquiry: Inquiry) -> None:
    assert advert.parse(build(inquiry, mac=OWN, to_mac=PEER)) is Discard.TYPE


@given(inquiries)
def test_the_headers_are_those_that_scapy_makes(inquiry: Inquiry) -> None:
    frame = build(inquiry, mac=OWN, to_mac=PEER)
    seen = Ether(frame)
    header: IP | IPv6
    if inquiry.family == 4:
        layer = seen[IP]
        header = IP(src=layer.src, dst=layer.dst, tos=0xC0, ttl=255, id=0, proto=112)
        pseudo = inquiry.source + inquiry.target + b"\0\x70\0\x08"
    else:
        layer = seen[IPv6]
        header = IPv6(src=layer.src, dst=layer.dst, tc=0xC0, hlim=255, nh=112)
        pseudo = inquiry.source + inquiry.target + b"\0\0\0\x08\0\0\0\x70"

    assert bytes(header / Raw(frame[-8:])) == frame[14:]
    assert checksum(pseudo + frame[-8:]) == 0


@pytest.mark.parametrize("family", [4, 6])
def test_a_frame_that_lacks_any_of_its_end_is_nothing(family: int) -> None:
    frame = FRAMES[family]

    assert all(parse(frame[:length]) is None for length in range(len(frame)))


@pytest.mark.parametrize("family", [4, 6])
def test_no_flipped_bit_changes_what_is_understood(family: int) -> None:
    """Of IPv6 the traffic class and the flow label are outside every checksum, and mean nothing here."""
    frame, whole = FRAMES[family], {4: FOUR, 6: SIX}[family]
    labels = range(116, 144) if family == 6 else range(0)
    for bit in range(112, len(frame) * 8):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 128 >> bit % 8
        assert parse(bytes(damaged)) == (whole if bit in labels else None), bit


@pytest.mark.parametrize(
    ("version", "kind", "count"), [(2, QUESTION, 0), (3, 1, 0), (3, 4, 0), (3, 0, 0), (3, QUESTION, 1)]
)
@pytest.mark.parametrize("family", [4, 6])
def test_other_versions_types_and_lists_are_not_ours(
    version: int, kind: int, count: int, family: int
) -> None:
    frame = bytearray(FRAMES[family])
    start = len(frame) - 8
    before = int.from_bytes(frame[start : start + 2]) + int.from_bytes(frame[start + 2 : start + 4])
    frame[start], frame[start + 3] = version << 4 | kind, count
    after = int.from_bytes(frame[start : start + 2]) + int.from_bytes(frame[start + 2 : start + 4])
    right = (int.from_bytes(frame[-2:]) + before - after) % 0xFFFF
    frame[-2:] = right.to_bytes(2, "big")

    assert parse(bytes(frame)) is None
    assert advert.parse(bytes(frame)) is not Discard.CHECKSUM  # the sum is right: that is not why


@pytest.mark.parametrize("hops", [0, 1, 64, 254])
def test_what_was_routed_is_not_believed(hops: int) -> None:
    four, six = Ether(FRAMES[4]), Ether(FRAMES[6])
    four[IP].ttl = hops
    del four[IP].chksum
    six[IPv6].hlim = hops

    assert parse(bytes(four)) is None
    assert parse(bytes(six)) is None


@given(st.binary(max_size=100), st.sampled_from([b"\x08\x00\x45", b"\x86\xdd\x60", b"\x08\x06", b""]))
def test_garbage_is_nothing_and_raises_nothing(garbage: bytes, kind: bytes) -> None:
    assert parse(PEER + OWN + kind + garbage) is None
