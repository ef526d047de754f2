# SPDX-License-Identifier: Apache-2.0
"""The rules of the fence: ``table netdev holdfast``, as messages (semantics.md 4.3).

    sets   alive    VRID        the lease: begun by a take, begun anew by each of our adverts, else over
           guarded  VRID, 60 s  its addresses are bound here, or about to be
           quiet    VRID        it answers no more questions: a successor is there
    maps   own4, own6           address -> goto g<VRID>     traffic to it and from it
           asked4, asked6       address -> goto q<VRID>     questions for it, claims of it (ARP, ND)
           adverts, orders      VRID -> goto a<VRID>, o<VRID>   frames with our marks
    g<VRID>  alive: accept; guarded: drop; neither: as if there were no fence (stale clients are forwarded)
    q<VRID>  asked on another NIC while guarded, or quiet: drop; else as g<VRID>
    a<VRID>  alive: begin lease and guard anew, accept; not alive: drop (late advert of a stalled speaker)
    o<VRID>  do what it says (``orders``), drop
    in, out  virtual MACs (``mac_rules``), then by protocol to ip-in and so on, which look into the maps;
             every packet of the host passes here, so what is rare (VLAN tags) is looked at behind the maps.
             in<ifindex>, out<ifindex>: each NIC

A frame of a VLAN is left to the VLAN's own NIC. Virtual router 0 is the place of orphans: always guarded,
never alive.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from holdfast_speaker.fence import mac_rules, orders
from holdfast_speaker.fence import nftables as nft
from holdfast_speaker.fence.words import (
    ADDRESSES,
    ADVERTISEMENT,
    ALIVE,
    ARP,
    ARP_SENDER,
    ARP_TARGET,
    GUARDED,
    IPV4,
    IPV6,
    ORPHANS,
    QUESTION,
    QUIET,
    SOLICITATION,
    SOURCE4,
    SOURCE6,
    TABLE,
    TAGGED,
    TARGET6,
    by_family,
    icmp,
    key,
    marked,
    nic,
    protocol,
    tagged,
)
from holdfast_speaker.vrrp.advert import GROUP4, GROUP6, PROTOCOL

GUARD_MS: Final = 60_000

_PRIORITY: Final = -200
_ROUTERS: Final = 1024  # room for elements that are over but not yet swept away
_MAPS: Final = {
    "adverts": nft.BYTE_KEY,
    "orders": nft.ORDER_KEY,
    "own4": nft.IPV4_KEY,
    "own6": nft.IPV6_KEY,
    "asked4": nft.IPV4_KEY,
    "asked6": nft.TARGET6_KEY,
}
_TAGS: Final = (b"\x81\x00", b"\x88\xa8")
_ICMPV6: Final = 58
_VERSION_TYPE: Final = 0x31
_HOPS: Final = 255


def table(mark: int, order_mark: int) -> nft.Messages:
    """The table as it is without routers and NICs; what was there before is gone."""
    shared = _shared(mark, order_mark)
    return [
        nft.new_table(TABLE),
        nft.delete_table(TABLE),
        nft.new_table(TABLE),
        nft.new_set(TABLE, ALIVE, nft.CONSTANT_KEY, _ROUTERS, nft.SET_TIMEOUT | nft.SET_DYNAMIC),
        nft.new_set(TABLE, GUARDED, nft.CONSTANT_KEY, _ROUTERS, nft.SET_TIMEOUT | nft.SET_DYNAMIC),
        nft.new_set(TABLE, QUIET, nft.CONSTANT_KEY, _ROUTERS, nft.SET_DYNAMIC),
        *(nft.new_set(TABLE, name, key, ADDRESSES, nft.SET_MAP) for name, key in _MAPS.items()),
        *mac_rules.sets(),
        *(nft.new_chain(TABLE, chain) for chain in shared),
        *(nft.new_rule(TABLE, chain, *rule) for chain, listed in shared.items() for rule in listed),
    ]


def _of_a_vlan() -> list[nft.Expressions]:
    """VLAN 0 is only a priority (802.1Q) and is ours; another VLAN has its own NIC, or nobody hears it."""
    return [
        (
            nft.payload(nft.LINK, 12, 2),
            nft.equal(tag),
            nft.payload(nft.LINK, 14, 2),
            nft.masked(b"\x0f\xff"),
            nft.unequal(b"\0\0"),
            nft.accept(),
        )
        for tag in _TAGS
    ]


def _shared(mark: int, order_mark: int) -> dict[str, list[nft.Expressions]]:
    """The chains that all routers share."""
    unmarked = (nft.meta(nft.MARK), nft.unequal(key(mark)))
    order = (*marked(order_mark), nft.payload(nft.NETWORK, 0, 1), nft.mapped("orders"))
    return {
        TAGGED: _of_a_vlan(),
        **mac_rules.questions(),
        **_incoming(),
        **_outgoing(mark),
        "in": [*mac_rules.incoming(), *_by_protocol("in")],
        "out": [*mac_rules.outgoing(unmarked), *_by_protocol("out"), order],
        "mac": mac_rules.sheltered(),
    }


def _by_protocol(way: str) -> list[nft.Expressions]:
    chains = ((IPV4, "ip"), (IPV6, "ip6"), (ARP, "arp"))
    return [(*protocol(number), nft.goto(f"{name}-{way}")) for number, name in chains]


def _incoming() -> dict[str, list[nft.Expressions]]:
    return {
        "ip-in": [(*protocol(IPV4), nft.payload(nft.NETWORK, 16, 4), nft.mapped("own4"))],
        "ip6-in": [
            (*protocol(IPV6), *icmp(SOLICITATION), nft.jump("ask6")),
            (*protocol(IPV6), *icmp(SOLICITATION), TARGET6, nft.mapped("asked6")),
            (*protocol(IPV6), nft.payload(nft.NETWORK, 24, 16), nft.mapped("own6")),
        ],
        "arp-in": [
            (*protocol(ARP), *QUESTION, nft.jump("ask4")),
            (*protocol(ARP), *QUESTION, ARP_TARGET, nft.mapped("asked4")),
            (*protocol(ARP), ARP_TARGET, nft.mapped("own4")),
        ],
    }


def _outgoing(mark: int) -> dict[str, list[nft.Expressions]]:
    ours = marked(mark)
    router = (
        nft.payload(nft.TRANSPORT, 0, 1),
        nft.equal(bytes((_VERSION_TYPE,))),
        nft.payload(nft.TRANSPORT, 1, 1),
        nft.mapped("adverts"),
    )
    to4 = (nft.payload(nft.NETWORK, 16, 4), nft.equal(GROUP4))
    to6 = (nft.payload(nft.NETWORK, 24, 16), nft.equal(GROUP6))
    vrrp4 = (nft.payload(nft.NETWORK, 8, 2), nft.equal(bytes((_HOPS, PROTOCOL))))
    vrrp6 = (nft.payload(nft.NETWORK, 6, 2), nft.equal(bytes((PROTOCOL, _HOPS))))
    icmpv6 = (nft.payload(nft.NETWORK, 6, 1), nft.equal(bytes((_ICMPV6,))))
    return {
        "ip-out": [
            (*ours, *protocol(IPV4), *vrrp4, *to4, *router),
            (*protocol(IPV4), SOURCE4, nft.mapped("own4")),
        ],
        "ip6-out": [
            (*ours, *protocol(IPV6), *vrrp6, *to6, *router),
            (*icmpv6, *icmp(SOLICITATION), SOURCE6, nft.mapped("asked6")),
            (*protocol(IPV6), *icmp(ADVERTISEMENT), TARGET6, nft.mapped("asked6")),
            (*protocol(IPV6), SOURCE6, nft.mapped("own6")),
        ],
        "arp-out": [(*protocol(ARP), ARP_SENDER, nft.mapped("asked4"))],
    }


# --- one virtual router ------------------------------------------------------------------------------


def router(virtual_router_id: int, index: int, lease_ms: int, own: str | None) -> nft.Messages:
    """Its chains, without addresses. Orphans send no adverts and obey no orders. ``own``: the NIC's IPv4."""
    messages = [nft.new_chain(TABLE, chain) for chain in chains(virtual_router_id)]
    messages += _filled(virtual_router_id, index, lease_ms, own)
    if virtual_router_id != ORPHANS:
        _, _, adverts, orders = _letters(virtual_router_id, "gqao")
        messages += nft.add_elements(TABLE, "adverts", [_by_number(virtual_router_id, adverts)])
        messages += nft.add_elements(TABLE, "orders", [_by_number(virtual_router_id, orders)])
    return messages


def reroute(virtual_router_id: int, index: int, lease_ms: int, own: str | None) -> nft.Messages:
    """Another home or another lease; the one that runs goes on."""
    return [
        *(nft.empty_chain(TABLE, chain) for chain in chains(virtual_router_id)),
        *_filled(virtual_router_id, index, lease_ms, own),
    ]


def remove(virtual_router_id: int) -> nft.Messages:
    """Nothing of it is left; it has no addresses any more."""
    return [
        *nft.delete_elements(TABLE, "adverts", [_by_number(virtual_router_id)]),
        *nft.delete_elements(TABLE, "orders", [_by_number(virtual_router_id)]),
        *forget(virtual_router_id, ALIVE, GUARDED, QUIET),
        *(nft.delete_chain(TABLE, chain) for chain in reversed(chains(virtual_router_id))),
    ]


def chains(virtual_router_id: int) -> tuple[str, ...]:
    """An earlier one may be gone to from a later one."""
    letters = "gq" if virtual_router_id == ORPHANS else "gqao"
    return *_letters(virtual_router_id, letters), *mac_rules.chains(virtual_router_id)


def _letters(virtual_router_id: int, letters: str) -> list[str]:
    return [f"{letter}{virtual_router_id}" for letter in letters]


def _filled(virtual_router_id: int, index: int, lease_ms: int, own: str | None) -> nft.Messages:
    held, number = f"g{virtual_router_id}", nft.constant(virtual_router_id)
    messages = [
        tagged(held),
        nft.new_rule(TABLE, held, number, nft.within(ALIVE), nft.accept()),
        nft.new_rule(TABLE, held, number, nft.within(GUARDED), nft.drop()),
        *_questions(virtual_router_id, index),
        *mac_rules.router(virtual_router_id, index, own),
    ]
    if virtual_router_id != ORPHANS:
        messages += _adverts(virtual_router_id, index, lease_ms)
        messages += _orders(virtual_router_id, lease_ms)
    return messages


def _questions(virtual_router_id: int, index: int) -> nft.Messages:
    held, asked = _letters(virtual_router_id, "gq")
    number, home = nft.constant(virtual_router_id), nft.unequal(nic(index))
    elsewhere = (nft.meta(nft.IN_NIC), home, nft.unequal(nic(0)))  # 0: it is on its way out
    return [
        tagged(asked),
        nft.new_rule(TABLE, asked, *elsewhere, number, nft.within(GUARDED), nft.drop()),
        nft.new_rule(TABLE, asked, number, nft.within(QUIET), nft.drop()),
        nft.new_rule(TABLE, asked, nft.goto(held)),
    ]


def _adverts(virtual_router_id: int, index: int, lease_ms: int) -> nft.Messages:
    """On another NIC it only passes: below a bridge it is the same advert again."""
    adverts = f"a{virtual_router_id}"
    alive = (nft.constant(virtual_router_id), nft.within(ALIVE))
    home = (nft.meta(nft.OUT_NIC), nft.equal(nic(index)))
    begun = (nft.rearmed(ALIVE, lease_ms), nft.rearmed(GUARDED, GUARD_MS))
    return [
        tagged(adverts),
        nft.new_rule(TABLE, adverts, *home, *alive, *begun, nft.accept()),
        nft.new_rule(TABLE, adverts, *alive, nft.accept()),
        nft.new_rule(TABLE, adverts, nft.drop()),
    ]


def _orders(virtual_router_id: int, lease_ms: int) -> nft.Messages:
    chain = f"o{virtual_router_id}"
    number = nft.constant(virtual_router_id)
    lease = nft.rearmed(ALIVE, lease_ms)

    def order(code: int, *obeyed: bytes) -> bytes:
        said = (nft.payload(nft.NETWORK, 1, 1), nft.equal(bytes((code,))))
        return nft.new_rule(TABLE, chain, *said, number, *obeyed, nft.drop())

    return [
        order(orders.TAKE, nft.rearmed(GUARDED, GUARD_MS), lease),
        order(orders.EXTEND, nft.within(ALIVE), lease),
        order(orders.QUIET, nft.rearmed(QUIET)),
        nft.new_rule(TABLE, chain, nft.drop()),
    ]


def _by_number(virtual_router_id: int, goto: str = "") -> bytes:
    return nft.element(bytes((virtual_router_id,)), goto=goto)


# --- elements ----------------------------------------------------------------------------------------


def own(virtual_router_id: int, addresses: Iterable[str]) -> nft.Messages:
    held, asked = _letters(virtual_router_id, "gq")
    messages: nft.Messages = []
    for family, keys in by_family(addresses):
        messages += nft.add_elements(TABLE, f"own{family}", nft.elements(keys, goto=held))
        messages += nft.add_elements(TABLE, f"asked{family}", nft.elements(keys, goto=asked))
    return messages


def disown(addresses: Iterable[str]) -> nft.Messages:
    messages: nft.Messages = []
    for family, keys in by_family(addresses):
        elements = nft.elements(keys)
        messages += nft.delete_elements(TABLE, f"own{family}", elements)
        messages += nft.delete_elements(TABLE, f"asked{family}", elements)
    return messages


def begin(virtual_router_id: int, name: str, timeout_ms: int = 0) -> nft.Messages:
    """It is in that set, its time begins now, whether or not it was there (an element is never prolonged
    by being added again)."""
    elements = [nft.element(key(virtual_router_id), timeout_ms=timeout_ms)]
    return [*forget(virtual_router_id, name), *nft.add_elements(TABLE, name, elements)]


def forget(virtual_router_id: int, *names: str) -> nft.Messages:
    """It is in none of these sets; added first, since nothing can be deleted that is not there."""
    messages: nft.Messages = []
    for name in names:
        timeout_ms = 0 if name == QUIET else GUARD_MS
        messages += nft.add_elements(
            TABLE, name, [nft.element(key(virtual_router_id), timeout_ms=timeout_ms)]
        )
        messages += nft.delete_elements(TABLE, name, [nft.element(key(virtual_router_id))])
    return messages


def prolong(virtual_router_id: int, lease_ms: int) -> nft.Messages:
    """A lease that runs begins anew; refused when it is over."""
    element = nft.element(key(virtual_router_id), timeout_ms=lease_ms)
    return [
        *nft.delete_elements(TABLE, ALIVE, [nft.element(key(virtual_router_id))]),
        *nft.add_elements(TABLE, ALIVE, [element]),
    ]


# --- NICs --------------------------------------------------------------------------------------------


def bases(index: int) -> tuple[str, ...]:
    """The chains on a NIC that is covered."""
    return f"in{index}", f"out{index}"


def shelter(index: int) -> tuple[str, ...]:
    """The chain on a virtual MAC's macvlan."""
    return (f"mac{index}",)


def hook(chains: Iterable[str], device: str) -> nft.Messages:
    """These chains, on a NIC; each goes to the shared one that it is named after."""
    messages: nft.Messages = []
    for chain in chains:
        shared = chain.rstrip("0123456789")
        side = nft.EGRESS if shared == "out" else nft.INGRESS
        messages.append(nft.new_base_chain(TABLE, chain, side, _PRIORITY, device))
        messages.append(nft.new_rule(TABLE, chain, nft.goto(shared)))
    return messages


def all_chains(routers: Iterable[int]) -> Iterator[str]:
    """Those that are there whatever the NICs are."""
    yield from _shared(0, 0)
    for virtual_router_id in routers:
        yield from chains(virtual_router_id)


def count_rules(routers: int, *, orphans: bool) -> int:
    """How many rules there are when nobody interfered, without the one in each NIC's chain."""
    return sum(map(len, _shared(0, 0).values())) + 29 * routers + 21 * orphans


def trial() -> nft.Messages:
    """Whether this kernel has all that is needed; leaves nothing behind."""
    name = "holdfast-trial"
    return [
        nft.new_table(name),
        nft.new_set(name, ALIVE, nft.CONSTANT_KEY, _ROUTERS, nft.SET_TIMEOUT | nft.SET_DYNAMIC),
        nft.new_chain(name, "a"),
        nft.new_rule(name, "a", nft.constant(1), nft.within(ALIVE), nft.rearmed(ALIVE, 1000), nft.accept()),
        nft.new_base_chain(name, "in", nft.INGRESS, _PRIORITY, "lo"),
        nft.new_base_chain(name, "out", nft.EGRESS, _PRIORITY, "lo"),
        nft.delete_table(name),
    ]
