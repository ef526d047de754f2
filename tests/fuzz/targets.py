# SPDX-License-Identifier: Apache-2.0
"""What is fed, and which exceptions each reader declares. Anything else that comes out is a failure."""

import json
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import msgspec
import yaml

from holdfast_api.answers import UNREADABLE, ApiTrouble, api_error
from holdfast_api.decode import (
    DecodeError,
    decode,
    decode_file,
    decode_router,
    decode_speaker,
    decode_virtual_ip,
)
from holdfast_api.kubeconfig import Config, ConfigError
from holdfast_api.lines import Lines, LineTooLongError
from holdfast_api.watch import _ExpiredError, _NoWatchListError, _Place, _Reading
from holdfast_speaker import netlink
from holdfast_speaker.addresses import snapshot
from holdfast_speaker.arp import claim
from holdfast_speaker.cluster import name_of, read_router
from holdfast_speaker.events import RouterRejected
from holdfast_speaker.keys import key_in
from holdfast_speaker.plan_file import NAME, PlanFile
from holdfast_speaker.vrrp import trailer
from holdfast_speaker.vrrp.advert import Advert, Discard, build, parse, pdu
from holdfast_speaker.vrrp.inquiry import build as build_inquiry
from holdfast_speaker.vrrp.inquiry import parse as parse_inquiry
from tests.cluster.objects import table
from tests.fuzz import frames
from tests.fuzz.mutate import damaged, damaged_json

RECORDED = Path(__file__).parent / "recorded"


class Target(ABC):
    """``batch`` inputs a round: cheap ones get more. ``life`` inputs are one state; 1: it has none.

    ``longest_cpu_s`` for one input.
    """

    name: ClassVar[str]
    batch: ClassVar[int]
    life: ClassVar[int] = 1
    longest_cpu_s: ClassVar[float] = 0.05
    declared: ClassVar[tuple[type[Exception], ...]] = ()

    @abstractmethod
    def seeds(self) -> Sequence[bytes]:
        """Inputs as they really come."""

    @abstractmethod
    def run(self, data: bytes) -> Hashable:
        """Feed one input. What kind of answer came: a new kind makes the input worth damaging further."""

    def make(self, rng: Random, pool: Sequence[bytes]) -> bytes:
        return damaged(rng, pool[int(rng.random() * len(pool))], pool)

    def begin(self) -> None:  # noqa: B027  most have no life to begin
        """A new life."""


class _FromJson(Target):
    def make(self, rng: Random, pool: Sequence[bytes]) -> bytes:
        return damaged_json(rng, pool[int(rng.random() * len(pool))], pool)


class _FromFrames(Target):
    def seeds(self) -> Sequence[bytes]:
        return frames.recorded()

    def make(self, rng: Random, pool: Sequence[bytes]) -> bytes:
        return frames.random_frame(rng, pool)


# --- the segment ----------------------------------------------------------------------------------


class Adverts(_FromFrames):
    """The codec, the trailer, and a seal that has the keys: only what they signed passes."""

    name = "advert"
    batch = 600

    def begin(self) -> None:
        adverts = (parse(frame) for frame in frames.signed())
        self._signed = {_covered(advert) for advert in adverts if isinstance(advert, Advert)}

    def seeds(self) -> Sequence[bytes]:
        return [*super().seeds(), *frames.signed()]

    def run(self, data: bytes) -> Hashable:
        advert = parse(data)
        if isinstance(advert, Discard):
            return advert
        assert advert.listed, "an advert lists something"
        assert parse(build(advert, frames.MAC)) == advert, "what is read is built again"
        doubt = frames.fresh_seal().check(advert, 50_000) if advert.trailer else None
        if advert.trailer and doubt is None:
            assert _covered(advert) in self._signed, "only what was signed is believed"
        trailer.read(advert.trailer)
        return advert.family, advert.rfc_checksum, bool(advert.reserved), bool(advert.trailer), doubt


def _covered(advert: Advert) -> tuple[int, bytes, bytes, bytes]:
    return advert.family, advert.source, pdu(advert), advert.trailer


class Claims(_FromFrames):
    name = "claim"
    batch = 600

    def run(self, data: bytes) -> Hashable:
        claimed = claim.parse(data)
        if claimed is None:
            return data[12:14] in (b"\x08\x06", b"\x86\xdd"), len(data) > 41
        assert len(claimed.address) in (4, 16)
        assert len(claimed.mac) == 6
        return len(claimed.address), data[12:14]


class Inquiries(_FromFrames):
    """What the speakers ask one another, and answer."""

    name = "inquiry"
    batch = 300

    def run(self, data: bytes) -> Hashable:
        inquiry = parse_inquiry(data)
        if inquiry is None:
            return data[12:14] in (b"\x08\x00", b"\x86\xdd"), len(data) > 41
        again = build_inquiry(inquiry, mac=frames.MAC, to_mac=frames.MAC)
        assert parse_inquiry(again) == inquiry, "what is read is built again"
        return inquiry.family, inquiry.kind, inquiry.hears


# --- the API --------------------------------------------------------------------------------------


class Objects(_FromJson):
    """The quick decoders for what the API server let through."""

    name = "object"
    batch = 60
    declared = (DecodeError,)
    _READERS = (decode_router, decode_virtual_ip, decode_speaker)

    def seeds(self) -> Sequence[bytes]:
        nic = {"name": "eth0", "mac": "52:54:00:00:00:01", "addresses": ["192.0.2.5/24", "fe80::1/64"]}
        report = {"name": "vr-7", "uid": "u", "observedGeneration": 1, "state": "Active", "term": 1}
        report |= {"since": "2026-01-01T00:00:00Z", "held": ["192.0.2.1"]}
        speaker = {"metadata": {"name": "a"}, "status": {"interfaces": [nic], "routers": [report]}}
        return [*(json.dumps(each).encode() for each in objects()), json.dumps(speaker).encode()]

    def run(self, data: bytes) -> Hashable:
        read = []
        for reader in self._READERS:
            try:
                read.append(type(reader(data)).__name__)
            except DecodeError as error:
                read.append(" ".join(sorted({each.field.split("[")[0][:60] for each in error.errors}))[:80])
        return read[0]


class Schema(_FromJson):
    """The whole schema with its rules, for files."""

    name = "schema"
    batch = 6
    declared = (DecodeError,)

    def seeds(self) -> Sequence[bytes]:
        return [json.dumps(each).encode() for each in objects()]

    def run(self, data: bytes) -> Hashable:
        try:
            given = msgspec.json.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return "no JSON"
        if not isinstance(given, dict):
            return "no object"
        with suppress(DecodeError):
            decode_file(given)
        return type(decode(given)).__name__


def objects() -> list[dict[str, Any]]:
    return [case.object for part in ("good", "bad") for case in table(part)]


class Watch(Target):
    """A watch's stream, cut anywhere: lines, events, and the routers in them."""

    name = "watch"
    batch = 60
    declared = (ApiTrouble, LineTooLongError, *UNREADABLE, _ExpiredError, _NoWatchListError)
    _LONGEST = 100_000

    def seeds(self) -> Sequence[bytes]:
        routers = [each for each in objects() if each["kind"] == "VirtualRouter"][:6]
        end = {"annotations": {"k8s.io/initial-events-end": "true"}, "resourceVersion": "7"}
        status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
        events: list[tuple[str, Any]] = [("ADDED", each) for each in routers]
        events += [("BOOKMARK", {"metadata": end}), ("MODIFIED", routers[0]), ("DELETED", routers[1])]
        events += [("BOOKMARK", {"metadata": {"resourceVersion": "9"}}), ("ERROR", status), ("NEW", {})]
        lines = [json.dumps({"type": kind, "object": each}).encode() for kind, each in events]
        return [b"\x07" + b"\n".join(lines) + b"\n", *(b"\xff" + line + b"\n" for line in lines)]

    def make(self, rng: Random, pool: Sequence[bytes]) -> bytes:
        data = pool[int(rng.random() * len(pool))]
        lines = data[1:].split(b"\n")
        at = int(rng.random() * len(lines))
        lines[at] = damaged_json(rng, lines[at], pool)
        return bytes((int(rng.random() * 256),)) + b"\n".join(lines)

    def run(self, data: bytes) -> Hashable:
        lines = Lines(longest=self._LONGEST)
        step = 1 + data[0] * 8 if data else 1
        reading = _Reading(_Place(), listing=True)
        kinds: list[str] = []
        for at in range(1, len(data), step):
            for line in lines.feed(data[at : at + step]):
                event = reading.read(line)
                kinds.append(type(event).__name__)
                for raw in getattr(event, "objects", None) or [getattr(event, "object", None)]:
                    if raw is not None:
                        kinds.append(self._read(raw))
        api_error(500, data[1:2000])
        return " ".join(kinds)[:80]

    @staticmethod
    def _read(raw: msgspec.Raw) -> str:
        read = read_router(raw)
        assert isinstance(name_of(raw), str)
        return "rejected" if isinstance(read, RouterRejected) else "read"


# --- files of this host ---------------------------------------------------------------------------


class Kubeconfig(Target):
    name = "kubeconfig"
    batch = 3
    longest_cpu_s = 1.0  # read once, at the start
    declared = (ConfigError,)

    def __init__(self, folder: Path) -> None:
        self._path = folder / "kubeconfig"

    def seeds(self) -> Sequence[bytes]:
        cluster: dict[str, Any] = {"server": "https://192.0.2.1:6443/", "insecure-skip-tls-verify": True}
        plain = {"server": "http://[::1]:1", "tls-server-name": "api", "certificate-authority-data": "eA=="}
        users: list[dict[str, Any]] = [{"token": "t"}, {"tokenFile": "absent"}, {"exec": {"command": "x"}}]
        users.append({"client-certificate-data": "eA==", "client-key-data": "eA=="})
        whole = [
            {
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": each}],
                "users": [{"name": "u", "user": user}],
            }
            for each in (cluster, plain)
            for user in users
        ]
        odd = (
            b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\nd: 2024-01-01\ne: 0x10\nf: 1:30\ng: !!binary eA==\n"
        )
        return [odd, *(yaml.safe_dump(each).encode() for each in whole), json.dumps(whole[0]).encode()]

    def make(self, rng: Random, pool: Sequence[bytes]) -> bytes:
        data = pool[int(rng.random() * len(pool))]
        return damaged_json(rng, data, pool)[:3000] if data[:1] == b"{" else damaged(rng, data, pool)[:3000]

    def run(self, data: bytes) -> Hashable:
        self._path.write_bytes(data)
        return Config.load({"KUBECONFIG": str(self._path)}).server[:5]


class PlanFiles(_FromJson):
    name = "plan"
    batch = 20

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def seeds(self) -> Sequence[bytes]:
        routers = [each for each in objects() if each["kind"] == "VirtualRouter"]
        plans = [{"layout": 1, "node": "a", "routers": [each], "terms": {"vr-51": 3}} for each in routers]
        return [json.dumps(plan).encode() for plan in [*plans, plans[0] | {"routers": routers[:3]}]]

    def run(self, data: bytes) -> Hashable:
        with open(os.open(self._folder / NAME, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        restored = PlanFile(self._folder, "a").restore()
        return None if restored is None else len(restored.routers)


class KeyContents(Target):
    name = "key"
    batch = 300
    declared = (ValueError,)

    def seeds(self) -> Sequence[bytes]:
        return [b"k" * 32, b"hex:" + b"0f" * 32 + b"\n", b"\r\n", b"hex:"]

    def run(self, data: bytes) -> Hashable:
        key = key_in(data)
        assert len(key) >= 16
        return key[:1] == b"\0"


# --- the kernel -----------------------------------------------------------------------------------


class Netlink(Target):
    """Datagrams of a dump: messages, attributes, and what is made of them."""

    name = "netlink"
    batch = 120
    declared = (OSError, struct.error, IndexError)  # a dump fails, or a message is left out

    def seeds(self) -> Sequence[bytes]:
        lines = (RECORDED / "netlink.hex").read_text().splitlines()
        return [bytes.fromhex(line.split()[1]) for line in lines if not line.startswith("#")]

    def run(self, data: bytes) -> Hashable:
        bodies, consistent, done = netlink._slice(0, data)
        links: list[snapshot.KernelLink] = []
        addresses: list[snapshot.KernelAddress] = []
        neighbours: list[snapshot.KernelNeighbour] = []
        gateways: list[tuple[int, str]] = []
        for body in bodies:
            with suppress(struct.error, IndexError):
                links += filter(None, [snapshot.read_link(body)])
            with suppress(struct.error, IndexError):
                addresses += filter(None, [snapshot.read_address(body)])
            with suppress(struct.error, IndexError):
                neighbours += filter(None, [snapshot.read_neighbour(body)])
            with suppress(struct.error, IndexError):
                gateways += snapshot.read_gateways(body)
        told = snapshot.links_seen(links, addresses)
        around = snapshot.surroundings(
            forwarding=False, gateways=[each for _, each in gateways], known=neighbours, ours=frozenset()
        )
        assert len(told) <= snapshot.MAX_LINKS
        assert len(around.gateways) <= snapshot.MAX_NEIGHBOURS
        assert len(around.neighbours) <= snapshot.MAX_NEIGHBOURS
        return bool(told), bool(addresses), bool(neighbours), bool(gateways), consistent, done
