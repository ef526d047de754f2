# SPDX-License-Identifier: Apache-2.0
"""What the benchmark does to the host that holds the address, and how long it then looks on.

Each fault is for all that a contestant runs on the host, in one moment: of keepalived its parent and its
child, which would otherwise restart or mourn each other.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.rig.cluster import Cluster
from tests.rig.figures import Outcome
from tests.rig.hosts import Host
from tests.rig.probe import Probe
from tests.rig.run import RigError, command
from tests.rig.witness import Witness

STALL_SECONDS: Final = 5.0
WOKEN_SECONDS: Final = 2.0  # in which a woken process's adverts are counted


@dataclass(frozen=True, slots=True)
class Fault:
    """``key`` names it on the command line, ``title`` in the table; ``watch_seconds``: how long it takes."""

    key: str
    title: str
    watch_seconds: float


CRASH: Final = Fault("crash", "silent crash", 2.5)
KILL: Final = Fault("kill", "SIGKILL", 6.0)
STALL: Final = Fault("stall", f"SIGSTOP for {STALL_SECONDS:.0f} s", STALL_SECONDS + 3.0)
STOP: Final = Fault("stop", "planned stop", 5.0)
FAULTS: Final = (CRASH, KILL, STALL, STOP)


def processes(host: Host) -> list[int]:
    """All that runs on the host, parents first."""
    pids = [int(pid) for pid in command("ip", "netns", "pids", host.namespace, check=False).split()]
    return sorted(pids, key=lambda pid: _parent(pid) in pids)


def strike(cluster: Cluster, address: str, fault: Fault, wait_seconds: float) -> Outcome:
    """The fault hits the only holder of the address ``wait_seconds`` after the first answer."""
    (holder,) = cluster.holders(address)
    host = cluster.hosts[holder]
    pids = processes(host)
    if not pids:
        raise RigError(f"{holder} holds {address}, but nothing runs there")
    woken = None
    with Witness(cluster.segment, address) as witness, cluster.probe(address) as probe:
        probe.wait_answer(address)
        time.sleep(wait_seconds)
        moment = time.monotonic()
        match fault.key:
            case CRASH.key:
                _lose_power(host, probe, address, moment)
            case KILL.key:
                send(pids, signal.SIGSTOP)  # a keepalived child ends in good order when its parent dies
                send(pids, signal.SIGKILL)
                time.sleep(fault.watch_seconds)
            case STALL.key:
                send(pids, signal.SIGSTOP)
                time.sleep(STALL_SECONDS)
                woken = time.monotonic()
                send(pids, signal.SIGCONT)
                time.sleep(fault.watch_seconds - STALL_SECONDS)
            case STOP.key:
                send(pids[:1], signal.SIGTERM)
                time.sleep(fault.watch_seconds)
        witness.stop()
        answers = probe.result()
    longest = max((gap.ms for gap in answers.gaps if gap.start >= moment - 0.01), default=0.0)
    adverts = [] if woken is None else witness.adverts(host.v4, since=woken, until=woken + WOKEN_SECONDS)
    return Outcome(
        gap_ms=max(longest or min(answers.longest_gap_ms, 5.0), answers.silent_ms),
        lost=answers.lost,
        double_ms=witness.double_ms,
        adverts_when_woken=len(adverts),
        late_ms=max(answers.late_ms, witness.late_ms),
    )


def restore(cluster: Cluster, address: str, host: str) -> None:
    """Ends what is left on the host and boots it; another one holds the address then."""
    machine = cluster.hosts[host]
    end_all(machine)
    machine.boot()

    def taken_over() -> bool:
        holders = cluster.holders(address)
        return len(holders) == 1 and host not in holders

    cluster.wait_until(f"another than {host} holds {address}", taken_over, timeout_s=20)


def end_all(host: Host) -> None:
    """SIGKILL to all that runs on the host, and wait until it is gone."""
    host.kill_speaker()
    deadline = time.monotonic() + 5
    while pids := processes(host):
        if time.monotonic() > deadline:
            raise RigError(f"{host.name}: still runs after SIGKILL: {pids}")
        send(pids, signal.SIGKILL)
        time.sleep(0.01)


def chosen(names: str) -> tuple[Fault, ...]:
    """The faults with these names, separated by commas; all for "". Raises ValueError."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = set(wanted) - {fault.key for fault in FAULTS}
    if unknown:
        known = ", ".join(fault.key for fault in FAULTS)
        raise ValueError(f"no fault {', '.join(sorted(unknown))}: there are {known}")
    return tuple(fault for fault in FAULTS if not wanted or fault.key in wanted)


def _lose_power(host: Host, probe: Probe, address: str, moment: float) -> None:
    host.lose_power()
    end_all(host)
    probe.wait_gap(address, after=moment, timeout_s=30)
    time.sleep(0.5)


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """The signal to each; who has ended already is no error."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _parent(pid: int) -> int:
    """0 when it has just ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0
