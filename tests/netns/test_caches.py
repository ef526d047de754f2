# SPDX-License-Identifier: Apache-2.0
"""Clients with a will of their own about ARP and ND, and what is told of their caches."""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.netns.by_hand import MAC, V4, V6, Wired, arp, neighbour
from tests.rig.caches import Caches, cached, forget, heed_no_announcement, pin
from tests.rig.run import Run, command

pytestmark = pytest.mark.netns

OLD = "02:aa:aa:aa:aa:aa"
BOTH = [V4, V6]


@pytest.fixture
def wired(rig_ready: None) -> Iterator[Wired]:  # noqa: ARG001  pytest orders fixtures by their arguments
    with Run() as run:
        made = Wired(run)
        for address in BOTH:
            learn(made, address, OLD)
        yield made
        made.close()


def west(wired: Wired) -> str:
    return wired.run.namespace_name("west")


def learn(wired: Wired, address: str, mac: str) -> None:
    """An entry as one that was learned: stale, so that any claim may change it at once."""
    entry = [address, "lladdr", mac, "nud", "stale", "dev", "eth0"]
    command("ip", "-n", west(wired), "neighbour", "replace", *entry)


def announce(wired: Wired) -> None:
    """Both forms of ARP, and an unsolicited advertisement: what all announce with."""
    wired.send("east", arp(1, MAC, MAC, V4, target=V4), arp(2, MAC, MAC, V4, target=V4))
    wired.send("east", neighbour(136, MAC, MAC, V6, V6))


def until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_ordinary_client_heeds_an_announcement_and_its_time_is_told(wired: Wired) -> None:
    with Caches(wired.run, {"west": BOTH}) as caches:
        time.sleep(0.05)
        moment = time.monotonic()
        announce(wired)
        until(lambda: all(cached(west(wired), address) == MAC for address in BOTH))
        until(lambda: all(len(caches.history("west", address)) == 2 for address in BOTH))
    for address in BOTH:
        (change,) = caches.changes("west", address)
        assert change.mac == MAC
        assert moment <= change.at <= moment + 1
        assert caches.at("west", address, moment) == OLD
        assert caches.at("west", address, moment + 1) == MAC
        assert caches.changes("west", address, since=moment + 1) == []


def test_what_was_forgotten_and_learned_again_is_no_change_of_mac(wired: Wired) -> None:
    with Caches(wired.run, {"west": BOTH}) as caches:
        forget(west(wired))
        assert [cached(west(wired), address) for address in BOTH] == [None, None]
        learn(wired, V4, OLD)
        until(lambda: len(caches.history("west", V4)) == 3 and len(caches.history("west", V6)) == 2)
    assert [entry.mac for entry in caches.history("west", V4)] == [OLD, None, OLD]
    assert caches.changes("west", V4) == caches.changes("west", V6) == []


def test_a_deaf_client_heeds_no_announcement_but_learns_from_a_question(wired: Wired) -> None:
    heed_no_announcement(west(wired))
    announce(wired)
    time.sleep(0.2)
    assert [cached(west(wired), address) for address in BOTH] == [OLD, OLD]
    own = wired.segment.addresses(12)[0]
    wired.send("east", arp(1, MAC, MAC, V4, target=own))
    until(lambda: cached(west(wired), V4) == MAC)


def test_nothing_changes_a_static_entry(wired: Wired) -> None:
    for address in BOTH:
        pin(west(wired), address, OLD)
    announce(wired)
    wired.send("east", arp(1, MAC, MAC, V4, target=wired.segment.addresses(12)[0]))
    time.sleep(0.2)
    forget(west(wired))
    assert [cached(west(wired), address) for address in BOTH] == [OLD, OLD]
