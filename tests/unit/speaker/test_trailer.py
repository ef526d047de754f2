# SPDX-License-Identifier: Apache-2.0
"""The HMAC trailer: its layout against openssl's HMAC over bytes written down by hand; its serial numbers."""

import hashlib
import hmac
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_speaker.vrrp import trailer as layout
from holdfast_speaker.vrrp.advert import Advert, Discard, Family, build, listing, parse

MAC = bytes.fromhex("020000000001")
KEY = bytes(range(32))
# 2025-06-15T15:21:12.5Z, the third tie of that moment
SEQUENCE = 0x684EE568_8000_0003


def packed(*addresses: str) -> bytes:
    return b"".join(ip_address(address).packed for address in addresses)


FOUR = Advert(4, packed("10.0.0.1"), 51, 250, 100_000, packed("10.0.0.100", "10.0.0.101"))
SIX = Advert(6, packed("fe80::1"), 52, 250, 1_000_000, packed("fe80::200:5eff:fe00:234", "2001:db8::100"))
# openssl dgst -sha256 -mac HMAC -macopt hexkey:0001..1f over pseudo-header, message and trailer in hex:
# 04033300 0a000001 00*12, 3133fa02000a0000 0a000064 0a000065, 01070000 684ee568 8000 0003 00*16; IPv6 alike
OPENSSL = {4: "8033c98d2ea2e4fd6c62ffe021417d00", 6: "e113311d683ed006e96a7a23ef684eab"}


@pytest.mark.parametrize("advert", [FOUR, SIX], ids=["IPv4", "IPv6"])
def test_the_trailer_is_the_drafts_and_its_hmac_is_openssls(advert: Advert) -> None:
    signed = layout.signed(advert, 7, KEY, SEQUENCE)

    assert signed.trailer.hex() == "01070000" + "684ee568" + "8000" + "0003" + OPENSSL[advert.family]


@pytest.mark.parametrize("advert", [FOUR, SIX], ids=["IPv4", "IPv6"])
def test_the_trailer_ends_the_frame_and_comes_back(advert: Advert) -> None:
    signed = layout.signed(advert, 7, KEY, SEQUENCE)
    frame = build(signed, MAC)

    assert len(frame) == len(build(advert, MAC)) + 28
    assert frame.endswith(signed.trailer)
    assert parse(frame) == signed


def test_the_ipv4_checksum_leaves_the_trailer_out_and_the_ipv6_one_takes_it_in() -> None:
    """As keepalived has it: its own sum in IPv4, the kernel's over everything in IPv6."""
    four, six = (build(layout.signed(advert, 7, KEY, SEQUENCE), MAC) for advert in (FOUR, SIX))

    assert four[34:-28] == build(FOUR, MAC)[34:]
    pseudo = six[22:54] + (len(six) - 54).to_bytes(4, "big") + (112).to_bytes(4, "big")
    assert int.from_bytes(pseudo + six[54:]) % 0xFFFF == 0
    assert parse(six[:-1] + bytes((six[-1] ^ 1,))) is Discard.CHECKSUM


@pytest.mark.parametrize("extra", [1, 27, 29, 56])
def test_anything_but_28_bytes_is_no_trailer(extra: int) -> None:
    frame = bytearray(build(FOUR, MAC) + bytes(extra))
    frame[16:18] = (len(frame) - 14).to_bytes(2, "big")
    frame[24:26] = b"\0\0"
    frame[24:26] = (0xFFFF - int.from_bytes(frame[14:34]) % 0xFFFF).to_bytes(2, "big")

    assert parse(bytes(frame)) is Discard.TRAILING


def test_a_long_key_counts_as_its_hash() -> None:
    """RFC 2104: keys above the block of 64 bytes."""
    long = bytes(range(100))
    signed = layout.signed(FOUR, 7, long, SEQUENCE)
    trailer = layout.read(signed.trailer)

    assert trailer is not None
    assert layout.holds(signed, trailer, hashlib.sha256(long).digest())
    assert not layout.holds(signed, trailer, long[:64])


def test_comparing_takes_the_same_time_for_every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    signed = layout.signed(FOUR, 7, KEY, SEQUENCE)
    trailer = layout.read(signed.trailer)
    assert trailer is not None
    monkeypatch.setattr(hmac, "compare_digest", compare)

    assert layout.holds(signed, trailer, KEY)
    assert [len(each) for each in compared[0]] == [16, 16]


@pytest.mark.parametrize(
    "damaged", [b"", bytes(28), b"\2" + bytes(27), b"\1\1\0\1" + bytes(24), b"\1\1\1\0" + bytes(24)]
)
def test_a_layout_that_is_not_known_is_no_trailer(damaged: bytes) -> None:
    assert layout.read(damaged) is None


def test_the_four_reserved_bits_survive_since_the_hmac_covers_them() -> None:
    odd = replace(FOUR, reserved=9)

    assert parse(build(odd, MAC)) == odd
    assert layout.signed(odd, 7, KEY, SEQUENCE).trailer != layout.signed(FOUR, 7, KEY, SEQUENCE).trailer


def test_a_signed_list_leaves_room_for_the_trailer() -> None:
    four = [ip_address(f"10.0.{n // 200}.{n % 200}").packed for n in range(300)]
    six = [ip_address(f"2001:db8::{n:x}").packed for n in range(1, 100)]
    for family, addresses, mtu in ((4, four, 576), (6, six, 1500), (6, six, 1280)):
        version: Family = 4 if family == 4 else 6
        source = packed("10.0.0.1") if family == 4 else packed("fe80::1")
        listed = listing(version, 51, addresses, mtu, signed=True)
        advert = layout.signed(Advert(version, source, 51, 250, 100_000, listed), 1, KEY, SEQUENCE)

        assert mtu - 16 < len(build(advert, MAC)) - 14 <= mtu
    assert len(listing(6, 51, six, 1500, signed=True)) // 16 == 89  # 88 and the link-local one
    assert len(listing(4, 51, four, 1500, signed=True)) // 4 == 255


@given(st.sampled_from([FOUR, SIX]), st.integers(0, 255), st.binary(min_size=1, max_size=80), st.data())
def test_every_trailer_survives_the_wire(
    advert: Advert, key_id: int, key: bytes, data: st.DataObject
) -> None:
    sequence = data.draw(st.integers(0, 2**64 - 1))
    back = parse(build(layout.signed(advert, key_id, key, sequence), MAC))
    assert isinstance(back, Advert)
    trailer = layout.read(back.trailer)

    assert trailer is not None
    assert (trailer.key_id, trailer.sequence) == (key_id, sequence)
    assert layout.holds(back, trailer, key)
    assert not layout.holds(back, trailer, key + b"x")


def test_a_sequence_is_utc_in_seconds_and_a_fraction() -> None:
    assert layout.sequence_at(0x684EE568 * 1_000_000 + 500_000) == 0x684EE568_8000_0000


def test_sequences_grow_with_time_and_across_the_wrap_of_2106() -> None:
    before, after = layout.sequence_at(2**32 * 1_000_000 - 1), layout.sequence_at(2**32 * 1_000_000)

    assert after == 0
    assert layout.distance(after, before) > 0
    assert 0 < layout.ahead_us(after, before) < 20
    assert layout.following(2**64 - 1) == 0


@given(st.integers(0, 2**33 * 10**6), st.integers(-(10**9), 10**9))
def test_the_distance_of_two_moments_is_their_difference(wall_us: int, later_us: int) -> None:
    """To a 65,536th of a second: 16 us."""
    if wall_us + later_us < 0:
        return
    one, other = layout.sequence_at(wall_us + later_us), layout.sequence_at(wall_us)

    assert abs(layout.ahead_us(one, other) - later_us) <= 17
