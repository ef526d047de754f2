# SPDX-License-Identifier: Apache-2.0
"""Frames: recorded and built ones, made wrong, and their lengths and checksums made right again."""

from collections.abc import Sequence
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Final

from holdfast_speaker.vrrp.advert import Advert, Family, build, link_local
from holdfast_speaker.vrrp.seal import Seal
from tests.fuzz.mutate import damaged
from tests.sim import wire

MAC: Final = bytes.fromhex("020000000099")
VIRTUAL_MAC: Final = bytes.fromhex("02aa00000064")  # 10.0.0.100's, on the brain's stage
KEYS: Final = {1: b"k" * 32, 2: b"n" * 64}
WALL_US: Final = 1_700_000_000_000_000
CAPTURED: Final = Path(__file__).parents[1] / "unit/speaker/keepalived.hex"
ADDRESSES4: Final = tuple(ip_address(f"10.0.0.{n}").packed for n in (100, 101, 1, 2))
ADDRESSES6: Final = tuple(ip_address(f"2001:db8::{n}").packed for n in ("100", "101", "1", "2"))


def fresh_seal() -> Seal:
    """One that knows the keys since long ago, and refuses what they did not sign."""
    made = Seal("enforce", wall_offset_us=WALL_US)
    made.keyring.renew(KEYS, -(10**12))
    return made


@cache
def signed() -> tuple[bytes, ...]:
    """Adverts under a key, made a moment ago."""
    seal = fresh_seal()
    adverts = (random_advert(Random(number)) for number in range(40))
    return tuple(seal.sign(advert, MAC, number * 1000) for number, advert in enumerate(adverts))


@cache
def recorded() -> list[bytes]:
    lines = CAPTURED.read_text().splitlines()
    keepalived = [bytes.fromhex(line.split()[-1]) for line in lines if not line.startswith("#")]
    claims = [wire.claim(address, MAC) for address in ("10.0.0.100", "2001:db8::100", "fe80::9")]
    probes = [wire.probe(address, MAC) for address in ("10.0.0.100", "2001:db8::100")]
    claims += [wire.claim("10.0.0.100", VIRTUAL_MAC)]
    claims += [VIRTUAL_MAC + wire.claim("10.0.0.2", MAC)[6:20] + b"\0\2" + wire.claim("10.0.0.2", MAC)[22:]]
    return [*keepalived, *claims, *probes, *signed()[:8], *(_asked(kind) for kind in (2, 3))]


def _asked(kind: int) -> bytes:
    """Protocol 112 of another type: what the speakers ask one another."""
    head = bytes((0x45, 0xC0, 0, 28, 0, 0, 0, 0, 255, 112, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1))
    return mended(bytes(6) + MAC + b"\x08\0" + head + bytes((0x30 | kind, 51, 1, 0, 0, 0, 0, 0)))


def random_advert(rng: Random) -> Advert:
    """A valid one from anybody, mostly about the routers and addresses that the brain's stage has."""
    family: Family = 4 if rng.random() < 0.6 else 6
    vrid = (51, 52, 53)[int(rng.random() * 3)] if rng.random() < 0.8 else int(rng.random() * 256)
    host = int(rng.random() * 6) if rng.random() < 0.7 else int(rng.random() * 65536)
    source = (b"\x0a\0" if family == 4 else b"\xfe\x80" + bytes(12)) + host.to_bytes(2, "big")
    known = ADDRESSES4 if family == 4 else ADDRESSES6
    count = 1 + int(rng.random() ** 3 * (255 if family == 4 else 90))
    listed = [known[int(rng.random() * 4)] for _ in range(min(count, 4))]
    if count > 4:
        listed += [rng.randbytes(len(known[0])) for _ in range(count - 4)]
    if family == 6 and rng.random() < 0.8:
        listed[0] = link_local(vrid)
    priority = (0, 1, 100, 248, 250, 254, 255)[int(rng.random() * 7)]
    interval_us = (10_000, 100_000, 1_000_000, 40_950_000)[int(rng.random() * 4)]
    return Advert(family, source, vrid, priority, interval_us, b"".join(listed), rng.random() < 0.2)


def random_frame(rng: Random, pool: Sequence[bytes]) -> bytes:
    """Valid, damaged, or damaged with everything around it put right."""
    choice = rng.random()
    if choice < 0.2:
        return build(random_advert(rng), MAC)
    if choice < 0.25:
        address = (*ADDRESSES4, *ADDRESSES6)[int(rng.random() * 8)]
        return wire.claim(str(ip_address(address)), rng.randbytes(6))
    frame = damaged(rng, pool[int(rng.random() * len(pool))], pool)
    return mended(frame) if rng.random() < 0.6 else frame


def mended(frame: bytes) -> bytes:
    """The frame with the IP length and the checksums it ought to have, as far as it has those fields."""
    if frame[12:14] == b"\x08\x00" and len(frame) >= 42:
        return _mended4(bytearray(frame[: 14 + 0xFFFF]))
    if frame[12:14] == b"\x86\xdd" and len(frame) >= 62:
        return _mended6(bytearray(frame[: 54 + 0xFFFF]))
    return frame


def _mended4(frame: bytearray) -> bytes:
    start = min(14 + (frame[14] & 15) * 4, len(frame))
    frame[16:18] = (len(frame) - 14).to_bytes(2, "big")
    frame[24:26] = b"\0\0"
    frame[24:26] = (0xFFFF - int.from_bytes(frame[14:start]) % 0xFFFF).to_bytes(2, "big")
    if start + 8 <= len(frame):
        # Behind the addresses that are counted may be a trailer, which this sum leaves out.
        end = start + 8 + frame[start + 3] * 4
        end = end if end + 28 == len(frame) else len(frame)
        _sum(frame, start, end, start + 6, int.from_bytes(frame[26:34]) + frame[23])
    return bytes(frame)


def _mended6(frame: bytearray) -> bytes:
    frame[18:20] = (len(frame) - 54).to_bytes(2, "big")
    place = 56 if frame[20] == 58 else 60
    _sum(frame, 54, len(frame), place, int.from_bytes(frame[22:54]) + frame[20])
    return bytes(frame)


def _sum(frame: bytearray, start: int, end: int, place: int, pseudo: int) -> None:
    frame[place : place + 2] = b"\0\0"
    covered = bytes(frame[start:end]) + bytes((end - start) % 2)
    total = pseudo + end - start + int.from_bytes(covered)
    frame[place : place + 2] = (0xFFFF - total % 0xFFFF).to_bytes(2, "big")
