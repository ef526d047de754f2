# SPDX-License-Identifier: Apache-2.0
"""The fence's table in the kernel: a new process, NICs that change, rules that vanish, rights, figures."""

import json
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast_speaker.fence.kernel import KernelFence, jiffy_us
from holdfast_speaker.fence.words import TABLE
from tests.netns.fence_field import (
    A_MAC,
    ALL,
    LEASE_US,
    NOBODY,
    SLACK_S,
    V4,
    V6,
    Field,
    advert,
    answer_in,
    answering,
    dead,
    killed,
    sending,
)

pytestmark = pytest.mark.netns


# --- orphans -----------------------------------------------------------------------------------------


def test_orphans_are_silent_from_the_first_moment_until_somebody_takes_them(
    field: Field, fence: KernelFence
) -> None:
    assert field.asked() == ALL
    fence.close()
    heir = KernelFence()
    heir.open((V4, V6))
    assert field.asked() == NOBODY
    assert answering(field) == set()
    heir.cover(field.both)
    heir.refresh()
    heir.guard(7, field.home, 300_000, (V4, V6))
    assert field.asked() == NOBODY
    assert heir.take(7)
    assert field.asked(0.25) == ALL
    heir.close()


def test_an_orphan_that_is_adopted_is_fenced_no_more(field: Field, fence: KernelFence) -> None:
    fence.close()
    heir = KernelFence()
    heir.open((V4, V6))
    heir.adopt(V4)
    assert field.asked(enough=ALL) == {"arp", "ping4"}
    heir.adopt(V6)
    heir.adopt("198.51.100.1")
    assert field.asked() == ALL
    assert heir.mend() == frozenset()
    heir.close()


def test_a_new_process_lets_nothing_through_while_it_replaces_the_old_table(
    field: Field, fence: KernelFence
) -> None:
    fence.guard(7, field.home, 20_000_000, (V4, V6))
    assert fence.take(7)
    fence.silent(7)
    field.heard(0.05)
    answers: list[str] = []
    over = threading.Event()

    def ask() -> None:
        questions = field.questions().values()
        while not over.is_set():
            for frame in questions:
                field.ear.send(frame)
            answers.extend(a for frame in field.heard(0) if (a := answer_in(frame)))

    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(10):
        heir = KernelFence()
        heir.open((V4, V6))
        heir.cover(field.both)
        heir.guard(7, field.home, 280_000, (V4, V6))
        time.sleep(0.01)
        killed(heir)
    over.set()
    thread.join()
    assert answers == []
    field.net.run("a", "nft", "flush", "ruleset")
    assert field.asked(0.3) == ALL


# --- NICs that change, rules that vanish -------------------------------------------------------------


def test_a_renamed_nic_is_covered_anew(field: Field, fence: KernelFence) -> None:
    fence.guard(7, field.home, 5_000_000, (V4, V6))
    assert fence.take(7)
    field.net.ip("a", "link set eth0 down", "link set eth0 name lan0", "link set lan0 up")
    field.reach_b("lan0")
    assert fence.mend() == frozenset()
    assert fence.alive(7)
    assert {"arp", "ping4"} <= field.asked(0.5, frozenset({"arp", "ping4"}))
    fence.silent(7)
    assert field.asked() == NOBODY


def test_a_nic_that_went_away_and_came_back(field: Field, fence: KernelFence) -> None:
    fence.guard(7, field.home, 5_000_000, (V4, V6))
    assert fence.take(7)
    field.net.ip("a", "link del eth0")
    assert fence.mend() == frozenset()
    field.plug("a", "eth0", A_MAC)
    field.net.ip("a", f"addr add {V4}/32 dev eth0", "addr add 192.0.2.1/24 dev eth0")
    home = socket.if_nametoindex("eth0")
    assert home != field.home
    fence.cover(frozenset((home, field.second)))
    fence.guard(7, home, 300_000, (V4, V6))
    assert fence.alive(7)
    assert fence.take(7)
    assert answering(field) == {"eth0"}
    dead(fence)
    assert answering(field) == set()
    assert f"in{field.home}" not in field.net.run("a", "nft", "list", "ruleset")


def test_a_nic_that_is_no_longer_covered_is_as_without_a_fence(field: Field, fence: KernelFence) -> None:
    assert fence.take(7)
    dead(fence)
    fence.cover(frozenset({field.second}))
    assert field.asked(0.3) == ALL
    fence.cover(field.both | {4711})
    assert field.asked() == NOBODY


@pytest.mark.parametrize(
    "how", ["flush ruleset", "flush table netdev holdfast", "delete table netdev holdfast"]
)
def test_a_table_that_somebody_removed_is_made_again(field: Field, fence: KernelFence, how: str) -> None:
    fence.guard(7, field.home, 5_000_000, (V4, V6))
    fence.guard(8, field.home, 5_000_000, ("192.0.2.11",))
    assert fence.take(7)
    assert fence.take(8)
    fence.release(8)
    before = without_times(field.net.run("a", "nft", "-s", "list", "ruleset"))
    assert fence.mend() == frozenset()
    field.net.run("a", "nft", how)
    assert fence.mend() == {7}
    assert fence.mend() == frozenset()
    assert field.asked() == NOBODY
    assert fence.take(7)
    assert field.asked(0.5) == ALL
    assert without_times(field.net.run("a", "nft", "-s", "list", "ruleset")) == before


def test_a_take_on_a_flushed_host_succeeds_and_the_others_are_reported(
    field: Field, fence: KernelFence
) -> None:
    fence.guard(8, field.home, 5_000_000, ("192.0.2.11",))
    assert fence.take(7)
    assert fence.take(8)
    field.net.run("a", "nft", "flush", "ruleset")
    assert fence.take(7)
    assert fence.alive(7)
    assert not fence.alive(8)
    assert fence.mend() == {8}


def test_every_verb_works_on_a_flushed_host(field: Field, fence: KernelFence) -> None:
    verbs: tuple[Callable[[], object], ...] = (
        lambda: fence.guard(8, field.home, LEASE_US, ("192.0.2.11",)),
        lambda: fence.quiet(7),
        lambda: fence.silent(7),
        lambda: fence.release(7),
        fence.refresh,
        lambda: fence.cover(frozenset({field.home})),
        lambda: fence.unguard(8),
        fence.close,
    )
    for verb in verbs:
        fence.take(7)
        field.net.run("a", "nft", "flush", "ruleset")
        verb()
    assert field.net.run("a", "nft", "list", "ruleset") == ""


def without_times(listing: str) -> list[str]:
    return sorted(" ".join(line.split()) for line in listing.splitlines() if "timeout" not in line)


def test_other_tables_are_not_touched_and_close_leaves_nothing(field: Field) -> None:
    foreign = (
        "table netdev filter { chain c { type filter hook ingress device eth0 priority 0; } ; }",
        "table inet other { set s { type ipv4_addr; elements = { 192.0.2.10 } ; } ; }",
    )
    for table in foreign:
        field.net.run("a", "nft", table)
    before = field.net.run("a", "nft", "list", "ruleset")
    fence = field.fence()
    assert fence.take(7)
    fence.unguard(7)
    fence.unguard(7)
    fence.close()
    fence.close()
    assert fence.take(7)
    assert field.net.run("a", "nft", "list", "ruleset") == before
    assert field.asked() == ALL


def test_unguard_leaves_no_trace_in_the_table(field: Field, fence: KernelFence) -> None:
    before = field.net.run("a", "nft", "-s", "list", "ruleset")
    for _ in range(2):
        fence.guard(255, field.home, LEASE_US, ("192.0.2.20", "2001:db8::20"))
        fence.guard(255, field.home, LEASE_US, ("192.0.2.21", "2001:db8::20"))
        assert fence.take(255)
        fence.quiet(255)
        fence.unguard(255)
        assert not fence.take(255)
    assert field.net.run("a", "nft", "-s", "list", "ruleset") == before
    assert fence.mend() == frozenset()


def test_an_address_moves_between_routers_without_a_gap(field: Field, fence: KernelFence) -> None:
    fence.guard(7, field.home, 10_000_000, (V4, V6))
    fence.guard(8, field.home, 10_000_000, ())
    assert fence.take(7)
    assert fence.take(8)
    fence.guard(8, field.home, 10_000_000, (V4, V6))
    fence.silent(7)
    assert field.asked(0.5) == ALL
    fence.guard(7, field.home, 10_000_000, (V4, V6))
    assert field.asked() == NOBODY
    assert fence.mend() == frozenset()


def test_what_nft_lists_of_it_nft_can_load_again(field: Field, fence: KernelFence, tmp_path: Path) -> None:
    """Hosts save their rules and load them at boot: one line that does not parse and none is loaded."""
    fence.guard(9, field.second, 56_000, (V4, "2001:db8::9"))
    assert fence.take(7)
    fence.quiet(9)
    saved = tmp_path / "saved.nft"
    listing = field.net.run("a", "nft", "-s", "list", "ruleset")
    saved.write_text(listing)
    field.net.run("a", "nft", "flush", "ruleset")
    field.net.run("a", "nft", "-f", str(saved))
    assert without_times(field.net.run("a", "nft", "-s", "list", "ruleset")) == without_times(listing)


# --- rights and figures ------------------------------------------------------------------------------

_CONFINED = """
import socket
from holdfast_speaker.fence.kernel import KernelFence
fence = KernelFence()
print(fence.fault)
fence.open(["192.0.2.10"])
index = socket.if_nametoindex("eth0")
fence.cover(frozenset({index}))
fence.guard(7, index, 280000, ["192.0.2.10"])
print(fence.take(7), fence.extend(7), fence.alive(7), sorted(fence.mend()))
fence.quiet(7); fence.silent(7); fence.release(7); fence.refresh(); fence.unguard(7); fence.close()
"""


@pytest.mark.parametrize(
    ("rights", "fault"), [("+net_admin,+net_raw", ""), ("+net_raw", "no right to it: NET_ADMIN is missing")]
)
def test_net_admin_is_all_it_needs_and_without_it_nothing_is_fenced(
    field: Field, rights: str, fault: str
) -> None:
    argv = ["setpriv", "--inh-caps=-all", f"--bounding-set=-all,{rights}", "--no-new-privs", "--"]
    output = field.net.run("a", *argv, sys.executable, "-c", _CONFINED)
    assert output.splitlines() == [fault, "True True True []"]
    assert field.net.run("a", "nft", "list", "ruleset") == ""


def test_a_lease_is_precise(field: Field, fence: KernelFence, capsys: pytest.CaptureFixture[str]) -> None:
    """Never longer than asked, by more than this machine's noise; never shorter by more than two ticks."""
    mouth = field.mouth(fence.mark)
    lasted = []
    for _ in range(20):
        assert fence.take(7)
        mouth.send(advert())
        began = time.monotonic()
        while fence.alive(7):
            time.sleep(0.0005)
        lasted.append(time.monotonic() - began)
    lease, tick = LEASE_US / 1e6, jiffy_us() / 1e6
    with capsys.disabled():
        low, middle, high = min(lasted), statistics.median(lasted), max(lasted)
        print(f"\nlease of {lease * 1e3:.0f} ms: {low * 1e3:.1f} / {middle * 1e3:.1f} / {high * 1e3:.1f} ms")
    assert min(lasted) > lease - 2 * tick
    assert statistics.median(lasted) < lease + SLACK_S


def _per_advert_us(sock: socket.socket) -> float:
    """CPU time, of the quietest of many rounds."""
    frame = advert()
    rounds = []
    for _ in range(40):
        began = time.thread_time()
        for _ in range(100):
            sock.send(frame)
        rounds.append((time.thread_time() - began) / 100 * 1e6)
    return min(rounds)


def test_an_advert_costs_the_same_with_a_thousand_addresses(
    field: Field, fence: KernelFence, capsys: pytest.CaptureFixture[str]
) -> None:
    mouth = field.mouth(fence.mark)
    bare_us = _per_advert_us(field.mouth())
    fence.guard(7, field.home, 10_000_000, (V4,))
    assert fence.take(7)
    one_us = _per_advert_us(mouth)
    many = [f"10.{n >> 8}.{n & 255}.1" for n in range(500)] + [f"fd00::{n:x}" for n in range(500)]
    began = time.perf_counter()
    fence.guard(7, field.home, 10_000_000, many)
    guard_ms = (time.perf_counter() - began) * 1e3
    many_us = _per_advert_us(mouth)
    takes = []
    for _ in range(50):
        began = time.perf_counter()
        assert fence.take(7)
        takes.append((time.perf_counter() - began) * 1e3)
    with capsys.disabled():
        print(
            f"\nan advert: {bare_us:.1f} us unmarked, {one_us:.1f} with 1 address, {many_us:.1f} with 1,000"
        )
        print(
            f"guard of 1,000: {guard_ms:.1f} ms; "
            f"take: {statistics.median(takes):.3f} ms, at most {max(takes):.3f}"
        )
    assert many_us < one_us * 2 + 10  # one lookup more for each address would be far more
    assert fence.alive(7)


def test_what_must_not_wait_is_no_transaction(
    field: Field, fence: KernelFence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One lock per host: while a kube-proxy writes its rules, nobody else's are committed."""
    fence.guard(7, field.home, 500_000, (V4, V6))
    with monkeypatch.context() as patch:
        patch.setattr(fence._kernel, "commit", lambda _: pytest.fail("it would wait"))
        assert fence.take(7)
        assert field.asked(0.4) == ALL
        assert fence.extend(7)
        fence.quiet(7)
        assert field.asked(0.2, enough=ALL | {"never"}) == {"ping4", "ping6"}
        assert fence.alive(7)
        assert fence.mend() == frozenset()
        with sending(field.mouth(fence.mark), advert(), 0.05):
            fence.refresh()
            time.sleep(0.1)
    assert fence.take(7)  # no longer quiet: this is one
    assert field.asked(0.4) == ALL
    dead(fence)
    assert not fence._orders.give("eth1", 9, 1)
    assert field.asked() == NOBODY


def test_an_order_without_its_mark_is_none(field: Field, fence: KernelFence) -> None:
    order = bytes(12) + bytes.fromhex("88b50701") + bytes(44)
    for mark in (0, fence.mark):
        field.mouth(mark).send(order)
        assert not fence.alive(7)
    with pytest.raises(OSError, match="No buffer space"):
        field.mouth(fence._orders.mark).send(order)
    assert fence.alive(7)


def test_an_advert_prolongs_the_guard_too(field: Field, fence: KernelFence) -> None:
    def guarded_until() -> float:
        answer = field.net.run("a", "nft", "-j", "list", "set", "netdev", "holdfast", "guarded")
        (_, listed) = json.loads(answer)["nftables"]
        return float(listed["set"]["elem"][0]["elem"]["expires"])

    fence.guard(7, field.home, 10_000_000, (V4, V6))
    assert fence.take(7)
    time.sleep(2.1)
    assert guarded_until() < 59
    field.mouth(fence.mark).send(advert())
    assert guarded_until() >= 59


def test_without_a_nic_the_fence_stands_all_the_same(field: Field) -> None:
    """No frame leaves a NIC that is down or not covered yet; then it is a transaction."""
    fence = KernelFence()
    fence.open(())
    fence.guard(7, field.home, 5_000_000, (V4, V6))
    assert fence.take(7)
    assert fence.extend(7)
    fence.cover(field.both)
    field.net.ip("a", "link set eth0 down")
    fence.silent(7)
    assert fence.take(7)
    assert fence.extend(7)
    fence.quiet(7)
    field.net.ip("a", "link set eth0 up")
    field.reach_b("eth0")
    assert answering(field) == set()
    fence.close()


def test_255_routers_and_8192_addresses_fit(field: Field, fence: KernelFence) -> None:
    for number in range(1, 256):
        fence.guard(number, field.home, LEASE_US, [f"10.{number}.0.{n}" for n in range(32)])
        assert fence.take(number)
    assert fence.mend() == frozenset()
    field.net.run("a", "nft", "flush", "ruleset")
    assert fence.mend() == frozenset(range(1, 256))
    assert fence.take(255)
    assert field.net.run("a", "nft", "list", "map", "netdev", TABLE, "own4").count("goto") == 8160
