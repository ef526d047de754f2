# SPDX-License-Identifier: Apache-2.0
"""What Linux receivers make of our frames (R1.1, R1.2), and what importing scapy costs on a busy node."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from holdfast_api.types import Interface
from holdfast_speaker.effects import Form
from holdfast_speaker.events import Link as Nic
from holdfast_speaker.frames import ScapyFrames
from holdfast_speaker.link import Link
from holdfast_speaker.ports import Neighbour, Surroundings
from tests.netns.small_net import Net

pytestmark = pytest.mark.netns

OLD = "02:00:00:00:00:01"  # who had the address before


class Announcer:
    """Host a, with ready frames for its NIC."""

    def __init__(self, net: Net) -> None:
        self.net = net
        facts = json.loads(net.run("a", "ip", "-json", "link", "show", "eth0"))[0]
        self.mac = facts["address"]
        self.link = Link()
        self.index = socket.if_nametoindex("eth0")
        self.frames = ScapyFrames()
        self.frames.see([Nic(self.index, Interface("eth0", self.mac))])

    def send(self, form: Form, address: str, around: Surroundings | None = None) -> None:
        frames = self.frames.frames(self.index, form, address, around or Surroundings())
        assert self.link.send(self.index, frames) == len(frames) > 0
        time.sleep(0.02)

    def neighbour_of_b(self, address: str) -> dict[str, object]:
        entries = json.loads(self.net.run("b", "ip", "-json", "neigh", "show", "to", address, "dev", "eth0"))
        return entries[0] if entries else {}


@pytest.fixture
def announcer(pair: Net) -> Iterator[Announcer]:
    with pair.inside("a"):
        made = Announcer(pair)
        try:
            yield made
        finally:
            made.link.close()


def believe(net: Net, address: str, state: str = "stale") -> None:
    net.ip("b", f"neigh replace {address} lladdr {OLD} dev eth0 nud {state}")


@pytest.mark.parametrize("address", ["192.0.2.10", "2001:db8::10"])
@pytest.mark.parametrize("state", ["stale", "reachable"])
def test_an_announcement_moves_what_the_receiver_believed(
    announcer: Announcer, address: str, state: str
) -> None:
    believe(announcer.net, address, state)
    time.sleep(1.1 if state == "reachable" else 0)  # Linux' own locktime
    announcer.send("announce", address)
    assert announcer.neighbour_of_b(address)["lladdr"] == announcer.mac


@pytest.mark.parametrize("address", ["192.0.2.10", "2001:db8::10"])
def test_a_probe_changes_nobodys_mind(announcer: Announcer, address: str) -> None:
    believe(announcer.net, address)
    announcer.send("probe", address)
    assert announcer.neighbour_of_b(address)["lladdr"] == OLD


@pytest.mark.parametrize(
    ("address", "gateway"), [("192.0.2.10", "192.0.2.2"), ("2001:db8::10", "2001:db8::2")]
)
@pytest.mark.parametrize("known", [True, False])
def test_a_question_convinces_a_receiver_that_drops_announcements(
    announcer: Announcer, address: str, gateway: str, known: bool
) -> None:
    net = announcer.net
    for setting in ("ipv4.conf.eth0.drop_gratuitous_arp", "ipv6.conf.eth0.drop_unsolicited_na"):
        net.run("b", "sysctl", "-qw", f"net.{setting}=1")
    believe(net, address)
    announcer.send("announce", address)
    assert announcer.neighbour_of_b(address)["lladdr"] == OLD
    mac = json.loads(net.run("b", "ip", "-json", "link", "show", "eth0"))[0]["address"]
    around = Surroundings(gateways=(Neighbour(gateway, mac if known else None),))
    announcer.send("ask", address, around)
    assert announcer.neighbour_of_b(address)["lladdr"] == announcer.mac


@pytest.mark.parametrize("forwarding", [True, False])
def test_the_advertisement_says_router_iff_the_node_forwards(announcer: Announcer, forwarding: bool) -> None:
    believe(announcer.net, "2001:db8::10")
    announcer.send("announce", "2001:db8::10", Surroundings(forwarding=forwarding))
    assert ("router" in announcer.neighbour_of_b("2001:db8::10")) is forwarding


@pytest.mark.parametrize("address", ["192.0.2.2", "2001:db8::2"])
def test_an_owner_answers_a_probe(announcer: Announcer, address: str) -> None:
    """R6.1 stands on this; the answer comes to us through the packet socket."""
    announcer.link.hear(frozenset({announcer.index}))
    announcer.send("probe", address)
    time.sleep(0.05)
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    sender = slice(28, 32) if len(packed) == 4 else slice(62, 78)
    assert packed in [frame[sender] for _, frame in announcer.link.drain(64)]


def test_frames_are_ready_fast_and_small_on_a_node_with_200_links(net: Net) -> None:
    net.add("node")
    net.ip("node", *(f"link add v{i} type veth peer name w{i}" for i in range(100)))
    net.ip("node", "link add r type veth peer name s", "link set r up", "link set s up")
    net.ip("node", *(f"route add 10.{i // 250}.{i % 250}.0/24 dev r" for i in range(1000)))
    script = (
        "import resource, sys, holdfast_speaker.ports\n"
        "before = resource.getrusage(resource.RUSAGE_SELF)\n"
        "import holdfast_speaker.frames\n"
        "after = resource.getrusage(resource.RUSAGE_SELF)\n"
        "rss = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS'))\n"
        "print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, rss)\n"
        "from scapy.config import conf\n"
        "assert not conf.ifaces, 'scapy looked at the links'\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    argv = ["ip", "netns", "exec", net.full("node"), sys.executable, "-c", script]
    for _ in range(2):  # the first may have to compile
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=True)
    seconds, kilobytes = map(float, done.stdout.split())
    print(f"{seconds * 1000:.0f} ms of CPU, {kilobytes / 1024:.1f} MiB with the contract types")
    assert seconds <= 2.0
    assert kilobytes <= 45 * 1024
