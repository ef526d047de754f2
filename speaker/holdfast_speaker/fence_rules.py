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
    o<VRID>  do what it says (``fence_orders``), drop
    in, out  by protocol to ip-in and so on, which look into the maps; every packet of the host passes here,
             so what is rare (VLAN tags) is looked at behind the maps. in<ifindex>, out<ifindex>: each NIC

A frame of a VLAN is left to the VLAN's own NIC. Virtual router 0 is the place of orphans: always guarded,
never alive.
"""

import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from holdfast_speaker import fence_orders
from holdfast_speaker import nftables as nft
from holdfast_speaker.vrrp.advert import GROUP4, GROUP6, PROTOCOL

TABLE: Final = "holdfast"
ALIVE, GUARDED, QUIET = "alive", "guarded", "quiet"
ORPHANS: Final = 0
GUARD_MS: Final = 60_000

_PRIORITY: Final = -200
_ROUTERS: Final = 1024  # room for elements that are over but not yet swept away
_ADDRESSES: Final = 8192
_MAPS: Final = {
    "adverts": nft.BYTE_KEY,
    "orders": nft.ORDER_KEY,
    "own4": nft.IPV4_KEY,
    "own6": nft.IPV6_KEY,
    "asked4": nft.IPV4_KEY,
    "asked6": nft.TARGET6_KEY,
}
_ARP, _IPV4, _IPV6 = b"\x08\x06", b"\x08\x00", b"\x86\xdd"
_TAGS: Final = (b"\x81\x00", b"\x88\xa8")
_ICMPV6: Final = 58
_SOLICITATION, _ADVERTISEMENT = 135, 136
_VERSION_TYPE: Final = 0x31
_HOPS: Final = 255


def key(virtual_router_id: int) -> bytes:
    return struct.pack("=I", virtual_router_id)


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
        *(nft.new_set(TABLE, name, key, _ADDRESSES, nft.SET_MAP) for name, key in _MAPS.items()),
        *(nft.new_chain(TABLE, chain) for chain in shared),
        *(nft.new_rule(TABLE, chain, *rule) for chain, listed in shared.items() for rule in listed),
    ]


def _protocol(number: bytes) -> tuple[bytes, ...]:
    return nft.meta(nft.PROTOCOL), nft.equal(number)


def _icmp(kind: int) -> tuple[bytes, ...]:
    """Other protocols that begin with this byte are let in: 16 more of theirs would have to be an address.

    No question for ICMPv6: ``nft`` would read what follows as a field of it, which not all can load again.
    """
    return nft.payload(nft.TRANSPORT, 0, 1), nft.equal(bytes((kind,)))


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
    order = (nft.meta(nft.MARK), nft.equal(struct.pack("=I", order_mark)))
    return {
        "tagged": _of_a_vlan(),
        **_incoming(),
        **_outgoing(struct.pack("=I", mark)),
        "in": _by_protocol("in"),
        "out": [*_by_protocol("out"), (*order, nft.payload(nft.NETWORK, 0, 1), nft.mapped("orders"))],
    }


def _by_protocol(way: str) -> list[nft.Expressions]:
    chains = ((_IPV4, "ip"), (_IPV6, "ip6"), (_ARP, "arp"))
    return [(*_protocol(number), nft.goto(f"{name}-{way}")) for number, name in chains]


def _incoming() -> dict[str, list[nft.Expressions]]:
    arp_target = nft.payload(nft.NETWORK, 24, 4)
    question = (nft.payload(nft.NETWORK, 6, 2), nft.equal(b"\0\1"))
    target6 = nft.payload(nft.TRANSPORT, 8, 16)
    return {
        "ip-in": [(*_protocol(_IPV4), nft.payload(nft.NETWORK, 16, 4), nft.mapped("own4"))],
        "ip6-in": [
            (*_protocol(_IPV6), *_icmp(_SOLICITATION), target6, nft.mapped("asked6")),
            (*_protocol(_IPV6), nft.payload(nft.NETWORK, 24, 16), nft.mapped("own6")),
        ],
        "arp-in": [
            (*_protocol(_ARP), *question, arp_target, nft.mapped("asked4")),
            (*_protocol(_ARP), arp_target, nft.mapped("own4")),
        ],
    }


def _outgoing(mark: bytes) -> dict[str, list[nft.Expressions]]:
    ours = (nft.meta(nft.MARK), nft.equal(mark))
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
    source6, target6 = nft.payload(nft.NETWORK, 8, 16), nft.payload(nft.TRANSPORT, 8, 16)
    return {
        "ip-out": [
            (*ours, *_protocol(_IPV4), *vrrp4, *to4, *router),
            (*_protocol(_IPV4), nft.payload(nft.NETWORK, 12, 4), nft.mapped("own4")),
        ],
        "ip6-out": [
            (*ours, *_protocol(_IPV6), *vrrp6, *to6, *router),
            (*icmpv6, *_icmp(_SOLICITATION), source6, nft.mapped("asked6")),
            (*_protocol(_IPV6), *_icmp(_ADVERTISEMENT), target6, nft.mapped("asked6")),
            (*_protocol(_IPV6), source6, nft.mapped("own6")),
        ],
        "arp-out": [(*_protocol(_ARP), nft.payload(nft.NETWORK, 14, 4), nft.mapped("asked4"))],
    }


# --- one virtual router ------------------------------------------------------------------------------


def router(virtual_router_id: int, index: int, lease_ms: int) -> nft.Messages:
    """Its chains, without addresses. Orphans send no adverts and obey no orders."""
    held, asked, adverts, orders = chains(virtual_router_id)
    number = nft.constant(virtual_router_id)
    messages = [
        nft.new_chain(TABLE, held),
        nft.new_chain(TABLE, asked),
        _tagged(held),
        nft.new_rule(TABLE, held, number, nft.within(ALIVE), nft.accept()),
        nft.new_rule(TABLE, held, number, nft.within(GUARDED), nft.drop()),
        *_questions(virtual_router_id, index),
    ]
    if virtual_router_id != ORPHANS:
        messages += [nft.new_chain(TABLE, adverts), *_adverts(virtual_router_id, index, lease_ms)]
        messages += [nft.new_chain(TABLE, orders), *_orders(virtual_router_id, lease_ms)]
        messages += nft.add_elements(TABLE, "adverts", [_by_number(virtual_router_id, adverts)])
        messages += nft.add_elements(TABLE, "orders", [_by_number(virtual_router_id, orders)])
    return messages


def reroute(virtual_router_id: int, index: int, lease_ms: int) -> nft.Messages:
    """Another home or another lease; the one that runs goes on."""
    return [
        *(nft.empty_chain(TABLE, chain) for chain in chains(virtual_router_id)[1:]),
        *_questions(virtual_router_id, index),
        *_adverts(virtual_router_id, index, lease_ms),
        *_orders(virtual_router_id, lease_ms),
    ]


def remove(virtual_router_id: int, addresses: Iterable[str]) -> nft.Messages:
    return [
        *disown(addresses),
        *nft.delete_elements(TABLE, "adverts", [_by_number(virtual_router_id)]),
        *nft.delete_elements(TABLE, "orders", [_by_number(virtual_router_id)]),
        *forget(virtual_router_id, ALIVE, GUARDED, QUIET),
        *(nft.delete_chain(TABLE, chain) for chain in reversed(chains(virtual_router_id))),
    ]


def chains(virtual_router_id: int) -> tuple[str, ...]:
    """An earlier one may be gone to from a later one. Orphans have the first two."""
    return tuple(f"{letter}{virtual_router_id}" for letter in "gqao")


def _tagged(chain: str) -> bytes:
    return nft.new_rule(TABLE, chain, nft.jump("tagged"))


def _questions(virtual_router_id: int, index: int) -> nft.Messages:
    held, asked, *_ = chains(virtual_router_id)
    number, home = nft.constant(virtual_router_id), nft.unequal(struct.pack("=I", index))
    elsewhere = (nft.meta(nft.IN_NIC), home, nft.unequal(bytes(4)))  # 0: it is on its way out
    return [
        _tagged(asked),
        nft.new_rule(TABLE, asked, *elsewhere, number, nft.within(GUARDED), nft.drop()),
        nft.new_rule(TABLE, asked, number, nft.within(QUIET), nft.drop()),
        nft.new_rule(TABLE, asked, nft.goto(held)),
    ]


def _adverts(virtual_router_id: int, index: int, lease_ms: int) -> nft.Messages:
    """On another NIC it only passes: below a bridge it is the same advert again."""
    adverts = chains(virtual_router_id)[2]
    alive = (nft.constant(virtual_router_id), nft.within(ALIVE))
    home = (nft.meta(nft.OUT_NIC), nft.equal(struct.pack("=I", index)))
    begun = (nft.rearmed(ALIVE, lease_ms), nft.rearmed(GUARDED, GUARD_MS))
    return [
        _tagged(adverts),
        nft.new_rule(TABLE, adverts, *home, *alive, *begun, nft.accept()),
        nft.new_rule(TABLE, adverts, *alive, nft.accept()),
        nft.new_rule(TABLE, adverts, nft.drop()),
    ]


def _orders(virtual_router_id: int, lease_ms: int) -> nft.Messages:
    orders = chains(virtual_router_id)[3]
    number = nft.constant(virtual_router_id)
    lease = nft.rearmed(ALIVE, lease_ms)

    def order(code: int, *obeyed: bytes) -> bytes:
        said = (nft.payload(nft.NETWORK, 1, 1), nft.equal(bytes((code,))))
        return nft.new_rule(TABLE, orders, *said, number, *obeyed, nft.drop())

    return [
        order(fence_orders.TAKE, nft.rearmed(GUARDED, GUARD_MS), lease),
        order(fence_orders.EXTEND, nft.within(ALIVE), lease),
        order(fence_orders.QUIET, nft.rearmed(QUIET)),
        nft.new_rule(TABLE, orders, nft.drop()),
    ]


def _by_number(virtual_router_id: int, goto: str = "") -> bytes:
    return nft.element(bytes((virtual_router_id,)), goto=goto)


# --- elements ----------------------------------------------------------------------------------------


def own(virtual_router_id: int, addresses: Iterable[str]) -> nft.Messages:
    held, asked, *_ = chains(virtual_router_id)
    messages: nft.Messages = []
    for family, keys in _packed(addresses):
        messages += nft.add_elements(TABLE, f"own{family}", nft.elements(keys, goto=held))
        messages += nft.add_elements(TABLE, f"asked{family}", nft.elements(keys, goto=asked))
    return messages


def disown(addresses: Iterable[str]) -> nft.Messages:
    messages: nft.Messages = []
    for family, keys in _packed(addresses):
        elements = nft.elements(keys)
        messages += nft.delete_elements(TABLE, f"own{family}", elements)
        messages += nft.delete_elements(TABLE, f"asked{family}", elements)
    return messages


def _packed(addresses: Iterable[str]) -> list[tuple[int, list[bytes]]]:
    four, six = [], []
    for address in addresses:
        if ":" in address:
            six.append(socket.inet_pton(socket.AF_INET6, address))
        else:
            four.append(socket.inet_pton(socket.AF_INET, address))
    return [(4, four), (6, six)]


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


def bases(index: int) -> tuple[str, str]:
    return f"in{index}", f"out{index}"


def cover(index: int, device: str) -> nft.Messages:
    incoming, outgoing = bases(index)
    return [
        nft.new_base_chain(TABLE, incoming, nft.INGRESS, _PRIORITY, device),
        nft.new_base_chain(TABLE, outgoing, nft.EGRESS, _PRIORITY, device),
        nft.new_rule(TABLE, incoming, nft.goto("in")),
        nft.new_rule(TABLE, outgoing, nft.goto("out")),
    ]


def all_chains(routers: Iterable[int]) -> Iterator[str]:
    """Those that are there whatever the NICs are."""
    yield from _shared(0, 0)
    for virtual_router_id in routers:
        yield from chains(virtual_router_id)[: 2 if virtual_router_id == ORPHANS else 4]


def count_rules(routers: int, *, orphans: bool) -> int:
    """How many rules there are when nobody interfered, without the one in each NIC's chain."""
    return sum(map(len, _shared(0, 0).values())) + 15 * routers + 7 * orphans


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
