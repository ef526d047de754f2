# SPDX-License-Identifier: Apache-2.0
"""RFC 9568 6.4, clause by clause, and what we do beyond it."""

from itertools import pairwise

import pytest

from holdfast_speaker.vrrp.router import Act, Acts, Router, Settings, State
from holdfast_speaker.vrrp.timing import active_down_us, skew_us

MS = 1_000
INTERVAL = 100 * MS
OWN = Settings(priority=200, interval_us=INTERVAL)
DOWN = 3 * INTERVAL + skew_us(200, INTERVAL)
LEASE = 280 * MS  # 2.8 intervals


def hear(
    router: Router,
    now_us: int,
    priority: int,
    *,
    interval_us: int = INTERVAL,
    greater: bool | None = False,
    obeyed: bool = True,
) -> Acts:
    return router.hear(now_us, priority=priority, interval_us=interval_us, greater=greater, obeyed=obeyed)


def backup(settings: Settings = OWN) -> Router:
    router = Router(settings)
    router.start(0, down_at_us=DOWN)
    return router


def active(settings: Settings = OWN, at_us: int = 0) -> Router:
    router = Router(settings)
    router.start(at_us, down_at_us=at_us)
    router.take(at_us)
    return router


def test_the_intervals_are_the_rfcs() -> None:
    assert skew_us(250, 100 * MS) == 2_343
    assert skew_us(1, 1_000 * MS) == 996_093
    assert active_down_us(250, 100 * MS) == 302_343


def test_a_backup_is_due_after_active_down_and_not_before() -> None:
    router = backup()

    assert router.deadline_us == DOWN
    assert not router.due(DOWN - 1)
    assert router.due(DOWN)


def test_a_due_backup_has_no_deadline_of_its_own() -> None:
    """It waits for the node to have something to bind; a deadline in the past would spin."""
    router = backup()
    router.wake(DOWN)

    assert router.state is State.BACKUP
    assert router.deadline_us > DOWN * 1000


def test_taking_advertises_at_once_and_then_each_interval() -> None:
    router = backup()

    assert router.take(DOWN) == (Act.ADVERTISE,)
    assert router.wake(DOWN + INTERVAL - 1) == ()
    assert router.wake(DOWN + INTERVAL) == (Act.ADVERTISE,)


def test_a_late_wake_up_does_not_shift_all_later_adverts() -> None:
    router = active()
    router.wake(INTERVAL + 7 * MS)

    assert router.deadline_us == 2 * INTERVAL


@pytest.mark.parametrize("priority", [200, 201, 254, 255])
def test_a_backup_obeys_equal_and_higher_priorities(priority: int) -> None:
    router = backup(Settings(200, INTERVAL, "Immediate"))
    hear(router, 100 * MS, priority)

    assert router.deadline_us == 100 * MS + DOWN


def test_active_down_follows_from_the_received_interval() -> None:
    router = backup()
    hear(router, 0, 250, interval_us=1_000 * MS)

    assert router.deadline_us == active_down_us(200, 1_000 * MS)


def test_without_preemption_a_backup_obeys_a_lesser_active_too() -> None:
    router = backup()
    hear(router, 100 * MS, 1)

    assert router.deadline_us == 100 * MS + DOWN


def test_with_preemption_it_does_not() -> None:
    router = backup(Settings(200, INTERVAL, "Immediate"))
    hear(router, 100 * MS, 1)

    assert router.deadline_us == DOWN
    assert router.preempting


def test_delayed_preemption_starts_after_its_delay() -> None:
    router = backup(Settings(200, INTERVAL, "Delayed", 1_000 * MS))
    hear(router, 999 * MS, 1)
    obeyed_until = router.deadline_us
    hear(router, 1_000 * MS, 1)

    assert obeyed_until == 999 * MS + DOWN
    assert router.deadline_us == obeyed_until
    assert router.preempting


def test_priority_zero_leaves_a_backup_only_its_skew() -> None:
    router = backup()
    hear(router, 10 * MS, 250)
    hear(router, 20 * MS, 0)

    assert router.deadline_us == 20 * MS + skew_us(200, INTERVAL)
    assert router.resigned


def test_repeated_resignations_do_not_starve_the_takeover() -> None:
    router = backup()
    hear(router, 10 * MS, 250)
    hear(router, 20 * MS, 0)
    hear(router, 30 * MS, 0)

    assert router.deadline_us == 20 * MS + skew_us(200, INTERVAL)


def test_a_strangers_resignation_says_nothing_about_the_living_active() -> None:
    router = backup()
    hear(router, 10 * MS, 250)
    hear(router, 20 * MS, 0, obeyed=False)

    assert router.deadline_us == 10 * MS + DOWN


def test_an_active_steps_down_for_a_higher_priority_after_one_last_advert() -> None:
    router = active()

    assert hear(router, 50 * MS, 201) == (Act.ADVERTISE, Act.CEDE)
    assert router.state is State.BACKUP
    assert router.deadline_us == 50 * MS + DOWN


@pytest.mark.parametrize(
    ("greater", "state"), [(True, State.BACKUP), (False, State.ACTIVE), (None, State.ACTIVE)]
)
def test_the_greater_source_wins_a_tie(greater: bool | None, state: State) -> None:
    router = active()
    hear(router, 50 * MS, 200, greater=greater)

    assert router.state is state


def test_a_lesser_advert_is_answered_at_once_and_announced() -> None:
    router = active()

    assert hear(router, 50 * MS, 100) == (Act.ADVERTISE, Act.DEFEND)


def test_an_active_answers_a_resignation_at_once() -> None:
    assert hear(active(), 50 * MS, 0) == (Act.ADVERTISE,)


def test_a_flood_of_lesser_adverts_makes_four_answers_an_interval_at_most() -> None:
    router = active()
    answers = sum(Act.ADVERTISE in hear(router, at * MS, 1) for at in range(1, 101))

    assert answers <= 4


def test_who_was_silent_for_a_lease_elects_again() -> None:
    """Not only for three intervals: the kernel has silenced it by then (semantics R4.1)."""
    router = active()

    assert router.wake(LEASE - 1) == (Act.ADVERTISE,)
    router = active()
    assert router.wake(LEASE) == (Act.YIELD,)
    assert router.state is State.BACKUP
    assert router.deadline_us == LEASE + DOWN


def test_a_late_active_obeys_even_a_lesser_one_that_took_over() -> None:
    router = active()

    assert hear(router, 5 * INTERVAL, 1) == (Act.YIELD,)
    assert router.state is State.BACKUP
    assert router.deadline_us == 5 * INTERVAL + DOWN


def test_who_was_just_too_slow_does_not_preempt() -> None:
    router = active(Settings(200, INTERVAL, "Immediate"))
    hear(router, 5 * INTERVAL, 1)
    hear(router, 6 * INTERVAL, 1)

    assert router.deadline_us == 6 * INTERVAL + DOWN
    hear(router, 6 * INTERVAL + 10_000 * MS, 1)
    assert router.preempting


def test_a_slow_node_that_is_alone_lapses_once_and_not_for_ever() -> None:
    router = active()
    router.wake(3 * INTERVAL)
    now = 3 * INTERVAL + DOWN
    router.take(now)

    assert router.wake(now + 5 * INTERVAL) == (Act.RETAKE, Act.ADVERTISE)
    assert router.state is State.ACTIVE


def test_but_not_when_somebody_was_heard() -> None:
    router = active()
    router.wake(3 * INTERVAL)
    now = 3 * INTERVAL + DOWN
    router.take(now)
    hear(router, now + 10 * MS, 1)

    assert router.wake(now + 5 * INTERVAL) == (Act.YIELD,)


def test_a_longer_interval_is_advertised_three_times_before_it_is_used() -> None:
    router = active()
    long = Settings(200, 1_000 * MS)
    times = [0]
    assert router.configure(long, 0) == (Act.ADVERTISE,)
    while len(times) < 6:
        now = router.deadline_us
        assert router.wake(now) == (Act.ADVERTISE,)
        times.append(now)

    gaps = [(b - a) // MS for a, b in pairwise(times)]
    assert gaps == [100, 100, 100, 1000, 1000]


def test_a_shorter_interval_is_used_at_once_and_makes_nobody_late() -> None:
    router = active(Settings(200, 1_000 * MS))

    assert router.configure(Settings(200, 10 * MS), 900 * MS) == (Act.ADVERTISE,)
    assert router.deadline_us == 910 * MS


def test_a_new_priority_alone_changes_nothing_now() -> None:
    router = active()

    assert router.configure(Settings(100, INTERVAL), 50 * MS) == ()
    assert router.state is State.ACTIVE


def test_stopping_an_active_resigns_first() -> None:
    assert active().stop() == (Act.RESIGN, Act.YIELD)
    assert backup().stop() == ()


def test_giving_up_leaves_the_others_their_turn() -> None:
    router = active()

    assert router.give_up(50 * MS) == (Act.RESIGN, Act.YIELD)
    assert router.deadline_us == 50 * MS + DOWN


@pytest.mark.parametrize(
    ("heir", "bypassed", "wait_us"),
    [
        (True, False, 0),
        (False, False, skew_us(200, INTERVAL)),
        (False, True, INTERVAL + skew_us(200, INTERVAL)),
    ],
)
def test_a_resignation_that_means_one_gives_him_time(heir: bool, bypassed: bool, wait_us: int) -> None:
    router = backup(Settings(200, INTERVAL, heir=heir, bypassed=bypassed))
    hear(router, 50 * MS, 250)
    hear(router, 100 * MS, 0)

    assert not router.due(100 * MS + wait_us - 1)
    assert router.due(100 * MS + wait_us)
