# SPDX-License-Identifier: Apache-2.0
"""Whole speakers on hosts of their own, driven by the plan of a last run: the API is away all the time.

Confined as in their pods: NET_ADMIN and NET_RAW alone, no new privileges, /proc/sys read-only.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from holdfast_api.types import Candidate, Metadata, Owner, RouterAddress, VirtualRouter, VirtualRouterSpec
from holdfast_speaker.plan_file import PlanFile
from tests.rig.hosts import SPEAKER_CAPABILITIES, Host
from tests.rig.network import Segment, Station, wait_for_dad
from tests.rig.run import Run, command

V4, V6 = "192.0.2.100", "fd00:192:0:2::100"
LEADERS = (Candidate("h1", 250), Candidate("h2", 248), Candidate("h3", 240))
NOWHERE = """\
apiVersion: v1
kind: Config
current-context: x
contexts: [{name: x, context: {cluster: x, user: x}}]
clusters: [{name: x, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: x, user: {token: x}}]
"""


def router(
    number: int,
    *addresses: str,
    interval_ms: int = 100,
    candidates: Sequence[Candidate] = LEADERS,
    macs: Mapping[str, str] | None = None,
) -> VirtualRouter:
    """h1 leads, h2 and h3 follow; none of the addresses is new to the cluster.

    ``macs``: the virtual MAC of each address that has one.
    """
    macs = macs or {}
    return VirtualRouter(
        metadata=Metadata(name=f"vr-{number}", uid=f"uid-{number}", generation=1),
        spec=VirtualRouterSpec(
            virtual_router_id=number,
            addresses=tuple(
                RouterAddress(
                    address=a,
                    owner=Owner("default", f"vip-{a}", f"u-{a}"),
                    claimed=True,
                    mac_address=macs.get(a),
                )
                for a in addresses
            ),
            candidates=tuple(candidates),
            advert_interval_milliseconds=interval_ms,
            mode="VirtualMAC" if macs else "NodeMAC",
        ),
    )


_CHANGE = re.compile(r"^(\S+Z) INFO (Active|No longer Active) router=", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Change:
    """A host became Active, or ceased to be; ``at`` on the wall clock, to the millisecond."""

    at: float
    host: str
    active: bool


def _link_local(host: Host) -> str:
    shown = ["-6", "-o", "address", "show", "dev", host.cable.device, "scope", "link"]
    return command("ip", "-n", host.namespace, *shown).split()[3].partition("/")[0]


class Fleet:
    """A switch, a client (station 250) and ``hosts`` hosts with speakers that share a plan."""

    def __init__(self, run: Run, hosts: int = 3) -> None:
        self.run = run
        self.segment = Segment(run)
        self.client = run.add_namespace("client")
        self.client_cable = self.segment.connect("client", 250, port="client", careful=False)
        self.hosts = [Host(run, f"h{i}", self.segment, 10 + i) for i in range(1, hosts + 1)]
        wait_for_dad([host.namespace for host in self.hosts])

    def start(
        self,
        *routers: VirtualRouter,
        capabilities: Sequence[str] = SPEAKER_CAPABILITIES,
        hosts: Sequence[Host] | None = None,
    ) -> None:
        """The speakers of all hosts (or of these), with this plan."""
        self.routers, self.capabilities = routers, capabilities
        for host in self.hosts if hosts is None else hosts:
            self.start_host(host)

    def start_host(self, host: Host) -> None:
        """One more speaker with the plan of ``start``."""
        PlanFile(host.run_folder / "holdfast", host.name).save(self.routers, ())
        host.kubeconfig.write_text(NOWHERE)
        host.start_speaker(capabilities=self.capabilities)

    def until(self, what: str, look: Callable[[], object], seconds: float = 30.0) -> None:
        """Until ``look`` finds something; after ``seconds`` the test fails and shows the logs."""
        deadline = time.monotonic() + seconds
        while not look():
            logs = "\n".join(f"{host.name}:\n{host.speaker_log()}" for host in self.hosts)
            assert time.monotonic() < deadline, f"not in time: {what}\n{logs}"
            time.sleep(0.01)

    def until_up(self, *hosts: Host) -> None:
        """Their speakers run, and have had half a second to hear who is Active."""
        for host in hosts:
            self.until(f"the speaker of {host.name} is up", host.is_up)
        time.sleep(0.5)

    def candidates(self) -> tuple[Candidate, ...]:
        """All hosts, the first one leads; with what the others need to ask it whether it hears the Active."""
        return tuple(
            Candidate(host.name, priority, (host.v4, _link_local(host)), (host.mac,))
            for host, priority in zip(self.hosts, (250, 248, 240, 232), strict=False)
        )

    def station(self, host: Host) -> Station:
        return Station(host.cable, host.mac)

    def changes(self) -> list[Change]:
        """Every takeover and every end of one that the speakers' logs tell, in order."""
        found = []
        for host in self.hosts:
            log = host.speaker.log.read_text() if host.speaker is not None else ""
            found += [
                Change(datetime.fromisoformat(at).timestamp(), host.name, what == "Active")
                for at, what in _CHANGE.findall(log)
            ]
        return sorted(found, key=lambda change: change.at)

    def takeovers(self, since: float = 0.0) -> dict[str, int]:
        """How often each host became Active, from then on (wall clock)."""
        counts = Counter(change.host for change in self.changes() if change.active and change.at >= since)
        return {host.name: counts[host.name] for host in self.hosts}

    def holders(self, address: str = V4) -> list[str]:
        """The names of the hosts that have it on their NIC."""
        return [host.name for host in self.hosts if host.holds(address)]

    def until_held(self, *addresses: str) -> Host:
        """Until exactly one host holds each; the host of the first."""
        self.until("each held once", lambda: all(len(self.holders(a)) == 1 for a in addresses))
        name = self.holders(addresses[0])[0]
        return next(host for host in self.hosts if host.name == name)
