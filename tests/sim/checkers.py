# SPDX-License-Identifier: Apache-2.0
"""What must never be, and what must be again after the last fault."""

from ipaddress import ip_address

from holdfast_speaker.vrrp.advert import Advert, parse
from tests.sim.host import SimHost
from tests.sim.world import World

DELAYS_US = 60_000  # the loop's lateness, netlink, the wire, twice over, and the watcher's own round
LOST_ADVERTS = 8  # in a row, at the simulator's worst loss: one in 10**10


class WrongError(AssertionError):
    """A checker's finding."""


def held_by(world: World, address: str) -> list[SimHost]:
    return [host for host in world.hosts if host.kernel.holds(address, world.now_us)]


def addresses(world: World) -> dict[str, int]:
    """Each planned address with its router's advert interval."""
    return {
        each.address: router.spec.advert_interval_milliseconds * 1000
        for router in world.routers.values()
        for each in router.spec.addresses
    }


class OneHolder:
    """Two speakers that run and hear each other never hold one address longer than the bound.

    The bound: the winner's adverts reach the loser, were eight of them lost. A host whose speaker is stopped
    or dead, or whose loop the kernel blocks, does not count: the fence of a later issue silences it.
    """

    def __init__(self) -> None:
        self._since_us: dict[tuple[str, str, str], int] = {}
        self.longest_us = 0

    def __call__(self, world: World) -> None:
        known = addresses(world)
        seen: set[tuple[str, str, str]] = set()
        for address in known:
            holders = [host for host in held_by(world, address) if host.is_awake(world.now_us)]
            for at, one in enumerate(holders):
                for other in holders[at + 1 :]:
                    if world.connected(one, other):
                        seen.add((address, one.name, other.name))
        self._since_us = {key: self._since_us.get(key, world.now_us) for key in sorted(seen)}
        for (address, first, second), since_us in self._since_us.items():
            lasted_us = world.now_us - since_us
            self.longest_us = max(self.longest_us, lasted_us)
            slowest_us = max(known[address], *world.recent_intervals_us.get(address, (0,)))
            if lasted_us > LOST_ADVERTS * slowest_us + DELAYS_US:
                raise WrongError(f"{first} and {second} both hold {address} for {lasted_us / 1e6:.3f} s")


class Planned:
    """Nothing is bound that this host's own view of the plan does not give it."""

    def __call__(self, world: World, host: SimHost, address: str, at_us: int) -> None:
        del world, at_us
        for router in host.plan.values():
            named = any(candidate.node == host.name for candidate in router.spec.candidates)
            listed = any(each.address == address and each.state == "Held" for each in router.spec.addresses)
            if listed and (named or not router.spec.candidates):
                return
        raise WrongError(f"{host.name} binds {address}, which its plan does not give it")


class Probed:
    """An address new to the cluster is asked for three times, and 200 ms of silence, before it is listed.

    Listed comes before bound; and what one Active lists, the next one takes without asking.
    """

    def __init__(self) -> None:
        self._listed: set[bytes] = set()

    def __call__(self, world: World, host: SimHost, frame: bytes, at_us: int) -> None:
        advert = parse(frame)
        assert isinstance(advert, Advert), advert
        if advert.priority == 0:
            return
        for packed in advert.addresses()[1 if advert.family == 6 else 0 :]:
            if packed not in self._listed:
                self._listed.add(packed)
                if str(ip_address(packed)) not in world.ever_held:
                    self._check(host, str(ip_address(packed)), at_us)

    def _check(self, host: SimHost, address: str, at_us: int) -> None:
        asked = host.probed_at_us.get(address, [])
        if len(asked) == 3 and asked[0] <= host.blocked_until_us:
            return
        if len(asked) < 3 or at_us - asked[-1] < 197_000 or at_us - asked[0] < 395_000:
            raise WrongError(f"{host.name} lists {address}, new to the cluster, without a probe: {asked}")


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
    known = addresses(world)
    for host in world.hosts:
        for address in host.kernel.bound:
            if address not in known and host.running and host.kernel.holds(address, world.now_us):
                raise WrongError(f"{host.name} still holds {address}, which no plan has")


def reachable(world: World) -> None:
    """The client's cache leads to the holder: at the latest after one refresh."""
    for address in addresses(world):
        for holder in held_by(world, address):
            if world.cache.get(address) != holder.mac:
                raise WrongError(f"the client's cache for {address} does not lead to {holder.name}")
