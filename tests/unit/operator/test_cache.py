# SPDX-License-Identifier: Apache-2.0
"""What the cache makes of lists, events and answers in any order, and who it takes for alive."""

from typing import Any

import pytest

from holdfast_operator.cache import Cache, Kind

Object = dict[str, Any]


def made(
    kind: str, name: str, version: int, *, namespace: str = "", generation: int = 1, **more: Any
) -> Object:
    metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version), "generation": generation}
    if namespace:
        metadata["namespace"] = namespace
    return {"kind": kind, "metadata": metadata, **more}


def vip(version: int, *, generation: int = 1, **more: Any) -> Object:
    more.setdefault("spec", {"address": "192.0.2.1"})
    return made("VirtualIP", "a", version, namespace="default", generation=generation, **more)


def speaker(
    version: int, *, name: str = "n1", routers: list[Object] | None = None, listened: bool = True
) -> Object:
    nic = {"name": "eth0", "mac": "02:00:00:00:00:01", "addresses": ["192.0.2.5/24"], "listened": listened}
    return made("Speaker", name, version, status={"interfaces": [nic], "routers": routers or []})


def lease(version: int, name: str = "n1", duration_s: int = 25) -> Object:
    return made("Lease", name, version, spec={"holderIdentity": name, "leaseDurationSeconds": duration_s})


@pytest.fixture
def cache() -> Cache:
    return Cache(virtual_router_ids=range(1, 256), now_s=0.0)


def test_no_plan_before_everything_was_listed(cache: Cache) -> None:
    kinds: tuple[Kind, ...] = ("nodes", "speakers", "virtualips", "virtualrouters")
    cache.cluster_uid = "u"
    for kind in kinds:
        assert not cache.complete
        cache.replaced(kind, [], 1, 0.0)
    assert not cache.complete
    cache.pulses([], 0.0)

    assert cache.complete


def test_old_news_changes_nothing_and_our_own_echo_wakes_nobody(cache: Cache) -> None:
    assert cache.seen("virtualips", vip(5), 0.0)
    assert not cache.seen("virtualips", vip(5), 0.0)
    assert not cache.seen("virtualips", vip(4, generation=0), 0.0)
    assert not cache.seen("virtualips", vip(6), 0.0), "only its version is new"
    assert cache.seen("virtualips", vip(7, generation=2), 0.0)
    assert cache.seen("virtualips", vip(8, generation=2, status={"leader": "n1"}), 0.0)


def test_a_deleted_object_is_not_brought_back_by_a_late_answer(cache: Cache) -> None:
    cache.seen("virtualips", vip(5), 0.0)

    assert cache.deleted("virtualips", vip(9))
    assert not cache.seen("virtualips", vip(8), 0.0)
    assert cache.snapshot(epoch=1, now_s=0.0).vips == ()
    assert cache.seen("virtualips", vip(10), 0.0), "made anew"


def test_a_list_drops_ghosts_but_not_what_is_newer_than_the_list(cache: Cache) -> None:
    cache.seen("speakers", speaker(5, name="ghost"), 0.0)
    cache.seen("speakers", speaker(30, name="new"), 0.0)

    assert cache.replaced("speakers", [speaker(6, name="n1")], 20, 0.0)
    assert sorted(cache.snapshot(epoch=1, now_s=0.0).speakers) == ["n1", "new"]


def test_nobody_is_silent_before_one_lease_duration_after_the_start_or_after_taking_the_lead(
    cache: Cache,
) -> None:
    cache.replaced("speakers", [speaker(1)], 1, 0.0)
    cache.pulses([lease(1)], 0.0)

    assert cache.live(24.0) == {"n1"}
    assert cache.live(26.0) == frozenset()
    cache.grace(30.0)
    assert cache.live(54.0) == {"n1"}
    assert cache.live(56.0) == frozenset()


def test_a_lease_that_changes_is_a_sign_of_life_and_so_is_a_report(cache: Cache) -> None:
    cache.replaced("speakers", [speaker(1)], 1, 0.0)
    cache.pulses([lease(1)], 0.0)
    cache.pulses([lease(1)], 30.0)
    assert cache.live(30.0) == frozenset()
    cache.pulses([lease(2)], 31.0)
    assert cache.live(55.0) == {"n1"}
    assert cache.live(57.0) == frozenset()
    cache.seen("speakers", speaker(2, listened=False), 60.0)

    assert cache.live(84.0) == {"n1"}


def test_a_speaker_that_begins_to_listen_is_waited_for_ten_seconds(cache: Cache) -> None:
    cache.seen("speakers", speaker(1, listened=False), 100.0)

    assert cache.settling(109.0) == {"n1"}
    assert cache.settling(111.0) == frozenset()
    cache.seen("speakers", speaker(2), 102.0)
    assert cache.settling(103.0) == frozenset()


def test_when_a_node_was_first_seen_active_is_remembered_by_term(cache: Cache) -> None:
    def active(term: int, held: list[str]) -> list[Object]:
        return [
            {
                "name": "vr-5",
                "uid": "u",
                "observedGeneration": 1,
                "state": "Active",
                "term": term,
                "since": "x",
                "held": held,
            }
        ]

    cache.seen("speakers", speaker(1, routers=active(1, [])), 10.0)
    cache.seen("speakers", speaker(2, routers=active(1, ["192.0.2.1"])), 20.0)
    assert cache.snapshot(epoch=1, now_s=20.0).taken_at == {("vr-5", "n1"): 10.0}
    cache.seen("speakers", speaker(3, routers=active(2, [])), 30.0)

    assert cache.snapshot(epoch=1, now_s=30.0).taken_at == {("vr-5", "n1"): 30.0}


def test_what_cannot_be_read_is_there_and_harms_nobody(cache: Cache) -> None:
    cache.seen("virtualips", vip(1, spec={"address": "not an address"}), 0.0)
    cache.seen("virtualrouters", made("VirtualRouter", "vr-9", 2, spec={"virtualRouterID": "nine"}), 0.0)
    cache.seen("speakers", made("Speaker", "n1", 3, status={"interfaces": "none"}), 0.0)
    found = cache.snapshot(epoch=1, now_s=0.0)

    assert found.vips[0].spec is None
    assert "spec.address" in found.vips[0].errors[0]
    assert found.unreadable_routers == {"vr-9"}
    assert found.speakers["n1"].routers == ()


def test_a_node_is_ready_unless_its_kubelet_says_otherwise(cache: Cache) -> None:
    def ready(version: int, *said: str) -> bool:
        conditions = [{"type": "DiskPressure", "status": "False"}]
        conditions += [{"type": "Ready", "status": each} for each in said]
        cache.seen("nodes", made("Node", "n1", version, status={"conditions": conditions}), 0.0)
        return cache.snapshot(epoch=1, now_s=0.0).nodes["n1"].ready

    assert [ready(1), ready(2, "True"), ready(3, "False"), ready(4, "Unknown")] == [True, True, False, False]


def test_a_nodes_addresses_are_canonical_and_names_are_left_out(cache: Cache) -> None:
    addresses = [{"type": "InternalIP", "address": "2001:DB8:0::1"}, {"type": "Hostname", "address": "n1"}]
    cache.seen("nodes", made("Node", "n1", 1, status={"addresses": addresses}), 0.0)

    assert cache.snapshot(epoch=1, now_s=0.0).nodes["n1"].addresses == {"2001:db8::1"}
