# SPDX-License-Identifier: Apache-2.0
"""May this node carry these addresses? A chain of named checks; the first "no" is the reason.

Which NIC is asked of ``holdfast_api.interfaces.choose``, the function the speaker itself uses. Addresses
of one subnet get one answer, so the answers are kept by subnet and not by address.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface

from holdfast_api.conditions import Reason
from holdfast_api.interfaces import choose, on_subnet
from holdfast_api.types import Interface, LabelSelector, Mode, SpeakerStatus
from holdfast_operator.world import Node, World

Requirement = tuple[str, str, tuple[str, ...]]  # key, operator, values
Selector = tuple[Requirement, ...]  # canonical; empty selects everything
Subnets = tuple[str, ...]  # the NIC subnets that contain an address, sorted


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Case:
    """One node and what it is asked to carry. ``interface`` is the NIC, or why there is none.

    ``lacks``: what its host lacks for the mode, in its speaker's words; "" for nothing.
    """

    node: Node
    selector: Selector
    interface: Interface | Reason | None  # None: no report
    live: bool
    lacks: str = ""


def canonical(selector: LabelSelector | None) -> Selector:
    """The selector as a value that compares equal however it was written."""
    if selector is None:
        return ()
    found: set[Requirement] = {(key, "In", (value,)) for key, value in selector.match_labels.items()}
    found |= {(r.key, r.operator, tuple(sorted(set(r.values)))) for r in selector.match_expressions}
    return tuple(sorted(found))


def spelled(selector: Selector) -> str:
    """The selector as kubectl writes it, for messages."""
    words = {"In": "in", "NotIn": "notin"}
    parts = []
    for key, operator, values in selector:
        if operator == "In" and len(values) == 1:
            parts.append(f"{key}={values[0]}")
        elif operator in words:
            parts.append(f"{key} {words[operator]} ({','.join(values)})")
        else:
            parts.append(key if operator == "Exists" else f"!{key}")
    return ",".join(parts) or "everything"


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    return all(_holds(requirement, labels) for requirement in selector)


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    key, operator, values = requirement
    match operator:
        case "In":
            return labels.get(key) in values if key in labels else False
        case "NotIn":
            return labels.get(key) not in values if key in labels else True
        case "Exists":
            return key in labels
        case _:
            return key not in labels


# --- the chain ----------------------------------------------------------------------------------


def _selected(case: Case) -> Refusal | None:
    if matches(case.selector, case.node.labels):
        return None
    return Refusal(Reason.SELECTOR_MISMATCH, f"nodes.selector {spelled(case.selector)} leaves it out")


def _staying(case: Case) -> Refusal | None:
    return Refusal(Reason.NODE_DELETED, "its Node is being deleted") if case.node.deleting else None


def _speaking(case: Case) -> Refusal | None:
    if case.interface is None:
        return Refusal(Reason.NO_SPEAKER, "it has no Speaker object")
    return None


def _live(case: Case) -> Refusal | None:
    return None if case.live else Refusal(Reason.SPEAKER_SILENT, "its speaker's Lease has lapsed")


def _connected(case: Case) -> Refusal | None:
    if not isinstance(case.interface, Reason):
        return None
    if case.interface is Reason.INTERFACE_NOT_FOUND:
        return Refusal(case.interface, "no NIC of it matches spec.interfaces")
    return Refusal(case.interface, "no NIC of it is on the address's subnet")


def _equipped(case: Case) -> Refusal | None:
    if not case.lacks:
        return None
    return Refusal(Reason.VIRTUAL_MAC_UNAVAILABLE, f"it can't do mode VirtualMAC: {case.lacks}")


def _cabled(case: Case) -> Refusal | None:
    if isinstance(case.interface, Interface) and not case.interface.carrier:
        return Refusal(Reason.NO_CARRIER, f"{case.interface.name} has no link")
    return None


def _listened(case: Case) -> Refusal | None:
    if isinstance(case.interface, Interface) and not case.interface.listened:
        return Refusal(Reason.LISTENING, f"it has not yet listened 4 s on {case.interface.name}")
    return None


Check = Callable[[Case], Refusal | None]
CHECKS: tuple[Check, ...] = (
    _selected,
    _staying,
    _speaking,
    _live,
    _connected,
    _equipped,
    _cabled,
    _listened,
)
_PROGRESS = {
    reason: step
    for step, reasons in enumerate(
        (
            (Reason.SELECTOR_MISMATCH,),
            (Reason.NODE_DELETED,),
            (Reason.NO_SPEAKER,),
            (Reason.SPEAKER_SILENT,),
            (Reason.NO_INTERFACE_ON_SUBNET, Reason.INTERFACE_NOT_FOUND),
            (Reason.VIRTUAL_MAC_UNAVAILABLE,),
            (Reason.NO_CARRIER,),
            (Reason.LISTENING,),
        )
    )
    for reason in reasons
}
# what the VirtualIP says when this is the best that any node could say
_VERDICTS = {
    Reason.SELECTOR_MISMATCH: Reason.NO_NODE_MATCHES,
    Reason.NODE_DELETED: Reason.NO_NODE_MATCHES,
    Reason.NO_SPEAKER: Reason.NO_LIVE_SPEAKER,
    Reason.SPEAKER_SILENT: Reason.NO_LIVE_SPEAKER,
    Reason.NO_INTERFACE_ON_SUBNET: Reason.NO_NODE_ON_SUBNET,
}
_LACKING = frozenset({Reason.FENCE_UNAVAILABLE.value, Reason.VIRTUAL_MAC_UNAVAILABLE.value})
NAMED_NODES = 3  # in a message; a cluster may have thousands


def refusal(case: Case) -> Refusal | None:
    """Why this node can't become a candidate now, or None when it can."""
    for check in CHECKS:
        refused = check(case)
        if refused is not None:
            return refused
    return None


def summary(refusals: Mapping[str, Refusal]) -> Refusal:
    """Why no node at all can carry it: the reason of those that came furthest, with a few of them named."""
    if not refusals:
        return Refusal(Reason.NO_NODE_MATCHES, "the cluster has no Node")
    furthest = max(_PROGRESS[r.reason] for r in refusals.values())
    best = {node: r for node, r in sorted(refusals.items()) if _PROGRESS[r.reason] == furthest}
    first = next(iter(best.values()))
    named = "; ".join(f"{node}: {r.message}" for node, r in list(best.items())[:NAMED_NODES])
    more = f"; and {len(best) - NAMED_NODES} more" if len(best) > NAMED_NODES else ""
    return Refusal(_VERDICTS.get(first.reason, first.reason), named + more)


# --- NICs ---------------------------------------------------------------------------------------


class Atlas:
    """Which NIC of which node carries which addresses, for one World. Answers are kept."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._networks = _networks(i for s in world.speakers.values() for i in s.interfaces)
        self._subnets: dict[str, Subnets] = {}
        self._chosen: dict[tuple[str, tuple[str, ...], tuple[Subnets, ...]], Interface | Reason] = {}
        self._selected: dict[Selector, tuple[str, ...]] = {}

    def selected(self, selector: Selector) -> tuple[str, ...]:
        """Names of the Nodes that the selector admits, sorted."""
        if selector not in self._selected:
            nodes = self._world.nodes
            self._selected[selector] = tuple(n for n in sorted(nodes) if matches(selector, nodes[n].labels))
        return self._selected[selector]

    def subnets(self, address: str) -> Subnets:
        """The subnets of any NIC that contain the address: all it takes to tell which NIC carries it."""
        known = self._subnets.get(address)
        if known is None:
            ip = ip_address(address)
            number = int(ip)
            known = self._subnets[address] = tuple(
                sorted(
                    f"{number & mask}/{length}v{ip.version}"
                    for version, length, mask, networks in self._networks
                    if version == ip.version and (number & mask) in networks
                )
            )
        return known

    def interface(
        self, node: str, patterns: Sequence[str], addresses: Sequence[str]
    ) -> Interface | Reason | None:
        """The NIC as ``choose`` says; None when the node has no report."""
        speaker = self._world.speakers.get(node)
        if speaker is None:
            return None
        samples: dict[Subnets, str] = {}
        for address in addresses:
            samples.setdefault(self.subnets(address), address)
        key = (node, tuple(patterns), tuple(sorted(samples)))
        few = tuple(samples[subnets] for subnets in key[2])
        chosen = self._chosen.get(key)
        if chosen is None:
            chosen = self._chosen[key] = choose(speaker.interfaces, patterns, few)
        if isinstance(chosen, Interface) and len(few) > 1 and not all(on_subnet(chosen, a) for a in few):
            return choose(speaker.interfaces, patterns, addresses)  # no NIC has all: the numbers decide
        return chosen

    def reach(self, selector: Selector, patterns: Sequence[str], addresses: Sequence[str]) -> dict[str, str]:
        """Node -> NIC name for every node that could carry the addresses, dead or alive, sorted."""
        found = {}
        for node in self.selected(selector):
            chosen = self.interface(node, patterns, addresses)
            if isinstance(chosen, Interface):
                found[node] = chosen.name
        return found

    def lacks(self, node: str, mode: Mode) -> str:
        """What the node's host lacks for the mode, in its speaker's words; "" for nothing."""
        if mode == "NodeMAC":
            return ""
        said = self._world.speakers.get(node, SpeakerStatus()).preflight
        return next((c.message or c.reason for c in said if c.status == "False" and c.reason in _LACKING), "")

    def case(
        self, node: str, selector: Selector, patterns: Sequence[str], addresses: Sequence[str], mode: Mode
    ) -> Case:
        world = self._world
        return Case(
            node=world.nodes[node],
            selector=selector,
            interface=self.interface(node, patterns, addresses),
            live=node in world.live,
            lacks=self.lacks(node, mode),
        )


def _networks(interfaces: Iterable[Interface]) -> tuple[tuple[int, int, int, frozenset[int]], ...]:
    """(version, prefix length, mask, network numbers) of all NIC subnets; a /32 or /128 is none."""
    found: dict[tuple[int, int], set[int]] = {}
    cidrs = Counter(cidr for interface in interfaces for cidr in interface.addresses)
    for cidr in cidrs:
        own = ip_interface(cidr)
        network = own.network
        if network.prefixlen < own.max_prefixlen:
            found.setdefault((own.version, network.prefixlen), set()).add(int(network.network_address))
    return tuple(
        (version, length, _mask(version, length), frozenset(numbers))
        for (version, length), numbers in sorted(found.items())
    )


def _mask(version: int, length: int) -> int:
    bits = 32 if version == 4 else 128
    return ((1 << length) - 1) << (bits - length)
