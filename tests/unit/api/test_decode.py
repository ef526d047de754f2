# SPDX-License-Identifier: Apache-2.0
"""The quick decoders: what the API server has let through, read once more before it can do harm."""

from typing import Any

import msgspec
import pytest

from holdfast_api.decode import DecodeError, decode_router, decode_speaker, decode_virtual_ip
from tests.cluster.objects import Case, table

OWNER = {"namespace": "default", "name": "a", "uid": "u"}


def router(**spec: Any) -> bytes:
    whole = {"virtualRouterID": 7, "addresses": []} | spec
    return msgspec.json.encode({"metadata": {"name": "vr-7"}, "spec": whole})


def errors_of(raw: bytes) -> list[tuple[str, str]]:
    with pytest.raises(DecodeError) as refused:
        decode_router(raw)
    return [(error.field, error.message) for error in refused.value.errors]


def test_a_router_is_read_with_its_defaults_and_without_what_is_unknown() -> None:
    read = decode_router(router(addresses=[{"address": "192.0.2.1", "owner": OWNER}], colour="red"))

    assert read.spec.virtual_router_id == 7
    assert read.spec.addresses[0].state == "Held"
    assert read.spec.advert_interval_milliseconds == 100


@pytest.mark.parametrize(
    "case", [c for c in table("good") if c.kind == "VirtualRouter"], ids=lambda case: case.name
)
def test_every_good_router_is_read(case: Case) -> None:
    assert decode_router(msgspec.json.encode(case.object)) == decode_router(case.object)


# The table's bad routers that a speaker may run all the same: nothing it does depends on what is wrong.
HARMLESS = {"a router not named after its VRID", "an epoch below zero"}


@pytest.mark.parametrize(
    "case",
    [c for c in table("bad") if c.kind == "VirtualRouter" and c.name not in HARMLESS],
    ids=lambda case: case.name,
)
def test_every_bad_router_is_refused_at_the_same_field(case: Case) -> None:
    fields = {field for field, _ in errors_of(msgspec.json.encode(case.object))}
    wanted = {field for field, _ in case.wrong}

    assert fields & wanted  # of wrong types and missing fields, msgspec names the first


def test_all_that_is_wrong_with_a_router_is_said_at_once() -> None:
    raw = router(
        virtualRouterID=0,
        advertIntervalMilliseconds=15,
        addresses=[{"address": "FE80::1", "owner": OWNER}],
        candidates=[{"node": "a", "priority": 255, "sources": ["x"]}],
        interfaces=["a/b"],
    )

    assert [field for field, _ in errors_of(raw)] == [
        "spec.virtualRouterID",
        "spec.advertIntervalMilliseconds",
        "spec.addresses[0].address",
        "spec.addresses[0].address",
        "spec.interfaces[0]",
        "spec.candidates[0].priority",
        "spec.candidates[0].sources[0]",
    ]


@pytest.mark.parametrize(
    ("count", "form", "words"),
    [(256, "10.0.{}.{}", "at most 255 IPv4"), (89, "2001:db8::{:x}:{:x}", "at most 88 IPv6")],
)
def test_more_addresses_than_fit_into_an_advert_are_refused(count: int, form: str, words: str) -> None:
    addresses = [
        {"address": form.format(1 + index // 250, 1 + index % 250), "owner": OWNER} for index in range(count)
    ]

    assert [words in message for _, message in errors_of(router(addresses=addresses))] == [True]
    decode_router(router(addresses=addresses[:-1]))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"spec":{}}', b"\xff", b'{"metadata":1}'])
def test_garbage_is_an_error_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_router(raw)


def test_a_speakers_lies_about_addresses_are_refused() -> None:
    def speaker(**status: Any) -> bytes:
        return msgspec.json.encode({"metadata": {"name": "a"}, "status": status})

    nic = {"name": "eth0", "mac": "52:54:00:00:00:01"}
    report = {"name": "vr-7", "uid": "u", "observedGeneration": 1, "state": "Active", "term": 1, "since": "x"}
    decode_speaker(
        speaker(
            interfaces=[nic | {"addresses": ["192.0.2.5/24", "fe80::1/64"]}],
            routers=[report | {"held": ["192.0.2.1"]}],
        )
    )
    for bad in (
        speaker(interfaces=[nic | {"addresses": ["192.0.2.5"]}]),
        speaker(interfaces=[nic | {"addresses": ["x/24"]}]),
        speaker(routers=[report | {"held": ["192.0.2.1/24"]}]),
        speaker(routers=[report | {"state": "Master"}]),
    ):
        with pytest.raises(DecodeError):
            decode_speaker(bad)


def test_a_virtual_ip_is_read_from_a_dict_too() -> None:
    good = {"metadata": {"name": "a"}, "spec": {"address": "192.0.2.1"}}

    assert decode_virtual_ip(good).spec.address == "192.0.2.1"
    with pytest.raises(DecodeError, match=r"spec\.address: Invalid value: \"127\.0\.0\.1\": must not be"):
        decode_virtual_ip({"metadata": {"name": "a"}, "spec": {"address": "127.0.0.1"}})
