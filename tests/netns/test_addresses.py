# SPDX-License-Identifier: Apache-2.0
"""The address door against the kernel."""

import asyncio
import json
import time

import pytest

from holdfast_speaker.addresses.kernel import MARK, KernelAddresses
from holdfast_speaker.events import AddressesSeen, LinksSeen
from tests.netns.address_door import On, Told, latest, shown, to_bridge, until, watching

pytestmark = pytest.mark.netns


def test_an_ipv4_address_is_a_32_of_scope_link_with_a_30_s_lifetime(on_a: On) -> None:
    net, door, index = on_a
    assert door.bind(index, ["192.0.2.10"]) == {}
    info = shown(net, "192.0.2.10")
    assert (info["prefixlen"], info["scope"], info["valid_life_time"]) == (32, "link", 30)


def test_an_ipv6_address_answers_at_once_and_is_never_a_source(on_a: On) -> None:
    net, door, index = on_a
    assert door.bind(index, ["2001:db8::10"]) == {}
    info = shown(net, "2001:db8::10")
    assert (info["prefixlen"], info["preferred_life_time"], info["valid_life_time"]) == (128, 0, 30)
    assert info["deprecated"]
    assert info["nodad"]
    assert not info.get("tentative")
    assert "1 received" in net.run("b", "ping", "-c1", "-W1", "2001:db8::10")


def test_both_families_carry_our_mark_and_keep_it_when_refreshed(on_a: On) -> None:
    _, door, index = on_a
    mine = ["192.0.2.10", "2001:db8::10"]
    door.bind(index, mine)
    door.refresh(index, mine)
    door.bind(index, mine)

    async def seen() -> frozenset[tuple[int, str]]:
        async with watching(KernelAddresses()) as told:  # one that did not bind them itself
            return latest(told)[1]

    assert asyncio.run(seen()) == {(index, address) for address in mine}
    assert MARK == 0xBA


def test_a_refresh_renews_the_lifetime(on_a: On) -> None:
    net, door, index = on_a
    mine = ["192.0.2.10", "2001:db8::10"]
    door.bind(index, mine)
    time.sleep(2.1)
    before = [shown(net, address)["valid_life_time"] for address in mine]
    door.refresh(index, mine)
    after = [shown(net, address)["valid_life_time"] for address in mine]
    assert max(map(int, map(str, before))) <= 28
    assert after == [30, 30]


def test_release_removes_ours_and_only_ours(on_a: On) -> None:
    net, door, index = on_a
    net.ip("a", "addr add 192.0.2.77/32 dev eth0", "addr add 2001:db8::77/128 dev eth0 nodad")
    door.bind(index, ["192.0.2.10", "2001:db8::10"])
    everything = ["192.0.2.10", "2001:db8::10", "192.0.2.77", "2001:db8::77", "192.0.2.1", "192.0.2.99"]
    assert door.release(index, everything) == {}
    assert not shown(net, "192.0.2.10")
    assert not shown(net, "2001:db8::10")
    assert shown(net, "192.0.2.77")
    assert shown(net, "2001:db8::77")
    assert shown(net, "192.0.2.1")


def test_an_address_the_host_has_already_is_not_taken_over(on_a: On) -> None:
    net, door, index = on_a
    net.ip("a", "addr add 192.0.2.77/32 dev eth0")
    failed = door.bind(index, ["192.0.2.77", "192.0.2.10"])
    assert list(failed) == ["192.0.2.77"]
    assert "not from Holdfast" in failed["192.0.2.77"]
    assert shown(net, "192.0.2.77")["valid_life_time"] == 0xFFFFFFFF
    assert shown(net, "192.0.2.10")


def test_what_a_predecessor_left_bound_is_taken_over_by_bind(on_a: On) -> None:
    _, door, index = on_a
    predecessor = KernelAddresses()
    predecessor.bind(index, ["192.0.2.10"])
    predecessor.close()
    assert door.bind(index, ["192.0.2.10"]) == {}
    assert door.release(index, ["192.0.2.10"]) == {}


def test_a_nic_that_is_gone_fails_with_a_reason_and_releases_without_one(on_a: On) -> None:
    net, door, index = on_a
    door.bind(index, ["192.0.2.10"])
    net.ip("a", "link del eth0")
    assert "gone" in door.bind(index, ["192.0.2.11"])["192.0.2.11"]
    assert door.release(index, ["192.0.2.10"]) == {}
    assert door.bind(index, ["no address"]) != {}


def test_ipv6_switched_off_on_the_nic_is_said(on_a: On) -> None:
    net, door, index = on_a
    net.run("a", "sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")
    assert "disable_ipv6" in door.bind(index, ["2001:db8::10"])["2001:db8::10"]


def test_an_mtu_too_small_for_ipv6_is_said(on_a: On) -> None:
    net, door, index = on_a
    net.ip("a", "link set eth0 mtu 1279")
    errors = door.bind(index, ["2001:db8::10", "192.0.2.10"])
    assert list(errors) == ["2001:db8::10"]
    assert "1,280" in errors["2001:db8::10"]


def test_1000_addresses_are_bound_and_released_in_one_batch(on_a: On) -> None:
    net, door, index = on_a
    many = [f"10.0.{i // 250}.{i % 250 + 1}" for i in range(1000)]
    door.prepare(index, frozenset(many))
    started = time.perf_counter()
    assert door.bind(index, many) == {}
    bound_ms = (time.perf_counter() - started) * 1000
    assert net.run("a", "ip", "-4", "addr", "show", "dev", "eth0").count(" 10.0.") == 1000
    started = time.perf_counter()
    assert door.release(index, many) == {}
    released_ms = (time.perf_counter() - started) * 1000
    print(f"1,000 IPv4 addresses: bound in {bound_ms:.1f} ms, released in {released_ms:.1f} ms")
    assert bound_ms < 1000
    assert released_ms < 1000


def test_a_flushed_address_is_told_within_milliseconds(on_a: On) -> None:
    net, door, index = on_a

    async def story() -> float:
        async with watching(door) as told:
            door.bind(index, ["192.0.2.10", "192.0.2.11"])
            await asyncio.sleep(0.05)
            del told[2:]
            net.ip("a", "addr del 192.0.2.10/32 dev eth0")
            flushed = time.monotonic()
            await until(lambda: len(told) > 2)
            assert latest(told)[1] == {(index, "192.0.2.11")}
            return (told[-1][0] - flushed) * 1000

    late_ms = asyncio.run(story())
    print(f"told {late_ms:.1f} ms after ip returned")
    assert late_ms < 500


def test_what_another_program_replaced_is_marked_anew_at_once(on_a: On) -> None:
    """``ip address replace`` leaves it without our mark and, as here, for ever."""
    net, door, index = on_a
    mine = {"192.0.2.10": "/32 scope link", "2001:db8::10": "/128 nodad"}
    door.bind(index, list(mine))

    async def replace() -> None:
        async with watching(door) as told:
            for address, how in mine.items():
                prefix, _, rest = how.partition(" ")
                net.ip("a", f"addr replace {address}{prefix} dev eth0 {rest} valid_lft forever")
            before = len(told)
            await until(lambda: len(told) > before)
            assert latest(told)[1] == {(index, address) for address in mine}
            await until(lambda: all(shown(net, a)["valid_life_time"] == 30 for a in mine), 2.0)
            async with watching(KernelAddresses()) as others:  # told by the mark alone
                assert latest(others)[1] == {(index, address) for address in mine}

    asyncio.run(replace())


def test_binding_is_seen_once_and_refreshing_wakes_nobody(on_a: On) -> None:
    _, door, index = on_a
    mine = [f"192.0.2.{i}" for i in range(10, 200)] + [f"2001:db8::1:{i:x}" for i in range(1, 30)]

    async def story() -> tuple[int, int]:
        async with watching(door) as told:
            await asyncio.sleep(0.3)
            before = len(told)
            door.bind(index, mine)
            await asyncio.sleep(0.3)
            bound = len(told)
            assert latest(told)[1] == {(index, address) for address in mine}
            door.refresh(index, mine)
            door.bind(index, mine)
            await asyncio.sleep(0.3)
            return bound - before, len(told) - bound

    assert asyncio.run(story()) == (1, 0)


def test_a_snapshot_never_lacks_what_was_bound_while_it_was_taken(on_a: On) -> None:
    """Bind in every turn of the loop while foreign changes force dumps: no snapshot may be behind."""
    net, door, index = on_a
    mine: list[str] = []
    wrong: list[AddressesSeen] = []

    async def story() -> None:
        async def listen() -> None:
            async for seen in door.watch():
                if isinstance(seen, AddressesSeen) and seen.bound != {(index, address) for address in mine}:
                    wrong.append(seen)

        task = asyncio.create_task(listen())
        for i in range(10, 210):
            door.bind(index, [f"192.0.2.{i}"])
            mine.append(f"192.0.2.{i}")
            if i % 10 == 0:
                net.ip("a", f"addr add 198.51.100.{i}/32 dev eth0")
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())
    assert wrong == []


def test_our_addresses_are_not_told_as_the_nics_own(on_a: On) -> None:
    _, door, index = on_a
    door.bind(index, ["192.0.2.10", "2001:db8::10"])

    async def story() -> tuple[str, ...]:
        async with watching(door) as told:
            links = next(seen for _, seen in told if isinstance(seen, LinksSeen))
            return links.interfaces[0].interface.addresses

    own = asyncio.run(story())
    assert own[:2] == ("192.0.2.1/24", "2001:db8::1/64")
    assert all(cidr.startswith(("192.0.2.1/", "2001:db8::1/", "fe80:")) for cidr in own)


def test_a_bridge_is_told_and_its_port_is_not(on_a: On) -> None:
    net, door, _ = on_a

    async def story() -> None:
        async with watching(door) as told:
            assert latest(told)[0] == {"eth0"}
            to_bridge(net)
            await until(lambda: latest(told)[0] == {"br0"})

    asyncio.run(story())


def test_pods_cables_and_loopback_are_not_told(on_a: On) -> None:
    net, door, _ = on_a
    net.add("pod")
    net.cable("a", "cali0", "pod", "eth0")
    net.cable("a", "ptp0", "pod", "eth1")
    net.ip("a", "addr add 10.22.0.1/32 dev ptp0")

    async def story() -> frozenset[str]:
        async with watching(door) as told:
            return latest(told)[0]

    assert asyncio.run(story()) == {"eth0"}


def test_carrier_loss_is_told_when_the_kernel_tells_it(on_a: On) -> None:
    """At the latest after a second: linkwatch holds back a second change within one, of any NIC at all."""
    net, door, _ = on_a

    def carrier(told: Told) -> bool:
        links = [seen for _, seen in told if isinstance(seen, LinksSeen)][-1]
        return links.interfaces[0].interface.carrier

    async def story() -> float:
        async with watching(door) as told:
            assert carrier(told)
            net.ip("b", "link set eth0 down")
            lost = time.monotonic()
            await until(lambda: not carrier(told))
            return (time.monotonic() - lost) * 1000

    assert asyncio.run(story()) < 1200


def test_an_ipv6_address_is_told_once_duplicate_detection_is_over(on_a: On) -> None:
    net, door, _ = on_a

    def addresses(told: Told) -> tuple[str, ...]:
        links = [seen for _, seen in told if isinstance(seen, LinksSeen)][-1]
        return links.interfaces[0].interface.addresses

    async def story() -> None:
        async with watching(door) as told:
            net.ip("a", "addr add 2001:db8::9/64 dev eth0", "addr add 192.0.2.9/24 dev eth0")
            await until(lambda: "192.0.2.9/24" in addresses(told))
            assert "2001:db8::9/64" not in addresses(told)
            await until(lambda: "2001:db8::9/64" in addresses(told), seconds=5)

    asyncio.run(story())


def test_news_lost_in_a_storm_are_made_good_by_a_look(on_a: On) -> None:
    net, _, index = on_a
    hard_of_hearing = KernelAddresses(news_buffer_bytes=2304)

    async def story() -> None:
        async with watching(hard_of_hearing) as told:
            hard_of_hearing.bind(index, ["192.0.2.10"])
            net.ip("a", *(f"addr add 10.0.0.{i}/32 dev eth0" for i in range(1, 200)))  # the loop stands still
            net.ip("a", "addr del 192.0.2.10/32 dev eth0")
            await until(lambda: latest(told)[1] == frozenset() and len(told) > 2)

    asyncio.run(story())
    hard_of_hearing.close()


def test_gateways_and_neighbours_of_a_prepared_nic_are_known(on_a: On) -> None:
    net, door, index = on_a
    net.ip("a", "route add default via 192.0.2.2", "route add default via 2001:db8::2")
    net.run("a", "ping", "-c1", "-W1", "192.0.2.2")
    net.run("a", "ping", "-c1", "-W1", "2001:db8::2")
    net.ip("a", "neigh add 192.0.2.66 lladdr 02:00:00:00:00:66 dev eth0 nud stale")
    net.run("a", "sysctl", "-qw", "net.ipv6.conf.eth0.forwarding=1")
    mac = json.loads(net.run("b", "ip", "-json", "link", "show", "eth0"))[0]["address"]

    async def story() -> None:
        async with watching(door):
            assert door.surroundings(index).forwarding
            door.prepare(index, frozenset({"192.0.2.10"}))
            await until(lambda: door.surroundings(index).gateways)
        around = door.surroundings(index)
        assert {(n.address, n.mac) for n in around.gateways} == {("192.0.2.2", mac), ("2001:db8::2", mac)}
        assert ("192.0.2.66", "02:00:00:00:00:66") in {(n.address, n.mac) for n in around.neighbours}

    asyncio.run(story())


def test_release_everything_finds_what_this_process_never_bound(on_a: On) -> None:
    net, door, index = on_a
    predecessor = KernelAddresses()
    predecessor.bind(index, ["192.0.2.10", "2001:db8::10"])
    predecessor.close()
    net.ip("a", "addr add 192.0.2.77/32 dev eth0")
    assert asyncio.run(door.release_everything()) == 2
    assert not shown(net, "192.0.2.10")
    assert not shown(net, "2001:db8::10")
    assert shown(net, "192.0.2.77")
