# SPDX-License-Identifier: Apache-2.0
"""The brain where a script would be too long: order of effects, many routers, bounds, bad luck."""

import time
from ipaddress import ip_address

import pytest

from holdfast_api.types import (
    Candidate,
    Interface,
    Metadata,
    Owner,
    RouterAddress,
    SpeakerStatus,
    VirtualRouter,
    VirtualRouterSpec,
)
from holdfast_speaker import effects as do
from holdfast_speaker import events as on
from holdfast_speaker.node import Node
from holdfast_speaker.node.agenda import Agenda
from holdfast_speaker.vrrp.advert import Advert, build, listing, parse
from tests.scripts.stage import INDEX, Stage

OURS = "02:00:00:00:00:01"


def stage(*commands: str) -> Stage:
    staged = Stage()
    for command in ("node a", "link eth0 10.0.0.1/16 2001:db8::1/64 fe80::1/64", "run 5s", *commands):
        staged.perform(command)
    return staged


def kinds(staged: Stage) -> list[str]:
    dull = (do.Report, do.SavePlan, do.Log, do.Count, do.Prepare, do.Hear)
    return [type(effect).__name__ for effect in staged.effects if not isinstance(effect, dull)]


def status(staged: Stage) -> SpeakerStatus:
    return next(effect.status for effect in reversed(staged.effects) if isinstance(effect, do.Report))


def play(staged: Stage, *commands: str) -> None:
    """Only what these do is kept."""
    staged.effects.clear()
    for command in commands:
        staged.perform(command)


def adverts(staged: Stage) -> list[Advert]:
    parsed = [parse(effect.frame) for effect in staged.effects if isinstance(effect, do.Send)]
    return [advert for advert in parsed if isinstance(advert, Advert)]


def open_fence(staged: Stage, effects: tuple[do.Effect, ...]) -> do.Bind:
    """Answer the one Take of these effects; the Bind that follows waits for its answer."""
    take = next(effect for effect in effects if isinstance(effect, do.Take))
    after = staged.node.handle(on.Taken(take.id, open=True), staged.now_us)
    return next(effect for effect in after if isinstance(effect, do.Bind))


def test_a_takeover_is_fence_advert_bind_announce_advert() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=a:250,b:248")
    play(staged, "list")

    assert kinds(staged) == ["Guard", "Take", "Send", "Bind", "Announce", "Announce", "Send"]
    first, last = adverts(staged)
    assert first.addresses() == (b"\x0a\0\0\x01",)  # RFC 9568 has no empty list: the NIC's own address
    assert last.addresses() == (b"\x0a\0\0\x64",)


def test_what_is_guarded_before_the_fence_is_opened_is_all_that_will_be_bound() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed 2001:db8::100 claimed candidates=a:250,b:248")
    play(staged, "list")
    guard = next(effect for effect in staged.effects if isinstance(effect, do.Guard))

    assert guard == do.Guard(51, INDEX, 280_000, ("10.0.0.100", "2001:db8::100"))


def test_a_release_is_priority_zero_before_anything_else() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=a:250,b:248", "list", "run 1s")
    play(staged, "delete vr-51")

    assert kinds(staged) == ["Send", "Fence", "Release", "Fence", "Unguard"]
    assert [effect.verb for effect in staged.effects if isinstance(effect, do.Fence)] == [
        "silence",
        "release",
    ]
    assert [advert.priority for advert in adverts(staged)] == [0]


def test_the_bytes_are_prepared_before_they_are_needed() -> None:
    staged = stage("plan vr-51 10.0.0.100 candidates=a:250,b:248")
    play(staged, "list")
    names = [type(effect).__name__ for effect in staged.effects]

    assert names.index("Prepare") < names.index("Announce")


def test_255_addresses_are_one_bind_and_announcements_of_64() -> None:
    addresses = " ".join(f"10.0.1.{number} claimed" for number in range(1, 256))
    staged = stage(f"plan vr-51 {addresses} candidates=a:250")
    play(staged, "list")
    binds = [effect for effect in staged.effects if isinstance(effect, do.Bind)]
    firsts = [e for e in staged.effects if isinstance(e, do.Announce) and e.form == "announce"]

    assert [len(effect.addresses) for effect in binds] == [255]
    assert [len(effect.addresses) for effect in firsts] == [64, 64, 64, 63]
    assert list(binds[0].addresses) == sorted(binds[0].addresses, key=ip_address)


def test_lifetimes_are_refreshed_in_time_and_in_small_portions() -> None:
    addresses = " ".join(f"10.0.1.{number} claimed" for number in range(1, 256))
    staged = stage(f"plan vr-51 {addresses} candidates=a:250", "list")
    since = staged.now_us
    last = {f"10.0.1.{number}": since for number in range(1, 256)}
    while staged.now_us < since + 65_000_000:
        play(staged, "run 50ms")
        for effect in staged.effects:
            if isinstance(effect, do.Refresh):
                assert len(effect.addresses) <= 100
                for address in effect.addresses:
                    assert staged.now_us - last[address] <= 11_000_000
                    last[address] = staged.now_us

    assert min(last.values()) > staged.now_us - 11_000_000


def test_what_cannot_be_bound_is_reported_and_tried_again_while_the_rest_is_held() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed 10.0.0.101 claimed candidates=a:250,b:248")
    node = staged.node
    bind = open_fence(staged, node.handle(on.RoutersListed(tuple(staged.plans.values())), staged.now_us))
    node.handle(on.Bound(bind.id, ("10.0.0.101",), (("10.0.0.100", "EPERM"),)), staged.now_us)
    play(staged, "run 100ms")
    router = status(staged).routers[0]

    assert router.state == "Active"
    assert router.held == ("10.0.0.101",)
    assert [(each.address, each.reason, each.message) for each in router.failed] == [
        ("10.0.0.100", "BindFailed", "EPERM")
    ]
    play(staged, "run 2s")
    assert status(staged).routers[0].held == ("10.0.0.100", "10.0.0.101")


def test_an_active_that_can_bind_nothing_lets_the_others_try() -> None:
    staged = stage("bind fails no memory", "plan vr-51 10.0.0.100 claimed candidates=a:250,b:248")
    play(staged, "list", "run 100ms")

    assert [advert.priority for advert in adverts(staged)] == [250, 0]
    assert status(staged).routers[0].state == "Backup"
    play(staged, "bind works", "run 3s")
    assert status(staged).routers[0].state == "Active"


def test_a_failed_bind_is_tried_ever_more_seldom() -> None:
    staged = stage("bind fails no memory", "plan vr-51 10.0.0.100 claimed candidates=a:250,b:248", "list")
    play(staged, "run 300s")

    assert 5 <= sum(isinstance(effect, do.Bind) for effect in staged.effects) <= 12


def test_a_bind_answered_after_stepping_down_announces_nothing() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=a:250,b:248")
    node = staged.node
    bind = open_fence(staged, node.handle(on.RoutersListed(tuple(staged.plans.values())), staged.now_us))
    play(staged, "advert from=10.0.0.2 vrid=51 priority=254")
    staged.effects.clear()
    after = node.handle(on.Bound(bind.id, bind.addresses), staged.now_us)

    assert not [effect for effect in after if isinstance(effect, do.Announce | do.Bind)]


@pytest.mark.parametrize(("takes", "kept"), [("279ms", True), ("280ms", False)])
def test_a_bind_that_took_longer_than_the_lease_is_given_back_unannounced(takes: str, *, kept: bool) -> None:
    staged = stage(f"bind takes {takes}", "plan vr-51 10.0.0.100 claimed candidates=a:250,b:248")
    play(staged, "list")

    owed = ["Send", "Announce", "Announce", "Send"]  # first the advert that fell due meanwhile
    after = owed if kept else ["Fence", "Release", "Fence"]
    assert [kind for kind in kinds(staged) if kind != "Guard"] == ["Take", "Send", "Bind", *after]


def test_both_families_move_together_and_either_keeps_a_backup_quiet() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed 2001:db8::100 claimed candidates=b:250,a:248")
    staged.perform("advert from=10.0.0.2 vrid=51 priority=250")
    staged.perform("list")
    for _ in range(20):
        staged.perform("run 250ms")
        staged.perform("advert from=fe80::2 vrid=51 priority=250 lists=2001:db8::100")
    play(staged, "run 310ms")

    taken = kinds(staged).index("Take")
    assert kinds(staged)[taken : taken + 4] == ["Take", "Send", "Send", "Bind"]
    assert [advert.family for advert in adverts(staged)] == [4, 6, 4, 6]
    bind = next(effect for effect in staged.effects if isinstance(effect, do.Bind))
    assert bind.addresses == ("10.0.0.100", "2001:db8::100")


def test_of_two_dual_stack_actives_of_one_priority_ipv4_breaks_the_tie() -> None:
    """fe80::1 is less than fe80::2, 10.0.0.9 greater than 10.0.0.1: were both judged, both would yield."""
    staged = stage("plan vr-51 10.0.0.100 claimed 2001:db8::100 claimed candidates=a:250", "list", "run 1s")
    play(
        staged,
        "advert from=10.0.0.0 vrid=51 priority=250",
        "advert from=fe80::9 vrid=51 priority=250 lists=2001:db8::100",
    )

    assert not [effect for effect in staged.effects if isinstance(effect, do.Release)]


def test_the_peers_checksum_form_is_learned() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=a:250,b:248", "list", "run 1s")
    play(staged, "advert from=10.0.0.2 vrid=51 priority=100 checksum=rfc", "run 100ms")

    assert adverts(staged)[-1].rfc_checksum


def test_an_active_that_lists_other_addresses_is_obeyed() -> None:
    """A differing list as a reason to ignore is how keepalived gets two Actives (semantics V28)."""
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=a:248,b:250", "list")
    for _ in range(10):
        staged.perform("advert from=10.0.0.2 vrid=51 priority=250 lists=10.0.9.9")
        staged.perform("run 250ms")

    assert status(staged).routers[0].state == "Backup"


def test_an_address_no_active_ever_listed_is_probed_for_even_in_a_failover() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed 10.0.0.101 candidates=b:250,a:248")
    staged.perform("advert from=10.0.0.2 vrid=51 priority=250 lists=10.0.0.100")
    staged.perform("list")
    play(staged, "run 350ms")

    binds = [effect.addresses for effect in staged.effects if isinstance(effect, do.Bind)]
    assert binds == [("10.0.0.100",)]
    play(staged, "run 400ms")
    binds = [effect.addresses for effect in staged.effects if isinstance(effect, do.Bind)]
    assert binds == [("10.0.0.101",)]


def test_a_resignations_list_vouches_for_nothing() -> None:
    """Who gives up because a stranger answered still lists an address: an advert must list one."""
    staged = stage("plan vr-51 10.0.0.100 candidates=b:250,a:248", "list")
    staged.perform("advert from=10.0.0.2 vrid=51 priority=0 lists=10.0.0.100")
    play(staged, "run 350ms")

    assert not [effect for effect in staged.effects if isinstance(effect, do.Bind)]


def test_a_strangers_answer_outweighs_an_actives_list() -> None:
    """That Active may have failed to bind it; we were told by the stranger himself a moment ago."""
    staged = stage("plan vr-51 10.0.0.100 candidates=a:250,b:248", "list")
    staged.perform("claim 10.0.0.100 02:99:99:99:99:99")
    staged.perform("advert from=10.0.0.2 vrid=51 priority=248")
    staged.perform("advert from=10.0.0.2 vrid=51 priority=0")
    play(staged, "run 300ms")

    assert not [effect for effect in staged.effects if isinstance(effect, do.Bind)]


def test_a_plan_not_confirmed_for_ten_minutes_makes_a_takeover_a_first_claim() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=b:250,a:248")
    staged.perform("advert from=10.0.0.2 vrid=51 priority=250 lists=10.0.7.7")
    staged.perform("list")
    for _ in range(3000):
        staged.perform("run 250ms")
        staged.perform("advert from=10.0.0.2 vrid=51 priority=250 lists=10.0.7.7")
    play(staged, "run 400ms")

    assert [e.form for e in staged.effects if isinstance(e, do.Announce)][:1] == ["probe"]


def test_a_move_to_another_nic_releases_there_before_it_binds_here() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=a:250,b:248", "list", "run 1s")
    staged.effects.clear()
    one = Interface("eth0", OURS, ("172.16.0.1/24",))
    two = Interface("eth1", "02:00:00:00:01:01", ("10.0.0.1/24",))
    staged.handle(on.LinksSeen((on.Link(INDEX, one), on.Link(3, two))))
    staged.perform("run 1s")
    moves = [(type(e).__name__, e.index) for e in staged.effects if isinstance(e, do.Bind | do.Release)]

    assert moves == [("Release", INDEX), ("Bind", 3)]


def test_two_routers_that_swap_an_address_never_hold_it_together() -> None:
    staged = stage(
        "plan vr-51 10.0.0.100 claimed 10.0.0.101 claimed candidates=a:250",
        "plan vr-52 10.0.0.102 claimed candidates=a:250",
        "list",
        "run 1s",
        "plan vr-52 10.0.0.102 claimed 10.0.0.101 claimed candidates=a:250",
    )
    play(staged, "change vr-52", "run 300ms")
    assert not [e for e in staged.effects if isinstance(e, do.Bind)]

    play(staged, "plan vr-51 10.0.0.100 claimed candidates=a:250", "change vr-51")
    moves = [(type(e).__name__, e.addresses) for e in staged.effects if isinstance(e, do.Bind | do.Release)]
    assert moves == [("Release", ("10.0.0.101",)), ("Bind", ("10.0.0.101",))]


def test_an_old_generation_and_an_equal_one_change_nothing() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=a:250", "list", "run 1s")
    old = staged.plans["vr-51"]
    staged.perform("plan vr-51 10.0.0.100 claimed 10.0.0.101 claimed candidates=a:250")
    staged.perform("change vr-51")
    staged.effects.clear()
    staged.handle(on.RouterChanged(old))
    staged.perform("change vr-51")

    assert kinds(staged) == []


def test_a_recreated_router_is_taken_over_without_a_release() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=a:250", "list", "run 1s")
    staged.plans.clear()
    play(staged, "plan vr-51 10.0.0.100 claimed uid=another candidates=a:250", "change vr-51", "run 50ms")

    assert not [effect for effect in staged.effects if isinstance(effect, do.Release)]
    assert status(staged).routers[0].uid == "another"


def test_an_empty_list_of_candidates_leaves_the_active_alone() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=a:250", "list", "run 1s")
    play(staged, "plan vr-51 10.0.0.100 claimed", "change vr-51", "run 1s")

    assert not [effect for effect in staged.effects if isinstance(effect, do.Release)]
    assert status(staged).routers[0].state == "Active"


def test_nothing_is_reported_while_nothing_changes() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=a:250", "list", "run 1s")
    play(staged, "run 300s")

    assert not [effect for effect in staged.effects if isinstance(effect, do.Report | do.SavePlan)]


def test_strangers_are_reported_and_our_own_peers_are_not() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=b:250,a:248", "list")
    for _ in range(30):
        staged.perform("run 200ms")
        staged.perform("advert from=10.0.0.2 vrid=51 priority=250")
        staged.perform("advert from=10.0.0.77 vrid=99 priority=250 lists=10.0.7.7")
    staged.perform("run 200ms")

    strangers = [(each.virtual_router_id, each.source) for each in status(staged).heard_virtual_router_ids]
    assert strangers == [(99, "10.0.0.77")]
    play(staged, "run 70s")
    assert status(staged).heard_virtual_router_ids == ()


def test_a_stranger_on_our_own_vrid_is_reported_once_he_stays() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=b:250,a:248", "list")
    for _ in range(40):
        staged.perform("run 200ms")
        staged.perform("advert from=10.0.0.77 vrid=51 priority=250")
    staged.perform("run 200ms")

    assert [each.source for each in status(staged).heard_virtual_router_ids] == ["10.0.0.77"]
    assert status(staged).routers[0].hears == "10.0.0.77"


def test_listened_is_told_after_four_seconds_and_again_after_the_carrier_was_lost() -> None:
    staged = stage()
    assert status(staged).interfaces[0].listened

    staged.perform("link eth0 10.0.0.1/16 fe80::1/64 down")
    staged.perform("link eth0 10.0.0.1/16 fe80::1/64")
    staged.perform("run 100ms")
    assert not status(staged).interfaces[0].listened
    staged.perform("run 4s")
    assert status(staged).interfaces[0].listened


def releases(staged: Stage) -> list[tuple[str, ...]]:
    return [effect.addresses for effect in staged.effects if isinstance(effect, do.Release)]


def test_leftovers_of_an_earlier_life_wait_ten_seconds_for_a_plan() -> None:
    """The kernel's fence keeps them silent; without a plan nobody knows whose they are."""
    staged = Stage()
    for command in ("node a", "link eth0 10.0.0.1/16 fe80::1/64", "seen 10.0.0.100 10.0.0.101", "run 9900ms"):
        staged.perform(command)
    staged.perform("seen 10.0.0.100 10.0.0.101")
    assert releases(staged) == []

    play(staged, "run 100ms", "seen 10.0.0.100 10.0.0.101")
    assert releases(staged) == [("10.0.0.100", "10.0.0.101")]


def test_leftovers_that_the_plan_gives_to_nobody_here_are_removed_at_once() -> None:
    staged = Stage()
    for command in (
        "node a",
        "link eth0 10.0.0.1/16 fe80::1/64",
        "seen 10.0.0.100 10.0.0.101",
        "plan vr-51 10.0.0.100 claimed candidates=b:250,a:248",
        "list",
    ):
        staged.perform(command)
    assert releases(staged) == []

    play(staged, "seen 10.0.0.100 10.0.0.101", "run 20ms")
    assert releases(staged) == [("10.0.0.101",)]
    assert status(staged).routers[0].held == ("10.0.0.100",)


def test_stopping_waits_for_the_kernel_but_not_for_ever() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=a:250", "list", "run 1s")
    node, now = staged.node, staged.now_us
    release = next(e for e in node.handle(on.StopRequested(), now) if isinstance(e, do.Release))

    assert [node.stopped, (node.deadline or 0) <= now + 1_000_000] == [False, True]
    last = node.handle(on.Released(release.id), now + 5_000)
    assert [node.stopped, node.deadline] == [True, None]
    assert isinstance(last[-1], do.Report)
    assert last[-1].status.routers[0].held == ()


def test_stopping_ends_after_three_seconds_when_the_kernel_is_silent() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=a:250", "list", "run 1s")
    staged.node.handle(on.StopRequested(), staged.now_us)
    staged.node.handle(on.TimerFired(), staged.now_us + 2_999_999)
    assert not staged.node.stopped

    staged.node.handle(on.TimerFired(), staged.now_us + 3_000_000)
    assert staged.node.stopped


@pytest.mark.parametrize(
    ("interval_ms", "takes_ms"), [(10, 1_028), (100, 1_210), (500, 1_512), (1_000, 3_000), (40_950, 3_000)]
)
def test_stopping_offers_the_router_for_a_second_and_three_intervals_but_three_seconds_at_most(
    interval_ms: int, takes_ms: int
) -> None:
    plan = f"plan vr-51 10.0.0.100 claimed candidates=a:250,b:248 interval={interval_ms}"
    staged = stage(plan, "list", "run 200s", "stop")
    since = staged.now_us
    while not staged.node.stopped:
        staged.perform("run 1ms")

    assert staged.now_us - since == takes_ms * 1_000


def test_deadlines_that_move_to_and_fro_leave_nothing_behind() -> None:
    class Owner:
        deadline_us = armed_us = 1 << 62

    owner, agenda = Owner(), Agenda[Owner]()
    for at in range(10_000):
        owner.deadline_us = 1_000_000_000
        agenda.arm(owner)
        owner.deadline_us = at
        agenda.arm(owner)
        assert agenda.due(at) is owner

    assert len(agenda) <= 64


def test_any_frame_at_all_is_survived_and_counted() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=a:250", "list")
    good = build(Advert(4, b"\x0a\0\0\x02", 51, 100, 100_000, b"\x0a\0\0\x64"), b"\x02\0\0\0\0\x02")
    for length in range(len(good)):
        staged.handle(on.FrameReceived(INDEX, good[:length]))
        staged.handle(on.FrameReceived(7, good))

    discards = [e.label for e in staged.effects if isinstance(e, do.Count) and e.metric == "discards"]
    assert set(discards) == {"garbage", "short", "not_heard"}
    assert len(discards) == 2 * len(good)


def test_a_flood_of_made_up_adverts_grows_nothing() -> None:
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=a:250", "list")
    node = staged.node
    for number in range(20_000):
        source = bytes((10, 0, number // 250 % 250 + 1, number % 250))
        listed = listing(4, 1, [bytes((10, 1, number % 256, each)) for each in range(3)], 1500)
        frame = build(Advert(4, source, number % 255 + 1, 1, 10_000, listed), b"\x02\0\0\0\0\x09")
        node.handle(on.FrameReceived(INDEX, frame), staged.now_us + number)

    assert len(node._host.hearing.table) <= 255
    assert len(node._routers.agenda) < 20
    assert len(node._host.hearing._listed) < 20


@pytest.mark.parametrize("routers", [1, 200])
def test_hearing_and_sending_an_advert_is_cheap(routers: int) -> None:
    """60 us each, measured as the best of many, since the machine may be busy."""
    candidates = (Candidate("a", 200, ("10.0.0.1",)), Candidate("b", 250, ("10.0.0.2",)))
    plan = tuple(
        VirtualRouter(
            Metadata(f"vr-{vrid}", uid="u", generation=1),
            VirtualRouterSpec(
                vrid, (RouterAddress(f"10.0.{vrid}.1", Owner("d", "v", "u"), claimed=True),), candidates
            ),
        )
        for vrid in range(1, routers + 1)
    )
    node = Node("a", "test", wall_offset_us=0)
    node.handle(on.LinksSeen((on.Link(INDEX, Interface("eth0", OURS, ("10.0.0.1/16",))),)), 0)
    node.handle(on.RoutersListed(plan), 5_000_000)
    frames = [
        build(Advert(4, b"\x0a\0\0\x02", vrid, 250, 100_000, bytes((10, 0, vrid, 1))), b"\x02\0\0\0\0\x02")
        for vrid in range(1, routers + 1)
    ]
    best = min(_rounds(node, frames) for _ in range(30))

    assert best < 60e-6


def _rounds(node: Node, frames: list[bytes]) -> float:
    start = time.perf_counter()
    for frame in frames:
        node.handle(on.FrameReceived(INDEX, frame), 5_000_000)
        assert node.deadline is not None
    return (time.perf_counter() - start) / len(frames)


def test_an_offer_that_ends_while_an_address_is_bound_is_made_again() -> None:
    """The kernel's answer may come when nobody has taken over in time: the same as if a timer had said so."""
    staged = stage("plan vr-51 10.0.0.100 claimed candidates=a:250,b:248", "list", "run 1s")
    play(staged, "plan vr-51 10.0.0.100 claimed candidates=b:250", "change vr-51", "run 250ms")
    play(staged, "plan vr-51 10.0.0.100 claimed 10.0.0.101 claimed candidates=b:250")
    play(staged, "bind takes 60ms", "change vr-51", "bind works")
    assert status(staged).routers[0].state == "Active"
    play(staged, "run 9s", "run 2s")
    adverts = [parse(effect.frame) for effect in staged.effects if isinstance(effect, do.Send)]

    assert any(isinstance(advert, Advert) and advert.priority == 0 for advert in adverts)
