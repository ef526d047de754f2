# SPDX-License-Identifier: Apache-2.0
"""Garbage from the segment and from the API changes nothing that works."""

import contextlib
import random
import socket
import struct
import time

import pytest

from tests.rig.api import Api, ApiError, socket_in
from tests.rig.cluster import CLIENT_NUMBER, Cluster
from tests.story.objects import vip

pytestmark = [pytest.mark.netns, pytest.mark.cluster]

V4 = "192.0.2.100"
VRRP = 112
VRRP_GROUP = "224.0.0.18"


def _advert(vrid: int, priority: int, address: str, *, checksum: int = 0) -> bytes:
    """A VRRPv3 advert of one address at 100 ms; its checksum is wrong unless given."""
    return struct.pack("!BBBBHH4s", 0x31, vrid, priority, 1, 10, checksum, socket.inet_aton(address))


def test_malformed_adverts_change_nothing(cluster: Cluster) -> None:
    """Priority 255 would win, if any of them were believed: wrong checksum, TTL, version, length."""
    cluster.apply(vip("web", V4))
    ready = cluster.wait_ready("web")
    router = cluster.api.get("VirtualRouter", ready["status"]["virtualRouter"])
    assert router is not None
    vrid = router["spec"]["virtualRouterID"]
    chance = random.Random(3768)
    good = _advert(vrid, 255, V4)
    packets = [
        good,  # wrong checksum
        b"\x21" + good[1:],  # VRRPv2
        good[:5],
        good[:3] + b"\xff" + good[4:],  # lists 255 addresses
        *(chance.randbytes(chance.randrange(1, 1400)) for _ in range(300)),
        *(bytes([0x31, vrid]) + chance.randbytes(chance.randrange(0, 60)) for _ in range(300)),
    ]
    with (
        cluster.probe(V4) as probe,
        socket_in(cluster.client, socket.AF_INET, socket.SOCK_RAW, VRRP) as raw,
    ):
        probe.wait_answer(V4)
        client = cluster.segment.addresses(CLIENT_NUMBER)[0]
        raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(client))
        for ttl in (255, 254):
            raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
            for number, packet in enumerate(packets):
                raw.sendto(packet, (VRRP_GROUP, 0))
                if number % 50 == 0:
                    time.sleep(0.005)  # the switch's queue holds 1,000 frames, the client's own among them
        time.sleep(2)
        answers = probe.result()
    assert answers.lost == 0
    assert cluster.holders(V4) == cluster.active("web") == [ready["status"]["leader"]]


def test_a_garbage_router_stops_neither_the_planner_nor_the_speakers(cluster: Cluster) -> None:
    """An admin may write anything the schema lets through: foreign names, unknown nodes, our VRID."""
    cluster.apply(vip("web", V4))
    ready = cluster.wait_ready("web")
    router = cluster.api.get("VirtualRouter", ready["status"]["virtualRouter"])
    assert router is not None
    stolen = {
        **router["spec"],
        "candidates": [{"node": "nowhere", "priority": 254}],
        "addresses": [
            {
                "address": V4,
                "owner": {"namespace": "x", "name": "y", "uid": "z"},
                "state": "Held",
                "claimed": True,
            }
        ],
    }
    with cluster.probe(V4) as probe:
        probe.wait_answer(V4)
        for name in ("garbage", "vr-0", "vr-999", "vr-254"):
            _try_to_create(cluster.api, name, stolen)
        time.sleep(3)
        cluster.apply(vip("late", "192.0.2.101"))
        cluster.wait_ready("late")
        answers = probe.result()
    assert answers.lost == 0
    assert cluster.active("web") == [ready["status"]["leader"]]
    for name in ("garbage", "vr-0", "vr-999", "vr-254"):
        cluster.api.delete("VirtualRouter", name)


def _try_to_create(api: Api, name: str, spec: dict[str, object]) -> None:
    """The API server may refuse it, which is as good."""
    router = {
        "apiVersion": "holdfast.dev/v1alpha1",
        "kind": "VirtualRouter",
        "metadata": {"name": name},
        "spec": spec,
    }
    with contextlib.suppress(ApiError):
        api.create(router)
