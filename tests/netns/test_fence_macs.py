# SPDX-License-Identifier: Apache-2.0
"""Virtual MACs in the fence's table: in whatever order it is changed, nothing leaks; what moves; figures."""

import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from holdfast_speaker import virtual_mac
from holdfast_speaker.fence import guarding, mac_rules, rules
from holdfast_speaker.fence.kernel import KernelFence
from holdfast_speaker.fence.words import ORPHANS, TABLE
from tests.netns.fence_field import (
    A_MAC,
    B4,
    B_MAC,
    LONG_US,
    MACS,
    OWN,
    SLACK_S,
    V4,
    V6,
    V_MAC,
    W_MAC,
    Field,
    advert,
    answer_in,
    sending,
)

pytestmark = pytest.mark.netns


@pytest.fixture
def fence(field: Field) -> Iterator[KernelFence]:
    """On both NICs; router 7 with two addresses and one virtual MAC, not taken yet."""
    with closing(field.fence(LONG_US, MACS, OWN)) as made:
        yield made


def listed(field: Field) -> list[str]:
    """What ``nft`` lists, without what passes by itself."""
    listing = field.net.run("a", "nft", "-s", "list", "ruleset")
    return sorted(" ".join(line.split()) for line in listing.splitlines() if "timeout" not in line)


# --- what moves --------------------------------------------------------------------------------------


def answerers(field: Field) -> set[tuple[str, str]]:
    """The MACs that answer ARP and ND, and for what."""
    field.heard(0)
    for what in ("arp", "nd"):
        field.ear.send(field.questions()[what])
    return {(answer_in(f), f[6:12].hex(":")) for f in field.heard(SLACK_S) if answer_in(f)}


def test_addresses_and_macs_move_between_routers_without_a_gap(field: Field, fence: KernelFence) -> None:
    """One virtual MAC for several addresses is VRRP's own; one that goes leaves it to the other."""
    field.plant(V_MAC, V4, V6)
    both = {("arp", V_MAC), ("nd", V_MAC)}
    assert fence.take(7)
    assert answerers(field) == both
    fence.guard(8, field.home, LONG_US, (), {}, OWN)
    assert fence.take(8)
    fence.guard(8, field.home, LONG_US, (V4, V6), MACS, OWN)
    fence.silent(7)
    assert answerers(field) == both
    fence.guard(7, field.home, LONG_US, (V4, V6), MACS, OWN)
    assert answerers(field) == set()
    fence.unguard(8)
    assert fence.take(7)
    assert answerers(field) == both
    fence.guard(7, field.home, LONG_US, (V6,), {V6: V_MAC}, OWN)
    assert answerers(field) >= {("nd", V_MAC)}
    assert fence.mend() == frozenset()


def test_a_mac_alone_can_change_its_router_and_its_address_stays(field: Field, fence: KernelFence) -> None:
    fence.guard(8, field.home, LONG_US, ("192.0.2.11",), {"192.0.2.11": V_MAC}, OWN)
    assert "192.0.2.10 : goto g7" in field.net.run("a", "nft", "list", "map", "netdev", TABLE, "own4")
    assert "192.0.2.10" not in field.net.run("a", "nft", "list", "map", "netdev", TABLE, "mac4")
    fence.guard(7, field.home, LONG_US, (V4, V6), MACS, OWN)  # says so again: it has it back
    assert "192.0.2.10" in field.net.run("a", "nft", "list", "map", "netdev", TABLE, "mac4")
    fence.unguard(8)
    assert fence.mend() == frozenset()


def test_another_mac_or_own_address_keeps_the_lease_that_runs(field: Field, fence: KernelFence) -> None:
    device = field.plant(V_MAC, V4, V6)
    assert fence.take(7)
    before = listed(field)
    fence.guard(7, field.home, LONG_US, (V4, V6), MACS, "192.0.2.9")
    fence.guard(7, field.home, LONG_US, (V4, V6), {V4: W_MAC, V6: W_MAC}, None)
    assert fence.alive(7)
    field.net.ip("a", f"link del {device}")
    field.plant(W_MAC, V4, V6)
    fence.shelter()
    assert answerers(field) == {("arp", W_MAC), ("nd", W_MAC)}
    fence.guard(7, field.second, LONG_US, (V4,), {V4: W_MAC}, OWN)
    fence.guard(7, field.home, LONG_US, (V4, V6), MACS, OWN)
    assert fence.alive(7)
    field.net.ip("a", f"link del {virtual_mac.device(W_MAC)}")
    fence.shelter()
    assert listed(field) == before
    assert fence.mend() == frozenset()


def test_the_chain_of_a_macvlan_comes_and_goes_with_it(field: Field, fence: KernelFence) -> None:
    """It is no NIC to be covered; with ``open`` neither, which else covers all."""

    def chains() -> list[str]:
        found = fence._kernel.chains(TABLE) or ()
        return sorted(chain for chain in found if chain.startswith(("mac", "in", "out")))

    covered = [*(f"in{n}" for n in field.both), *(f"out{n}" for n in field.both)]
    shared = ["in", "mac", "out"]
    for _ in range(2):
        device = field.plant(V_MAC)
        fence.shelter()
        index = socket.if_nametoindex(device)
        assert chains() == sorted([*shared, *covered, f"mac{index}"])
        field.net.run("a", "nft", "flush", "ruleset")
        fence.mend()
        assert chains() == sorted([*shared, *covered, f"mac{index}"])
        field.net.ip("a", f"link del {device}")
        field.plant(V_MAC)  # the next one, before anybody looked
        assert fence.mend() == frozenset()
        assert chains() == sorted([*shared, *covered, f"mac{socket.if_nametoindex(device)}"])
        field.net.ip("a", f"link del {device}")
        fence.shelter()
        assert chains() == sorted([*shared, *covered])
    device = field.plant(V_MAC)
    fence.open((V4,), {V4: V_MAC})
    assert chains() == sorted([*shared, *covered, f"mac{socket.if_nametoindex(device)}"])
    assert fence.mend() == frozenset()


def test_what_nft_lists_of_it_nft_can_load_again(field: Field, fence: KernelFence, tmp_path: Path) -> None:
    field.plant(V_MAC, V4, V6)
    fence.shelter()
    fence.guard(8, field.second, LONG_US, ("192.0.2.11",), {"192.0.2.11": W_MAC})
    assert fence.take(7)
    before, saved = listed(field), tmp_path / "saved.nft"
    saved.write_text(field.net.run("a", "nft", "-s", "list", "ruleset"))
    field.net.run("a", "nft", "flush", "ruleset")
    field.net.run("a", "nft", "-f", str(saved))
    assert listed(field) == before
    assert fence.take(7)
    assert answerers(field) == {("arp", V_MAC), ("nd", V_MAC)}


def test_unguard_leaves_nothing_of_its_macs(field: Field, fence: KernelFence) -> None:
    before = listed(field)
    for _ in range(2):
        fence.guard(9, field.home, LONG_US, ("192.0.2.11", "2001:db8::11"), {"2001:db8::11": W_MAC})
        assert fence.take(9)
        fence.unguard(9)
    assert listed(field) == before
    assert fence.mend() == frozenset()


def test_an_unguarded_mac_is_silent_until_its_macvlan_is_gone(field: Field, fence: KernelFence) -> None:
    before = listed(field)
    device = field.plant(W_MAC)
    fence.shelter()
    fence.guard(9, field.home, LONG_US, ("192.0.2.11",), {"192.0.2.11": W_MAC})
    assert fence.take(9)
    tap = field.tap(W_MAC)
    with flooding_by(field, W_MAC):
        time.sleep(0.02)
        assert tap.frames(SLACK_S), "it could be seen"
        fence.unguard(9)
        tap.frames(SLACK_S)
        assert fence.mend() == frozenset()
        assert tap.frames(SLACK_S) == []
    field.net.ip("a", f"link del {device}")
    assert fence.mend() == frozenset()
    assert listed(field) == before


# --- in whatever order -------------------------------------------------------------------------------

_FLOOD = """
import socket, sys
what, mac = sys.argv[1], bytes.fromhex(sys.argv[2])
if what == "raw":
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind(("eth0", 0))
    frame = bytes.fromhex("02000000000b") + mac + bytes.fromhex("88b6") + bytes(46)
    send = lambda: sock.send(frame)
else:
    family, own, other = (socket.AF_INET, "192.0.2.10", "192.0.2.2") if what == "ip4" else (
        socket.AF_INET6, "2001:db8::10", "2001:db8::2")
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((own, 7))
    send = lambda: sock.sendto(b"x", (other, 9))
print(flush=True)
while True:
    try:
        send()
    except OSError:
        pass
"""


def flooding_by(field: Field, mac: str) -> AbstractContextManager[None]:
    """Whole frames with that MAC, from eth0."""
    return sending(
        field.mouth(), mac_rules.mac_bytes(B_MAC) + mac_rules.mac_bytes(mac) + b"\x88\xb6" + bytes(46), 0.0005
    )


@contextmanager
def flooding(field: Field, *kinds: str) -> Iterator[None]:
    """Senders of their own that never rest: frames with the virtual MAC, packets of the addresses."""
    enter = ["ip", "netns", "exec", field.net.full("a"), sys.executable, "-c", _FLOOD]
    mac = V_MAC.replace(":", "")
    senders = [subprocess.Popen([*enter, kind, mac], stdout=subprocess.PIPE) for kind in kinds]
    try:
        for sender in senders:
            assert sender.stdout is not None
            sender.stdout.readline()
        yield
    finally:
        for sender in senders:
            sender.kill()
            sender.communicate()


class Hands:
    """What may be done with the fence, and with the macvlan. Nothing of it takes the lease."""

    def __init__(self, field: Field, fence: KernelFence, dice: random.Random) -> None:
        self.field, self.fence, self.dice = field, fence, dice
        self.planted = False

    def guard(self) -> None:
        """Either router, any home, lease and address to ask by; the MAC is always somebody's."""
        addresses = self.dice.choice([(V4, V6), (V4,), (V6,)])
        macs = dict.fromkeys(addresses, V_MAC)
        home = self.dice.choice([self.field.home, self.field.second])
        own, lease_us = self.dice.choice([OWN, None]), self.dice.choice([LONG_US, 100_000])
        self.fence.guard(self.dice.choice([7, 8]), home, lease_us, addresses, macs, own)

    def plant(self) -> None:
        if self.planted:
            self.field.net.ip("a", f"link del {virtual_mac.device(V_MAC)}")
        else:
            self.field.plant(V_MAC)
        self.planted = not self.planted

    def rebuild(self) -> None:
        self.fence._rebuild()

    def die(self) -> None:
        self.fence.open((V4, V6), MACS)
        self.fence.cover(self.field.both)

    def cover(self) -> None:
        self.fence.cover(self.dice.choice([self.field.both, frozenset({self.field.home})]))

    def shelter(self) -> None:
        self.fence.shelter()

    def mend(self) -> None:
        assert self.fence.mend() == frozenset()

    def end(self) -> None:
        self.dice.choice([self.fence.quiet, self.fence.silent, self.fence.release])(7)

    def unguard(self) -> None:
        self.fence.unguard(self.dice.choice([7, 8]))

    def unmac(self) -> None:
        self.fence.guard(7, self.field.home, LONG_US, (V4, V6), {})

    def flush(self) -> None:
        self.field.net.run("a", "nft", "flush", "ruleset")
        self.fence.mend()

    def play(self, *verbs: Callable[[], None]) -> None:
        """Sixty of these, in some order."""
        for _ in range(60):
            self.dice.choice(verbs)()


@pytest.fixture
def hands(field: Field, fence: KernelFence, seed: int) -> Hands:
    """The host can send by the addresses, wherever else they are."""
    field.net.ip("a", f"addr add {V4}/32 dev lo", f"addr add {V6}/128 dev lo")
    return Hands(field, fence, random.Random(seed))


@pytest.mark.parametrize("seed", range(4))
def test_in_no_order_does_a_frame_leave_with_the_mac_without_a_lease(
    field: Field, fence: KernelFence, hands: Hands
) -> None:
    """Neither made with it nor given it, while the rules change beneath."""
    tap, all_frames = field.tap(V_MAC), field.tap(A_MAC)
    with flooding(field, "raw", "ip4"):
        hands.play(
            *(hands.guard, hands.guard, hands.plant, hands.rebuild, hands.die),
            *(hands.cover, hands.shelter, hands.mend, hands.end),
        )
    assert len(tap.frames(SLACK_S)) == 0
    assert len(all_frames.frames(0)) > 100  # the flood was there
    fence.guard(7, field.home, LONG_US, (V4, V6), MACS, OWN)
    assert fence.take(7)
    with flooding(field, "raw", "ip4", "ip6"):
        time.sleep(0.05)
    assert len(tap.frames(SLACK_S)) > 100  # and could be seen


def test_nor_while_the_table_is_made_anew_again_and_again(field: Field, fence: KernelFence) -> None:
    """A frame may meet the old table when it is no longer in force, and the new one when it is not yet."""
    tap = field.tap(V_MAC)
    with flooding(field, "raw"):
        for _ in range(300):
            assert fence._rebuild() == 0
    assert len(tap.frames(SLACK_S)) == 0
    assert "holdfast-bar" not in field.net.run("a", "nft", "list", "tables")


@pytest.mark.parametrize("seed", range(3))
def test_neither_is_it_given_to_packets_when_it_is_nobodys_or_all_is_flushed(
    field: Field, fence: KernelFence, hands: Hands
) -> None:
    tap = field.tap(V_MAC)
    with flooding(field, "ip4", "ip6"):
        hands.play(
            *(hands.guard, hands.guard, hands.rebuild, hands.end),
            *(hands.unguard, hands.unmac, hands.flush),
        )
        fence.release(7)
        fence.release(8)
        own = field.tap(A_MAC)
        time.sleep(0.05)
    assert len(tap.frames(SLACK_S)) == 0
    kinds = [frame[12:14] for frame in own.frames(0)]
    for kind in (b"\x08\x00", b"\x86\xdd"):  # who is only forwarded by a Backup goes on with the NIC's
        assert kinds.count(kind) > 10


# --- figures -----------------------------------------------------------------------------------------


def _each_us(act: Callable[[], object]) -> float:
    """CPU time of one, of the quietest of many rounds."""
    rounds = []
    for _ in range(40):
        began = time.thread_time()
        for _ in range(100):
            act()
        rounds.append((time.thread_time() - began) / 100 * 1e6)
    return min(rounds)


def test_what_virtual_macs_cost(field: Field, fence: KernelFence, capsys: pytest.CaptureFixture[str]) -> None:
    """Of adverts, and of packets of others: nothing that grows with their number."""
    mouth, frame, said = field.mouth(fence.mark), advert(), []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((OWN, 0))
        adverts, packets = [], []
        for number in (0, 1, 200):
            addresses = [f"10.0.{n >> 8}.{n & 255}" for n in range(max(1, number))]
            macs = {a: f"02:00:00:01:{n >> 8:02x}:{n & 255:02x}" for n, a in enumerate(addresses[:number])}
            began = time.perf_counter()
            fence.guard(7, field.home, LONG_US, addresses, macs, OWN)
            guard_ms = (time.perf_counter() - began) * 1e3
            assert fence.take(7)
            adverts.append(_each_us(lambda: mouth.send(frame)))
            packets.append(_each_us(lambda: udp.sendto(b"x", (B4, 9))))
            began = time.perf_counter()
            fence._rebuild()
            rebuild_ms = (time.perf_counter() - began) * 1e3
            rules = fence._kernel.rules(TABLE)
            said.append(
                f"{number:3} virtual MACs: an advert {adverts[-1]:.1f} us, a packet {packets[-1]:.1f}; "
                f"guard {guard_ms:.1f} ms, table anew {rebuild_ms:.1f} ms, {rules} rules"
            )
        fence.close()
        said.append(f"without a fence: a packet {_each_us(lambda: udp.sendto(b'x', (B4, 9))):.1f} us")
    with capsys.disabled():
        print("\n" + "\n".join(said))
    assert adverts[2] < adverts[0] * 2 + 10
    assert packets[2] < packets[0] * 2 + 10


def test_what_200_macvlans_cost(field: Field, fence: KernelFence, capsys: pytest.CaptureFixture[str]) -> None:
    made = [f"02:00:00:01:00:{n:02x}" for n in range(200)]
    field.net.ip(
        "a",
        *(f"link add {virtual_mac.device(m)} link eth0 address {m} type macvlan mode private" for m in made),
    )
    began = time.perf_counter()
    fence.shelter()
    first_ms = (time.perf_counter() - began) * 1e3
    again = []
    for _ in range(20):
        began = time.perf_counter()
        assert fence.mend() == frozenset()
        again.append((time.perf_counter() - began) * 1e3)
    began = time.perf_counter()
    assert fence.heard_macs() == frozenset()
    heard_ms = (time.perf_counter() - began) * 1e3
    began = time.perf_counter()
    assert fence.take(7)
    take_ms = (time.perf_counter() - began) * 1e3
    with capsys.disabled():
        print(
            f"\n200 macvlans: sheltered in {first_ms:.1f} ms, looked after in "
            f"{statistics.median(again):.2f}; heard_macs {heard_ms:.2f}, take {take_ms:.2f}"
        )
    assert statistics.median(again) < 50
    assert len(fence._kernel.chains(TABLE) or ()) > 200


def test_the_count_of_rules_is_right() -> None:
    """``mend`` makes the table anew when it isn't."""
    guards: guarding.Guards = {
        ORPHANS: guarding.Guard(0, 0),
        7: guarding.Guard(2, 1, frozenset({V4}), {V4: V_MAC}, OWN),
        8: guarding.Guard(2, 1),
    }
    messages = [*rules.table(1, 2), *guarding.whole(guards)]
    assert mac_rules.mac_bytes(V_MAC) in b"".join(messages)
    counted = sum(message[4] == 6 for message in messages)  # NFT_MSG_NEWRULE
    assert counted == rules.count_rules(2, orphans=True)
