# SPDX-License-Identifier: Apache-2.0
"""What time alone makes true, and what a Node, a VirtualIP or a Speaker was like before."""

from typing import Any

import msgspec
import pytest

from holdfast_api.types import (
    Handover,
    HeardVirtualRouterID,
    Metadata,
    RouterReport,
    SpeakerStatus,
    Transition,
    VirtualRouter,
    VirtualRouterSpec,
)
from holdfast_operator.cache import Cache
from holdfast_operator.memory import FLAP_S, FOREIGN_S, LAG_S, MOST_REMEMBERED, ORDER_S, RENUMBER_S, Memory
from holdfast_operator.world import Timely
from tests.unit.operator.test_cache import made, speaker

ORDER = Handover("x-0", "n1", "n2")


def router(generation: int = 1, order: Handover | None = None) -> VirtualRouter:
    spec = VirtualRouterSpec(virtual_router_id=5, addresses=(), handover=order)
    return VirtualRouter(Metadata("vr-5", uid="u", generation=generation), spec)


def report(generation: int = 1, story: Transition | None = None) -> RouterReport:
    return RouterReport("vr-5", "u", generation, "Backup", 1, "x", last_transition=story)


def timely(memory: Memory, now_s: float, **speakers: SpeakerStatus) -> Timely:
    return memory.timely({"vr-5": router(2)}, speakers, now_s)


def test_an_order_is_spent_ten_seconds_after_it_was_first_seen() -> None:
    memory = Memory()
    memory.router(router(2, ORDER), 100.0)
    memory.router(router(3, ORDER), 105.0)
    memory.router(router(4), 106.0)

    assert timely(memory, 100.0 + ORDER_S - 0.1).spent == frozenset()
    assert timely(memory, 100.0 + ORDER_S).spent == {("u", "x-0")}


def test_a_speaker_lags_when_it_has_not_read_a_plan_for_a_while() -> None:
    memory = Memory()
    memory.router(router(1), 0.0)
    memory.router(router(2), 100.0)
    behind, level = SpeakerStatus(routers=(report(1),)), SpeakerStatus(routers=(report(2),))

    assert timely(memory, 100.0 + LAG_S - 0.1, n1=behind).lagging == frozenset()
    assert timely(memory, 100.0 + LAG_S, n1=behind, n2=level).lagging == {("vr-5", "n1")}


def test_a_stranger_is_believed_to_stay_after_a_minute_without_a_pause() -> None:
    memory = Memory()
    heard = SpeakerStatus(heard_virtual_router_ids=(HeardVirtualRouterID("eth0", 5, "192.0.2.9"),))
    memory.speaker("n1", None, heard, 0.0, listed=False)
    memory.speaker("n2", None, heard, 0.0, listed=False)
    memory.speaker("n2", heard, SpeakerStatus(), 30.0, listed=False)
    memory.speaker("n2", None, heard, 31.0, listed=False)

    assert timely(memory, FOREIGN_S - 0.1).foreign == frozenset()
    assert timely(memory, FOREIGN_S).foreign == {("n1", "eth0", 5)}
    assert len(timely(memory, 31.0 + FOREIGN_S).foreign) == 2
    memory.forget_node("n1")
    assert timely(memory, 31.0 + FOREIGN_S).foreign == {("n2", "eth0", 5)}


def test_one_router_a_minute_gets_another_vrid() -> None:
    memory = Memory()
    assert timely(memory, 0.0).may_renumber
    memory.renumbered(10.0)

    assert not timely(memory, 10.0 + RENUMBER_S - 0.1).may_renumber
    assert timely(memory, 10.0 + RENUMBER_S).may_renumber


def lose(
    memory: Memory, at_s: float, number: int, reason: str = "ActiveSilent", *, listed: bool = False
) -> None:
    """n2 takes over from n1, the ``number``th time."""
    before = SpeakerStatus(routers=(report(),))
    story = Transition("n2", reason, f"2026-11-22T10:00:{number:02}.000000Z", "n1")
    memory.speaker("n2", before, SpeakerStatus(routers=(report(1, story),)), at_s, listed=listed)


def test_three_losses_within_ten_minutes_make_a_node_unsteady_for_ten_minutes() -> None:
    memory = Memory()
    lose(memory, 0.0, 1)
    lose(memory, 100.0, 2)
    assert timely(memory, 101.0).unsteady == frozenset()
    lose(memory, 200.0, 3)

    assert timely(memory, 201.0).unsteady == {"n1"}
    assert timely(memory, 200.0 + FLAP_S - 0.1).unsteady == {"n1"}
    assert timely(memory, 200.0 + FLAP_S).unsteady == frozenset()


@pytest.mark.parametrize("reason", ["HandedOver", "Preempted", "FirstActive"])
def test_planned_moves_and_old_stories_are_no_losses(reason: str) -> None:
    memory = Memory()
    for number in range(5):
        lose(memory, float(number), number, reason)
        lose(memory, float(number), number, listed=True)

    assert timely(memory, 5.0).unsteady == frozenset()


def test_losses_far_apart_make_nobody_unsteady() -> None:
    memory = Memory()
    for number in range(5):
        lose(memory, number * FLAP_S / 2, number)

    assert timely(memory, 2 * FLAP_S).unsteady == frozenset()


def test_one_takeover_told_twice_is_one_loss() -> None:
    memory = Memory()
    story = Transition("n2", "ActiveSilent", "2026-11-22T10:00:01.000000Z", "n1")
    first = SpeakerStatus(routers=(report(1, story),))
    more = SpeakerStatus(routers=(report(1, msgspec.structs.replace(story, announcements_sent=9)),))
    memory.speaker("n2", SpeakerStatus(), first, 0.0, listed=False)
    for _ in range(5):
        memory.speaker("n2", first, more, 1.0, listed=False)

    assert timely(memory, 2.0).unsteady == frozenset()


def test_a_move_is_overdue_after_a_while_and_asking_for_another_begins_anew() -> None:
    memory = Memory()
    memory.request(("ns", "a"), "n1", 0.0)
    memory.request(("ns", "a"), "n1", 20.0)
    assert timely(memory, 30.0).overdue == {("ns", "a")}
    memory.request(("ns", "a"), "n2", 31.0)
    assert timely(memory, 32.0).overdue == frozenset()
    memory.request(("ns", "a"), "", 33.0)
    assert timely(memory, 100.0).overdue == frozenset()


def test_memory_is_bounded() -> None:
    memory = Memory()
    for number in range(2 * MOST_REMEMBERED):
        memory.router(VirtualRouter(Metadata("vr-5", uid=f"u{number}"), router(1, ORDER).spec), float(number))
        memory.request(("ns", f"v{number}"), "n1", float(number))
    found = timely(memory, 1e9)

    assert len(found.spent) == len(found.overdue) == MOST_REMEMBERED


# --- in the cache -------------------------------------------------------------------------------


@pytest.fixture
def cache() -> Cache:
    return Cache(virtual_router_ids=range(1, 256), now_s=0.0)


def node(version: int, *, drain: str | None = None, **spec: Any) -> dict[str, Any]:
    raw = made("Node", "n1", version, spec=spec)
    if drain is not None:
        raw["metadata"]["labels"] = {"holdfast.dev/drain": drain}
    return raw


def mark(cache: Cache) -> tuple[str, int]:
    found = cache.snapshot(epoch=1, now_s=0.0)
    return found.draining.get("n1", ""), found.nodes["n1"].marked


def test_a_node_that_is_marked_again_is_marked_anew(cache: Cache) -> None:
    cache.seen("nodes", node(5, drain="true"), 0.0)
    assert mark(cache) == ("label holdfast.dev/drain=true", 0), "it may have been so for long"
    cache.seen("nodes", node(6), 0.0)
    assert mark(cache)[0] == ""
    cache.seen("nodes", node(7, drain="true"), 0.0)
    cache.seen("nodes", node(8, drain="true", unschedulable=True), 0.0)
    assert mark(cache)[1] == 7
    cache.seen("nodes", node(9, taints=[{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]), 0.0)
    assert mark(cache) == ("taint karpenter.sh/disrupted", 9)


def test_a_move_that_is_asked_for_again_is_asked_anew(cache: Cache) -> None:
    def ask(version: int, to: str | None) -> int:
        raw = made("VirtualIP", "a", version, namespace="ns", spec={"address": "192.0.2.1"})
        raw["metadata"]["annotations"] = {"holdfast.dev/move-to": to} if to else {}
        cache.seen("virtualips", raw, float(version))
        return cache.snapshot(epoch=1, now_s=float(version)).vips[0].asked

    assert [ask(1, "n1"), ask(2, "n1"), ask(3, None), ask(4, "n1"), ask(5, "n2")] == [0, 0, 0, 4, 5]
    assert cache.timely(34.0).overdue == frozenset()
    assert cache.timely(35.0).overdue == {("ns", "a")}


@pytest.mark.parametrize("how", ["deleted", "made anew", "emptied", "unreadable"])
def test_a_speaker_that_says_nothing_any_more_has_let_nothing_go(cache: Cache, how: str) -> None:
    held = {
        "name": "vr-5",
        "uid": "u",
        "observedGeneration": 1,
        "state": "Active",
        "term": 1,
        "since": "x",
        "held": ["192.0.2.1"],
    }
    cache.seen("nodes", node(1), 0.0)
    cache.seen("speakers", speaker(2, routers=[held]), 0.0)
    if how in ("deleted", "made anew"):
        cache.deleted("speakers", speaker(3))
    if how == "made anew":
        cache.seen("speakers", made("Speaker", "n1", 4), 0.0)
    elif how == "emptied":
        cache.seen("speakers", made("Speaker", "n1", 4, status={}), 0.0)
    elif how == "unreadable":
        cache.seen("speakers", made("Speaker", "n1", 4, status={"interfaces": "none"}), 0.0)
    silent = cache.snapshot(epoch=1, now_s=0.0)
    cache.seen("speakers", speaker(8), 0.0)
    said = cache.snapshot(epoch=1, now_s=0.0)

    assert silent.holders == {"192.0.2.1": (("vr-5", "n1"),)}
    assert said.holders == {}


def test_a_speaker_that_is_deleted_with_its_node_is_forgotten(cache: Cache) -> None:
    for first in ("nodes", "speakers"):
        cache.seen("nodes", node(1), 0.0)
        cache.seen("speakers", speaker(2), 0.0)
        if first == "nodes":
            cache.deleted("nodes", node(3))
        cache.deleted("speakers", speaker(4))
        cache.deleted("nodes", node(5))

        assert cache.snapshot(epoch=1, now_s=0.0).ghosts == {}
        cache = Cache(virtual_router_ids=range(1, 256), now_s=0.0)
