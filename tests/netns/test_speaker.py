# SPDX-License-Identifier: Apache-2.0
"""Whole speakers on hosts of their own (``tests.rig.fleet``): what one holds, leaves and costs."""

import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.rig.fleet import V4, V6, Fleet, router
from tests.rig.probe import Probe
from tests.rig.run import Run

pytestmark = pytest.mark.netns


@pytest.fixture
def fleet(rig_ready: None) -> Iterator[Fleet]:  # noqa: ARG001  root and tools, or a failure that says so
    with Run() as run:
        yield Fleet(run)


def rss_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS"))) / 1024


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def crash_gaps(fleet: Fleet, rounds: int) -> list[float]:
    """The client's gap, in ms, at each silent crash of the holder; it comes back with the same plan."""
    gaps = []
    for _ in range(rounds):
        holder = fleet.until_held(V4)
        time.sleep(0.5)
        with Probe(fleet.run, fleet.client, [V4]) as probe:
            probe.wait_answer(V4)
            time.sleep(0.3)
            crashed = time.monotonic()
            holder.lose_power()
            gaps.append(probe.wait_gap(V4, after=crashed - 0.1).ms)
        holder.boot()
        fleet.start_host(holder)
        time.sleep(1.5)
    return gaps


def test_one_host_takes_both_families_and_answers(fleet: Fleet) -> None:
    fleet.start(router(7, V4, V6))
    holder = fleet.until_held(V4, V6)
    assert fleet.holders(V6) == [holder.name]
    with Probe(fleet.run, fleet.client, [V4, V6]) as probe:
        assert probe.wait_answer(V4) > 0
        assert probe.wait_answer(V6) > 0
    time.sleep(1.0)
    assert fleet.holders(V4) == [holder.name]
    status = Path(f"/proc/{holder.running_speaker().pid}/status").read_text()
    assert f"CapEff:\t{(1 << 12 | 1 << 13):016x}" in status
    assert "NoNewPrivs:\t1" in status


@pytest.mark.parametrize(
    ("interval_ms", "capabilities", "at_most_ms"),
    [(100, ("net_admin", "net_raw"), 350), (10, ("net_admin", "net_raw", "sys_nice"), 70)],
)
def test_a_silent_crash_is_a_short_gap(
    fleet: Fleet, interval_ms: int, capabilities: tuple[str, ...], at_most_ms: float
) -> None:
    fleet.start(router(7, V4, interval_ms=interval_ms), capabilities=capabilities)
    gaps = crash_gaps(fleet, 4)
    print(f"adverts each {interval_ms} ms: gaps of {', '.join(f'{gap:.0f}' for gap in gaps)} ms")
    assert max(gaps) <= at_most_ms


def test_sigterm_leaves_only_the_plan_and_another_host_takes_over(fleet: Fleet) -> None:
    fleet.start(router(7, V4, V6))
    holder = fleet.until_held(V4, V6)
    with Probe(fleet.run, fleet.client, [V4]) as probe:
        probe.wait_answer(V4)
        started = time.monotonic()
        assert holder.stop_speaker() == 0
        assert time.monotonic() - started < 3.5
        assert holder.addresses() == []
        assert holder.ruleset() == ""
        assert [path.name for path in (holder.run_folder / "holdfast").iterdir()] == ["plan.json"]
        fleet.until_held(V4, V6)
        time.sleep(0.5)
        print(f"planned stop: longest gap {probe.result().longest_gap_ms:.0f} ms")


def test_a_flushed_address_is_back_at_once(fleet: Fleet) -> None:
    fleet.start(router(7, V4, V6))
    holder = fleet.until_held(V4, V6)
    time.sleep(1.0)
    for address in (V4, V6):
        full = "128" if ":" in address else "32"
        argv = ["ip", "-n", holder.namespace, "address", "del", f"{address}/{full}", "dev", "eth0"]
        subprocess.run(argv, check=True)
        fleet.until(f"{address} is back", partial(holder.holds, address), seconds=0.2)


def test_a_speaker_that_is_killed_leaves_addresses_that_the_kernel_removes(fleet: Fleet) -> None:
    fleet.start(router(7, V4))
    holder = fleet.until_held(V4)
    for host in fleet.hosts:
        host.running_speaker().signal(signal.SIGKILL)
    assert holder.holds(V4)
    fleet.until("the lifetime ends", lambda: not holder.holds(V4), seconds=35)


def test_memory_and_idle_cpu(fleet: Fleet) -> None:
    """12 routers with 1,000 addresses in all: Active on one host, Backup on the others."""
    routers = [
        router(n, *(f"192.0.2.{20 + n}", *(f"10.{n}.0.{i}" for i in range(1, 83)))) for n in range(1, 13)
    ]
    fleet.start(*routers)
    fleet.until("all are held", lambda: sum(len(h.addresses()) for h in fleet.hosts) == 12 * 83)
    time.sleep(8)  # the bursts after a takeover are over
    pids = {host.name: host.running_speaker().pid for host in fleet.hosts}
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    time.sleep(10)
    for name, pid in pids.items():
        share = (cpu_s(pid) - before[name]) / 10 * 100
        held = len(next(h for h in fleet.hosts if h.name == name).addresses())
        print(f"{name} holds {held} addresses: {rss_mib(pid):.1f} MiB, {share:.2f} % of a core")
        assert rss_mib(pid) <= 60
        assert share <= (5 if held else 3)
