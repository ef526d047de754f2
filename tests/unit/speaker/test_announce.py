# SPDX-License-Identifier: Apache-2.0
"""The schedule of announcements (semantics R1.1 to R1.4)."""

from holdfast_speaker.arp.announce import ASKS_EACH_PACE, CHUNK, PACE_US, Announcer
from holdfast_speaker.effects import Announce, Effect

SECOND = 1_000_000


def play(announcer: Announcer, until_us: int) -> list[tuple[int, Announce]]:
    said: list[tuple[int, Announce]] = []
    while announcer.deadline_us <= until_us:
        now = announcer.deadline_us
        out: list[Effect] = []
        announcer.wake(now, out)
        said.extend((now, effect) for effect in out if isinstance(effect, Announce))
        assert announcer.deadline_us > now, "the deadline must move"
    return said


def times(said: list[tuple[int, Announce]], form: str, address: str) -> list[int]:
    return [at for at, effect in said if effect.form == form and address in effect.addresses]


def many(count: int) -> list[str]:
    return [f"10.0.{number // 250}.{number % 250}" for number in range(count)]


def test_the_burst_is_five_copies_in_five_seconds() -> None:
    announcer = Announcer(2, "a")
    announcer.start(["10.0.0.100"], 0)

    assert times(play(announcer, 6 * SECOND), "announce", "10.0.0.100") == [
        0,
        150_000,
        1_100_000,
        2_200_000,
        5_000_000,
    ]


def test_then_each_minute_give_or_take_ten_percent_with_a_probe() -> None:
    announcer = Announcer(2, "a")
    announcer.start(["10.0.0.100"], 0)
    said = play(announcer, 3600 * SECOND)
    refreshes = [at for at in times(said, "announce", "10.0.0.100") if at > 5 * SECOND]
    gaps = [b - a for a, b in zip([5 * SECOND, *refreshes], refreshes, strict=False)]

    assert all(54 * SECOND <= gap <= 66 * SECOND + 2 * PACE_US for gap in gaps)
    assert len(set(gaps)) > 10
    assert times(said, "probe", "10.0.0.100") == refreshes


def test_two_nodes_and_two_addresses_do_not_refresh_in_step() -> None:
    def refresh(node: str, address: str) -> int:
        announcer = Announcer(2, node)
        announcer.start([address], 0)
        return times(play(announcer, 100 * SECOND), "announce", address)[5]

    assert len({refresh("a", "10.0.0.1"), refresh("b", "10.0.0.1"), refresh("a", "10.0.0.2")}) == 3


def test_the_first_copy_of_every_address_leaves_before_anything_else() -> None:
    announcer = Announcer(2, "a")
    addresses = many(1000)
    announcer.start(addresses, 0)
    out: list[Effect] = []
    announcer.wake(0, out)
    firsts = [effect for effect in out if isinstance(effect, Announce) and effect.form == "announce"]

    assert [address for effect in firsts for address in effect.addresses] == addresses
    assert all(len(effect.addresses) <= CHUNK for effect in firsts)
    assert out.index(firsts[-1]) == len(firsts) - 1


def test_later_copies_and_questions_are_paced() -> None:
    announcer = Announcer(2, "a")
    announcer.start(many(1000), 0)
    later: dict[tuple[int, str], int] = {}
    for at, effect in play(announcer, 10 * SECOND):
        if at > 0:
            key = (at // PACE_US, effect.form)
            later[key] = later.get(key, 0) + len(effect.addresses)

    assert max(size for (_, form), size in later.items() if form == "announce") <= 2 * CHUNK
    assert max(size for (_, form), size in later.items() if form == "ask") <= 2 * ASKS_EACH_PACE


def test_nothing_is_said_of_what_is_no_longer_ours() -> None:
    announcer = Announcer(2, "a")
    announcer.start(["10.0.0.100", "10.0.0.101"], 0)
    play(announcer, 100_000)
    announcer.stop(["10.0.0.100"])
    said = play(announcer, 200 * SECOND)

    assert not any("10.0.0.100" in effect.addresses for _, effect in said)
    assert times(said, "announce", "10.0.0.101")


def test_what_waits_in_the_queue_is_looked_at_again_before_it_leaves() -> None:
    announcer = Announcer(2, "a")
    addresses = many(100)
    announcer.start(addresses, 0)
    announcer.wake(0, [])
    announcer.stop(addresses)

    assert play(announcer, SECOND) == []


def test_a_burst_can_begin_later() -> None:
    """The port of a link that just came up does not forward yet."""
    announcer = Announcer(2, "a")
    announcer.start(["10.0.0.100"], 200_000)

    assert times(play(announcer, SECOND), "announce", "10.0.0.100") == [200_000, 350_000]


def test_after_a_pause_missed_copies_are_not_made_up_for() -> None:
    announcer = Announcer(2, "a")
    announcer.start(["10.0.0.100"], 0)
    play(announcer, 0)
    out: list[Effect] = []
    announcer.wake(4 * SECOND, out)

    assert [effect for effect in out if isinstance(effect, Announce) and effect.form == "announce"] == [
        Announce(2, "announce", ("10.0.0.100",))
    ]


def test_bursts_begun_again_and_again_grow_nothing() -> None:
    announcer = Announcer(2, "a")
    addresses = many(200)
    for at in range(500):
        announcer.start(addresses, at * 10_000)
        announcer.wake(at * 10_000, [])

    assert len(announcer) < 10 * len(addresses)
