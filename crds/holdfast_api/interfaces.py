# SPDX-License-Identifier: Apache-2.0
"""Which NIC of a node carries an address.

The planner asks it of every node's report, the speaker of its own NICs: one rule, so that they never
disagree. Ports of a bridge or bond are not in the report at all; the bridge or bond itself is.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_interface,
)

from holdfast_api.conditions import Reason
from holdfast_api.types import Interface

MAX_PATTERNS = 8


@lru_cache(maxsize=4096)
def _interface(cidr: str) -> IPv4Interface | IPv6Interface:
    return ip_interface(cidr)


@lru_cache(maxsize=16384)
def _address(address: str) -> IPv4Address | IPv6Address:
    return ip_address(address)


def on_subnet(interface: Interface, address: str) -> bool:
    """Whether one of the NIC's own subnets contains the address (a /32 or /128 is nobody's subnet)."""
    wanted = _address(address)
    return any(
        own.version == wanted.version and own.network.prefixlen < own.max_prefixlen and wanted in own.network
        for own in map(_interface, interface.addresses)
    )


def sources(interface: Interface) -> tuple[str, ...]:
    """The NIC's own addresses without their prefix lengths, in its order."""
    return tuple(cidr.partition("/")[0] for cidr in interface.addresses)


def primary(interface: Interface, version: int) -> str | None:
    """The address adverts leave from: the first IPv4 one; for IPv6 the link-local (RFC 9568 5.1.2.1)."""
    for cidr in interface.addresses:
        own = _interface(cidr)
        if own.version == version and (version == 4 or own.ip.is_link_local):
            return str(own.ip)
    return None


def choose(
    interfaces: Sequence[Interface], patterns: Sequence[str], addresses: Sequence[str]
) -> Interface | Reason:
    """The NIC for a router's addresses, or the reason why there is none.

    With ``patterns`` (names or globs, in order) the first that matches a NIC decides, on the
    subnet or not; among several NICs that one pattern matches, one on the subnet is taken first.
    Without, the NIC whose own subnets contain every address; else the one that contains the most.
    """

    def fit(interface: Interface) -> int:
        return sum(on_subnet(interface, address) for address in addresses)

    for pattern in patterns:
        matching = [i for i in interfaces if fnmatchcase(i.name, pattern)]
        if matching:
            return max(matching, key=lambda i: (fit(i), i.carrier))
    if patterns:
        return Reason.INTERFACE_NOT_FOUND
    best = max(interfaces, key=lambda i: (fit(i), i.carrier), default=None)
    if best is None or fit(best) == 0:
        return Reason.NO_INTERFACE_ON_SUBNET
    return best
