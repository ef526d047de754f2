# SPDX-License-Identifier: Apache-2.0
"""``make demo``: a cluster, a VirtualIP, a crash without warning, and the gap that a client saw.

Says in plain words what was seen at each step. The exit code is 0 only when everything promised was seen;
the bounds are wide, since the machine may be busy (``make bench`` measures).
"""

import argparse
import contextlib
import os
import signal
import sys
import textwrap
import time
from pathlib import Path
from typing import Final

from tests.rig.binaries import MissingToolError
from tests.rig.cluster import Cluster
from tests.rig.probe import Gap, Probe
from tests.rig.run import RigError, end_on_sigterm

V4: Final = "192.0.2.10"
V6: Final = "fd00:192:0:2::100"
MANIFEST: Final = f"""\
apiVersion: holdfast.dev/v1alpha1
kind: VirtualIP
metadata: {{name: web, namespace: default}}
spec:
  address: {V4}
  group: web        # one group: always on the same node
---
apiVersion: holdfast.dev/v1alpha1
kind: VirtualIP
metadata: {{name: web-v6, namespace: default}}
spec:
  address: "{V6}"
  group: web
"""
FIRST_ANSWER_BOUND_MS: Final = 3000.0  # 600 is the aim
GAP_BOUND_MS: Final = 1000.0  # 350 is the aim
SILENCE_MS: Final = 20.0  # shorter ones are this machine's own hiccups
QUIET_SECONDS: Final = 5.0


def say(text: str = "") -> None:
    print(text, flush=True)


def show(text: str) -> None:
    """Somebody else's words, set apart."""
    say(textwrap.indent(text.rstrip() or "(nothing)", "    "))


class Demo:
    """The story, step by step; ``broken`` collects what was promised and not seen."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.broken: list[str] = []

    def expect(self, seen: bool, promise: str) -> None:
        if not seen:
            self.broken.append(promise)
            say(f"  NOT SEEN: {promise}")

    def tell(self) -> None:
        with self.cluster.probe(V4, V6) as probe:
            self.apply(probe)
            leader = self.look()
            self.crash(probe, leader)
            self.bring_back(leader)
            results = probe.results()
        gaps = ", ".join(f"{gap.ms:.0f} ms" for gap in results[V4].gaps if gap.ms > SILENCE_MS) or "none"
        self.expect(
            all(r.longest_gap_ms < GAP_BOUND_MS for r in results.values()),
            f"no silence of {GAP_BOUND_MS:.0f} ms or more in the whole story",
        )
        say(f"\nIn all, the client asked each address {results[V4].sent:,} times. Silences of {V4}: {gaps}.")

    def apply(self, probe: Probe) -> None:
        say("\n1. A user applies two VirtualIPs, an IPv4 and an IPv6 address that belong together:")
        show(MANIFEST)
        applied = time.monotonic()
        self.cluster.apply(MANIFEST)
        for address in (V4, V6):
            waited_ms = (probe.wait_answer(address, 15) - applied) * 1000
            say(f"   {address} answered the client {waited_ms:.0f} ms after it was applied.")
            promise = f"{address} answers within {FIRST_ANSWER_BOUND_MS:.0f} ms of the apply"
            self.expect(waited_ms <= FIRST_ANSWER_BOUND_MS, promise)

    def look(self) -> str:
        for name in ("web", "web-v6"):
            self.cluster.wait_ready(name)
        say("\n2. kubectl get vip -o wide")
        show(self.cluster.control_plane.kubectl("get", "vip", "-o", "wide"))
        (leader,) = self.cluster.active("web")
        host = self.cluster.hosts[leader]
        say(f"   {leader} holds both; it has them on its NIC, whose MAC is {host.mac}:")
        show(f"{leader}: {', '.join(host.addresses())}")
        self.expect(set(host.addresses()) == {V4, V6}, f"{leader} has both addresses bound")
        say("   The client's ARP and neighbour entries point there:")
        for address in (V4, V6):
            entry = self.cluster.neighbour(address)
            show(entry)
            self.expect(host.mac in entry, f"the client's entry for {address} is {leader}'s MAC")
        return leader

    def crash(self, probe: Probe, leader: str) -> None:
        say(f"\n3. {leader} loses its power without warning. Its link stays up, so that only silence tells.")
        moment = self.cluster.crash(leader)
        gaps = {address: probe.wait_gap(address, after=moment, timeout_s=15) for address in (V4, V6)}
        for address, gap in gaps.items():
            successor = self.whose(gap)
            say(f"   {address}: silent for {gap.ms:.0f} ms ({gap.lost} requests), then {successor} answers.")
            self.expect(gap.ms <= GAP_BOUND_MS, f"{address} answers again within {GAP_BOUND_MS:.0f} ms")
        successors = {self.whose(gap) for gap in gaps.values()}
        self.expect(len(successors) == 1 and leader not in successors, "both move to one other node")
        successor = successors.pop()
        self.cluster.wait_active("web", successor)
        say("   The API server had no part in it; the operator writes down afterwards what it saw:")
        show(self.cluster.control_plane.kubectl("get", "vip"))
        last = self.cluster.vip("web")["status"].get("lastFailover") or {}
        show("status.lastFailover: " + ", ".join(f"{key} {value}" for key, value in last.items()))
        self.expect(last.get("from") == leader, "the status tells from whom it was taken")
        for address in (V4, V6):
            show(self.cluster.neighbour(address))

    def whose(self, gap: Gap) -> str:
        """The host with the MAC that answered after the gap."""
        return next((n for n, h in self.cluster.hosts.items() if h.mac == gap.mac_after), gap.mac_after)

    def bring_back(self, crashed: str) -> None:
        before = self.cluster.active("web")
        say(f"\n4. {crashed} comes back, with empty hands. Nobody asked for a move, so nothing moves.")
        self.cluster.restore(crashed)
        self.cluster.wait_speakers([crashed])
        with self.cluster.probe(V4, V6) as quiet:
            time.sleep(QUIET_SECONDS)
            results = quiet.results()
        lost = sum(r.sent - r.answered for r in results.values())
        asked = sum(r.sent for r in results.values())
        say(f"   {QUIET_SECONDS:.0f} s of asking: {lost} of {asked:,} requests without an answer.")
        show(self.cluster.control_plane.kubectl("get", "vip"))
        self.expect(lost == 0, "no request is lost when the old node returns")
        self.expect(self.cluster.active("web") == before, f"{before} keep what they hold")
        self.expect(not self.cluster.hosts[crashed].addresses(), f"{crashed} binds nothing")


# --- KEEP=1 -------------------------------------------------------------------------------------------


def keep(cluster: Cluster) -> None:
    """Leaves it running, says how to play with it, and does what is typed until Ctrl-C."""
    folder = write_tools(cluster)
    client = cluster.run.namespace_name("client")
    say(f"\nIt keeps running until Ctrl-C. In another terminal, as root:\n\n    export PATH={folder}:$PATH")
    show(f"""\
kubectl get vip -o wide                   # this cluster's kubectl, with all rights
kubectl describe vip web
kubectl get vrouter,speaker -o yaml
on h1 ip -br address                      # any command on a host, here h1
ip netns exec {client} ping {V4}
ip netns exec {client} tcpdump -ni eth0 vrrp or arp
tail -f {cluster.run.logs}/*.log""")
    say("\nHere you can type (shells inside the namespaces end with this program):")
    show("crash HOST | unplug HOST | boot HOST | pause HOST | resume HOST | stop-api | start-api")
    if not sys.stdin.isatty():
        signal.pause()
    while True:
        try:
            words = input("> ").split()
        except EOFError:
            return
        if words:
            obey(cluster, words)


def obey(cluster: Cluster, words: list[str]) -> None:
    """One typed command; a mistake is answered, not fatal."""
    try:
        match words:
            case ["crash", host]:
                cluster.crash(host)
            case ["unplug", host]:
                cluster.crash(host, silent=False)
            case ["boot", host]:
                cluster.restore(host)
            case ["pause", host]:
                cluster.hosts[host].pause_speaker()
            case ["resume", host]:
                cluster.hosts[host].resume_speaker()
            case ["stop-api"]:
                cluster.control_plane.stop()
            case ["start-api"]:
                cluster.control_plane.start()
            case _:
                say(f"what is {' '.join(words)!r}? Hosts are {', '.join(cluster.hosts)}")
    except KeyError:
        say(f"no host {words[1]!r}: there are {', '.join(cluster.hosts)}")
    except RigError as error:
        say(str(error))


def write_tools(cluster: Cluster) -> Path:
    """``kubectl`` and ``on HOST command`` for other terminals."""
    folder = cluster.run.folder / "bin"
    folder.mkdir()
    kubectl = " ".join(cluster.control_plane.kubectl_argv())
    scripts = {
        "kubectl": f'exec {kubectl} "$@"',
        "on": f'host=$1; shift; exec ip netns exec {cluster.run.id}-"$host" "$@"',
    }
    for name, line in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make demo", description="a VirtualIP survives its node, before your eyes"
    )
    parser.add_argument("--keep", action="store_true", help="leave it running to play with, until Ctrl-C")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("make demo: network namespaces need root; run it as root", file=sys.stderr)
        return 1
    end_on_sigterm()
    try:
        with Cluster(hosts=3, say=say) as cluster:
            demo = Demo(cluster)
            demo.tell()
            if options.keep:
                with contextlib.suppress(KeyboardInterrupt):
                    keep(cluster)
            say(f"\nRemoving everything that carries the id {cluster.run.id}.")
    except KeyboardInterrupt:
        say("\nStopped; nothing of it is left.")
        return 130
    except (RigError, MissingToolError, OSError) as error:
        print(f"\nmake demo: {error}", file=sys.stderr)
        return 1
    if demo.broken:
        say("Not everything promised was seen:\n  - " + "\n  - ".join(demo.broken))
        return 1
    say("All that was promised was seen.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
