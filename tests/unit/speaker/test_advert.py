# SPDX-License-Identifier: Apache-2.0
"""The codec, against scapy (an independent decoder), keepalived's own frames, and any bytes at all."""

import time
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_speaker.vrrp.advert import Advert, Discard, Family, build, fitting, listing, parse

MAC = bytes.fromhex("020000000001")
CAPTURED = [
    line.split()
    for line in (Path(__file__).parent / "keepalived.hex").read_text().splitlines()
    if not line.startswith("#")
]


def packed(*addresses: str) -> bytes:
    return b"".join(ip_address(address).packed for address in addresses)


FOUR = Advert(4, packed("10.0.0.1"), 51, 250, 100_000, packed("10.0.0.100", "10.0.0.101"))
SIX = Advert(6, packed("fe80::1"), 52, 250, 1_000_000, packed("fe80::200:5eff:fe00:234", "2001:db8::100"))
RFC = Advert(4, packed("10.0.0.1"), 51, 250, 100_000, packed("10.0.0.100"), rfc_checksum=True)


def changed(frame: bytes, at: int, value: int) -> bytes:
    return frame[:at] + bytes((value,)) + frame[at + 1 :]


def resummed(frame: bytes) -> bytes:
    """An IPv4 frame with its header checksum put right after a change."""
    header = bytearray(frame[14:34])
    header[10:12] = b"\0\0"
    header[10:12] = (0xFFFF - int.from_bytes(header) % 0xFFFF).to_bytes(2, "big")
    return frame[:14] + bytes(header) + frame[34:]


@pytest.mark.parametrize("advert", [FOUR, SIX, RFC], ids=["IPv4", "IPv6", "IPv4, RFC checksum"])
def test_what_is_built_is_parsed_back(advert: Advert) -> None:
    assert parse(build(advert, MAC)) == advert


@pytest.mark.parametrize("advert", [FOUR, SIX], ids=["IPv4", "IPv6"])
def test_scapy_reads_the_same_and_computes_the_same_checksums(advert: Advert) -> None:
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether
    from scapy.layers.vrrp import VRRPv3

    frame = build(advert, MAC)
    seen = Ether(frame)
    body = seen[VRRPv3]

    assert (body.version, body.type, body.vrid, body.priority) == (3, 1, advert.virtual_router_id, 250)
    assert (body.ipcount, body.adv) == (2, advert.interval_us // 10_000)
    assert [str(ip_address(each)) for each in advert.addresses()] == body.addrlist
    header = seen[IP] if advert.family == 4 else seen[IPv6]
    assert (header.ttl if advert.family == 4 else header.hlim) == 255
    assert header.dst == ("224.0.0.18" if advert.family == 4 else "ff02::12")
    assert seen.dst == ("01:00:5e:00:00:12" if advert.family == 4 else "33:33:00:00:00:12")
    # scapy fills in what is left out: its bytes must be ours.
    body.chksum = None
    if advert.family == 4:
        header.chksum = None
    assert bytes(Ether(bytes(seen))) == frame


@pytest.mark.parametrize("line", CAPTURED, ids=lambda line: " ".join(line[:3]))
def test_keepalived_is_understood(line: list[str]) -> None:
    family, vrid, priority, interval_ms, text = line
    advert = parse(bytes.fromhex(text))

    assert isinstance(advert, Advert)
    assert (advert.family, advert.virtual_router_id) == (int(family), int(vrid))
    assert (advert.priority, advert.interval_us) == (int(priority), int(interval_ms) * 1000)
    assert not advert.rfc_checksum


@pytest.mark.parametrize("line", CAPTURED, ids=lambda line: " ".join(line[:3]))
def test_our_message_is_keepaliveds_byte_for_byte(line: list[str]) -> None:
    """From the VRRP header on; only the IP headers' id and flow label are its own."""
    frame = bytes.fromhex(line[4])
    advert = parse(frame)
    assert isinstance(advert, Advert)
    start = 34 if advert.family == 4 else 54

    assert build(advert, frame[6:12])[start:] == frame[start:]


GOOD = build(FOUR, MAC)
GOOD6 = build(SIX, MAC)
REFUSED = {
    "an empty frame": (b"", Discard.GARBAGE),
    "another ethertype": (changed(GOOD, 13, 1), Discard.GARBAGE),
    "a VLAN tag": (GOOD[:12] + b"\x81\x00\x00\x05" + GOOD[12:], Discard.VLAN),
    "a cut IPv4 header": (GOOD[:30], Discard.SHORT),
    "another protocol": (changed(GOOD, 23, 17), Discard.GARBAGE),
    "a header length below 20": (changed(GOOD, 14, 0x44), Discard.HEADER),
    "a wrong header checksum": (changed(GOOD, 25, GOOD[25] ^ 1), Discard.HEADER),
    "a fragment": (resummed(changed(GOOD, 20, 0x20)), Discard.FRAGMENT),
    "TTL 254": (resummed(changed(GOOD, 22, 254)), Discard.TTL),
    "hop limit 254": (changed(GOOD6, 21, 254), Discard.TTL),
    "a cut message": (GOOD[:-1], Discard.SHORT),
    "a longer total length than there is": (resummed(changed(GOOD, 17, 200)), Discard.SHORT),
    "fewer addresses than counted": (changed(GOOD, 37, 3), Discard.SHORT),
    "more than counted": (changed(GOOD, 37, 1), Discard.TRAILING),
    "VRRP version 2": (changed(GOOD, 34, 0x21), Discard.VERSION),
    "type 2": (changed(GOOD, 34, 0x32), Discard.TYPE),
    "no address": (changed(GOOD, 37, 0), Discard.COUNT_ZERO),
    "interval 0": (changed(GOOD, 39, 0), Discard.INTERVAL_ZERO),
    "a wrong checksum": (changed(GOOD, 41, GOOD[41] ^ 1), Discard.CHECKSUM),
    "a wrong IPv6 checksum": (changed(GOOD6, 61, GOOD6[61] ^ 1), Discard.CHECKSUM),
    "a global IPv6 source": (changed(GOOD6, 22, 0x20), Discard.SOURCE_NOT_LINK_LOCAL),
}


@pytest.mark.parametrize("story", REFUSED)
def test_each_refusal_has_its_own_name(story: str) -> None:
    frame, reason = REFUSED[story]

    assert parse(frame) is reason


def test_the_rfc_form_is_refused_in_ipv6_where_the_pseudo_header_always_counts() -> None:
    plain = build(Advert(4, SIX.source[:4], 52, 250, 1_000_000, SIX.listed[:4], rfc_checksum=True), MAC)
    message = GOOD6[54:60] + b"\0\0" + GOOD6[62:]
    without = 0xFFFF - int.from_bytes(message) % 0xFFFF

    assert isinstance(parse(plain), Advert)
    assert parse(GOOD6[:60] + without.to_bytes(2, "big") + GOOD6[62:]) is Discard.CHECKSUM


def test_ethernet_padding_is_no_part_of_the_message() -> None:
    assert parse(GOOD + b"\0" * 14) == FOUR


def test_an_ipv6_list_without_a_link_local_first_is_obeyed_all_the_same() -> None:
    odd = Advert(6, SIX.source, 52, 250, 1_000_000, packed("2001:db8::100"))

    assert parse(build(odd, MAC)) == odd


@given(st.binary(max_size=1600))
def test_no_bytes_make_it_raise(frame: bytes) -> None:
    assert isinstance(parse(frame), Discard | Advert)


@given(
    st.sampled_from([GOOD, GOOD6]), st.lists(st.tuples(st.integers(0, 93), st.integers(0, 255)), max_size=4)
)
def test_no_damage_to_a_good_frame_makes_it_raise(frame: bytes, damage: list[tuple[int, int]]) -> None:
    for at, value in damage:
        if at < len(frame):
            frame = changed(frame, at, value)

    assert isinstance(parse(frame), Discard | Advert)


@given(st.sampled_from((4, 6)), st.integers(1, 255), st.integers(0, 255), st.integers(1, 4095), st.data())
def test_every_value_survives_the_wire(
    family: Family, vrid: int, priority: int, centiseconds: int, data: st.DataObject
) -> None:
    size = 4 if family == 4 else 16
    source = data.draw(st.binary(min_size=4, max_size=4)) if family == 4 else packed("fe80::7")
    count = data.draw(st.integers(1, 5))
    listed = data.draw(st.binary(min_size=size * count, max_size=size * count))
    advert = Advert(family, source, vrid, priority, centiseconds * 10_000, listed)

    assert parse(build(advert, MAC)) == advert


def test_lists_are_sorted_and_fit() -> None:
    many = [ip_address(f"10.0.{n // 200}.{n % 200}").packed for n in range(300)][::-1]
    six = [ip_address(f"2001:db8::{n:x}").packed for n in range(1, 100)]

    assert listing(4, 51, many, 1500) == b"".join(sorted(many)[:255])
    assert len(listing(6, 51, six, 1500)) // 16 == 90
    assert str(ip_address(listing(6, 51, six, 1500)[:16])) == "fe80::200:5eff:fe00:233"
    assert fitting(4, 576) == (576 - 28) // 4


def test_parsing_the_longest_advert_is_fast() -> None:
    """15 us; the machine may be busy, so the best of many counts."""
    longest = [ip_address(f"10.0.{n // 200}.{n % 200}").packed for n in range(255)]
    frame = build(Advert(4, packed("10.0.0.1"), 1, 250, 100_000, listing(4, 1, longest, 1500)), MAC)
    best = min(_timed(frame) for _ in range(200))

    assert best < 15e-6


def _timed(frame: bytes) -> float:
    start = time.perf_counter()
    for _ in range(20):
        parse(frame)
    return (time.perf_counter() - start) / 20
