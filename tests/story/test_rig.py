# SPDX-License-Identifier: Apache-2.0
"""The rig itself: what it claims about silence, loss and its own clean-up, shown with plain hosts."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.confinement import ROOT, Confinement
from tests.rig.hosts import SPEAKER_CAPABILITIES, Host
from tests.rig.network import Segment, wait_for_dad
from tests.rig.probe import Probe
from tests.rig.run import NETNS, RigError, Run, sweep

pytestmark = pytest.mark.netns


class Bench:
    """One host and one client on a switch; no cluster."""

    def __init__(self, run: Run) -> None:
        self.run = run
        segment = Segment(run)
        self.host = Host(run, "h1", segment, 11)
        self.client = run.add_namespace("client")
        segment.connect("client", 251, port="client", careful=False)
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
    for gap in gaps:
        assert 300 <= gap.ms <= silent_ms + 20
        assert gap.lost == pytest.approx(gap.ms, abs=30), "one request each millisecond"
        assert gap.mac_before == gap.mac_after == bench.host.mac
    for answers in results.values():
        assert list(answers.macs) == [bench.host.mac]
        assert answers.sent - answers.answered == pytest.approx(gaps[0].lost, abs=60)


@pytest.mark.parametrize("direction", ["in", "out"])
def test_one_way_is_enough_to_be_silent(bench: Bench, direction: str) -> None:
    with bench.probe() as probe:
        probe.wait_answer(bench.host.v4)
        bench.host.cable.cut("in" if direction == "in" else "out")
        time.sleep(0.2)
        bench.host.cable.mend()
        assert probe.wait_gap(bench.host.v4).ms >= 200


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
