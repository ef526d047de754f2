# SPDX-License-Identifier: Apache-2.0
"""What must never be, and what must be again after the last fault."""

from holdfast_api.types import VirtualRouter
from holdfast_speaker.vrrp.router import State
from tests.sim.host import SimHost
from tests.sim.world import World

DELAYS_US = 60_000  # the loop's lateness, netlink, the wire, twice over, and the watcher's own round
LEASE_ADVERTS = 3
CEDED_US = 1_500_000
SILENT_US = 3_000_000
OFFERED_US = 4_000_000  # a virtual MAC is quiet from the first priority 0 on, and a stop tries for a while
PLANLESS_US = 15_000_000  # after a start: ten seconds without a plan, and what follows
LOST_ADVERTS = 8  # in a row, at the simulator's worst loss: one in 10**10


class WrongError(AssertionError):
    """A checker's finding."""


def held_by(world: World, address: str) -> list[SimHost]:
    return [host for host in world.hosts if host.kernel.holds(address, world.now_us)]


def answered_by(world: World, address: str) -> list[SimHost]:
    return [host for host in world.hosts if host.kernel.answers(address, world.now_us)]


def addresses(world: World) -> dict[str, int]:
    """Each planned address with its router's advert interval."""
    return {
        each.address: router.spec.advert_interval_milliseconds * 1000
        for router in world.routers.values()
        for each in router.spec.addresses
    }


def heard_by_a_third(world: World, address: str, one: SimHost, other: SimHost) -> bool:
    """They hear each other in one direction only, but another candidate hears both, and they it."""
    if world.loss or not (world.reaches(one.name, other.name) or world.reaches(other.name, one.name)):
        return False
    routers = [r for r in world.routers.values() if any(a.address == address for a in r.spec.addresses)]
    nodes = {candidate.node for router in routers for candidate in router.spec.candidates}
    return (
        one.name in nodes
        and other.name in nodes
        and any(
            third.name in nodes
            and third.is_awake(world.now_us)
            and world.connected(third, one)
            and world.connected(third, other)
            for third in world.hosts
            if third is not one and third is not other
        )
    )


class Silent:
    """What a running speaker leaves on a NIC without answering for it, it has a reason for; for seconds."""

    def __init__(self) -> None:
        self._since_us: dict[tuple[str, str], int] = {}

    def __call__(self, world: World) -> None:
        mute = {
            (host.name, address)
            for host in world.hosts
            for address in host.kernel.bound
            if host.is_awake(world.now_us)
            and host.kernel.holds(address, world.now_us)
            and not host.kernel.answers(address, world.now_us)
        }
        self._since_us = {key: self._since_us.get(key, world.now_us) for key in sorted(mute)}
        ceded = {
            (host.name, address)
            for host in world.hosts
            for address, owner in host.kernel.owners.items()
            if owner in host.kernel.quiet
        }
        offered = {(host.name, address) for host in world.hosts for address in host.kernel.placed}
        offered |= {  # a router with a virtual MAC is quiet as a whole
            (host.name, address)
            for host in world.hosts
            for guard in host.kernel.guards.values()
            for address in (guard.addresses if guard.macs else ())
        }
        started_us = {host.name: host.started_us for host in world.hosts}
        for (host, address), since_us in self._since_us.items():
            fresh = world.now_us - started_us[host] < PLANLESS_US
            lasted_us = world.now_us - since_us
            longest_us = CEDED_US if (host, address) in ceded else SILENT_US
            if (host, address) in offered:
                longest_us = OFFERED_US
            if lasted_us > longest_us and not fresh:
                raise WrongError(
                    f"{host} has {address} without answering for it, for {lasted_us / 1e6:.1f} s"
                )


class OneHolder:
    """Two hosts that hear each other never answer for one address longer than the bound.

    Two that are awake: the winner's adverts reach the loser, were eight of them lost. If one of them is
    stopped, dead or blocked: what is left of its lease, which adverts that were lost can make overlap.
    """

    def __init__(self) -> None:
        self._since_us: dict[tuple[str, str, str], int] = {}
        self.longest_us = 0

    def __call__(self, world: World) -> None:
        known = addresses(world)
        seen: set[tuple[str, str, str]] = set()
        for address in known:
            holders = answered_by(world, address)
            for at, one in enumerate(holders):
                for other in holders[at + 1 :]:
                    if world.connected(one, other) or heard_by_a_third(world, address, one, other):
                        seen.add((address, one.name, other.name))
        self._since_us = {key: self._since_us.get(key, world.now_us) for key in sorted(seen)}
        for (address, first, second), since_us in self._since_us.items():
            lasted_us = world.now_us - since_us
            self.longest_us = max(self.longest_us, lasted_us)
            if lasted_us > longest_double_us(world, address, {first, second}):
                raise WrongError(
                    f"{first} and {second} both answer for {address} for {lasted_us / 1e6:.3f} s"
                )


def longest_double_us(world: World, address: str, names: set[str]) -> int:
    """How long two hosts may both speak for it."""
    slowest_us = max(addresses(world).get(address, 0), *world.recent_intervals_us.get(address, (0,)))
    asleep = any(host.name in names and not host.is_awake(world.now_us) for host in world.hosts)
    return (LEASE_ADVERTS if asleep else LOST_ADVERTS) * slowest_us + DELAYS_US


class OnePort:
    """Frames with one virtual MAC don't come from two hosts of one segment longer than the bound."""

    def __init__(self) -> None:
        self._since_us: dict[tuple[bytes, str, str], int] = {}

    def __call__(self, world: World) -> None:
        seen: set[tuple[bytes, str, str]] = set()
        for mac, address in world.switch.macs.items():
            speakers = [host for host in world.hosts if self._speaks(world, host, mac)]
            for at, one in enumerate(speakers):
                for other in speakers[at + 1 :]:
                    if world.connected(one, other) or heard_by_a_third(world, address, one, other):
                        seen.add((mac, one.name, other.name))
        self._since_us = {key: self._since_us.get(key, world.now_us) for key in sorted(seen)}
        for (mac, first, second), since_us in self._since_us.items():
            lasted_us = world.now_us - since_us
            if lasted_us > longest_double_us(world, world.switch.macs[mac], {first, second}):
                raise WrongError(
                    f"{first} and {second} both send with {mac.hex(':')} for {lasted_us / 1e6:.3f} s"
                )

    @staticmethod
    def _speaks(world: World, host: SimHost, mac: bytes) -> bool:
        """Its fence is open for it, and it has spoken since it was opened."""
        owner = host.kernel.fenced_by(mac)
        if owner is None or not host.kernel.speaks(mac, world.now_us):
            return False
        return world.switch.spoke_us.get((mac, host.name), -1) >= host.kernel.leases[owner][0]


class NotStolenBack:
    """Who offered a router by priority 0 sends no more with its virtual MACs, unless he takes it anew:
    from the heir's first frame on, the switch's port is the heir's.
    """

    def __call__(self, world: World, host: SimHost, mac: bytes, at_us: int) -> None:
        owner = host.kernel.fenced_by(mac)
        if owner is None:
            return
        if owner in host.offered_us:
            raise WrongError(f"{host.name} sends with {mac.hex(':')} after it has offered it")
        for other in world.hosts:
            offered_us = other.offered_us.get(owner, at_us)
            if other is not host and offered_us < at_us and other.kernel.speaks(mac, at_us):
                raise WrongError(f"{other.name} may still send with {mac.hex(':')}, which {host.name} has")


class Respected:
    """Nobody takes over from an Active that he must have heard: alive, connected, undisturbed, not going.

    Under failback Never, and without losses: else this may be what is wanted.
    """

    def __call__(self, world: World, host: SimHost, virtual_router_id: int, at_us: int) -> None:
        name = f"vr-{virtual_router_id}"
        router = world.routers.get(name)
        if router is None or world.loss or router.spec.failback != "Never" or host.plan.get(name) != router:
            return  # who has another plan may have another failback
        calm_us = 6 * router.spec.advert_interval_milliseconds * 1000 + DELAYS_US
        if at_us - world.disturbed_us < calm_us:
            return
        for other in world.hosts:
            since_us = other.kernel.leases.get(virtual_router_id, (at_us, 0))[0]
            if other is host or not other.is_awake(at_us) or not world.connected(host, other):
                continue
            instance = other.node._routers.instances.get(router.metadata.name) if other.node else None
            if instance is None or instance.router.state is not State.ACTIVE or instance.router.resigning:
                continue
            if not other.kernel.alive(virtual_router_id, at_us) or at_us - since_us <= calm_us:
                continue
            if not self._unites(world, host, other, router, at_us - calm_us):
                raise WrongError(f"{host.name} takes vr-{virtual_router_id} from {other.name}, which is well")

    @staticmethod
    def _unites(world: World, host: SimHost, other: SimHost, router: VirtualRouter, since_us: int) -> bool:
        """Two were Active that don't hear each other, and the greater one offers it: a hand-over, and its
        end is one Active, for both hear the taker, and he outranks the one that stays.
        """
        priorities = {each.node: each.priority for each in router.spec.candidates}
        lesser, number = priorities.get(other.name, 0), router.spec.virtual_router_id
        return priorities.get(host.name, 0) > lesser and any(
            offerer.offered_us.get(number, 0) >= since_us
            and priorities.get(offerer.name, 0) > lesser
            and world.connected(offerer, host)
            and not world.connected(offerer, other)
            for offerer in world.hosts
        )


class Planned:
    """Nothing is bound that this host's own view of the plan does not give it."""

    def __call__(self, world: World, host: SimHost, address: str, at_us: int) -> None:
        del world, at_us
        for router in host.plan.values():
            named = any(candidate.node == host.name for candidate in router.spec.candidates)
            listed = any(each.address == address and each.state == "Held" for each in router.spec.addresses)
            if listed and (named or not router.spec.candidates or _stays_active(host, router.metadata.name)):
                return
        raise WrongError(f"{host.name} binds {address}, which its plan does not give it")


def _stays_active(host: SimHost, router: str) -> bool:
    """The plan dropped it, but nobody has taken over yet."""
    instance = host.node._routers.instances.get(router) if host.node is not None else None
    return instance is not None and instance.router.state is State.ACTIVE


class Probed:
    """An address new to the cluster is asked for three times, and 200 ms of silence, before it is bound."""

    def __call__(self, world: World, host: SimHost, address: str, at_us: int) -> None:
        if address not in world.ever_held:
            self._check(host, address, at_us)

    def _check(self, host: SimHost, address: str, at_us: int) -> None:
        asked = host.probed_at_us.get(address, [])
        if len(asked) == 3 and asked[0] <= host.blocked_until_us:
            return
        if len(asked) < 3 or at_us - asked[-1] < 197_000 or at_us - asked[0] < 395_000:
            raise WrongError(f"{host.name} binds {address}, new to the cluster, without a probe: {asked}")


class NotTaken:
    """Nobody binds for the first time what a stranger has just answered for."""

    def __call__(self, world: World, host: SimHost, address: str, at_us: int) -> None:
        answered_at_us = world.answered_at_us.get((host.name, address))
        asked = host.probed_at_us.get(address, [at_us])
        fresh = answered_at_us is not None and max(asked[0], at_us - 9_000_000) <= answered_at_us
        if fresh and host.carrier and address not in world.ever_held:
            raise WrongError(f"{host.name} binds {address}, which a stranger has")


class Bounded:
    """Nothing in a brain grows with time."""

    def __call__(self, world: World) -> None:
        for host in world.hosts:
            node = host.node
            if node is None:
                continue
            routers = len(node._routers.instances)
            sizes = {
                "agenda": (len(node._routers.agenda), 4 * routers + 64),
                "owners": (len(node._host.owners), 4 * routers + 4),
                "heard": (len(node._host.hearing.table), 255),
                "leftovers": (len(node._leftovers), 64),
                "announcer": (sum(len(nic.announcer) for nic in node._host.nics.values()), 2000),
            }
            for what, (size, limit) in sizes.items():
                if size > limit:
                    raise WrongError(f"{host.name}: {what} has {size} entries, more than {limit}")


def settled(world: World) -> None:
    """After the last fault: each planned address has one holder, and the client knows him."""
    for router in world.routers.values():
        alive = {host.name for host in world.hosts if host.running}
        if not any(candidate.node in alive for candidate in router.spec.candidates):
            continue
        for each in router.spec.addresses:
            holders = held_by(world, each.address)
            if each.address in world.strangers or each.state != "Held":
                continue
            if len(holders) != 1:
                names = [host.name for host in holders]
                raise WrongError(f"{each.address} of {router.metadata.name} is held by {names} after quiet")
            placed = holders[0].kernel.placed.get(each.address, b"").hex(":")
            if placed != (each.mac_address or ""):
                raise WrongError(f"{each.address} lives on {placed or 'the NIC'}, not on {each.mac_address}")
    known = addresses(world)
    for host in world.hosts:
        for address in host.kernel.bound:
            if address not in known and host.running and host.kernel.holds(address, world.now_us):
                raise WrongError(f"{host.name} still holds {address}, which no plan has")


def reachable(world: World) -> None:
    """The client's cache leads to the holder: at the latest after one refresh."""
    for address in addresses(world):
        for holder in held_by(world, address):
            mac = holder.kernel.placed.get(address, holder.mac)
            if world.cache.get(address) != mac:
                raise WrongError(f"the client's cache for {address} does not lead to {holder.name}")
            if mac in world.switch.macs and world.switch.ports.get(mac) is not holder:
                raise WrongError(f"the switch's port for {mac.hex(':')} is not that of {holder.name}")
