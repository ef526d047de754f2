# SPDX-License-Identifier: Apache-2.0
"""Who claims an address: scapy builds, we read; and no bytes make it raise."""

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from holdfast_speaker.arp.acd import PROBE_DURATION_US, Probe
from holdfast_speaker.arp.claim import Claim, parse

MAC = "02:99:99:99:99:99"
OTHER = "02:00:00:00:00:07"


def arp(**fields: Any) -> bytes:
    return bytes(Ether(src=OTHER, dst="ff:ff:ff:ff:ff:ff") / ARP(**fields))


def nd(source: str, message: object) -> bytes:
    return bytes(
        Ether(src=OTHER, dst="33:33:00:00:00:01") / IPv6(src=source, dst="ff02::1", hlim=255) / message
    )


def claim(address: str, mac: str = MAC) -> Claim:
    return Claim(ip_address(address).packed, bytes.fromhex(mac.replace(":", "")))


NA = ICMPv6ND_NA(tgt="2001:db8::100", O=1, R=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC)
NS = ICMPv6ND_NS(tgt="2001:db8::1") / ICMPv6NDOptSrcLLAddr(lladdr=MAC)
CLAIMS = {
    "an announcement": (arp(op=1, hwsrc=MAC, psrc="10.0.0.9", pdst="10.0.0.9"), claim("10.0.0.9")),
    "a reply": (arp(op=2, hwsrc=MAC, psrc="10.0.0.9", pdst="10.0.0.1"), claim("10.0.0.9")),
    "a question": (arp(op=1, hwsrc=MAC, psrc="10.0.0.9", pdst="10.0.0.1"), claim("10.0.0.9")),
    "a neighbour advertisement": (nd("fe80::9", NA), claim("2001:db8::100")),
    "one without its option": (
        nd("fe80::9", ICMPv6ND_NA(tgt="2001:db8::100")),
        claim("2001:db8::100", OTHER),
    ),
    "a solicitation from the address": (nd("2001:db8::100", NS), claim("2001:db8::100")),
}


@pytest.mark.parametrize("story", CLAIMS)
def test_a_claim_is_read(story: str) -> None:
    frame, expected = CLAIMS[story]

    assert parse(frame) == expected


SILENT = {
    "an ARP probe": arp(op=1, hwsrc=MAC, psrc="0.0.0.0", pdst="10.0.0.9"),  # noqa: S104
    "a DAD solicitation": nd("::", ICMPv6ND_NS(tgt="2001:db8::100")),
    "a multicast MAC": arp(op=1, hwsrc="03:00:00:00:00:01", psrc="10.0.0.9", pdst="10.0.0.9"),
    "RARP": arp(op=3, hwsrc=MAC, psrc="10.0.0.9", pdst="10.0.0.9"),
    "a cut frame": arp(op=1, hwsrc=MAC, psrc="10.0.0.9", pdst="10.0.0.9")[:30],
    "a wrong ICMPv6 checksum": nd("fe80::9", NA)[:-1] + b"\x00",
    "an option of length 0": nd("fe80::9", NA / Raw(b"\x01\0" + bytes(6))),
    "an option that is cut off": nd("fe80::9", NA / Raw(b"\x01\x02" + bytes(6))),
    "a solicited one to all": nd("fe80::9", ICMPv6ND_NA(tgt="2001:db8::100", S=1)),
    "one for a group": nd("fe80::9", ICMPv6ND_NA(tgt="ff02::100")),
    "a routed one": nd("fe80::9", NA)[:21] + b"\xfe" + nd("fe80::9", NA)[22:],
    "nothing": b"",
}


@pytest.mark.parametrize("story", SILENT)
def test_what_claims_nothing_is_nothing(story: str) -> None:
    assert parse(SILENT[story]) is None


@given(st.sampled_from([frame for frame, _ in CLAIMS.values()]), st.data())
def test_no_damage_makes_it_raise(frame: bytes, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(12, len(frame) - 1))
        frame = frame[:at] + bytes((data.draw(st.integers(0, 255)),)) + frame[at + 1 :]
    frame = frame[: data.draw(st.integers(0, len(frame)))]

    assert isinstance(parse(frame), Claim | None)


def test_a_probe_is_three_questions_and_a_silence() -> None:
    probe = Probe(("10.0.0.100",), 0)
    asked = []
    while not probe.ended:
        now = probe.deadline_us
        if probe.wake(now):
            asked.append(now)

    assert asked == [0, 100_000, 200_000]
    assert now == PROBE_DURATION_US == 400_000


def test_a_probe_delayed_by_a_pause_still_waits_for_answers() -> None:
    probe = Probe(("10.0.0.100",), 0)
    probe.wake(0)
    probe.wake(5_000_000)
    probe.wake(probe.deadline_us)

    assert probe.deadline_us == 5_300_000
    assert not probe.ended
