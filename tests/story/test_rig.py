# SPDX-License-Identifier: Apache-2.0
"""The rig itself: what it claims about silence, loss and its own clean-up, shown with plain hosts."""

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.api import socket_in
from tests.rig.confinement import ROOT, Confinement
from tests.rig.faults import KILL, STOP, chosen, processes
from tests.rig.figures import Figure, Outcome, compare
from tests.rig.hosts import SPEAKER_CAPABILITIES, Host
from tests.rig.network import Segment, neighbour, wait_for_dad
from tests.rig.probe import Probe
from tests.rig.run import NETNS, RigError, Run, command, sweep
from tests.rig.stalls import room_ms
from tests.rig.witness import Account, Answer, Witness

pytestmark = pytest.mark.netns


class Bench:
    """One host and one client on a switch; no cluster."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.segment = Segment(run)
        self.host = Host(run, "h1", self.segment, 11)
        self.client = run.add_namespace("client")
        self.segment.connect("client", 251, port="client", careful=False)
        wait_for_dad([self.host.namespace])

    def probe(self) -> Probe:
        return Probe(self.run, self.client, [self.host.v4, self.host.v6])


@pytest.fixture
def bench(rig_ready: None) -> Iterator[Bench]:  # noqa: ARG001  pytest orders fixtures by their arguments
    with Run() as run:
        yield Bench(run)


def test_a_silence_of_known_length_is_measured_in_both_families(bench: Bench) -> None:
    with bench.probe() as probe:
        for address in (bench.host.v4, bench.host.v6):
            probe.wait_answer(address)
        cut = time.monotonic()
        bench.host.cable.cut()
        time.sleep(0.3)
        bench.host.cable.mend()
        silent_ms = (time.monotonic() - cut) * 1000
        gaps = [probe.wait_gap(address, after=cut) for address in (bench.host.v4, bench.host.v6)]
        results = probe.results()
    late_ms = max(answers.late_ms for answers in results.values())
    for gap in gaps:
        assert 300 <= gap.ms <= room_ms(silent_ms + 20, late_ms)
        assert gap.lost == pytest.approx(gap.ms, abs=room_ms(30, late_ms)), "one request each millisecond"
        assert gap.mac_before == gap.mac_after == bench.host.mac
    for answers in results.values():
        assert list(answers.macs) == [bench.host.mac]
        assert answers.sent - answers.answered == pytest.approx(gaps[0].lost, abs=room_ms(60, late_ms))


@pytest.mark.parametrize("direction", ["in", "out"])
def test_one_way_is_enough_to_be_silent(bench: Bench, direction: str) -> None:
    with bench.probe() as probe:
        probe.wait_answer(bench.host.v4)
        bench.host.cable.cut("in" if direction == "in" else "out")
        time.sleep(0.2)
        bench.host.cable.mend()
        assert probe.wait_gap(bench.host.v4).ms >= 200


def test_a_silence_that_has_not_ended_is_told_too(bench: Bench) -> None:
    with bench.probe() as probe:
        probe.wait_answer(bench.host.v4)
        bench.host.cable.cut()
        time.sleep(0.3)
        answers = probe.results()[bench.host.v4]
    assert answers.gaps == ()
    assert answers.silent_ms >= 290


def test_loss_takes_its_share(bench: Bench) -> None:
    with bench.probe() as probe:
        probe.wait_answer(bench.host.v4)
        bench.host.cable.lose(20, "out")
        time.sleep(2)
        bench.host.cable.mend()
        time.sleep(0.1)
        answers = probe.results()[bench.host.v4]
    assert 250 <= answers.lost <= 550, "about 400 of 2,000"


def test_a_confined_program_has_two_capabilities_and_a_read_only_disk(bench: Bench) -> None:
    inside = Confinement(
        netns=NETNS / bench.host.namespace,
        run_folder=bench.host.run_folder,
        hostname="h1",
        capabilities=SPEAKER_CAPABILITIES,
    )
    script = (
        "grep -E '^(CapPrm|CapBnd|CapAmb|NoNewPrivs)' /proc/self/status | tr -s '\\t\\n' '  '; hostname;"
        " touch /probe /proc/sys/net/ipv4/ip_forward 2>&1; echo 1 2>&1 > /proc/sys/net/ipv4/ip_forward;"
        " touch /run/holdfast/mine && ls /run/holdfast /sys/class/net"
    )
    done = subprocess.run(inside.argv(["sh", "-c", script]), capture_output=True, text=True, check=True)
    words = done.stdout + done.stderr
    assert "CapPrm: 0000000000003000 CapBnd: 0000000000003000 CapAmb: 0000000000000000 NoNewPrivs: 1" in words
    assert "h1\n" in words
    assert words.count("Read-only file system") >= 2
    assert "mine" in words
    assert "eth0" in words


def _holder(tmp_path: Path) -> "subprocess.Popen[str]":
    """Another process with a run of its own, which prints its id."""
    script = (
        "import time\nfrom tests.rig.run import Run, end_on_sigterm\nend_on_sigterm()\n"
        "with Run() as run:\n"
        "    run.add_namespace('x')\n    run.start('sleep', ['sleep', '600'])\n"
        "    print(run.id, flush=True)\n    time.sleep(600)\n"
    )
    env = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_ended_run_leaves_nothing(rig_ready: None, tmp_path: Path, number: signal.Signals) -> None:  # noqa: ARG001
    holder = _holder(tmp_path)
    assert holder.stdout is not None
    run_id = holder.stdout.readline().strip()
    assert (NETNS / f"{run_id}-x").exists()
    holder.send_signal(number)
    holder.communicate(timeout=20)
    assert not (NETNS / f"{run_id}-x").exists()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_swept_and_a_living_run_is_let_alone(
    rig_ready: None,  # noqa: ARG001  as above
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed, living = _holder(tmp_path), _holder(tmp_path)
    assert killed.stdout is not None
    assert living.stdout is not None
    dead_id, live_id = killed.stdout.readline().strip(), living.stdout.readline().strip()
    killed.kill()
    killed.communicate()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    try:
        assert sweep() == [dead_id]
        assert not (NETNS / f"{dead_id}-x").exists()
        assert (NETNS / f"{live_id}-x").exists()
    finally:
        living.terminate()
        living.communicate(timeout=20)
    assert not (NETNS / f"{live_id}-x").exists()


def test_an_address_that_never_answers_is_told_as_such(bench: Bench) -> None:
    with Probe(bench.run, bench.client, ["192.0.2.99"]) as probe:
        with pytest.raises(RigError, match=r"192\.0\.2\.99 did not answer"):
            probe.wait_answer("192.0.2.99", 0.3)
        answers = probe.result()
    assert answers.sent > 100
    assert (answers.answered, answers.first_answer, answers.macs) == (0, None, {})


SHARED4, SHARED6 = "192.0.2.100", "fd00:192:0:2::100"


def bind(host: Host, *, verb: str = "add") -> None:
    """Both shared addresses, without duplicate address detection, as any address that moves."""
    lines = f"address {verb} {SHARED4}/32 dev eth0\naddress {verb} {SHARED6}/128 dev eth0"
    command("ip", "-n", host.namespace, "-batch", "-", stdin=lines + (" nodad\n" if verb == "add" else "\n"))


def test_a_witness_sees_two_that_answer_for_one_address_and_for_how_long(bench: Bench) -> None:
    """Whoever the client's cache points to: it does not change, and does not matter."""
    other = Host(bench.run, "h2", bench.segment, 12)
    wait_for_dad([other.namespace])
    bind(bench.host)
    with Probe(bench.run, bench.client, [SHARED4, SHARED6]) as probe:
        for address in (SHARED4, SHARED6):
            probe.wait_answer(address)
        with Witness(bench.segment, SHARED4, SHARED6) as witness:
            time.sleep(0.3)
            begin = time.monotonic()
            bind(other)
            time.sleep(0.4)
            bind(other, verb="del")
            both_ms = (time.monotonic() - begin) * 1000
            time.sleep(0.3)
        results = probe.results()
    for account in witness.accounts:
        assert 350 <= account.double_ms <= witness.room_ms(both_ms + 10)
        assert len(account.doubled()) >= 40, "each 5 ms, but where the machine was busy"
        assert set(account.macs) == {bench.host.mac, other.mac}
        assert account.macs[bench.host.mac] >= 150
        assert set(results[account.address].macs) == {bench.host.mac}, "the questions moved no cache"
        assert bench.host.mac in neighbour(bench.run.namespace_name("client"), account.address)
    assert witness.double_ms == max(a.double_ms for a in witness.accounts)


STALL = """
import os, time
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(90))
until = time.monotonic() + 0.06
while time.monotonic() < until:
    pass
"""


def test_a_processor_that_was_away_is_told_and_allowed_for(bench: Bench) -> None:
    """Here it does something more urgent than we are; a virtual one may be waiting for its host."""
    with Witness(bench.segment, SHARED4) as witness:
        time.sleep(0.1)
        subprocess.run([sys.executable, "-c", STALL], check=True)
        time.sleep(0.1)
    assert witness.stalled_ms >= 40
    assert witness.room_ms(100) >= 140
    assert (room_ms(100, 5.0), room_ms(100, 5.0, 30.0)) == (100, 130)


def test_a_witness_sees_one_holder_as_one_also_when_the_address_moves(bench: Bench) -> None:
    other = Host(bench.run, "h2", bench.segment, 12)
    wait_for_dad([other.namespace])
    bind(bench.host)
    with Witness(bench.segment, SHARED4, SHARED6) as witness:
        time.sleep(0.2)
        bind(bench.host, verb="del")
        bind(other)
        time.sleep(0.2)
    assert (witness.doubled, witness.double_ms) == (0, 0.0)
    assert set(witness.macs) == {bench.host.mac, other.mac}


def test_a_witness_hears_adverts_and_announcements(bench: Bench) -> None:
    advert = struct.pack("!BBBBHH4s", 0x31, 7, 200, 1, 10, 0, socket.inet_aton(SHARED4))
    mac = bytes.fromhex(bench.host.mac.replace(":", ""))
    gratuitous = b"\xff" * 6 + mac + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1)
    gratuitous += mac + socket.inet_aton(SHARED4) + bytes(6) + socket.inet_aton(SHARED4)
    netns = NETNS / bench.host.namespace
    with (
        Witness(bench.segment, SHARED4) as witness,
        socket_in(netns, socket.AF_INET, socket.SOCK_RAW, 112) as raw,
        socket_in(netns, socket.AF_PACKET, socket.SOCK_RAW, 0) as packet,
    ):
        packet.bind(("eth0", 0))
        raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(bench.host.v4))
        raw.sendto(advert, ("224.0.0.18", 0))
        time.sleep(0.1)
        between = time.monotonic()
        packet.send(gratuitous)
        time.sleep(0.1)
        raw.sendto(advert, ("224.0.0.18", 0))
        time.sleep(0.1)
    assert len(witness.adverts(bench.host.v4)) == 2
    assert len(witness.adverts(bench.host.v4, since=between)) == 1
    assert [h.what for h in witness.announcements(bench.host.mac)] == [SHARED4]
    assert witness.macs == {}
    assert witness.adverts("192.0.2.12") == witness.announcements("00:00:00:00:00:01") == []


@pytest.mark.parametrize(
    ("answers", "shared"),
    [
        ("aabb", []),
        ("a.bb", []),
        ("ab?b", [1, 2]),
        ("aa?bb", []),
        ("a??b", [1, 2]),
        ("a?a", [1]),
        ("?", [0]),
        ("abba", [1, 2]),
        ("abab", [1, 2]),
        ("ab..a", [1]),
        ("abbbbbbbbbbba", []),
    ],
    ids=[
        "moves",
        "gap",
        "both",
        "moves under way",
        "both for long",
        "both once",
        "both only",
        "there and back",
        "in turn",
        "with silence",
        "back after 55 ms",
    ],
)
def test_questions_that_two_hosts_shared(answers: str, shared: list[int]) -> None:
    """``.``: nobody answered, ``?``: both did. One question each 5 ms."""
    came = [
        Answer(0.0, i, mac) for i, who in enumerate(answers) for mac in {".": "", "?": "ab"}.get(who, who)
    ]
    account = Account("x", tuple(0.005 * i for i in range(len(answers))), tuple(came))
    assert account.shared() == shared
    assert account.double_ms == pytest.approx(5.0 * len(shared))


def test_a_benchmark_names_parents_first_and_knows_its_faults(bench: Bench) -> None:
    """Only the parent is asked to end; all are killed."""
    bench.host.start("family", ["sh", "-c", "sleep 60 & sleep 60 & wait"])
    deadline = time.monotonic() + 5
    while len(pids := processes(bench.host)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert Path(f"/proc/{pids[0]}/comm").read_text() == "sh\n"
    assert len(pids) == 3
    assert chosen("stop, kill") == (KILL, STOP)
    with pytest.raises(ValueError, match="no fault flood: there are crash, kill, stall, stop"):
        chosen("kill,flood")


def test_ours_and_theirs_are_compared_by_gap_and_by_two_answers() -> None:
    def figure(label: str, gap_ms: float, double_ms: float) -> Figure:
        outcomes = [Outcome(gap_ms, 0, 0.0, 0, 1.0), Outcome(gap_ms / 2, 0, double_ms, 0, 1.0)]
        return Figure(label, {"silent crash": outcomes}, 50.0, 0.5)

    ours, theirs = figure("Holdfast, 10 ms", 30.0, 0.0), figure("keepalived, 10 ms", 40.0, 4975.0)
    text = compare([ours, theirs], "silent crash")
    assert "0.75 times keepalived's" in text
    assert "with Holdfast in 0 of 2 faults, 0 ms at most" in text
    assert "with the others in 1 of 2 faults, 4,975 ms at most" in text
