# SPDX-License-Identifier: Apache-2.0
"""``make bench``: Holdfast, keepalived and ucarp meet the same faults in turn, on the same hosts.

Two parts: gaps, and addresses with a MAC of their own (tests.rig.virtual_macs); each writes its own part
of docs/benchmark.md. Of the first:

Four faults hit the host that holds the address (tests.rig.faults): it loses power silently, its process
is killed, is stopped for five seconds, is asked to end. A client asks 1,000 times a second; a witness
asks who has the address each 5 ms and notes when two hosts answer.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from tests.rig import virtual_macs
from tests.rig.binaries import say_on_stderr
from tests.rig.cluster import Cluster
from tests.rig.confinement import ROOT
from tests.rig.contestants import ADDRESS, Contestant, contestants
from tests.rig.faults import CRASH, FAULTS, STALL, STOP, Fault, chosen, restore, strike
from tests.rig.figures import (
    Figure,
    Moves,
    Outcome,
    compare,
    draw,
    moves_notes,
    moves_table,
    notes,
    paragraph,
    table,
)
from tests.rig.hosts import Host
from tests.rig.run import RigError, command, end_on_sigterm

CALM_SECONDS: Final = 10.0
START_SECONDS: Final = 30.0  # the cluster's
AROUND_SECONDS: Final = 3.0  # a fault: start of probe and witness, the first answer, the moment, the boot
_SECOND: Final = "## Virtual MACs\n"
FULL_CAPABILITIES: Final = ("net_admin", "net_raw", "sys_nice")


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
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    rss_bytes: float = 0.0
    cpu_share: float = 0.0

    def figure(self) -> Figure:
        return Figure(
            label=self.label,
            outcomes=self.outcomes,
            rss_mib=self.rss_bytes / 2**20,
            cpu_percent=self.cpu_share * 100,
        )


@dataclass(frozen=True, slots=True)
class Programme:
    """Which faults, how often each, and the seed of their moments."""

    faults: tuple[Fault, ...]
    rounds: dict[str, int]
    seed: int


def measure(cluster: Cluster, contestant: Contestant, programme: Programme) -> Results:
    """Enters the contestant, watches it idle, lets the faults hit its Active, and clears it away."""
    results = Results(contestant.label)
    contestant.enter(cluster)
    _calm(cluster, results)
    for fault in programme.faults:
        dice = random.Random(f"{programme.seed}/{fault.key}")  # the same moments, whatever else is measured
        results.outcomes[fault.title] = []
        for number in range(1, programme.rounds[fault.key] + 1):
            (holder,) = cluster.holders(ADDRESS)
            outcome = strike(cluster, ADDRESS, fault, 0.5 + dice.random())
            results.outcomes[fault.title].append(outcome)
            cluster.say(_progress(contestant, fault, number, programme.rounds[fault.key], outcome))
            restore(cluster, ADDRESS, holder)
            contestant.come_back(cluster, holder)
    contestant.leave(cluster)
    return results


def _progress(contestant: Contestant, fault: Fault, number: int, rounds: int, outcome: Outcome) -> str:
    text = f"  {contestant.label}: {fault.title} {number} of {rounds}: gap {outcome.gap_ms:.0f} ms"
    if fault == STOP:
        text += f", {outcome.lost} lost"
    if fault == STALL:
        text += f", {outcome.adverts_when_woken} adverts after waking"
    return text + (f", two answered for {outcome.double_ms:.0f} ms" if outcome.double_ms else "")


def _calm(cluster: Cluster, results: Results) -> None:
    before = {name: Usage.of(host) for name, host in cluster.hosts.items()}
    time.sleep(CALM_SECONDS)
    after = {name: Usage.of(host) for name, host in cluster.hosts.items()}
    results.rss_bytes = max(usage.rss_bytes for usage in after.values())
    spent = [after[name].cpu_seconds - before[name].cpu_seconds for name in after]
    results.cpu_share = max(spent) / CALM_SECONDS


def run(taking_part: Sequence[Contestant], programme: Programme, results: list[Results]) -> None:
    """All of it, in one cluster; ``results`` grows as they come. Raises RigError."""
    with Cluster(hosts=3, capabilities=FULL_CAPABILITIES) as cluster:
        for host in cluster.hosts.values():
            host.stop_speaker()
            host.boot()
        for contestant in taking_part:
            cluster.say(f"{contestant.label}:")
            results.append(measure(cluster, contestant, programme))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--crashes", type=int, help="of each fault (default 20 silent crashes, 5 of the others)"
    )
    parser.add_argument(
        "--only", default="", help="only contestants whose name contains this; vmac: the virtual MACs"
    )
    parser.add_argument("--faults", default="", help=f"of {', '.join(f.key for f in FAULTS)} (default all)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the faults")
    parser.add_argument(
        "--docs", type=Path, help="where benchmark.md and .svg go (default docs/, if all was measured)"
    )
    options = parser.parse_args(arguments)
    wanted = options.only.lower()
    first = [c for c in contestants() if wanted in c.label.lower()]
    second = [c for c in virtual_macs.contestants() if wanted in f"vmac {c.label}".lower()]
    if not first and not second:
        labels = [c.label for c in contestants()] + [f"vmac {c.label}" for c in virtual_macs.contestants()]
        parser.error(f"--only {options.only}: there are {'; '.join(labels)}")
    try:
        faults = chosen(options.faults)
    except ValueError as error:
        parser.error(f"--faults: {error}")
    rounds = {fault.key: options.crashes or (20 if fault == CRASH else 5) for fault in faults}
    parts: list[Part] = []
    if first:
        parts.append(Gaps(first, Programme(faults, rounds, options.seed)))
    if second and set(faults) & set(virtual_macs.FAULTS):
        few = tuple(fault for fault in virtual_macs.FAULTS if fault in faults)
        parts.append(VirtualMACs(second, few, options.crashes or 5, options.seed))
    for part in parts:
        say_on_stderr(part.announced())
    end_on_sigterm()
    failure = 0
    for part in parts:
        try:
            part.run()
        except KeyboardInterrupt:
            return 130
        except RigError as error:
            say_on_stderr(f"make bench: {error}")
            failure = 1
        sys.stdout.write(part.report())
        whole = not failure and not options.faults and part.everybody
        docs = options.docs or (ROOT / "docs" if whole else None)
        if docs and part.report():
            part.write(docs)
    return failure


class Part(Protocol):
    """A table of the page."""

    @property
    def everybody(self) -> bool:
        """Whether all who could take part do."""
        ...

    def announced(self) -> str: ...

    def run(self) -> None:
        """Raises RigError; what came before it is in the report."""
        ...

    def report(self) -> str: ...

    def write(self, docs: Path) -> None:
        """Its part of benchmark.md; the others' stay as they are."""
        ...


class Gaps:
    """The first part: gaps, and who answers meanwhile."""

    def __init__(self, taking_part: Sequence[Contestant], programme: Programme) -> None:
        self._taking_part = taking_part
        self._programme = programme
        self._results: list[Results] = []

    @property
    def everybody(self) -> bool:
        return len(self._taking_part) == len(contestants())

    def _each(self) -> str:
        rounds = self._programme.rounds
        return ", ".join(f"{rounds[fault.key]} times {fault.title}" for fault in self._programme.faults)

    def announced(self) -> str:
        minutes = _minutes(self._taking_part, self._programme)
        return f"{len(self._taking_part)} contestants, {self._each()}: about {minutes:.0f} minutes."

    def run(self) -> None:
        run(self._taking_part, self._programme, self._results)

    def _figures(self) -> list[Figure]:
        return [result.figure() for result in self._results]

    def report(self) -> str:
        return _report(self._figures())

    def write(self, docs: Path) -> None:
        draw(self._figures(), docs / "benchmark.svg")
        put(docs, _page(self.report(), self._each()), None)


class VirtualMACs:
    """The second part: addresses with a MAC of their own."""

    def __init__(
        self, taking_part: Sequence[virtual_macs.Contestant], faults: Sequence[Fault], rounds: int, seed: int
    ) -> None:
        self._taking_part = taking_part
        self._faults = faults
        self._rounds = rounds
        self._seed = seed
        self._results: list[Moves] = []

    @property
    def everybody(self) -> bool:
        return len(self._taking_part) == len(virtual_macs.contestants())

    def announced(self) -> str:
        seconds = virtual_macs.seconds_of(self._taking_part, self._faults, self._rounds)
        each = ", ".join(f"{self._rounds} times {fault.title}" for fault in self._faults)
        return (
            f"Virtual MACs: {len(self._taking_part)} contestants, {each}: about {seconds / 60:.0f} minutes."
        )

    def run(self) -> None:
        virtual_macs.run(
            self._taking_part, self._faults, self._rounds, self._seed, say_on_stderr, self._results
        )

    def report(self) -> str:
        return f"{moves_table(self._results)}\n{moves_notes(self._results)}" if self._results else ""

    def write(self, docs: Path) -> None:
        put(docs, None, _second_page(self.report(), self._rounds))


def put(docs: Path, first: str | None, second: str | None) -> None:
    """Writes benchmark.md; a part that is None stays as it was."""
    path = docs / "benchmark.md"
    old_first, heading, old_second = (path.read_text() if path.exists() else "").partition(_SECOND)
    parts = (old_first if first is None else first, heading + old_second if second is None else second)
    path.write_text("\n\n".join(part.strip("\n") for part in parts if part) + "\n")


def _minutes(taking_part: Sequence[Contestant], programme: Programme) -> float:
    """About how long all of it takes."""
    seconds = START_SECONDS
    for contestant in taking_part:
        seconds += CALM_SECONDS + AROUND_SECONDS + contestant.return_seconds
        for fault in programme.faults:
            each = fault.watch_seconds + AROUND_SECONDS + contestant.return_seconds
            seconds += programme.rounds[fault.key] * each
    return seconds / 60


def _report(figures: Sequence[Figure]) -> str:
    shown = table(figures, stalls=[STALL.title], stops=[STOP.title])
    return f"{shown}\n{notes(figures)}\n{compare(figures, CRASH.title)}" if figures else ""


def _page(text: str, each: str) -> str:
    return (
        "# Benchmark\n\n"
        "Written by `make bench`. Three hosts (network namespaces) on one switch, a real Kubernetes control\n"
        "plane beside them, all on one machine. Faults hit the host that holds the address, for each\n"
        f"contestant {each}:\n\n"
        "- silent crash: all its cables fall dead in one moment, link up; what ran there is gone\n"
        "- SIGKILL and SIGSTOP: all processes of the contestant on that host (keepalived has two), the host\n"
        "  lives on; what was stopped goes on after 5 s\n"
        "- planned stop: SIGTERM\n\n"
        "A client asks 1,000 times a second. A witness on the switch asks each 5 ms who has the address, in\n"
        "a way that changes no cache, and notes when two hosts answer; it looks on for 6 s after a SIGKILL,\n"
        "3 s after waking, and longer times are cut off there. Then the host boots and stands by again.\n"
        "Nobody preempts.\n\n"
        f"{text}\n"
        "![gaps](benchmark.svg)\n"
    )


def _second_page(text: str, rounds: int) -> str:
    measured = paragraph(
        "Written by `make bench` (this part alone: `make bench ONLY=vmac`). Three hosts as above, without a"
        f" control plane; adverts each 100 ms; {rounds} times each fault. An ordinary client asks 1,000 times"
        " a second; a deaf one, which heeds no announcement (`drop_gratuitous_arp`) but learns from a"
        " question, and one with a static ARP entry for the virtual MAC ask 200 times. The switch forgets a"
        f" MAC after {virtual_macs.AGEING_SECONDS:.0f} s. Before each fault everybody's ARP cache is emptied,"
        " so that every new owner meets the clients for the first time. All look on for"
        f" {virtual_macs.WATCH_SECONDS:.0f} s after the fault, and longer gaps are cut off there. A recorder"
        " in the switch gets a copy of every frame that the hosts send in the name of the address or from its"
        " MAC."
    )
    who = paragraph(
        "`use_vmac` is keepalived's in its own way, with the sysctls that it sets by itself; then with those"
        " that its note on `use_vmac` recommends too (all.arp_ignore 1, all.arp_announce 1, eth0.arp_filter"
        " 1); then with `vmac_xmit_base`, which sends adverts from the NIC's MAC. A planned stop is SIGTERM,"
        " on which Holdfast hands over."
    )
    return f"{_SECOND}\n{measured}\n{who}\n{text}"


if __name__ == "__main__":
    sys.exit(main())
