# SPDX-License-Identifier: Apache-2.0
"""The shell: order of hearing and timing, outcomes fed back, failures survived, a clean end."""

import asyncio
import gc
import logging
import time
from collections.abc import Iterator, Sequence

import pytest

from holdfast_api.types import Interface, RouterReport, SpeakerStatus
from holdfast_speaker import effects, events, loop
from holdfast_speaker.alarm import now_us
from holdfast_speaker.effects import Effect
from holdfast_speaker.events import Event
from holdfast_speaker.ports import Neighbour, Surroundings
from tests.unit.doors.fake_doors import Answer, FakeBrain, House


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """The loop freezes the collector's work; the tests after this one want it back."""
    yield
    gc.enable()
    gc.unfreeze()


def on(kind: type[Event], *wanted: Effect) -> Answer:
    def answer(event: Event, _now: int) -> Sequence[Effect]:
        return wanted if isinstance(event, kind) else ()

    return answer


def test_what_waits_on_the_wire_is_heard_before_the_deadline_is_served() -> None:
    """The loop was away for 30 ms; in that time both an advert came and the deadline passed."""
    brain = FakeBrain()

    async def story() -> int:
        house = House(brain)

        def stall() -> None:
            brain.deadline = now_us() + 5_000
            house.loop.feed(events.ApiConfirmed())
            time.sleep(0.03)
            house.wire.arrive(*[(2, b"advert")] * 200)

        return await house.live(stall)

    def answer(event: Event, now: int) -> Sequence[Effect]:
        if isinstance(event, events.FrameReceived):
            brain.deadline = now + 1_000_000  # it lives: not due any more
        return ()

    brain.answer = answer
    assert asyncio.run(story()) == 0
    assert brain.kinds().count("FrameReceived") == 200
    assert "TimerFired" not in brain.kinds()


def test_a_deadline_fires_once_and_its_lateness_is_counted() -> None:
    brain = FakeBrain()

    def answer(event: Event, _now: int) -> Sequence[Effect]:
        if isinstance(event, events.ApiConfirmed):
            brain.deadline = now_us() + 5_000
        if isinstance(event, events.TimerFired):
            brain.deadline = None
        return ()

    brain.answer = answer

    async def story() -> float:
        house = House(brain)
        await house.live(lambda: house.loop.feed(events.ApiConfirmed()))
        return house.sample("loop_lateness_seconds_count")

    assert asyncio.run(story()) == 1
    assert brain.kinds().count("TimerFired") == 1


def test_a_deadline_served_in_vain_does_not_spin() -> None:
    brain = FakeBrain()
    brain.deadline = 1

    async def story() -> None:
        house = House(brain)
        await house.live(lambda: house.loop.feed(events.ApiConfirmed()))

    asyncio.run(story())
    assert 5 <= brain.kinds().count("TimerFired") <= 60


def test_the_outcome_of_a_bind_comes_back_after_its_sisters_and_before_anything_else() -> None:
    brain = FakeBrain()
    report = effects.Report(SpeakerStatus(version="1"))

    def answer(event: Event, _now: int) -> Sequence[Effect]:
        match event:
            case events.ApiConfirmed():
                return effects.Bind(9, 2, ("192.0.2.10", "192.0.2.11")), effects.Send(2, b"advert"), report
            case events.Bound():
                return (effects.Release(10, 2, ("192.0.2.10",)),)
            case _:
                return ()

    brain.answer = answer

    async def story() -> House:
        house = House(brain)
        house.addresses.refuse = {"192.0.2.11": "no"}
        await house.live(lambda: house.loop.feed(events.ApiConfirmed()))
        return house

    house = asyncio.run(story())
    assert brain.handled[:3] == [
        events.ApiConfirmed(),
        events.Bound(9, ("192.0.2.10",), (("192.0.2.11", "no"),)),
        events.Released(10),
    ]
    assert house.wire.sent == [(2, b"advert")]
    assert house.cluster.reports == [report.status]
    assert [call[0] for call in house.addresses.calls] == ["bind", "release"]


def test_announcements_leave_at_once_and_questions_in_slices() -> None:
    brain = FakeBrain(
        on(
            events.ApiConfirmed,
            effects.Announce(2, "ask", tuple(f"192.0.2.{i}" for i in range(1, 101))),
            effects.Announce(2, "announce", ("192.0.2.1", "192.0.2.2")),
        )
    )

    async def story() -> tuple[int, list[tuple[int, bytes]]]:
        house = House(brain)
        house.addresses.around = Surroundings(
            neighbours=tuple(Neighbour(f"192.0.2.{i}", "02:00:00:00:00:01") for i in range(20))
        )

        def go() -> None:
            house.loop.feed(events.ApiConfirmed())
            assert house.wire.sent == [(2, b"announce 192.0.2.1"), (2, b"announce 192.0.2.2")]

        return await house.live(go, seconds=0.3), house.wire.sent

    _, sent = asyncio.run(story())
    assert len(sent) == 2 + 100 * 20


def test_nothing_is_asked_or_refreshed_for_an_address_that_was_released() -> None:
    many = tuple(f"192.0.2.{i}" for i in range(1, 101))
    brain = FakeBrain(
        on(
            events.ApiConfirmed,
            effects.Refresh(2, many),
            effects.Announce(2, "ask", many),
            effects.Release(1, 2, many[50:]),
        )
    )

    async def story() -> House:
        house = House(brain)
        house.addresses.around = Surroundings(gateways=(Neighbour("192.0.2.254", None),))
        await house.live(lambda: house.loop.feed(events.ApiConfirmed()), seconds=0.2)
        return house

    house = asyncio.run(story())
    refreshed = [a for verb, _, addresses in house.addresses.calls if verb == "refresh" for a in addresses]
    assert refreshed == list(many[:50])
    assert [frame for _, frame in house.wire.sent] == [f"ask {a}".encode() for a in many[:50]]


def test_prepare_hear_log_count_and_save_reach_their_doors(caplog: pytest.LogCaptureFixture) -> None:
    brain = FakeBrain(
        on(
            events.ApiConfirmed,
            effects.Prepare(2, frozenset({"192.0.2.10"})),
            effects.Hear(frozenset({2, 3})),
            effects.Log("warning", "something", (("router", "vr-7"), ("term", 3))),
            effects.Count("discards", "Checksum", 2),
            effects.Count("adverts_sent"),
            effects.SavePlan((), (("vr-7", 3),)),
            effects.SavePlan((), (("vr-7", 4),)),
        )
    )

    async def story() -> House:
        house = House(brain)
        await house.live(lambda: house.loop.feed(events.ApiConfirmed()))
        return house

    house = asyncio.run(story())
    assert house.addresses.calls == [("prepare", 2, ("192.0.2.10",))]
    assert house.wire.heard == {2, 3}
    assert "something router=vr-7 term=3" in caplog.messages
    assert house.sample("discards_total", reason="Checksum") == 2
    assert house.sample("adverts_sent_total") == 1
    assert house.plan.kept == ((), (("vr-7", 4),))
    assert house.plan.flushed


def test_links_seen_reach_frames_and_wire_before_the_brain() -> None:
    link = events.Link(2, Interface("eth0", "02:00:00:00:00:01"))
    brain = FakeBrain()

    async def story() -> House:
        house = House(brain)
        house.addresses.seen.put_nowait(events.LinksSeen((link,)))
        await house.live()
        return house

    house = asyncio.run(story())
    assert house.frames.links == (link,)
    assert house.wire.mended == 1
    assert brain.handled[0] == events.LinksSeen((link,))


def test_a_frame_that_did_not_leave_is_counted() -> None:
    brain = FakeBrain(on(events.ApiConfirmed, effects.Send(2, b"advert")))

    async def story() -> float:
        house = House(brain)
        house.wire.takes = False
        await house.live(lambda: house.loop.feed(events.ApiConfirmed()))
        return house.sample("frames_lost_total")

    assert asyncio.run(story()) == 1


def test_the_plan_of_the_last_run_comes_first() -> None:
    brain = FakeBrain()

    async def story() -> None:
        await House(brain, restored=events.PlanRestored((), {"vr-7": 3})).live()

    asyncio.run(story())
    assert brain.handled[0] == events.PlanRestored((), {"vr-7": 3})


def test_one_failure_of_the_brain_is_logged_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    def answer(event: Event, _now: int) -> Sequence[Effect]:
        if isinstance(event, events.RouterDeleted):
            raise KeyError(event.name)
        return ()

    brain = FakeBrain(answer)

    async def story() -> tuple[int, float]:
        house = House(brain)
        house.addresses.bound.add((2, "192.0.2.10"))
        house.cluster.news.put_nowait(events.RouterDeleted("vr-7"))
        house.cluster.news.put_nowait(events.ApiConfirmed())
        return await house.live(), house.sample("brain_failures_total")

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(story()) == (0, 1)
    assert "could not handle RouterDeleted" in caplog.text
    assert brain.kinds()[1] == "ApiConfirmed"


def test_a_brain_that_keeps_failing_ends_the_speaker_with_everything_released() -> None:
    def answer(_event: Event, _now: int) -> Sequence[Effect]:
        raise ZeroDivisionError

    async def story() -> tuple[int, set[tuple[int, str]]]:
        house = House(FakeBrain(answer))
        house.addresses.bound.add((2, "192.0.2.10"))
        for _ in range(10):
            house.cluster.news.put_nowait(events.ApiConfirmed())
        return await house.live(seconds=5), house.addresses.bound

    started = time.monotonic()
    assert asyncio.run(story()) == (1, set())
    assert time.monotonic() - started < 2


def test_the_end_waits_for_the_brain_but_four_seconds_at_most() -> None:
    async def story(*, stops: bool) -> tuple[float, House]:
        brain = FakeBrain()
        brain.stops = stops
        house = House(brain)
        house.addresses.bound.add((2, "192.0.2.10"))
        started = time.monotonic()
        assert await house.live(seconds=0.02) == 0
        return time.monotonic() - started, house

    quick, house = asyncio.run(story(stops=True))
    assert quick < 0.5
    assert house.cluster.flushed
    assert house.addresses.bound == set()
    slow, house = asyncio.run(story(stops=False))
    assert 3.9 < slow < 5
    assert house.addresses.bound == set()


def test_nothing_is_bound_again_while_the_last_report_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    brain = FakeBrain(on(events.AddressesSeen, effects.Bind(1, 2, ("192.0.2.10",))))

    async def story() -> set[tuple[int, str]]:
        house = House(brain)

        async def flush(at_most_s: float) -> None:  # noqa: ARG001
            house.addresses.seen.put_nowait(events.AddressesSeen(frozenset()))
            await asyncio.sleep(0.05)

        monkeypatch.setattr(house.cluster, "flush", flush)
        await house.live()
        return house.addresses.bound

    assert asyncio.run(story()) == set()


def test_a_second_signal_ends_at_once() -> None:
    async def story() -> float:
        brain = FakeBrain()
        brain.stops = False
        house = House(brain)
        asyncio.get_running_loop().call_later(0.05, house.loop.stop)
        started = time.monotonic()
        await house.live(seconds=0.02)
        return time.monotonic() - started

    assert asyncio.run(story()) < 0.5


def test_a_door_that_breaks_is_opened_again(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> FakeBrain:
        brain = FakeBrain()
        house = House(brain)
        house.addresses.seen.put_nowait(None)  # type: ignore[arg-type]
        house.frames.see = None  # type: ignore[assignment,method-assign]
        house.addresses.seen.put_nowait(events.LinksSeen(()))

        def mend() -> None:
            del house.frames.see
            house.addresses.seen.put_nowait(events.LinksSeen(()))

        await house.live(mend, seconds=1.3)
        return brain

    brain = asyncio.run(story())
    assert "broke; starting it again" in caplog.text
    assert "LinksSeen" in brain.kinds()


def test_the_states_of_the_routers_are_counted_from_the_report() -> None:
    def router(state: str) -> RouterReport:
        return RouterReport(f"vr-{state}", "u", 1, state, 1, "2026-01-01T00:00:00Z")  # type: ignore[arg-type]

    status = SpeakerStatus(routers=(router("Active"), router("Backup"), router("Backup")))
    brain = FakeBrain(on(events.ApiConfirmed, effects.Report(status)))

    async def story() -> list[float]:
        house = House(brain)
        await house.live(lambda: house.loop.feed(events.ApiConfirmed()))
        return [house.sample("routers", state=state) for state in ("Active", "Backup", "Initialize")]

    assert asyncio.run(story()) == [1, 2, 0]


# --- the fence --------------------------------------------------------------------------------------


def test_every_word_about_the_fence_reaches_it() -> None:
    verbs = (
        effects.Cover(frozenset({2, 3})),
        effects.Guard(51, 2, 280_000, ("192.0.2.10",)),
        effects.Fence(51, "extend"),
        effects.Fence(51, "quiet"),
        effects.Fence(51, "silence"),
        effects.Fence(51, "release"),
        effects.Unguard(51),
    )
    brain = FakeBrain(on(events.ApiConfirmed, *verbs))

    async def story() -> House:
        house = House(brain)
        await house.live(lambda: house.loop.feed(events.ApiConfirmed()))
        return house

    house = asyncio.run(story())
    assert house.fence.covered == {2, 3}
    assert house.fence.calls == [
        (verb, 51) for verb in ("guard", "extend", "quiet", "silent", "release", "unguard")
    ]


@pytest.mark.parametrize(
    ("in_time", "refuses", "is_open"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_a_take_that_is_late_is_not_even_tried(*, in_time: bool, refuses: bool, is_open: bool) -> None:
    brain = FakeBrain()

    def answer(event: Event, now: int) -> Sequence[Effect]:
        until_us = now + 1_000_000 if in_time else now - 1
        return (effects.Take(7, 51, until_us),) if isinstance(event, events.ApiConfirmed) else ()

    brain.answer = answer

    async def story() -> House:
        house = House(brain)
        house.fence.refuses = refuses
        await house.live(lambda: house.loop.feed(events.ApiConfirmed()))
        return house

    house = asyncio.run(story())
    assert brain.handled[:2] == [events.ApiConfirmed(), events.Taken(7, is_open)]
    assert house.fence.calls == ([("take", 51)] if in_time else [])


@pytest.mark.parametrize("waiting", [1, 200])
def test_what_waits_on_the_wire_is_heard_before_the_fence_is_known_to_be_open(waiting: int) -> None:
    """However much it is: the one advert that undoes the decision may be the last."""
    brain = FakeBrain()

    def answer(event: Event, now: int) -> Sequence[Effect]:
        return (effects.Take(7, 51, now + 1_000_000),) if isinstance(event, events.ApiConfirmed) else ()

    brain.answer = answer

    async def story() -> None:
        house = House(brain)

        def go() -> None:
            house.wire.arrive(*[(2, b"advert")] * waiting)
            house.loop.feed(events.ApiConfirmed())

        await house.live(go)

    asyncio.run(story())
    assert brain.kinds()[: waiting + 2] == ["ApiConfirmed", *["FrameReceived"] * waiting, "Taken"]


def test_what_else_was_decided_is_done_before_the_frames_are_heard() -> None:
    brain = FakeBrain()

    def answer(event: Event, now: int) -> Sequence[Effect]:
        take = effects.Take(7, 51, now + 1_000_000)
        return (take, effects.Bind(8, 2, ("192.0.2.10",))) if isinstance(event, events.ApiConfirmed) else ()

    brain.answer = answer

    async def story() -> None:
        house = House(brain)

        def go() -> None:
            house.wire.arrive((2, b"advert"))
            house.loop.feed(events.ApiConfirmed())

        await house.live(go)

    asyncio.run(story())
    assert brain.kinds()[:4] == ["ApiConfirmed", "FrameReceived", "Taken", "Bound"]


@pytest.mark.parametrize(
    ("leaves", "number", "dead", "fault", "lost"),
    [
        (True, 51, True, "", False),
        (False, 51, True, "", True),
        (False, 51, False, "", False),  # the NIC's queue was full
        (False, 0, True, "", False),  # a question or an answer
        (False, 51, True, "no nftables", False),  # no fence holds anything back
    ],
)
def test_an_advert_that_did_not_leave_while_the_lease_is_dead_is_told(
    *, leaves: bool, number: int, dead: bool, fault: str, lost: bool
) -> None:
    brain = FakeBrain(on(events.ApiConfirmed, effects.Send(2, b"advert", number)))

    async def story() -> None:
        house = House(brain)
        house.wire.takes, house.fence.dead, house.fence.fault = leaves, dead, fault
        await house.live(lambda: house.loop.feed(events.ApiConfirmed()))

    asyncio.run(story())
    told = [event for event in brain.handled if isinstance(event, events.LeaseLost)]
    assert told == ([events.LeaseLost(51)] if lost else [])


def test_leases_that_went_with_a_removed_fence_are_told_before_what_was_seen() -> None:
    brain = FakeBrain()

    async def story() -> None:
        house = House(brain)
        house.fence.lost = frozenset({51, 52})
        house.addresses.seen.put_nowait(events.AddressesSeen(frozenset()))
        house.addresses.seen.put_nowait(events.AddressesSeen(frozenset()))
        await house.live()

    asyncio.run(story())
    first, second = brain.handled[:2]
    assert {first, second} == {events.LeaseLost(number, removed=True) for number in (51, 52)}
    assert brain.kinds()[2:4] == ["AddressesSeen", "AddressesSeen"]


def test_what_was_released_is_adopted_by_the_fence_and_what_is_stuck_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An address that is still there must stay silent."""
    brain = FakeBrain(on(events.ApiConfirmed, effects.Release(9, 2, ("192.0.2.10", "192.0.2.11"))))

    async def story() -> House:
        house = House(brain)
        monkeypatch.setattr(house.addresses, "release", lambda *_: {"192.0.2.11": "EPERM"})
        await house.live(lambda: house.loop.feed(events.ApiConfirmed()))
        return house

    house = asyncio.run(story())
    assert house.fence.adopted == ["192.0.2.10"]
    assert events.Released(9, (("192.0.2.11", "EPERM"),)) in brain.handled


def test_the_end_closes_the_fence_after_the_last_address_and_before_the_last_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until then nothing that is still bound may answer; a slow API must not keep the fence up."""
    order: list[str] = []

    async def story() -> House:
        house = House(FakeBrain())

        async def release_everything() -> int:
            order.append(f"release, fence closed: {house.fence.closed}")
            return 0

        async def flush(at_most_s: float) -> None:  # noqa: ARG001
            order.append(f"flush, fence closed: {house.fence.closed}")

        monkeypatch.setattr(house.addresses, "release_everything", release_everything)
        monkeypatch.setattr(house.cluster, "flush", flush)
        await house.live()
        return house

    asyncio.run(story())
    assert order == ["release, fence closed: False", "flush, fence closed: True"]


def test_the_fence_is_kept_alive_while_the_speaker_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast_speaker.loop._FENCE_REFRESH_S", 0.02)

    async def story() -> House:
        house = House(FakeBrain())
        await house.live(seconds=0.2)
        return house

    assert 2 <= asyncio.run(story()).fence.calls.count(("refresh", 0)) <= 10


# --- virtual MACs ---------------------------------------------------------------------------------

MACS = (("192.0.2.10", "02:aa:00:00:00:64"),)


def test_virtual_macs_reach_every_door_and_the_fence_shelters_each_new_place() -> None:
    guard = effects.Guard(51, 2, 280_000, ("192.0.2.10",), MACS, "192.0.2.1")
    prepare = effects.Prepare(2, frozenset({"192.0.2.10"}), MACS)
    brain = FakeBrain(on(events.ApiConfirmed, guard, prepare))

    async def story() -> House:
        house = House(brain)
        await house.live(lambda: house.loop.feed(events.ApiConfirmed()))
        return house

    house = asyncio.run(story())
    assert house.fence.guards == [guard]
    assert house.addresses.macs == {2: dict(MACS)}
    assert house.frames.prepared == [(2, prepare.addresses, dict(MACS), False)]
    assert house.fence.sheltered == 1


def test_virtual_macs_of_others_are_told_while_they_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_MACS_S", 0.02)
    brain = FakeBrain()

    async def story() -> None:
        house = House(brain)
        running = asyncio.get_running_loop()

        def speak() -> None:
            house.fence.heard = frozenset({"02:aa:00:00:00:64"})
            running.call_later(0.07, setattr, house.fence, "heard", frozenset())

        await house.live(speak, seconds=0.3)

    asyncio.run(story())
    heard = [event for event in brain.handled if isinstance(event, events.MacsHeard)]
    assert 1 <= len(heard) <= 8
    assert set(heard) == {events.MacsHeard(frozenset({"02:aa:00:00:00:64"}))}
