# SPDX-License-Identifier: Apache-2.0
"""The election under any sequence of events, punctual or late: what must hold whatever happens."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_speaker.units import NEVER_US
from holdfast_speaker.vrrp.router import Act, Acts, Router, Settings, State
from holdfast_speaker.vrrp.timing import active_down_us, least_interval_us

MS = 1_000
SECOND = 1_000_000
SPOKEN = (Act.ADVERTISE, Act.RESIGN, Act.EXTEND)  # what re-arms the kernel's lease

jiffies = st.sampled_from([1_000, 3_334, 4_000, 10_000])
intervals = st.sampled_from([10, 20, 30, 50, 100, 1_000, 40_950]).map(lambda each: each * MS)
priorities = st.integers(1, 254)


@st.composite
def adjustments(draw: st.DrawFn, jiffy_us: int) -> Settings:
    return Settings(
        draw(priorities),
        max(draw(intervals), least_interval_us(jiffy_us)),
        draw(st.sampled_from(["Never", "Immediate", "Delayed"])),
        draw(st.sampled_from([0, SECOND, 300 * SECOND])),
        jiffy_us,
        heir=draw(st.booleans()),
    )


@dataclass
class World:
    """A router, the time, and what its kernel's fence knows."""

    router: Router
    now_us: int = 0
    spoke_us: int = -NEVER_US
    resigned: int = 0  # adverts of priority 0 since the last order to resign
    acted: list[Act] = field(default_factory=list)

    def note(self, acts: Acts) -> Acts:
        for act in acts:
            if act in SPOKEN:
                self.spoke_us = self.now_us
            if act is Act.RETAKE:
                self.spoke_us = self.now_us
            self.resigned += act is Act.RESIGN
        self.acted += acts
        return acts

    def wake(self) -> Acts:
        """As the instance does it: who goes on after an offer says so at once."""
        acts = self.note(self.router.wake(self.now_us))
        if Act.KEEP in acts:
            assert self.router.state is State.ACTIVE
            self.note(self.router.advertise(self.now_us))
        return acts

    def serve(self) -> None:
        """Wake it at its deadline, and at all that have passed: late, but once each."""
        for _ in range(50):
            if self.router.deadline_us > self.now_us:
                return
            self.wake()
        raise AssertionError("a deadline in the past again and again")

    def pass_time(self, until_us: int) -> None:
        """Punctually."""
        while self.router.deadline_us <= until_us:
            self.now_us = max(self.now_us, self.router.deadline_us)
            self.wake()
            assert self.router.deadline_us > self.now_us
        self.now_us = until_us

    def is_late(self) -> bool:
        return self.now_us - self.spoke_us >= self.router.lease_us


@dataclass(frozen=True)
class Step:
    """Something that happens; ``intervals`` is for those that take time."""

    what: str
    intervals: float
    priority: int
    interval_us: int
    greater: bool | None
    obeyed: bool
    own: Settings


def steps(jiffy_us: int) -> st.SearchStrategy[list[Step]]:
    step = st.builds(
        Step,
        st.sampled_from(
            [
                "hear",
                "hear",
                "wake",
                "sleep",
                "sleep",
                "pass",
                "pass",
                "resign",
                "take",
                "configure",
                "advertise",
                "cede",
                "lapse",
                "give_up",
            ]
        ),
        st.sampled_from([0.01, 0.3, 0.5, 1.0, 1.5, 2.5, 2.79, 2.81, 3.0, 3.5, 10.0]),
        st.sampled_from([0, 1, 100, 200, 254]),
        intervals,
        st.sampled_from([True, False, None]),
        st.booleans(),
        adjustments(jiffy_us),
    )
    return st.lists(step, min_size=1, max_size=25)


lives = jiffies.flatmap(lambda jiffy_us: st.tuples(adjustments(jiffy_us), st.booleans(), steps(jiffy_us)))


def perform(world: World, step: Step) -> Acts:
    """What came of it; nothing where it makes no sense now."""
    router, now = world.router, world.now_us
    speaks = router.state is State.ACTIVE and not router.resigning and not world.is_late()
    acts: Acts = ()
    match step.what:
        case "hear":
            acts = router.hear(
                now,
                priority=step.priority,
                interval_us=step.interval_us,
                greater=step.greater,
                obeyed=step.obeyed,
            )
        case "wake":
            world.serve()
        case "sleep":
            world.now_us += int(step.intervals * router.settings.interval_us)
        case "pass":
            world.serve()
            world.pass_time(world.now_us + int(step.intervals * router.settings.interval_us))
        case "resign":
            if router.state is State.ACTIVE and not router.resigning:
                world.resigned = 0
            acts = router.resign(now)
        case "take" if router.due(now):
            acts = router.take(now)
        case "configure":
            acts = router.configure(step.own, now)
        case "advertise" if speaks:
            acts = router.advertise(now)
        case "cede" if router.state is State.ACTIVE:
            acts = router.cede(now)
        case "lapse":
            acts = router.lapse(now)
        case "give_up" if router.state is State.ACTIVE:
            acts = router.give_up(now)
        case _:
            pass
    return world.note(acts)


@settings(max_examples=500, deadline=None)
@given(lives)
def test_whatever_happens(life: tuple[Settings, bool, list[Step]]) -> None:
    own, active, happening = life
    router = Router(own)
    router.start(0, down_at_us=0 if active else SECOND)
    world = World(router)
    if active:
        world.note(router.take(0))
    for step in happening:
        was, was_late, what = router.state, world.is_late(), step.what
        acts = perform(world, step)

        # Every change of state says what it means for what is held.
        if was is State.ACTIVE and router.state is not State.ACTIVE and what not in ("wake", "pass"):
            assert acts[-1] in (Act.YIELD, Act.CEDE)
        if was is not State.ACTIVE and router.state is State.ACTIVE:
            assert (what, acts) == ("take", (Act.ADVERTISE,))
        assert not (router.resigning and router.state is State.BACKUP)
        # Too late is too late: nothing that comes in makes it go on as if nothing had been.
        if was is State.ACTIVE and was_late and what == "hear":
            assert (router.state, acts) == (State.BACKUP, (Act.YIELD,))
        if was is State.ACTIVE and was_late and what in ("resign", "configure"):
            assert acts == ()
        # Priority 0 at most three times for one order; giving up says one more.
        assert world.resigned <= 3 + (what == "give_up")
        if what == "give_up":
            world.resigned = 0
        # The lease ends a tick before three of the intervals that were received.
        if Act.ADVERTISE in acts or what in ("wake", "pass"):
            assert router.lease_us <= 3 * router.settings.interval_us - router.settings.jiffy_us

        if what in ("wake", "pass"):
            assert router.deadline_us > world.now_us
            if router.state is State.ACTIVE:
                assert not world.is_late()
                assert router.deadline_us < world.spoke_us + router.lease_us


@settings(max_examples=200, deadline=None)
@given(jiffies.flatmap(adjustments), st.data())
def test_a_punctual_active_advertises_within_its_cadence_for_ever(own: Settings, data: st.DataObject) -> None:
    """Also while its interval changes: no pause is longer than the interval that was said before it."""
    router = Router(own)
    router.start(0, down_at_us=0)
    router.take(0)
    sent = [(0, own.interval_us)]
    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.booleans()):
            new = data.draw(adjustments(own.jiffy_us))
            if Act.ADVERTISE in router.configure(new, sent[-1][0]):
                sent.append((sent[-1][0], new.interval_us))
        now = router.deadline_us
        assert router.wake(now) == (Act.ADVERTISE,)
        sent.append((now, router.settings.interval_us))

    for (before_us, said_us), (after_us, _) in pairwise(sent):
        assert after_us - before_us <= said_us
    assert router.state is State.ACTIVE


@settings(max_examples=200, deadline=None)
@given(jiffies.flatmap(adjustments), st.integers(0, 2))
def test_a_peer_that_lost_two_adverts_does_not_outlive_patience_and_no_lease_outlives_it(
    own: Settings, lost: int
) -> None:
    """A Backup waits from the last advert it received; by then we are silent, or have spoken."""
    router = Router(own)
    router.start(0, down_at_us=0)
    router.take(0)
    received_us, now = 0, 0
    for _ in range(lost):
        now = router.deadline_us
        router.wake(now)
    patience_us = received_us + active_down_us(254, own.interval_us)

    if lost == 0:  # we die here
        assert now + router.lease_us < patience_us
    assert router.deadline_us < patience_us


@settings(max_examples=200, deadline=None)
@given(jiffies.flatmap(adjustments))
def test_an_offer_that_nobody_takes_is_over_and_never_late(own: Settings) -> None:
    """The lease lives all the while, by priority 0 or by re-arming it for a second at most."""
    router = Router(own)
    router.start(0, down_at_us=0)
    router.take(0)
    world = World(router, 0, 0)
    world.note(router.resign(0))
    extended = []
    while router.resigning:
        now = world.now_us = router.deadline_us
        acts = world.wake()
        extended += [now] * (Act.EXTEND in acts)
        assert router.state is State.ACTIVE
        assert Act.KEEP in acts or router.deadline_us < world.spoke_us + router.lease_us

    assert world.acted[-2:] == [Act.KEEP, Act.ADVERTISE]
    assert world.now_us <= active_down_us(own.priority, own.interval_us)
    assert all(at_us < SECOND for at_us in extended)
    assert 1 <= world.resigned <= 3


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 300 * MS), st.sampled_from([0, 1, 100, 254])), max_size=40),
    st.sampled_from(["Never", "Immediate"]),
)
def test_a_backup_that_obeys_is_never_due_before_the_active_could_be_silent(
    heard: list[tuple[int, int]], failback: str
) -> None:
    own = Settings(200, 100 * MS, failback)  # type: ignore[arg-type]
    router = Router(own)
    down_us = active_down_us(200, 100 * MS)
    router.start(0, down_at_us=down_us)
    now, obeyed_us, resigned = 0, 0, False
    for later, priority in heard:
        now += later
        if router.due(now):
            break
        router.hear(now, priority=priority, interval_us=100 * MS, greater=False, obeyed=True)
        if priority == 0:
            resigned = True
        elif priority >= 200 or failback == "Never":
            obeyed_us, resigned = now, False
    if not resigned:
        assert router.deadline_us == obeyed_us + down_us
    assert router.deadline_us <= obeyed_us + down_us


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 450 * MS), min_size=1, max_size=40))
def test_an_active_counts_a_lesser_one_once_an_interval_and_while_it_goes_on(gaps: list[int]) -> None:
    interval = 100 * MS
    router = Router(Settings(200, interval))
    router.start(0, down_at_us=0)
    router.take(0)
    world = World(router, 0, 0)
    counted: list[int] = []
    for gap in gaps:
        world.pass_time(world.now_us + gap)
        world.note(router.hear(world.now_us, priority=1, interval_us=interval, greater=False, obeyed=True))
        if not counted or world.now_us - counted[-1] > 3 * interval:
            counted = [world.now_us]
        elif world.now_us - counted[-1] >= interval // 2:
            counted.append(world.now_us)
        assert router.unheeded == len(counted)


def test_ceding_puts_preemption_off_for_a_minute() -> None:
    router = Router(replace(Settings(200, 100 * MS), failback="Immediate"))
    router.start(0, down_at_us=0)
    router.take(0)

    assert router.cede(50 * MS) == (Act.CEDE,)
    assert router.state is State.BACKUP
    for now, preempting in ((50 * MS + 60 * SECOND - 1, False), (50 * MS + 60 * SECOND, True)):
        router.hear(now, priority=1, interval_us=100 * MS, greater=False, obeyed=True)
        assert router.preempting is preempting
