# SPDX-License-Identifier: Apache-2.0
"""One timer, on the brain's clock, finer than a millisecond."""

import asyncio

from holdfast_speaker.alarm import Alarm, now_us


async def rung(*deadlines_us: int | None, wait_s: float = 0.1) -> list[tuple[int, int]]:
    """(deadline, moment it rang) for each ring after these were set one after the other."""
    rings: list[tuple[int, int]] = []
    alarm = Alarm(lambda deadline: rings.append((deadline, now_us())))
    for deadline in deadlines_us:
        alarm.set(deadline)
    await asyncio.sleep(wait_s)
    alarm.close()
    return rings


def test_it_rings_once_and_never_early() -> None:
    deadline = now_us() + 20_000
    (ring,) = asyncio.run(rung(deadline))
    assert ring[0] == deadline
    assert ring[1] >= deadline


def test_a_later_setting_replaces_an_earlier_one() -> None:
    now = now_us()
    rings = asyncio.run(rung(now + 10_000, now + 30_000))
    assert [deadline for deadline, _ in rings] == [now + 30_000]


def test_unset_it_does_not_ring() -> None:
    assert asyncio.run(rung(now_us() + 10_000, None)) == []


def test_a_deadline_in_the_past_rings_at_once() -> None:
    for deadline in (0, 1, now_us() - 5_000_000):
        assert len(asyncio.run(rung(deadline, wait_s=0.02))) == 1


def test_it_is_late_by_far_less_than_a_millisecond() -> None:
    """asyncio's own timers are 1.2 ms late at the median; this machine may be busy, so look at the best."""

    async def late() -> list[int]:
        found = []
        for _ in range(20):
            deadline = now_us() + 3_300
            ((_, at),) = await rung(deadline, wait_s=0.015)
            found.append(at - deadline)
        return found

    assert min(asyncio.run(late())) < 1_000
