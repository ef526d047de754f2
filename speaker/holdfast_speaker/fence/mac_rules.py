# SPDX-License-Identifier: Apache-2.0
"""The rules of virtual MACs: part of ``rules``'s table (semantics.md 2).

    sets   macs, named4         our virtual MACs; the IPv4 addresses that have one
           heard    MAC, 1 s    ours, but somebody else's frame came in with it
    maps   mac4, mac6, macns    address -> MAC            of a packet's source, of a question's target
           said4, said6         address -> jump n<VRID>   who speaks in its name
           sources              MAC -> jump s<VRID>       a frame from it, in or out
           targets              MAC -> jump t<VRID>       a frame to it that comes in
    n<VRID>  on its way out: an ARP question asks in the NIC's own name, never in the address's with the NIC's
             MAC, which all who hear it would learn; what else there is leaves with the virtual MAC, but only
             at home, while the lease is alive and a successor isn't there (quiet): else with the NIC's
    s<VRID>  on its way out while not alive, or quiet: drop. On its way in at home: into ``heard``
    t<VRID>  not alive: drop
    ask4, ask6   a question for such an address becomes a frame to its MAC: only the macvlan gets it
    mac<ifindex> of each macvlan to ``mac``: nothing gets in but what is for its MAC, and its addresses

The MAC is put in before it is looked at, so nothing leaves with one but by s<VRID>. Neither asks whether
its router was ever taken: a Backup has macvlans, too.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from holdfast_speaker.fence import nftables as nft
from holdfast_speaker.fence.words import (
    ADDRESSES,
    ALIVE,
    ARP,
    ARP_SENDER,
    ARP_TARGET,
    IPV4,
    IPV6,
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
    nic,
    packed,
    protocol,
    tagged,
)

HEARD: Final = "heard"

_BAR: Final = "holdfast-bar"
_BAR_PRIORITY: Final = -100
_HEARD_MS: Final = 1000
_TO_US: Final = b"\0"  # PACKET_HOST
_MACS: Final = "macs"
_NAMED: Final = "named4"
_MACS_OF: Final = {4: ("mac4",), 6: ("mac6", "macns")}
_VALUES: Final = {"mac4": nft.SOURCE4_KEY, "mac6": nft.SOURCE6_KEY, "macns": nft.TARGET6_KEY}
_VERDICTS: Final = {
    "said4": nft.IPV4_KEY,
    "said6": nft.IPV6_KEY,
    "sources": nft.MAC_KEY,
    "targets": nft.MAC_KEY,
}
_TO, _FROM = nft.payload(nft.LINK, 0, 6), nft.payload(nft.LINK, 6, 6)
_NEW_TO, _NEW_FROM = nft.write(nft.LINK, 0, 6), nft.write(nft.LINK, 6, 6)
_NEW_SENDER: Final = nft.write(nft.NETWORK, 14, 4)
_NOBODY: Final = "0.0.0.0"  # noqa: S104  an ARP question without a sender


def sets() -> nft.Messages:
    return [
        nft.new_set(TABLE, _MACS, nft.MAC_KEY, ADDRESSES),
        nft.new_set(TABLE, _NAMED, nft.IPV4_KEY, ADDRESSES),
        nft.new_set(TABLE, HEARD, nft.MAC_KEY, ADDRESSES, nft.SET_TIMEOUT | nft.SET_DYNAMIC),
        *(
            nft.new_set(TABLE, name, key, ADDRESSES, nft.SET_MAP, nft.MAC_VALUE)
            for name, key in _VALUES.items()
        ),
        *(nft.new_set(TABLE, name, key, ADDRESSES, nft.SET_MAP) for name, key in _VERDICTS.items()),
    ]


# --- the chains that all routers share ---------------------------------------------------------------


def incoming() -> list[nft.Expressions]:
    """Before all else."""
    return [(_FROM, nft.mapped("sources")), (_TO, nft.mapped("targets"))]


def questions() -> dict[str, list[nft.Expressions]]:
    """To be jumped to with questions."""
    return {
        "ask4": [(nft.jump(TAGGED),), (*protocol(ARP), ARP_TARGET, nft.found("mac4"), _NEW_TO)],
        "ask6": [
            (nft.jump(TAGGED),),
            (*protocol(IPV6), *icmp(SOLICITATION), TARGET6, nft.found("macns"), _NEW_TO),
        ],
    }


def outgoing(not_ours: Iterable[bytes]) -> list[nft.Expressions]:
    """Before all else. ``not_ours``: it lacks the mark of our own frames."""
    by_node = (*not_ours, _FROM, nft.without(_MACS))
    return [
        (*protocol(IPV4), SOURCE4, nft.mapped("said4")),
        (*protocol(IPV6), SOURCE6, nft.mapped("said6")),
        (*protocol(ARP), *QUESTION, *by_node, ARP_SENDER, nft.mapped("said4")),
        (_FROM, nft.mapped("sources")),
    ]


def sheltered() -> list[nft.Expressions]:
    return [
        (nft.meta(nft.CAST), nft.unequal(_TO_US), nft.drop()),
        (*protocol(ARP), *QUESTION, ARP_TARGET, nft.without(_NAMED), nft.drop()),
    ]


# --- one virtual router ------------------------------------------------------------------------------


def chains(virtual_router_id: int) -> tuple[str, str, str]:
    name, source, target = (f"{letter}{virtual_router_id}" for letter in "nst")
    return name, source, target


def router(virtual_router_id: int, index: int, own: str | None) -> nft.Messages:
    """The rules of its chains. ``own``: the NIC's IPv4 address."""
    name, source, target = chains(virtual_router_id)
    number = nft.constant(virtual_router_id)
    alive, quiet = (number, nft.within(ALIVE)), (number, nft.within(QUIET))
    here = (nft.meta(nft.OUT_NIC), nft.equal(nic(index)))
    elsewhere = (nft.meta(nft.OUT_NIC), nft.unequal(nic(index)))
    leaves = (nft.meta(nft.IN_NIC), nft.equal(nic(0)))
    came = (nft.meta(nft.IN_NIC), nft.equal(nic(index)))
    rules: dict[str, list[nft.Expressions]] = {
        name: [
            (*protocol(ARP), *here, nft.value(packed(own or _NOBODY)), _NEW_SENDER),
            (*protocol(ARP), *elsewhere, nft.value(packed(_NOBODY)), _NEW_SENDER),
            (*quiet, nft.come_back()),
            (*protocol(IPV4), *here, *alive, SOURCE4, nft.found("mac4"), _NEW_FROM),
            (*protocol(IPV6), *here, *alive, SOURCE6, nft.found("mac6"), _NEW_FROM),
        ],
        source: [
            (*leaves, *quiet, nft.drop()),
            (*leaves, *alive, nft.come_back()),
            (*leaves, nft.drop()),
            (*came, _FROM, nft.rearmed(HEARD, _HEARD_MS)),
        ],
        target: [(*alive, nft.come_back()), (nft.drop(),)],
    }
    return [
        message
        for chain, listed in rules.items()
        for message in (tagged(chain), *(nft.new_rule(TABLE, chain, *rule) for rule in listed))
    ]


# --- elements ----------------------------------------------------------------------------------------


def name(virtual_router_id: int, macs: Mapping[str, str]) -> nft.Messages:
    """These addresses of the router have these virtual MACs, from now on."""
    speaks, *_ = chains(virtual_router_id)
    values = {packed(address): mac_bytes(mac) for address, mac in macs.items()}
    messages: nft.Messages = []
    for family, keys in by_family(macs):
        messages += nft.add_elements(TABLE, f"said{family}", nft.elements(keys, jump=speaks))
        messages += nft.add_elements(TABLE, _NAMED, nft.elements(keys)) if family == 4 else []
        elements = [nft.element(key, value=values[key]) for key in keys]
        messages += [m for each in _MACS_OF[family] for m in nft.add_elements(TABLE, each, elements)]
    return messages


def unname(addresses: Iterable[str]) -> nft.Messages:
    messages: nft.Messages = []
    for family, keys in by_family(addresses):
        names = (f"said{family}", *_MACS_OF[family], *((_NAMED,) if family == 4 else ()))
        elements = nft.elements(keys)
        messages += [m for each in names for m in nft.delete_elements(TABLE, each, elements)]
    return messages


def own(virtual_router_id: int, macs: Iterable[str]) -> nft.Messages:
    """These virtual MACs are the router's, and nobody else's."""
    _, source, target = chains(virtual_router_id)
    keys = [mac_bytes(mac) for mac in macs]
    return [
        *nft.add_elements(TABLE, _MACS, nft.elements(keys)),
        *nft.add_elements(TABLE, "sources", nft.elements(keys, jump=source)),
        *nft.add_elements(TABLE, "targets", nft.elements(keys, jump=target)),
    ]


def disown(macs: Iterable[str]) -> nft.Messages:
    elements = nft.elements([mac_bytes(mac) for mac in macs])
    return [m for each in (_MACS, "sources", "targets") for m in nft.delete_elements(TABLE, each, elements)]


# --- while the table is made anew --------------------------------------------------------------------


def bar(macs: Iterable[str], devices: Iterable[str]) -> nft.Messages:
    """Nothing leaves with these MACs, whatever the table says.

    A frame may pass the old table and the new one just when the one is no longer and the other not yet in
    force (4 of 300 times under a flood on two cores).
    """
    messages = [nft.new_table(_BAR), nft.delete_table(_BAR), nft.new_table(_BAR)]
    messages.append(nft.new_set(_BAR, _MACS, nft.MAC_KEY, ADDRESSES))
    messages += nft.add_elements(_BAR, _MACS, nft.elements([mac_bytes(mac) for mac in macs]))
    for place, device in enumerate(devices):
        messages.append(nft.new_base_chain(_BAR, f"out{place}", nft.EGRESS, _BAR_PRIORITY, device))
        messages.append(nft.new_rule(_BAR, f"out{place}", _FROM, nft.within(_MACS), nft.drop()))
    return messages


def unbar() -> nft.Messages:
    return [nft.new_table(_BAR), nft.delete_table(_BAR)]


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
