# SPDX-License-Identifier: Apache-2.0
"""Virtual MACs in the brain: which MAC is one, no place for it before its fence, and how it ends."""

from itertools import permutations, product

import msgspec
import pytest

from holdfast_api.conditions import Reason
from holdfast_api.types import (
    Candidate,
    Interface,
    Metadata,
    Owner,
    RouterAddress,
    VirtualRouter,
    VirtualRouterSpec,
)
from holdfast_speaker import effects as do
from holdfast_speaker import events as on
from holdfast_speaker.node import plan
from tests.scripts.stage import INDEX, Stage

MAC, OTHER = "02:aa:00:00:00:64", "02:aa:00:00:00:65"
DRESSED = f"plan vr-51 10.0.0.100={MAC} claimed candidates=a:250,b:248"
LINK = "link eth0 10.0.0.1/24 fe80::1/64"


def router(mac: str | None, mode: str = "VirtualMAC") -> VirtualRouter:
    planned = RouterAddress("10.0.0.100", Owner("default", "vip", "u"), mac_address=mac)
    candidates = (Candidate("a", 250, ("10.0.0.1",), ("02:00:00:00:00:01",)),)
    spec = VirtualRouterSpec(51, (planned,), candidates, mode=mode)  # type: ignore[arg-type]
    return VirtualRouter(Metadata("vr-51", uid="u", generation=1), spec)


def after(*commands: str) -> Stage:
    """Node a with its NIC, after these commands."""
    staged = Stage()
    for command in ("node a", LINK, *commands):
        staged.perform(command)
    return staged


def serving(*commands: str) -> Stage:
    """Node a with its NIC and the address with the MAC, after these commands; no effects noted yet."""
    staged = after(DRESSED, "list", "run 1s", *commands)
    staged.effects.clear()
    return staged


# --- which MAC is one -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mac",
    [
        "",
        "VRRP",
        "02:aa:00:00:00",
        "02:aa:00:00:00:64:65",
        "2:aa:00:00:00:64",
        "02-aa-00-00-00-64",
        "02aa00000064",
        "0g:aa:00:00:00:64",
        " 2:aa:00:00:00:64",
        "+2:aa:00:00:00:64",
        "00:00:00:00:00:00",
        "ff:ff:ff:ff:ff:ff",
        "01:00:5e:00:00:12",
        "33:33:00:00:00:01",
        "03:aa:00:00:00:64",
        "02:aa:00:00:00:64\n",
        "\u06602:aa:00:00:00:64",
        "a" * 10_000,
    ],
)
def test_what_is_no_mac_of_one_host_is_refused_with_its_field(mac: str) -> None:
    why = plan.fault(router(mac))

    assert why is not None
    assert why.startswith("spec.addresses: ")
    assert len(why) < 100


@pytest.mark.parametrize("mac", [MAC, "00:00:5e:00:01:33", "02:AA:00:00:00:64"])
def test_a_mac_of_one_host_is_taken(mac: str) -> None:
    good = router(mac)

    assert plan.fault(good) is None
    assert plan.virtual_mac(good.spec, good.spec.addresses[0]) == bytes.fromhex(mac.replace(":", ""))


@pytest.mark.parametrize("mac", [None, MAC, "no MAC"])
def test_in_mode_node_mac_there_is_none(mac: str | None) -> None:
    good = router(mac, "NodeMAC")

    assert plan.fault(good) is None
    assert plan.virtual_mac(good.spec, good.spec.addresses[0]) == b""


def test_an_address_without_a_mac_has_the_nics_own() -> None:
    good = router(None)

    assert plan.fault(good) is None
    assert plan.virtual_mac(good.spec, good.spec.addresses[0]) == b""


@pytest.mark.parametrize("mac", ["02:00:00:00:00:01", "02:00:00:00:00:01".upper()])
def test_a_candidates_own_mac_is_no_virtual_one(mac: str) -> None:
    assert plan.fault(router(mac)) == f"spec.addresses: {mac} is the MAC address of a"


# --- never without a fence ------------------------------------------------------------------------


class Watch:
    """Follows the effects: which MACs have a place, which the fence knows, by which VRID."""

    def __init__(self) -> None:
        self.guards: dict[int, do.Guard] = {}
        self.prepared: dict[int, do.Prepare] = {}

    def see(self, effects: list[do.Effect]) -> list[tuple[str, frozenset[str]]]:
        """What has a place without a fence, after each effect that could make it so."""
        bare = []
        for effect in effects:
            match effect:
                case do.Guard():
                    self.guards[effect.virtual_router_id] = effect
                case do.Unguard():
                    self.guards.pop(effect.virtual_router_id, None)
                case do.Prepare():
                    self.prepared[effect.index] = effect
                case _:
                    continue
            fenced = {(each.index, *pair) for each in self.guards.values() for pair in each.macs}
            placed = {(each.index, *pair) for each in self.prepared.values() for pair in each.macs}
            if placed - fenced:
                bare.append((type(effect).__name__, frozenset(mac for *_, mac in placed - fenced)))
        return bare


def bare(*commands: str) -> list[tuple[str, frozenset[str]]]:
    staged, watch = Stage(), Watch()
    staged.perform("node a")
    found = []
    for command in commands:
        staged.effects.clear()
        staged.perform(command)
        found += watch.see(staged.effects)
    return found


@pytest.mark.parametrize("order", list(permutations([LINK, f"{DRESSED}\nlist", "confirm"])))
def test_a_mac_is_fenced_before_it_has_a_place_whatever_comes_first(order: tuple[str, ...]) -> None:
    commands = [command for block in order for command in block.split("\n")]

    assert bare(*commands, "run 6s", "seen 10.0.0.100", "run 1s") == []


CHANGES = (
    f"plan vr-51 10.0.0.100={OTHER} claimed candidates=a:250,b:248\nchange vr-51",
    "plan vr-51 10.0.0.100 claimed candidates=a:250,b:248\nchange vr-51",
    f"plan vr-51 10.0.0.101={MAC} candidates=a:250,b:248\nchange vr-51",
    f"plan vr-51 10.0.0.100={MAC} claimed candidates=b:250\nchange vr-51",
    f"plan vr-52 10.0.0.100={OTHER} claimed candidates=a:250\nchange vr-52",
    f"plan vr-51 10.0.0.101={OTHER} candidates=a:250,b:248\nchange vr-51",
    "link eth0 10.0.0.1/24 fe80::1/64 down",
    "link eth0 10.0.0.9/24 fe80::1/64",
    "nolink",
    "advert from=10.0.0.2 vrid=51 priority=254 lists=10.0.0.100",
    LINK,
    DRESSED + "\nchange vr-51",
)


@pytest.mark.parametrize(("first", "second"), list(product(CHANGES, CHANGES)))
def test_no_two_changes_make_a_place_without_a_fence(first: str, second: str) -> None:
    commands = [LINK, DRESSED, "list", "run 1s", *first.split("\n"), *second.split("\n"), "run 15s"]
    found = bare(*commands)

    # The plan takes a MAC away: the fence forgets it one effect before it loses its place.
    assert [each for each in found if each[0] == "Prepare"] == []


@pytest.mark.parametrize(
    "end", ["delete vr-51", "stop\nrun 3s", "link eth0 10.0.0.1/24 fe80::1/64 down", "nolink"]
)
def test_at_the_end_the_address_goes_before_its_fence(end: str) -> None:
    """Who is deleted also loses the place first, in the same turn as the release; at a stop, it stays.

    The door silences what it has not removed yet (its fence knows the devices by their names).
    """
    staged = serving()
    for command in end.split("\n"):
        staged.perform(command)
    kinds = [type(effect).__name__ for effect in staged.effects]
    verbs = [effect.verb for effect in staged.effects if isinstance(effect, do.Fence)]

    assert kinds.index("Fence") < kinds.index("Release") < kinds.index("Unguard")
    assert verbs[0] == "quiet"
    assert verbs[-2:] == ["silence", "release"]
    if "Prepare" in kinds:
        assert kinds.index("Prepare") < kinds.index("Unguard")


def test_what_another_router_here_still_has_waits_for_its_fence() -> None:
    moved = f"plan vr-52 10.0.0.100={OTHER} claimed candidates=a:250"
    dropped = "plan vr-51 10.0.0.103 claimed candidates=a:250,b:248"
    staged = serving()
    for command in (moved, "change vr-52", dropped, "change vr-51"):
        staged.perform(command)
    last = [effect for effect in staged.effects if isinstance(effect, do.Prepare)][-1]

    assert last.macs == (("10.0.0.100", OTHER),)


def test_the_hosts_own_address_comes_with_the_macs_and_without_them_not() -> None:
    staged = after(DRESSED, "plan vr-52 10.0.0.101 claimed candidates=a:250", "list")
    owns = {e.virtual_router_id: e.own for e in staged.effects if isinstance(e, do.Guard)}
    assert owns == {51: "10.0.0.1", 52: None}

    staged.effects.clear()
    staged.perform("link eth0 10.0.0.9/24 fe80::1/64")
    assert [e.own for e in staged.effects if isinstance(e, do.Guard)] == ["10.0.0.9"]


# --- whose MAC ------------------------------------------------------------------------------------


def test_a_nic_without_a_mac_is_nobodys_virtual_one() -> None:
    """A tunnel has none."""
    staged = Stage()
    staged.perform("node a")
    links = (
        on.Link(INDEX, Interface("eth0", "02:00:00:00:00:01", ("10.0.0.1/24",))),
        on.Link(3, Interface("tun0", "", ("192.0.2.1/24",))),
    )
    staged.handle(on.LinksSeen(links))
    for command in ("plan vr-51 10.0.0.100 claimed candidates=a:250", "list", "run 1s"):
        staged.perform(command)

    assert any(isinstance(effect, do.Bind) for effect in staged.effects)


def test_a_nic_that_gets_a_virtual_mac_as_its_own_ends_that() -> None:
    staged = serving()
    staged.handle(on.LinksSeen((on.Link(INDEX, Interface("eth0", MAC, ("10.0.0.1/24",))),)))
    staged.perform("run 1s")
    (last,) = [e for e in staged.effects if isinstance(e, do.Report)][-1].status.routers

    assert any(isinstance(effect, do.Release) for effect in staged.effects)
    assert last.reason == Reason.MAC_OF_NODE
    assert not any(isinstance(e, do.Guard) and e.macs for e in staged.effects)


def test_not_even_on_the_way_out_the_host_is_fenced_by_its_own_mac() -> None:
    staged = serving("stop")
    for command in ("plan vr-51 10.0.0.100=02:00:00:00:00:01 claimed candidates=b:250", "change vr-51"):
        staged.perform(command)
    staged.perform("run 3s")

    assert not any(isinstance(e, do.Guard) and e.macs for e in staged.effects)
    assert staged.node.stopped


def test_the_same_mac_on_two_nics_is_two_routers() -> None:
    """The VRID's own MAC on two segments: what comes in on one says nothing about the other."""
    staged = Stage()
    staged.perform("node a")
    links = tuple(
        on.Link(INDEX + n, Interface(f"eth{n}", f"02:00:00:00:0{n}:01", (f"10.0.{n}.1/24",))) for n in (0, 1)
    )
    staged.handle(on.LinksSeen(links))
    for command in (
        f"plan vr-51 10.0.0.100={MAC} claimed candidates=a:250",
        f"plan vr-52 10.0.1.100={MAC} claimed candidates=a:250 vrid=51",
        "list",
        "run 3s",
    ):
        staged.perform(command)
    staged.handle(on.MacsHeard(frozenset({MAC})))
    conflicts = [e.label for e in staged.effects if isinstance(e, do.Count) and e.metric == "conflicts"]

    assert sorted(conflicts) == ["vr-51", "vr-52"]


def test_macs_that_nobody_has_are_not_heard() -> None:
    staged = serving("run 2s")
    staged.handle(on.MacsHeard(frozenset({OTHER, "ff:ff:ff:ff:ff:ff"})))

    assert staged.effects == []


def test_a_lease_that_was_removed_while_it_is_on_offer_is_taken_again_and_quiet() -> None:
    offer = f"plan vr-51 10.0.0.100={MAC} claimed candidates=b:250,a:248 handover=h1,a,b"
    staged = serving(offer, "change vr-51")
    staged.handle(on.LeaseLost(51, removed=True))
    fence = [effect for effect in staged.effects if isinstance(effect, do.Take | do.Fence)]

    assert isinstance(fence[0], do.Take)
    assert fence[1:] == [do.Fence(51, "quiet")]


def test_held_by_names_only_what_is_bound_with_them() -> None:
    plan_of_two = f"plan vr-51 10.0.0.100={MAC} claimed 10.0.0.101={OTHER} candidates=a:250"
    staged = after("run 4s", plan_of_two, "list")
    holdings = staged.node._routers.instances["vr-51"].holdings

    macs = holdings.virtual()
    assert macs == {bytes.fromhex(mac.replace(":", "")) for mac in (MAC, OTHER)}
    assert holdings.held_by(macs) == ("10.0.0.100",)  # the other is being probed for
    assert holdings.held_by(frozenset({b""})) == ()
    assert holdings.held_by(frozenset()) == ()


def test_msgspec_reads_a_router_with_any_mac() -> None:
    """The decoder takes any text: the plan's own check is the last one."""
    raw = msgspec.json.encode(router("x" * 70))

    assert msgspec.json.decode(raw, type=VirtualRouter).spec.addresses[0].mac_address == "x" * 70
