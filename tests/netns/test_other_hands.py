# SPDX-License-Identifier: Apache-2.0
"""Other hands on the NIC: people, scripts, systemd-networkd and NetworkManager (semantics.md section 5).

Whole speakers on real hosts. Each story is told twice: who has the addresses, and what a client at 1,000
probes a second and a witness that asks everybody saw. After each one host has them, and never two.
"""

import ctypes
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import msgspec
import pytest

from holdfast_api.types import Candidate
from tests.rig.fleet import LEADERS, V4, V6, Fleet, router
from tests.rig.host_services import Networkd, NetworkManager
from tests.rig.hosts import Host, places
from tests.rig.network import bound, mac_of, netns_path
from tests.rig.onlookers import Onlookers
from tests.rig.run import Run, command, in_namespace

pytestmark = pytest.mark.netns

AT_ONCE_MS = 250  # bound again and announced in the same turn of the loop; the rest is the busy machine
TAKEN_OVER_MS = 900  # an Active that fell silent: 3 intervals and a bit, 300 to 400 ms on a quiet machine
OVERLAP_MS = 100  # one interval: a hand-over lets both serve until the successor's advert lists what it has


class Street:
    """A fleet that is as new before each test; made again when a failed test left it otherwise."""

    def __init__(self) -> None:
        self.run: Run | None = None

    def fleet(self) -> Fleet:
        if self.run is not None and not self._is_well():
            self.close()
        if self.run is None:
            self.run = Run()
            self.made = Fleet(self.run)
            self.state = self._state()
            self.made.start(router(7, V4, V6, candidates=candidates(self.made)))
        return self.made

    def _state(self) -> list[str]:
        return [
            f"{host.name} {bound_own(host)} {mac_of(host.namespace, 'eth0')} {links(host)}"
            for host in self.made.hosts
        ]

    def _is_well(self) -> bool:
        try:
            alive = all(host.speaker is not None and host.speaker.running() for host in self.made.hosts)
            return alive and self._state() == self.state
        except (RuntimeError, ValueError):
            return False

    def close(self) -> None:
        if self.run is not None:
            self.run.close()
            self.run = None


def bound_own(host: Host) -> list[str]:
    return sorted(cidr for cidr in bound(host.namespace, "eth0") if cidr.partition("/")[0] not in (V4, V6))


def links(host: Host) -> str:
    """Names and MTUs, and which addresses have a broadcast one: networkd 252 can't settle without."""
    shown = command("ip", "-n", host.namespace, "-o", "link", "show", "up")
    own = command("ip", "-n", host.namespace, "-o", "-4", "address", "show", "dev", "eth0")
    return " ".join(
        re.findall(r"^\d+: ([^:@]+)", shown, re.M)
        + re.findall(r"mtu (\d+)", shown)
        + re.findall(r" brd \S+", own)
    )


def candidates(fleet: Fleet) -> list[Candidate]:
    """The hosts as the operator plans them: with their NICs' addresses and MACs."""
    return [
        Candidate(host.name, planned.priority, (host.v4, host.v6), (host.mac,))
        for host, planned in zip(fleet.hosts, LEADERS, strict=False)
    ]


@pytest.fixture(scope="module")
def street(rig_ready: None) -> Iterator[Street]:  # noqa: ARG001  root and tools, or a failure that says so
    made = Street()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def fleet(street: Street) -> Fleet:
    return street.fleet()


@pytest.fixture
def holder(fleet: Fleet) -> Host:
    """Who has both addresses, for a second at least."""
    host = settled(fleet)
    time.sleep(0.5)
    return host


def ip(host: Host, *lines: str) -> None:
    """These ``ip`` commands on the host, in one go."""
    command("ip", "-n", host.namespace, "-batch", "-", stdin="\n".join(lines) + "\n")


def sysctl(host: Host, setting: str) -> None:
    command("ip", "netns", "exec", host.namespace, "sysctl", "-q", "-w", setting)


def settled(fleet: Fleet, *addresses: str, among: list[Host] | None = None) -> Host:
    """One host has all of them on one NIC; which one."""
    hosts = fleet.hosts if among is None else among
    found: list[list[str]] = []

    def look() -> bool:
        found[:] = [places(fleet.hosts, address) for address in addresses or (V4, V6)]
        names = {place.partition("/")[0] for each in found for place in each}
        return (
            all(len(each) == 1 for each in found)
            and len({each[0] for each in found}) == 1
            and (names <= {host.name for host in hosts})
        )

    try:
        fleet.until("one host has all", look)
    except AssertionError as failed:
        raise AssertionError(f"{found}: {failed}") from None
    return next(host for host in fleet.hosts if host.name == found[0][0].partition("/")[0])


def others(fleet: Fleet, host: Host) -> list[Host]:
    return [other for other in fleet.hosts if other is not host]


def join(fleet: Fleet, hosts: list[Host]) -> None:
    """Their speakers start, and have heard enough to take over."""
    for host in hosts:
        fleet.start_host(host)
    time.sleep(2.0)


def hold(fleet: Fleet, host: Host) -> None:
    """Let this host have them."""
    if settled(fleet) is not host:
        rest = others(fleet, host)
        for other in rest:
            assert other.stop_speaker() == 0
        assert settled(fleet) is host
        join(fleet, rest)


def log_of(host: Host) -> str:
    assert host.speaker is not None
    return host.speaker.log.read_text()


@contextmanager
def logging(host: Host, *words: str) -> Iterator[None]:
    """Meanwhile the host's speaker says these words, in one line."""
    before = len(log_of(host))
    yield
    new = log_of(host)[before:]
    assert any(all(word in line for word in words) for line in new.splitlines()), f"{words} not in:\n{new}"


@contextmanager
def onlookers(fleet: Fleet, what: str, *, gap_ms: float, double_ms: float = 0.0) -> Iterator[Onlookers]:
    """They look on meanwhile; then one host has both, after no longer gap and with no longer overlap."""
    with Onlookers(fleet, V4, V6) as seen:
        time.sleep(0.2)
        yield seen
    seen.tell(what)
    print(f"then at {settled(fleet).name}")
    assert seen.double_ms <= seen.room_ms(double_ms)
    assert max(seen.gap_ms(V4), seen.gap_ms(V6)) < seen.room_ms(gap_ms)


served_by_one = partial(onlookers, gap_ms=TAKEN_OVER_MS, double_ms=OVERLAP_MS)


@contextmanager
def held_throughout(fleet: Fleet, holder: Host, what: str) -> Iterator[Onlookers]:
    with onlookers(fleet, what, gap_ms=AT_ONCE_MS) as seen:
        yield seen
    assert settled(fleet) is holder


# --- the addresses ----------------------------------------------------------------------------------


def test_addresses_deleted_by_hand_are_back_at_once(fleet: Fleet, holder: Host) -> None:
    said = logging(holder, "Another program removed addresses held here")
    with held_throughout(fleet, holder, "deleted by hand"), said:
        ip(holder, f"address del {V4}/32 dev eth0")
        ip(holder, f"address del {V6}/128 dev eth0")
        time.sleep(0.6)


def test_a_flushed_interface_has_no_subnet_any_more_and_another_host_takes_over(
    fleet: Fleet, holder: Host
) -> None:
    own = bound_own(holder)
    with served_by_one(fleet, "flushed"), logging(holder, "No longer Active"):
        ip(holder, "address flush dev eth0")
        new = settled(fleet, among=others(fleet, holder))
        time.sleep(0.3)
        ip(holder, *(f"address add {cidr} {'' if ':' in cidr else 'brd +'} dev eth0" for cidr in own))
        sysctl(holder, "net.ipv6.conf.eth0.addr_gen_mode=1")  # makes the kernel forget and remake fe80::
        sysctl(holder, "net.ipv6.conf.eth0.addr_gen_mode=0")
        time.sleep(1.0)
    assert settled(fleet) is new


def test_one_family_flushed(fleet: Fleet, holder: Host) -> None:
    """Without an IPv4 subnet the host can't answer anybody, though it could hold the address."""
    own = [cidr for cidr in bound_own(holder) if ":" not in cidr]
    with served_by_one(fleet, "IPv4 flushed"):
        command("ip", "-n", holder.namespace, "-4", "address", "flush", "dev", "eth0")
        new = settled(fleet, among=others(fleet, holder))
        time.sleep(0.3)
        ip(holder, *(f"address add {cidr} brd + dev eth0" for cidr in own))
        time.sleep(0.5)
    assert settled(fleet) is new


def test_an_address_taken_over_in_place_is_ours_again_and_goes_when_we_go(fleet: Fleet, holder: Host) -> None:
    """``ip address replace`` drops our mark and our lifetime."""
    with held_throughout(fleet, holder, "replaced in place"):
        ip(holder, f"address replace {V4}/32 dev eth0 scope link valid_lft forever preferred_lft forever")
        ip(holder, f"address replace {V6}/128 dev eth0 nodad valid_lft forever preferred_lft forever")
        fleet.until("a lifetime again", lambda: "forever" not in lifetimes(holder, V4, V6))


def test_an_address_taken_over_in_place_goes_with_us(fleet: Fleet, holder: Host) -> None:
    ip(holder, f"address replace {V4}/32 dev eth0 scope link valid_lft forever preferred_lft forever")
    ip(holder, f"address replace {V6}/128 dev eth0 nodad valid_lft forever preferred_lft forever")
    with Onlookers(fleet, V4, V6) as seen:
        assert holder.stop_speaker() == 0
        new = settled(fleet, among=others(fleet, holder))
    seen.tell("replaced in place, then stopped")
    join(fleet, [holder])
    assert settled(fleet) is new
    assert seen.double_ms <= seen.room_ms(OVERLAP_MS)


def lifetimes(host: Host, *addresses: str) -> str:
    return "".join(
        command("ip", "-n", host.namespace, "address", "show", "dev", "eth0", "to", address)
        for address in addresses
    )


def test_who_removes_it_again_and_again_is_named(street: Street, fleet: Fleet, holder: Host) -> None:
    """After the third time within a minute it comes back with pauses: 1 s, 2 s and so on."""
    words = ("another program removed it", "NetworkManager", "KeepConfiguration", V4)
    with Onlookers(fleet, V4, V6) as seen, logging(holder, *words):
        for _ in range(4):
            time.sleep(0.2)
            if holder.holds(V4):
                ip(holder, f"address del {V4}/32 dev eth0")
        fleet.until("it is back", lambda: len(places(fleet.hosts, V4)) == 1)
        time.sleep(0.3)
    seen.tell("deleted again and again")
    settled(fleet)
    street.close()  # it is remembered for a minute
    assert seen.double_ms <= seen.room_ms()
    assert seen.gap_ms(V4) < seen.room_ms(1000 + TAKEN_OVER_MS)
    assert seen.gap_ms(V6) < seen.room_ms(AT_ONCE_MS)


def test_rules_flushed_by_a_firewall_are_made_again(fleet: Fleet, holder: Host) -> None:
    """``nft flush ruleset`` is what restarting most firewalls does. The fence has no reason to stay away."""
    with served_by_one(fleet, "nft flush ruleset"):
        command(*in_namespace(netns_path(holder.namespace), ["nft", "flush", "ruleset"]))
        fleet.until("the fence is there again", lambda: V4 in holder.ruleset())
        time.sleep(0.5)


def test_own_addresses_that_come_and_go(fleet: Fleet, holder: Host) -> None:
    """A second address changes nothing. With the primary gone, adverts leave from the next one."""
    v4 = f"{holder.v4}/24"
    sysctl(holder, "net.ipv4.conf.eth0.promote_secondaries=1")
    with held_throughout(fleet, holder, "another primary address") as seen:
        ip(holder, "address add 192.0.2.77/24 brd + dev eth0")
        time.sleep(0.3)
        ip(holder, f"address del {v4} dev eth0")
        time.sleep(0.5)
        changed = time.monotonic()
        time.sleep(0.5)
        ip(holder, f"address add {v4} brd + dev eth0", "address del 192.0.2.77/24 dev eth0")
        time.sleep(0.5)
        back = time.monotonic()
        time.sleep(0.3)
    assert seen.witness.adverts("192.0.2.77", since=changed - 0.2, until=changed + 0.5)
    assert seen.witness.adverts(holder.v4, since=back - 0.2)
    assert not seen.witness.adverts("192.0.2.77", since=back)


# --- the NIC ----------------------------------------------------------------------------------------


def test_a_nic_set_down_and_up(fleet: Fleet, holder: Host) -> None:
    own6 = [cidr for cidr in bound_own(holder) if ":" in cidr]
    with served_by_one(fleet, "down and up"), logging(holder, "No longer Active"):
        ip(holder, "link set eth0 down")
        new = settled(fleet, among=others(fleet, holder))
        ip(holder, "link set eth0 up", *(f"address replace {cidr} dev eth0" for cidr in own6))
        time.sleep(1.5)
    assert settled(fleet) is new


@pytest.mark.parametrize("name", ["eth0", "lan0"])
def test_a_nic_down_for_a_moment(fleet: Fleet, holder: Host, name: str) -> None:
    """A restarted driver, or a NIC renamed as older kernels want it: down, renamed, up.

    It is back before anybody noticed, or another host has them; never two.
    """
    own6 = [cidr for cidr in bound_own(holder) if ":" in cidr]
    with served_by_one(fleet, f"down for a moment, then {name}"):
        ip(
            holder,
            "link set eth0 down",
            f"link set eth0 name {name}",
            f"link set {name} up",
            *(f"address replace {cidr} dev {name} nodad" for cidr in own6),
        )
        time.sleep(1.5)
        ip(holder, f"link set {name} name eth0")
        time.sleep(0.5)


def test_a_renamed_nic_keeps_its_addresses(fleet: Fleet, holder: Host) -> None:
    """Linux 6.2 and later rename a NIC that is up; nobody outside sees it."""
    with held_throughout(fleet, holder, "renamed"):
        ip(holder, "link set eth0 name lan0")
        try:
            time.sleep(1.0)
            assert places(fleet.hosts, V4) == places(fleet.hosts, V6) == [f"{holder.name}/lan0"]
            ip(holder, f"address del {V4}/32 dev lan0")
            fleet.until("it is back", lambda: places([holder], V4) == [f"{holder.name}/lan0"])
            time.sleep(0.3)
        finally:
            ip(holder, "link set lan0 name eth0")
        time.sleep(0.3)


def test_a_nic_moved_into_a_bridge_with_its_addresses(fleet: Fleet, holder: Host) -> None:
    with served_by_one(fleet, "moved into a bridge and out again"):
        holder.add_bridge()
        try:
            time.sleep(1.5)
            settled(fleet)
            assert places([holder], V4) in ([], [f"{holder.name}/br0"])
        finally:
            holder.remove_bridge()
        time.sleep(1.5)


def test_a_nic_that_only_becomes_a_port_is_let_go(fleet: Fleet, holder: Host) -> None:
    """Its addresses stayed on it, so the bridge is on no subnet: the host has nowhere to hold ours."""
    with served_by_one(fleet, "made a port of a bridge"), logging(holder, "No longer Active"):
        ip(holder, "link add br0 type bridge stp_state 0 forward_delay 0", "link set br0 up")
        ip(holder, "link set eth0 master br0")
        try:
            new = settled(fleet, among=others(fleet, holder))
            time.sleep(0.5)
        finally:
            ip(holder, "link del br0")
        time.sleep(1.0)
    assert settled(fleet) is new


def test_another_mac_is_announced_and_adverts_leave_with_it(fleet: Fleet, holder: Host) -> None:
    was, new = holder.mac, "02:ab:cd:00:00:01"
    with held_throughout(fleet, holder, "another MAC, twice") as seen:
        changed = time.monotonic()
        ip(holder, f"link set eth0 address {new}")
        time.sleep(1.0)
        again = time.monotonic()
        ip(holder, f"link set eth0 address {was}")
        time.sleep(1.0)
    heard = seen.witness.adverts(holder.v4, since=changed + 0.3, until=again)
    assert heard
    assert {advert.mac for advert in heard} == {new}
    assert {advert.mac for advert in seen.witness.adverts(holder.v4, since=again + 0.3)} == {was}
    told = seen.witness.announcements(new, since=changed, until=changed + 0.5)
    assert {announced.what for announced in told} == {V4, V6}


def test_a_nic_deleted_and_made_again_serves_as_before(fleet: Fleet, holder: Host) -> None:
    number = 11 + fleet.hosts.index(holder)
    with served_by_one(fleet, "deleted and made again"), logging(holder, "No longer Active"):
        ip(holder, "link del eth0")
        new = settled(fleet, among=others(fleet, holder))
        cable = fleet.segment.connect(holder.name, number, port=holder.name, careful=True)
        ip(holder, f"link set eth0 address {holder.mac}")
        assert cable.device == "eth0"
        time.sleep(3.0)
    assert settled(fleet) is new
    hold(fleet, holder)


def test_a_nic_replaced_by_one_with_the_same_name_and_number(fleet: Fleet, holder: Host) -> None:
    """As a driver does that is loaded again: nothing that the kernel lists has changed but what was on it."""
    index = command("ip", "-n", holder.namespace, "-o", "link", "show", "eth0").partition(":")[0]
    own = bound_own(holder)
    with served_by_one(fleet, "replaced by another NIC"):
        ip(
            holder,
            "link del eth0",
            f"link add eth0 index {index} address {holder.mac} type veth "
            f"peer name {holder.name} netns {fleet.segment.namespace}",
            *(f"address add {cidr} {'nodad' if ':' in cidr else 'brd +'} dev eth0" for cidr in own),
            "link set eth0 up",
        )
        port = f"link set {holder.name} master sw0\nlink set {holder.name} up\n"
        command("ip", "-n", fleet.segment.namespace, "-batch", "-", stdin=port)
        time.sleep(2.5)
    hold(fleet, holder)


def test_ipv6_switched_off_and_on(fleet: Fleet, holder: Host) -> None:
    """Without IPv6 the host can't have that one: another host has both, or a fault says why."""
    own6 = [cidr for cidr in bound_own(holder) if ":" in cidr]
    before = len(log_of(holder))
    with Onlookers(fleet, V4, V6) as seen:
        time.sleep(0.2)
        sysctl(holder, "net.ipv6.conf.eth0.disable_ipv6=1")
        time.sleep(1.5)
        without = places(fleet.hosts, V6)
        told = log_of(holder)[before:]
        sysctl(holder, "net.ipv6.conf.eth0.disable_ipv6=0")
        ip(holder, *(f"address replace {cidr} dev eth0" for cidr in own6))
        fleet.until("it is back", lambda: len(places(fleet.hosts, V6)) == 1)
        time.sleep(0.5)
    seen.tell("IPv6 switched off and on")
    settled(fleet)
    assert seen.double_ms <= seen.room_ms(OVERLAP_MS)
    assert seen.gap_ms(V4) < seen.room_ms(TAKEN_OVER_MS)
    assert without or "IPv6 is switched off" in told


def test_the_only_host_goes_on_at_its_bridge(rig_ready: None) -> None:  # noqa: ARG001
    """Nobody else can take over: the addresses follow the host's own ones to the bridge, and back."""
    with Run() as run:
        fleet = Fleet(run, hosts=1)
        host = fleet.hosts[0]
        fleet.start(router(7, V4, V6, candidates=candidates(fleet)))
        settled(fleet)
        for where, move in (("br0", host.add_bridge), ("eth0", host.remove_bridge)):
            time.sleep(0.5)
            with onlookers(fleet, f"the only host, moved to {where}", gap_ms=TAKEN_OVER_MS):
                move()
                there = [f"{host.name}/{where}"]
                fleet.until(f"at {where}", lambda: places([host], V4) == places([host], V6) == there)  # noqa: B023
                time.sleep(0.5)


def test_a_nic_chosen_by_name_is_let_go_when_it_is_called_otherwise(rig_ready: None) -> None:  # noqa: ARG001
    with Run() as run:
        fleet = Fleet(run, hosts=2)
        plan = router(7, V4, V6, candidates=candidates(fleet))
        fleet.start(
            msgspec.structs.replace(plan, spec=msgspec.structs.replace(plan.spec, interfaces=("eth*",)))
        )
        holder = settled(fleet)
        time.sleep(1.0)
        with served_by_one(fleet, "renamed against the plan"), logging(holder, "No longer Active"):
            ip(holder, "link set eth0 name lan0")
            settled(fleet, among=others(fleet, holder))
            time.sleep(0.5)


def test_adverts_shrink_with_the_mtu(rig_ready: None) -> None:  # noqa: ARG001
    """88 IPv6 addresses fit 1,500 bytes and not 1,280; an advert that does not fit would not leave at all."""
    with Run() as run:
        fleet = Fleet(run, hosts=2)
        many = [V6, *(f"fd00:192:0:2::1:{n:x}" for n in range(87))]
        fleet.start(router(7, *many, candidates=candidates(fleet)))
        holder = settled(fleet, *many)
        time.sleep(1.0)
        with Onlookers(fleet, V6) as seen:
            sizes = {}
            for mtu in (1500, 1280, 9000, 1500):
                ip(holder, f"link set eth0 mtu {mtu}")
                time.sleep(0.5)
                sizes[mtu] = advert_sizes(holder)
        seen.tell(f"MTU changed (frames of {sizes} bytes)")
        assert settled(fleet, *many) is holder
        assert seen.double_ms <= seen.room_ms()
        assert seen.gap_ms(V6) < seen.room_ms(AT_ONCE_MS)
        assert 1200 < max(sizes[1280]) <= 1280 + 14
        assert 1400 < max(sizes[1500]) <= 1500 + 14


def advert_sizes(host: Host) -> set[int]:
    """How long the adverts are that leave within half a second."""
    sizes = set()
    with namespace(host), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as sock:
        sock.bind(("eth0", 0x0003))
        sock.settimeout(0.1)
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            with suppress(TimeoutError):
                frame = sock.recv(65536)
                if frame[12:14] == b"\x86\xdd" and frame[20] == 112:
                    sizes.add(len(frame))
    return sizes


@contextmanager
def namespace(host: Host) -> Iterator[None]:
    """Sockets opened meanwhile are the host's."""
    with open("/proc/thread-self/ns/net") as home, open(netns_path(host.namespace)) as there:
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, 0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "setns")


# --- services that configure the NIC ----------------------------------------------------------------


@contextmanager
def watched(fleet: Fleet, host: Host, what: str) -> Iterator[Onlookers]:
    """Held by this host at first; afterwards by one, with a gap no longer than a takeover."""
    hold(fleet, host)
    with served_by_one(fleet, what) as seen:
        yield seen
        settled(fleet)
        time.sleep(1.5)


def test_systemd_networkd_restarts_and_configures_anew(fleet: Fleet, holder: Host) -> None:
    with Networkd(holder) as networkd:
        with watched(fleet, holder, "networkd restarted"):
            networkd.restart()
        with watched(fleet, holder, "networkd reloaded, its file unchanged"):
            networkd.reload()
        with watched(fleet, holder, "networkd reloaded, its file changed"):
            networkd.configure("LLDP=no")
            networkd.reload()
        with watched(fleet, holder, "networkctl reconfigure"):
            networkd.reconfigure()


def test_systemd_networkd_told_to_keep_what_it_finds(fleet: Fleet, holder: Host) -> None:
    with Networkd(holder, keep=True) as networkd:
        with watched(fleet, holder, "networkd told to keep, restarted") as seen:
            networkd.restart()
        assert seen.gap_ms(V4) < seen.room_ms(AT_ONCE_MS)
        with watched(fleet, holder, "networkd told to keep, networkctl reconfigure"):
            networkd.reconfigure()  # which removes everything nevertheless


def test_networkmanager_restarts_and_configures_anew(street: Street, fleet: Fleet, holder: Host) -> None:
    try:
        with NetworkManager(holder) as manager:
            with watched(fleet, holder, "NetworkManager restarted"):
                manager.restart()
            with watched(fleet, holder, "nmcli device reapply"):
                manager.configure(mtu=1400)
                manager.reapply()
            with watched(fleet, holder, "nmcli connection up"):
                manager.up()
            with watched(fleet, holder, "nmcli connection down and up"):
                manager.down()
                time.sleep(0.5)
                manager.up()
    finally:
        street.close()  # it leaves the NIC otherwise than it found it
