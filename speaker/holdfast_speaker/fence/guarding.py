# SPDX-License-Identifier: Apache-2.0
"""What the fence's table should hold of each virtual router, and what has to be said so that it does. Pure.

An address has one router, and so has a virtual MAC: who is told to guard it last.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from holdfast_speaker.fence import mac_rules, rules
from holdfast_speaker.fence import nftables as nft


@dataclass(frozen=True, slots=True)
class Guard:
    """What the kernel knows of a virtual router. ``macs``: the virtual MAC of each address that has one;
    ``own``: the IPv4 address of the NIC, to ask by."""

    index: int
    lease_ms: int
    addresses: frozenset[str] = frozenset()
    macs: Mapping[str, str] = field(default_factory=dict)
    own: str | None = None

    def without(self, other: "Guard") -> "Guard":
        """What is left when the other one has what it claims. An address keeps no MAC that went."""
        gone = set(other.macs.values())
        macs = {a: mac for a, mac in self.macs.items() if a not in other.addresses and mac not in gone}
        return replace(self, addresses=self.addresses - other.addresses, macs=macs)

    def without_address(self, address: str) -> "Guard":
        macs = {each: mac for each, mac in self.macs.items() if each != address}
        return replace(self, addresses=self.addresses - {address}, macs=macs)


Guards = dict[int, Guard]
_NONE: Final[Guards] = {}


def put(guards: Guards, virtual_router_id: int, new: Guard) -> tuple[nft.Messages, frozenset[int]]:
    """This guard from now on. Which others lost something by it."""
    old = guards.get(virtual_router_id)
    if new == old:
        return [], frozenset()
    messages: nft.Messages = []
    route = (new.index, new.lease_ms, new.own)
    if old is None:
        messages = rules.router(virtual_router_id, *route)
    elif (old.index, old.lease_ms, old.own) != route:
        messages = rules.reroute(virtual_router_id, *route)
    rest = {other: guard.without(new) for other, guard in guards.items() if other != virtual_router_id}
    lost = {other: guard for other, guard in rest.items() if guard != guards[other]}
    after = {**lost, virtual_router_id: new}
    messages += _changed({each: guards[each] for each in after if each in guards}, after)
    guards.update(after)
    return messages, frozenset(lost)


def remove(guards: Guards, virtual_router_id: int) -> nft.Messages:
    """No such router any more."""
    old = guards.pop(virtual_router_id)
    return [*_changed({virtual_router_id: old}, _NONE), *rules.remove(virtual_router_id)]


def whole(guards: Guards) -> nft.Messages:
    """All of them, into an empty table."""
    messages: nft.Messages = []
    for virtual_router_id, guard in guards.items():
        messages += rules.router(virtual_router_id, guard.index, guard.lease_ms, guard.own)
    return messages + _changed(_NONE, guards)


def _changed(before: Guards, after: Guards) -> nft.Messages:
    """The elements of these routers, from what they were to what they shall be."""
    return [
        *_moved(_addresses(before), _addresses(after), rules.disown, rules.own),
        *_moved(_names(before), _names(after), mac_rules.unname, mac_rules.name),
        *_moved(_macs(before), _macs(after), mac_rules.disown, mac_rules.own),
    ]


Held = dict[str, tuple[int, str]]  # by whom, and with which value


def _addresses(guards: Guards) -> Held:
    return {address: (number, "") for number, guard in guards.items() for address in guard.addresses}


def _names(guards: Guards) -> Held:
    return {address: (n, mac) for n, guard in guards.items() for address, mac in guard.macs.items()}


def _macs(guards: Guards) -> Held:
    return {mac: (number, "") for number, guard in guards.items() for mac in guard.macs.values()}


def _moved(
    before: Held,
    after: Held,
    take: Callable[[Iterable[str]], nft.Messages],
    give: Callable[[int, dict[str, str]], nft.Messages],
) -> nft.Messages:
    """What is held otherwise now is taken away, then given."""
    messages = take([key for key, held in before.items() if after.get(key) != held])
    given: dict[int, dict[str, str]] = {}
    for key, (virtual_router_id, value) in after.items():
        if before.get(key) != (virtual_router_id, value):
            given.setdefault(virtual_router_id, {})[key] = value
    for virtual_router_id, values in given.items():
        messages += give(virtual_router_id, values)
    return messages
