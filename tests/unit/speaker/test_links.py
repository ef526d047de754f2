# SPDX-License-Identifier: Apache-2.0
"""The NIC under a router changes: its MAC, its addresses, its place."""

from holdfast_api.types import Interface
from holdfast_speaker import effects as do
from holdfast_speaker import events as on
from tests.scripts.stage import INDEX, Stage, mac

DUAL = ("10.0.0.1/24", "2001:db8::1/64", "fe80::1/64")


def active(*addresses: str) -> Stage:
    """Node a, Active for these, with b as its standby."""
    staged = Stage()
    plan = " ".join(f"{address} claimed" for address in addresses)
    for line in (
        "node a",
        f"link eth0 {' '.join(DUAL)}",
        "run 5s",
        f"plan vr-51 {plan} candidates=a:250,b:248",
        "list",
        "run 1s",
    ):
        staged.perform(line)
    staged.perform(f"seen {' '.join(addresses)}")
    staged.effects.clear()
    return staged


def see(staged: Stage, *cidrs: str, address: str = mac("a")) -> list[str]:
    """The kinds of effects of a look at the NIC as it is now."""
    staged.handle(on.LinksSeen((on.Link(INDEX, Interface("eth0", address, cidrs, True)),)))
    return [type(effect).__name__ for effect in staged.effects]


def priorities(staged: Stage) -> list[int]:
    """Of the adverts sent, in order."""
    frames = [effect.frame for effect in staged.effects if isinstance(effect, do.Send)]
    return [frame[36] if frame[12:14] == b"\x08\x00" else frame[56] for frame in frames]


def test_another_mac_is_announced_at_once() -> None:
    staged = active("10.0.0.100")
    see(staged, *DUAL, address="02:00:00:00:00:77")
    assert do.Announce(INDEX, "announce", ("10.0.0.100",)) in staged.effects
    staged.perform("run 100ms")
    sent = [effect.frame for effect in staged.effects if isinstance(effect, do.Send)]
    assert {frame[6:12] for frame in sent} == {bytes.fromhex("020000000077")}


def test_who_loses_all_its_addresses_resigns_from_what_was_its_source() -> None:
    staged = active("10.0.0.100")
    kinds = see(staged)
    assert priorities(staged) == [0]
    assert kinds.index("Send") < kinds.index("Release")


def test_a_nic_that_became_a_port_resigns_and_releases() -> None:
    staged = active("10.0.0.100")
    staged.handle(on.LinksSeen(()))
    kinds = [type(effect).__name__ for effect in staged.effects]
    assert priorities(staged) == [0]
    assert kinds.index("Send") < kinds.index("Release")


def test_who_loses_one_family_offers_the_router_to_others() -> None:
    """It could hold the address of that family, but answer nobody."""
    staged = active("10.0.0.100", "2001:db8::100")
    see(staged, "2001:db8::1/64", "fe80::1/64")
    assert 0 in priorities(staged)
    staged.perform("advert from=10.0.0.2 vrid=51 priority=248 lists=10.0.0.100,10.0.0.101")
    assert any("No longer Active" in line for line in staged.lines)
