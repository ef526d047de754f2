# SPDX-License-Identifier: Apache-2.0
"""``make bench``: Holdfast, keepalived and ucarp lose power in turn, on the same hosts, under one probe.

A crash here is silent: the cables of the Active's host fall dead in one moment with the link up, and
what ran there is killed. A client asks 1,000 times a second; the gap is the time without an answer.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from tests.rig.binaries import say_on_stderr
from tests.rig.cluster import Cluster
from tests.rig.confinement import ROOT
from tests.rig.figures import Figure, draw, percentile, table
from tests.rig.hosts import Host
from tests.rig.peers import Keepalived, Ucarp
from tests.rig.run import RigError, command, end_on_sigterm

ADDRESS: Final = "192.0.2.100"
CALM_SECONDS: Final = 10.0
FULL_CAPABILITIES: Final = ("net_admin", "net_raw", "sys_nice")


class Contestant(Protocol):
    """Something that keeps ADDRESS alive on the hosts of a cluster."""

    @property
    def label(self) -> str: ...

    def enter(self, cluster: Cluster) -> None:
        """Runs on every host, and the address is held by one."""
        ...

    def come_back(self, cluster: Cluster, host: str) -> None:
        """The host that crashed has booted: runs there again, as a steady standby."""
        ...

    def leave(self, cluster: Cluster) -> None:
        """Nothing of it is left on any host."""
        ...


@dataclass(frozen=True, slots=True)
class Holdfast:
    """Ours, with the whole cluster around it."""

    interval_ms: int

    @property
    def label(self) -> str:
        return f"Holdfast, {self.interval_ms} ms" + (" (default)" if self.interval_ms == 100 else "")

    def enter(self, cluster: Cluster) -> None:
        for host in cluster.hosts.values():
            if host.speaker is None or not host.speaker.running():
                host.boot()
                cluster.start_speaker(host.name)
        cluster.wait_speakers()
        cluster.apply(
            "apiVersion: holdfast.dev/v1alpha1\nkind: VirtualIP\n"
            "metadata: {name: bench, namespace: default}\n"
            f"spec: {{address: {ADDRESS}, failover: {{advertIntervalMilliseconds: {self.interval_ms}}}}}\n"
        )
        cluster.wait_ready("bench")

    def come_back(self, cluster: Cluster, host: str) -> None:
        cluster.start_speaker(host)

        def stands_by() -> bool:
            status = (cluster.api.get("Speaker", host) or {}).get("status") or {}
            states = [router["state"] for router in status.get("routers", [])]
            fresh = any(nic["listened"] for nic in status.get("interfaces", []))
            return fresh and states == ["Backup"] and len(cluster.holders(ADDRESS)) == 1

        cluster.wait_until(f"{host} stands by again", stands_by, timeout_s=30)
        cluster.wait_until("one Active, as the status says", lambda: len(cluster.active("bench")) == 1)

    def leave(self, cluster: Cluster) -> None:
        cluster.api.delete_all("VirtualIP")
        cluster.wait_until("the address is released", lambda: not cluster.holders(ADDRESS))
        for host in cluster.hosts.values():
            host.stop_speaker()


@dataclass(frozen=True, slots=True)
class Peer:
    """keepalived or ucarp."""

    program: Keepalived | Ucarp

    @property
    def label(self) -> str:
        return self.program.label

    def enter(self, cluster: Cluster) -> None:
        for rank, host in enumerate(cluster.hosts.values()):
            self.program.start(host, rank)
        cluster.wait_until("one holder", lambda: len(cluster.holders(ADDRESS)) == 1, timeout_s=20)
        time.sleep(self.program.settle_seconds)

    def come_back(self, cluster: Cluster, host: str) -> None:
        self.program.start(cluster.hosts[host], list(cluster.hosts).index(host))
        time.sleep(self.program.settle_seconds)
        cluster.wait_until("one holder", lambda: len(cluster.holders(ADDRESS)) == 1, timeout_s=20)

    def leave(self, cluster: Cluster) -> None:
        for host in cluster.hosts.values():
            end_all(host)
            host.boot()


def end_all(host: Host) -> None:
    """SIGKILL to all that runs on the host, and wait until it is gone."""
    deadline = time.monotonic() + 5
    while pids := command("ip", "netns", "pids", host.namespace, check=False).split():
        if time.monotonic() > deadline:
            raise RigError(f"{host.name}: still runs after SIGKILL: {pids}")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.01)


@dataclass(slots=True)
class Usage:
    """What a contestant uses on one host: resident bytes and CPU seconds, all its processes."""

    rss_bytes: int = 0
    cpu_seconds: float = 0.0

    @classmethod
    def of(cls, host: Host) -> "Usage":
        usage = cls()
        ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
        for pid in command("ip", "netns", "pids", host.namespace).split():
            try:
                usage.rss_bytes += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            usage.cpu_seconds += (int(fields[11]) + int(fields[12])) / ticks
        return usage


@dataclass(slots=True)
class Results:
    """One contestant's run."""

    label: str
    gaps_ms: list[float] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    rss_bytes: float = 0.0
    cpu_share: float = 0.0
    latest_probe_ms: float = 0.0

    def figure(self) -> Figure:
        return Figure(
            label=self.label,
            gaps_ms=tuple(self.gaps_ms),
            lost=tuple(self.lost),
            rss_mib=self.rss_bytes / 2**20,
            cpu_percent=self.cpu_share * 100,
        )


def measure(cluster: Cluster, contestant: Contestant, crashes: int, dice: random.Random) -> Results:
    """Enters the contestant, watches it idle, crashes its Active ``crashes`` times, and clears it away."""
    results = Results(contestant.label)
    contestant.enter(cluster)
    _calm(cluster, results)
    for number in range(1, crashes + 1):
        gap = _crash(cluster, contestant, results, dice)
        cluster.say(f"  {contestant.label}: crash {number} of {crashes}: {gap:.0f} ms")
    contestant.leave(cluster)
    return results


def _calm(cluster: Cluster, results: Results) -> None:
    before = {name: Usage.of(host) for name, host in cluster.hosts.items()}
    time.sleep(CALM_SECONDS)
    after = {name: Usage.of(host) for name, host in cluster.hosts.items()}
    results.rss_bytes = max(usage.rss_bytes for usage in after.values())
    spent = [after[name].cpu_seconds - before[name].cpu_seconds for name in after]
    results.cpu_share = max(spent) / CALM_SECONDS


def _crash(cluster: Cluster, contestant: Contestant, results: Results, dice: random.Random) -> float:
    (holder,) = cluster.holders(ADDRESS)
    host = cluster.hosts[holder]
    with cluster.probe(ADDRESS) as probe:
        probe.wait_answer(ADDRESS)
        time.sleep(0.5 + dice.random())
        moment = time.monotonic()
        host.lose_power()
        end_all(host)
        gap = probe.wait_gap(ADDRESS, after=moment, timeout_s=30)
        time.sleep(0.5)
        answers = probe.result()
    results.gaps_ms.append(gap.ms)
    results.lost.append(answers.lost)
    results.latest_probe_ms = max(results.latest_probe_ms, answers.late_ms)
    host.boot()
    contestant.come_back(cluster, holder)
    return gap.ms


def contestants() -> list[Contestant]:
    return [
        Holdfast(100),
        Holdfast(10),
        Peer(Keepalived(ADDRESS, 100)),
        Peer(Keepalived(ADDRESS, 10)),
        Peer(Keepalived(ADDRESS)),
        Peer(Ucarp(ADDRESS)),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--crashes", type=int, default=20, help="silent crashes for each (default 20)")
    parser.add_argument("--only", default="", help="only contestants whose name contains this")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the crashes")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where benchmark.md and .svg go")
    options = parser.parse_args(arguments)
    chosen = [c for c in contestants() if options.only.lower() in c.label.lower()]
    if not chosen:
        parser.error(f"--only {options.only}: there are {', '.join(c.label for c in contestants())}")
    end_on_sigterm()
    minutes = len(chosen) * options.crashes * 7 // 60 + 2
    say_on_stderr(f"{len(chosen)} contestants, {options.crashes} crashes each: about {minutes} minutes.")
    results: list[Results] = []
    try:
        with Cluster(hosts=3, capabilities=FULL_CAPABILITIES) as cluster:
            for host in cluster.hosts.values():
                host.stop_speaker()
            for contestant in chosen:
                cluster.say(f"{contestant.label}:")
                results.append(measure(cluster, contestant, options.crashes, random.Random(options.seed)))
    except KeyboardInterrupt:
        return 130
    except RigError as error:
        say_on_stderr(f"make bench: {error}")
        return 1
    figures = [result.figure() for result in results]
    late_ms = max(result.latest_probe_ms for result in results)
    text = table(figures, late_ms=late_ms)
    sys.stdout.write(text)
    if not options.only:
        draw(figures, options.docs / "benchmark.svg")
        (options.docs / "benchmark.md").write_text(_page(text, figures, options.crashes))
    return 0


def _page(text: str, figures: Sequence[Figure], crashes: int) -> str:
    ours = next(f for f in figures if f.label == "Holdfast, 10 ms")
    theirs = next(f for f in figures if f.label == "keepalived, 10 ms")
    ratio = percentile(ours.gaps_ms, 99) / percentile(theirs.gaps_ms, 99)
    return (
        "# Benchmark\n\n"
        "Written by `make bench`. Three hosts (network namespaces) on one switch, a real Kubernetes control\n"
        "plane beside them, all on one machine; a client asks 1,000 times a second. The host of the Active\n"
        f"loses its power silently (link up) {crashes} times for each; the gap is the time without an\n"
        "answer. Nobody preempts.\n\n"
        f"{text}\n"
        f"At 10 ms adverts Holdfast's p99 gap is {ratio:.2f} times keepalived's.\n\n"
        "![gaps](benchmark.svg)\n"
    )


if __name__ == "__main__":
    sys.exit(main())
