# SPDX-License-Identifier: Apache-2.0
"""Virtual MACs' macvlans and the addresses on them, against the kernel."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from holdfast_speaker.addresses.kernel import KernelAddresses
from holdfast_speaker.virtual_mac import ALIAS, device
from tests.netns.address_door import On, Told, latest, shown, to_bridge, until, watching
from tests.netns.small_net import Net
from tests.rig.confinement import Confinement

pytestmark = pytest.mark.netns

M1, M2 = "02:11:22:33:44:55", "02:11:22:33:44:66"
V4, V6 = "192.0.2.10", "2001:db8::10"
BOTH = {V4: M1, V6: M1}


def prepare(door: KernelAddresses, index: int, macs: dict[str, str]) -> None:
    door.prepare(index, frozenset(macs), macs)


@asynccontextmanager
async def bound(on_a: On, *addresses: str) -> AsyncIterator[Told]:
    """What the door tells once these are on their macvlan, and it said so."""
    _, door, index = on_a
    async with watching(door) as told:
        prepare(door, index, BOTH)
        door.bind(index, addresses)
        await until(lambda: latest(told)[1] == {(index, address) for address in addresses})
        yield told


def devices(net: Net) -> list[str]:
    """Names of all macvlans."""
    found = json.loads(net.run("a", "ip", "-json", "link", "show", "type", "macvlan"))
    return [each["ifname"] for each in found]


def link(net: Net, name: str) -> dict[str, object]:
    (found,) = json.loads(net.run("a", "ip", "-json", "-details", "link", "show", "dev", name))
    assert isinstance(found, dict)
    return found


def sysctl(net: Net, name: str) -> str:
    return net.run("a", "cat", f"/proc/sys/net/ipv4/conf/{device(M1)}/{name}").strip()


def answers(net: Net, address: str) -> bool:
    """To host b. Host a asks for b's MAC by its link-local address, which is tentative for 2 s."""
    return any("1 received" in net.run("b", "ping", "-c1", "-W1", address, check=False) for _ in range(6))


def cached(net: Net, address: str) -> str:
    """What host b knows of it, asked anew."""
    net.run("b", "ip", "neigh", "flush", "all")
    assert answers(net, address)
    return net.run("b", "ip", "neigh", "show", address)


# --- made and removed ---------------------------------------------------------------------------------


def test_a_prepared_macvlan_is_private_named_marked_up_and_quiet(on_a: On) -> None:
    net, door, index = on_a
    prepare(door, index, BOTH)
    (name,) = devices(net)
    found = link(net, name)
    assert (name, found["address"], found["link"]) == (device(M1), M1, "eth0")
    assert "UP" in str(found["flags"])
    assert (found["ifalias"], found["inet6_addr_gen_mode"]) == (ALIAS, "none")
    assert '"mode": "private"' in json.dumps(found)
    assert [sysctl(net, name) for name in ("arp_ignore", "rp_filter")] == ["1", "2"]
    assert net.run("a", "ip", "addr", "show", "dev", name).count("inet") == 0


def test_preparing_again_changes_nothing_and_less_removes_it_in_the_background(on_a: On) -> None:
    net, door, index = on_a
    prepare(door, index, {V4: M1, V6: M2})
    before = [link(net, device(mac))["ifindex"] for mac in (M1, M2)]
    prepare(door, index, {V4: M1, V6: M2})
    assert [link(net, device(mac))["ifindex"] for mac in (M1, M2)] == before
    started = time.perf_counter()
    prepare(door, index, {V4: M1})
    took_ms = (time.perf_counter() - started) * 1000
    door.close()
    assert devices(net) == [device(M1)]
    print(f"prepare that gives up a macvlan: {took_ms:.2f} ms")
    assert took_ms < 10


def test_it_goes_with_its_last_address_if_nobody_prepares_it(on_a: On) -> None:
    net, door, index = on_a
    prepare(door, index, BOTH)
    assert door.bind(index, [V4, V6]) == {}
    prepare(door, index, {})
    door.release(index, [V4])
    time.sleep(0.1)
    assert devices(net) == [device(M1)]
    assert shown(net, V6)["nic"] == device(M1)
    assert door.release(index, [V6]) == {}
    door.close()
    assert devices(net) == []


def test_foreign_macvlans_on_the_same_nic_are_never_touched(on_a: On) -> None:
    net, door, index = on_a
    net.ip(
        "a",
        "link add pod0 link eth0 type macvlan mode bridge",
        "link add hf-pod link eth0 type macvlan mode bridge",
        "link set pod0 up",
        "addr add 192.0.2.200/32 dev pod0",
    )
    before = [link(net, name) for name in ("pod0", "hf-pod")]

    async def story() -> frozenset[str]:
        async with watching(door) as told:
            prepare(door, index, BOTH)
            door.bind(index, [V4])
            await asyncio.sleep(0.2)
            await door.release_everything()
            return latest(told)[0]

    assert device(M1) not in asyncio.run(story())
    assert [link(net, name) for name in ("pod0", "hf-pod")] == before
    assert shown(net, "192.0.2.200")["nic"] == "pod0"
    assert sorted(devices(net)) == ["hf-pod", "pod0"]


def test_a_device_of_others_with_the_name_is_said_and_left_alone(on_a: On) -> None:
    net, door, index = on_a
    net.ip("a", f"link add {device(M1)} type bridge")
    prepare(door, index, BOTH)
    assert "not from Holdfast" in door.bind(index, [V4])[V4]
    assert door.marked() == frozenset()
    door.close()
    assert '"info_kind": "bridge"' in json.dumps(link(net, device(M1)))
    assert not shown(net, V4)


def test_a_nic_that_is_a_bridges_port_is_said(on_a: On) -> None:
    net, door, index = on_a
    net.ip("a", "link add br0 type bridge", "link set eth0 master br0")
    prepare(door, index, BOTH)
    assert "bridge" in door.bind(index, [V4])[V4]


def test_the_nics_own_mac_is_said(on_a: On) -> None:
    net, door, index = on_a
    own = str(link(net, "eth0")["address"])
    prepare(door, index, {V4: own})
    assert "has this MAC" in door.bind(index, [V4])[V4]


def test_one_half_made_by_a_speaker_that_died_is_finished(on_a: On) -> None:
    net, door, index = on_a
    net.ip("a", f"link add {device(M1)} link eth0 address {M1} type macvlan mode private")
    prepare(door, index, BOTH)
    assert door.bind(index, [V4]) == {}
    assert link(net, device(M1))["ifalias"] == ALIAS
    assert sysctl(net, "arp_ignore") == "1"


# --- addresses ----------------------------------------------------------------------------------------


def test_both_families_sit_on_the_macvlan_and_are_told_of_the_nic(on_a: On) -> None:
    net, door, index = on_a
    prepare(door, index, BOTH)
    assert door.bind(index, [V4, V6]) == {}
    assert {shown(net, address)["nic"] for address in BOTH} == {device(M1)}
    assert M1 in cached(net, V6)

    async def story() -> frozenset[tuple[int, str]]:
        async with watching(door) as told:
            return latest(told)[1]

    assert asyncio.run(story()) == {(index, V4), (index, V6)}
    time.sleep(1.1)
    door.refresh(index, [V4, V6])
    assert [shown(net, address)["valid_life_time"] for address in BOTH] == [30, 30]
    assert door.release(index, [V4, V6]) == {}
    assert not shown(net, V4)
    assert not shown(net, V6)
    assert devices(net) == [device(M1)]


@pytest.mark.parametrize("count", [1, 200])
def test_addresses_each_with_a_mac_of_its_own_are_bound_at_once(on_a: On, count: int) -> None:
    net, door, index = on_a
    macs = {f"10.0.0.{i}": f"02:11:22:33:44:{i:02x}" for i in range(1, count + 1)}
    took: dict[str, float] = {}

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        took[what] = (time.perf_counter() - started) * 1000

    with timed("made"):
        prepare(door, index, macs)
    with timed("bound"):
        assert door.bind(index, list(macs)) == {}
    with timed("released"):
        assert door.release(index, list(macs)) == {}
    assert door.bind(index, list(macs)) == {}
    with timed("gone"):
        assert asyncio.run(door.release_everything()) == count
    assert devices(net) == []
    print(f"{count}: " + ", ".join(f"{what} {ms:.2f} ms" for what, ms in took.items()))
    assert took["bound"] < 10 + count
    assert took["gone"] < 2000


def test_200_ipv6_addresses_on_macvlans_are_received_for_at_once(on_a: On) -> None:
    net, door, index = on_a
    macs = {f"2001:db8::1:{i:x}": f"02:11:22:33:44:{i:02x}" for i in range(1, 201)}
    prepare(door, index, macs)
    started = time.perf_counter()
    assert door.bind(index, list(macs)) == {}
    print(f"200 IPv6 addresses bound in {(time.perf_counter() - started) * 1000:.1f} ms")
    for address in (next(iter(macs)), list(macs)[-1]):
        assert answers(net, address)


def test_an_address_whose_mode_changed_is_missing_there_and_released_wherever_it_is(on_a: On) -> None:
    net, door, index = on_a

    async def story() -> None:
        async with watching(door) as told:
            door.prepare(index, frozenset({V4}))
            door.bind(index, [V4])
            await until(lambda: latest(told)[1] == {(index, V4)})
            prepare(door, index, {V4: M1})
            await until(lambda: latest(told)[1] == frozenset())
            assert door.release(index, [V4]) == {}
            assert not shown(net, V4)
            assert door.bind(index, [V4]) == {}
            assert shown(net, V4)["nic"] == device(M1)
            await until(lambda: latest(told)[1] == {(index, V4)})
            await asyncio.sleep(0.3)
            door.prepare(index, frozenset({V4}))
            await until(lambda: latest(told)[1] == frozenset())
            assert door.release(index, [V4]) == {}
            assert not shown(net, V4)
            await until(lambda: devices(net) == [])

    asyncio.run(story())


def test_bound_in_its_new_place_it_leaves_the_old_one(on_a: On) -> None:
    net, door, index = on_a
    prepare(door, index, {V4: M1})
    door.bind(index, [V4])
    prepare(door, index, {V4: M2})
    assert door.bind(index, [V4]) == {}
    assert net.run("a", "ip", "addr").count(V4) == 1
    assert shown(net, V4)["nic"] == device(M2)
    door.close()
    assert devices(net) == [device(M2)]


def test_a_mac_moves_to_another_nic(on_a: On) -> None:
    net, door, index = on_a
    net.cable("a", "eth1", "b", "eth1")
    other = socket.if_nametoindex("eth1")
    why: list[str] = []

    async def story() -> float:
        async with watching(door):
            prepare(door, index, {V4: M1})
            door.bind(index, [V4])
            await asyncio.sleep(0.3)
            prepare(door, other, {V4: M1})
            why.append(door.bind(other, [V4])[V4])
            door.release(index, [V4])
            prepare(door, index, {})
            started = time.monotonic()
            why.append(door.bind(other, [V4])[V4])
            await until(lambda: link(net, device(M1))["link"] == "eth1" if devices(net) else False)
            await until(lambda: not door.bind(other, [V4]))
            return (time.monotonic() - started) * 1000

    print(f"moved to another NIC after {asyncio.run(story()):.0f} ms: {why}")
    assert "another NIC" in why[0]
    assert "tried again" in why[1]
    assert shown(net, V4)["nic"] == device(M1)


# --- other hands --------------------------------------------------------------------------------------

HANDS = {
    "deleted": f"link del {device(M1)}",
    "set down": f"link set {device(M1)} down",
    "given another MAC": f"link set {device(M1)} address 02:99:99:99:99:99",
}


@pytest.mark.parametrize("how", HANDS)
def test_what_another_hand_does_is_told_and_mended_in_one_look(on_a: On, how: str) -> None:
    net, door, index = on_a

    async def story() -> float:
        async with bound(on_a, V4, V6) as told:
            await asyncio.sleep(0.3)
            del told[2:]
            net.ip("a", HANDS[how])
            done = time.monotonic()
            await until(lambda: len(told) > 2)
            assert told[2][1].bound == frozenset()  # type: ignore[union-attr]
            assert door.bind(index, [V4, V6]) == {}
            late = time.monotonic() - done
            await until(lambda: latest(told)[1] == {(index, V4), (index, V6)})
            return late * 1000

    print(f"{how}: bound again after {asyncio.run(story()):.1f} ms")
    found = link(net, device(M1))
    assert found["address"] == M1
    assert "UP" in str(found["flags"])
    assert sysctl(net, "arp_ignore") == "1"
    for address in BOTH:
        assert shown(net, address)["nic"] == device(M1)
    assert answers(net, V6)


def test_a_renamed_one_is_replaced(on_a: On) -> None:
    net, door, index = on_a

    async def story() -> None:
        async with bound(on_a, V4):
            down = f"link set {device(M1)} down"
            net.ip("a", down, f"link set {device(M1)} name other", "link set other up")
            await until(lambda: devices(net) == [device(M1)])
            await until(lambda: not door.bind(index, [V4]))

    asyncio.run(story())


def test_settings_written_over_are_restored_and_the_address_stays(on_a: On) -> None:
    """As udev does on hosts with ``net.ipv4.conf.*.rp_filter`` in sysctl.d, whenever a device comes."""
    net, _, index = on_a

    async def story() -> None:
        async with bound(on_a, V4) as told:
            del told[2:]
            net.run("a", "sysctl", "-qw", f"net.ipv4.conf.{device(M1)}.rp_filter=1")
            net.ip("a", "addr add 198.51.100.1/32 dev eth0")  # a reason to look
            await until(lambda: sysctl(net, "rp_filter") == "2")
            await until(lambda: len(told) > 2)
            assert latest(told)[1] == {(index, V4)}

    asyncio.run(story())


def test_a_link_local_address_of_a_virtual_mac_does_not_stay(on_a: On) -> None:
    net, door, index = on_a

    async def story() -> None:
        async with bound(on_a, V4):
            net.ip("a", f"link set {device(M1)} down addrgenmode eui64", f"link set {device(M1)} up")
            await until(lambda: devices(net) and link(net, device(M1))["inet6_addr_gen_mode"] == "none")
            await until(lambda: not door.bind(index, [V4]))
            assert "fe80:" not in net.run("a", "ip", "addr", "show", "dev", device(M1))

    asyncio.run(story())


def test_deleted_a_moment_before_the_bind_it_is_made_anew(on_a: On) -> None:
    net, door, index = on_a
    prepare(door, index, BOTH)
    net.ip("a", f"link del {device(M1)}")
    assert door.bind(index, [V4, V6]) == {}
    assert shown(net, V4)["nic"] == device(M1)


# --- the NIC below ------------------------------------------------------------------------------------


def test_a_bridge_may_be_the_nic_below(on_a: On) -> None:
    net, door, _ = on_a
    to_bridge(net)
    bridge = socket.if_nametoindex("br0")
    prepare(door, bridge, BOTH)
    assert door.bind(bridge, [V4, V6]) == {}
    assert M1 in cached(net, V6)


def test_a_nic_that_is_a_macvlan_itself_is_said(on_a: On) -> None:
    """The kernel would put ours on the NIC below that one, where it does not belong."""
    net, door, _ = on_a
    net.ip("a", "link add mv0 link eth0 type macvlan mode bridge", "link set mv0 up")

    async def story() -> None:
        async with watching(door) as told:
            assert latest(told)[0] == {"eth0", "mv0"}
            index = socket.if_nametoindex("mv0")
            prepare(door, index, BOTH)
            assert "macvlan itself" in door.bind(index, [V4])[V4]
            await asyncio.sleep(0.2)
            assert devices(net) == ["mv0"]

    asyncio.run(story())


def test_carrier_and_mtu_follow_the_nic_below(on_a: On) -> None:
    net, door, index = on_a

    def mtu() -> object:
        return link(net, device(M1))["mtu"] if devices(net) else 0

    async def story() -> None:
        async with watching(door) as told:
            prepare(door, index, BOTH)
            net.ip("b", "link set eth0 down")
            await until(lambda: "LOWER_UP" not in str(link(net, device(M1))["flags"]))
            assert door.bind(index, [V4]) == {}  # whether to do so is the brain's business
            net.ip("b", "link set eth0 up")
            await until(lambda: "LOWER_UP" in str(link(net, device(M1))["flags"]))
            await until(lambda: latest(told)[1] == {(index, V4)})
            net.ip("a", "link set eth0 mtu 1279")
            await until(lambda: mtu() == 1279)
            assert "1,280" in door.bind(index, [V6])[V6]
            net.ip("a", "link set eth0 mtu 1400")
            await until(lambda: mtu() == 1400)
            await until(lambda: not door.bind(index, [V6]))
            assert door.bind(index, [V4]) == {}
            assert "fe80:" not in net.run("a", "ip", "addr", "show", "dev", device(M1))
            net.ip("a", "link set eth0 down")
            await asyncio.sleep(0.1)
            net.ip("a", "link set eth0 up")
            assert V4 in net.run("a", "ip", "route", "show", "table", "local", "dev", device(M1))

    asyncio.run(story())


def test_a_macvlan_is_made_on_a_nic_that_is_down(on_a: On) -> None:
    net, door, index = on_a
    net.ip("a", "link set eth0 down")
    prepare(door, index, BOTH)
    net.ip("a", "link set eth0 up")
    assert door.bind(index, [V4, V6]) == {}


def test_a_nic_that_goes_away_and_comes_back(on_a: On) -> None:
    net, door, index = on_a

    async def story() -> None:
        async with bound(on_a, V4, V6) as told:
            net.ip("a", "link del eth0")
            await until(lambda: latest(told) == (frozenset(), frozenset()))
            assert devices(net) == []
            assert "gone" in door.bind(index, [V4])[V4]
            assert door.release(index, [V4]) == {}
            net.cable("a", "eth0", "b", "eth0")
            net.ip("a", "addr add 192.0.2.1/24 dev eth0")
            await until(lambda: latest(told)[0] == {"eth0"})
            anew = socket.if_nametoindex("eth0")
            prepare(door, anew, BOTH)
            assert door.bind(anew, [V4, V6]) == {}
            await until(lambda: latest(told)[1] == {(anew, V4), (anew, V6)})

    asyncio.run(story())


# --- told ---------------------------------------------------------------------------------------------


def test_ours_are_no_nics_to_choose_and_foreign_ones_are(on_a: On) -> None:
    net, door, index = on_a
    net.ip("a", "link add mv0 link eth0 type macvlan mode bridge", "link set mv0 up")
    prepare(door, index, BOTH)

    async def story() -> frozenset[str]:
        async with watching(door) as told:
            return latest(told)[0]

    assert asyncio.run(story()) == {"eth0", "mv0"}


def test_neighbours_of_the_macvlan_are_the_nics(on_a: On) -> None:
    net, door, index = on_a
    prepare(door, index, BOTH)
    net.ip(
        "a",
        f"neigh add 192.0.2.66 lladdr 02:00:00:00:00:66 dev {device(M1)} nud stale",
        "neigh add 192.0.2.67 lladdr 02:00:00:00:00:67 dev eth0 nud stale",
    )

    async def story() -> None:
        async with watching(door):
            prepare(door, index, BOTH)
            await until(lambda: door.surroundings(index).neighbours)

    asyncio.run(story())
    assert {"192.0.2.66", "192.0.2.67"} <= {n.address for n in door.surroundings(index).neighbours}


# --- start and end ------------------------------------------------------------------------------------


def test_at_start_what_carries_an_address_is_kept_and_told_and_the_rest_goes(on_a: On) -> None:
    net, _, index = on_a
    earlier = KernelAddresses()
    prepare(earlier, index, {V4: M1, V6: M2})
    earlier.bind(index, [V4])
    earlier.prepare(index, frozenset({"192.0.2.11", V4, V6}), {V4: M1, V6: M2})
    earlier.bind(index, ["192.0.2.11"])
    door = KernelAddresses()
    assert door.marked() == {(index, V4), (index, "192.0.2.11")}
    assert door.leftover_macs() == {V4: M1}

    async def story() -> None:
        async with watching(door) as told:
            assert latest(told)[1] == {(index, V4), (index, "192.0.2.11")}
            await until(lambda: devices(net) == [device(M1)])
            assert door.bind(index, [V4]) == {}  # nobody prepared it: it stays where it is
            assert net.run("a", "ip", "addr").count(f" {V4}/") == 1
            prepare(door, index, {V4: M1})
            assert door.bind(index, [V4]) == {}
            assert shown(net, V4)["nic"] == device(M1)
            assert door.release(index, [V4, "192.0.2.11"]) == {}

    asyncio.run(story())
    assert not shown(net, V4)
    door.close()
    earlier.close()


def test_release_everything_leaves_neither_addresses_nor_macvlans_of_anybodys(on_a: On) -> None:
    net, door, index = on_a
    earlier = KernelAddresses()
    prepare(earlier, index, {V4: M1, V6: M2})
    earlier.bind(index, [V4])
    earlier.close()

    async def story() -> int:
        async with watching(door):
            prepare(door, index, {V6: M2})
            await until(lambda: not door.bind(index, [V6]))  # the first look has removed the idle one
            count = await door.release_everything()
            assert devices(net) == []
            await asyncio.sleep(0.3)  # no look makes them again
            return count

    assert asyncio.run(story()) == 2
    assert devices(net) == []


CONFINED = """
import asyncio, socket, sys
from holdfast_speaker.addresses.kernel import KernelAddresses
door = KernelAddresses()
index = socket.if_nametoindex("eth0")
macs = {"192.0.2.10": "02:11:22:33:44:55", "2001:db8::10": "02:11:22:33:44:55"}
door.prepare(index, frozenset(macs), macs)
failed = door.bind(index, list(macs))
assert not failed, failed
open("/proc/sys/net/ipv4/conf/hf-021122334455/arp_ignore").read().strip() == "1" or sys.exit(3)
try:
    open("/proc/sys/net/ipv4/conf/all/rp_filter", "w")
    sys.exit(4)
except OSError:
    pass
assert asyncio.run(door.release_everything()) == 2
door.close()
"""


def test_net_admin_and_net_raw_suffice_with_proc_sys_read_only(pair: Net, tmp_path: Path) -> None:
    pod = Confinement(
        netns=Path("/run/netns") / pair.full("a"),
        run_folder=tmp_path,
        hostname="a",
        capabilities=("net_admin", "net_raw"),
    )
    done = subprocess.run(
        pod.argv([sys.executable, "-c", CONFINED]), text=True, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert devices(pair) == []
