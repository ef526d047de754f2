# SPDX-License-Identifier: Apache-2.0
"""Who takes part in the benchmark: Holdfast, keepalived, ucarp, with one address on the same hosts."""

import time
from dataclasses import dataclass
from typing import Final, Protocol

from tests.rig.cluster import Cluster
from tests.rig.faults import end_all
from tests.rig.peers import Keepalived, Ucarp

ADDRESS: Final = "192.0.2.100"


class Contestant(Protocol):
    """Something that keeps ADDRESS alive on the hosts of a cluster."""

    @property
    def label(self) -> str: ...

    @property
    def return_seconds(self) -> float:
        """About how long ``come_back`` takes."""
        ...

    def enter(self, cluster: Cluster) -> None:
        """Runs on every host, and the address is held by one."""
        ...

    def come_back(self, cluster: Cluster, host: str) -> None:
        """The host has just booted, another one holds the address: runs there again, as a steady standby."""
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

    @property
    def return_seconds(self) -> float:
        return 5.5

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
        cluster.wait_speakers([host])  # in this life: its last one may have reported itself a Backup too

        def stands_by() -> bool:
            status = (cluster.api.get("Speaker", host) or {}).get("status") or {}
            states = [router["state"] for router in status.get("routers", [])]
            return states == ["Backup"] and len(cluster.holders(ADDRESS)) == 1

        cluster.wait_until(f"{host} stands by again", stands_by, timeout_s=30)
        cluster.wait_until("one Active, as the status says", lambda: len(cluster.active("bench")) == 1)

    def leave(self, cluster: Cluster) -> None:
        cluster.api.delete_all("VirtualIP")
        cluster.wait_until("the address is released", lambda: not cluster.holders(ADDRESS))
        for host in cluster.hosts.values():
            host.stop_speaker()
            host.boot()  # no rule of ours disturbs the next one


@dataclass(frozen=True, slots=True)
class Peer:
    """keepalived or ucarp."""

    program: Keepalived | Ucarp

    @property
    def label(self) -> str:
        return self.program.label

    @property
    def return_seconds(self) -> float:
        return self.program.settle_seconds

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


def contestants() -> list[Contestant]:
    """All of them, in the order of the table."""
    return [
        Holdfast(100),
        Holdfast(10),
        Peer(Keepalived(ADDRESS, 100)),
        Peer(Keepalived(ADDRESS, 10)),
        Peer(Keepalived(ADDRESS)),
        Peer(Ucarp(ADDRESS)),
    ]
