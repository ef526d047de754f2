# SPDX-License-Identifier: Apache-2.0
"""The CEL rules of ``crds/*.yaml`` said once more in Python, each keyed by its message.

For files, which no API server has checked, and for the programs, which do not trust what they read. A test
proves that every rule has its twin here and every twin its rule; another runs both on the same bad objects.
Pure: nothing here reads a file.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final

Twin = Callable[[Any, Any], bool]  # (self, oldSelf) -> whether the rule holds

MOST_IPV4: Final = 255
MOST_IPV6: Final = 88
_BROADCAST: Final = IPv4Address("255.255.255.255")
_PREFIX_LENGTH: Final = re.compile(r"0|[1-9][0-9]{0,2}")
_POOL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_INTERFACE: Final = re.compile(r"[^/:\t\n\f\r ]+")
_LOCAL_MAC: Final = r"[0-9a-f][26ae](:[0-9a-f]{2}){5}"
_VRRP_MAC: Final = r"00:00:5e:00:0[12]:(0[1-9a-f]|[1-9a-f][0-9a-f])"

IS_ADDRESS: Final = "must be one IPv4 or IPv6 address without a prefix length, such as 192.0.2.10"
IS_CANONICAL: Final = (
    "must be in canonical form: lower case, no leading zeros, the longest run of zeros as ::, "
    "such as 2001:db8::10"
)
IS_ORDINARY: Final = (
    "must not be an unspecified, loopback, multicast, link-local or broadcast address: "
    "choose an ordinary one of the segment"
)
IS_WANTED_MAC: Final = (
    "must be a locally administered unicast MAC address in lower case, such as 02:11:22:33:44:55 "
    "(the second digit is 2, 6, a or e), or the word VRRP; leave it out to have one allocated"
)
IS_VIRTUAL_MAC: Final = (
    "must be a locally administered unicast MAC address in lower case, such as 02:11:22:33:44:55, "
    "or one of VRRP's, such as 00:00:5e:00:01:33"
)
IS_INTERFACE: Final = "must be a NIC name or a glob, without '/', ':' or spaces"
IPV4_FIT: Final = "at most 255 IPv4 addresses fit into one advert: use another VirtualRouter"
IPV6_FIT: Final = "at most 88 IPv6 addresses fit into one advert: use another VirtualRouter"
NAMED_AFTER_ID: Final = (
    "the name of the VirtualRouter must be vr- and this number, so that no VRID is used twice"
)


@lru_cache(maxsize=2048)  # an address is asked about by three rules, and again each time its router changes
def parsed(text: str) -> IPv4Address | IPv6Address | None:
    """The address, or None: with a zone, IPv4-mapped or with leading zeros it is none (as in CEL's isIP)."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and (address.scope_id is not None or address.ipv4_mapped is not None):
        return None
    return address


def is_ordinary(address: IPv4Address | IPv6Address) -> bool:
    """CEL's isGlobalUnicast: private and unique local addresses are ordinary too."""
    return not (
        address.is_unspecified
        or address.is_loopback
        or address.is_multicast
        or address.is_link_local
        or address == _BROADCAST
    )


def masked(text: str) -> str | None:
    """The block in canonical form, or None when it is no block (CEL's isCIDR and masked)."""
    address, _, length = text.partition("/")
    if parsed(address) is None or _PREFIX_LENGTH.fullmatch(length) is None:
        return None
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        return None


def _canonical(text: str, _old: Any) -> bool:
    address = parsed(text)
    return address is None or str(address) == text


def _ordinary(text: str, _old: Any) -> bool:
    address = parsed(text)
    return address is None or is_ordinary(address)


def _block_canonical(text: str, _old: Any) -> bool:
    return masked(text) in (None, text)


def _block_ordinary(text: str, _old: Any) -> bool:
    address = parsed(text.partition("/")[0])
    return masked(text) is None or (address is not None and is_ordinary(address))


def _matches(pattern: re.Pattern[str]) -> Twin:
    return lambda text, _old: pattern.fullmatch(text) is not None


def _kept(key: str) -> Twin:
    return lambda spec, old: (key in spec) == (key in old) and spec.get(key) == old.get(key)


def _values_fit(requirement: Mapping[str, Any], _old: Any) -> bool:
    return (requirement["operator"] in ("In", "NotIn")) == bool(requirement.get("values"))


def _count(addresses: list[Mapping[str, Any]], ipv6: bool) -> int:
    return sum((":" in address["address"]) == ipv6 for address in addresses)


ADDRESS_RULES: Final[dict[str, Twin]] = {
    IS_ADDRESS: lambda text, _old: parsed(text) is not None,
    IS_CANONICAL: _canonical,
    IS_ORDINARY: _ordinary,
}

TWINS: Final[dict[str, Twin]] = ADDRESS_RULES | {
    "give an address, a pool to take one from, or both": lambda spec, _old: (
        "address" in spec or "pool" in spec
    ),
    "an address cannot be added, changed or removed: create another VirtualIP and delete this one": _kept(
        "address"
    ),
    "a pool cannot be added, changed or removed: create another VirtualIP and delete this one": _kept("pool"),
    "a MAC address needs mode: VirtualMAC": lambda spec, _old: (
        "macAddress" not in spec or spec["mode"] == "VirtualMAC"
    ),
    "a fallback from the MAC address needs mode: VirtualMAC": lambda spec, _old: (
        spec["macFallback"] == "Never" or spec["mode"] == "VirtualMAC"
    ),
    "must be the name of a VirtualIPPool": _matches(_POOL),
    IS_INTERFACE: _matches(_INTERFACE),
    IS_WANTED_MAC: _matches(re.compile(f"VRRP|{_LOCAL_MAC}")),
    IS_VIRTUAL_MAC: _matches(re.compile(f"{_LOCAL_MAC}|{_VRRP_MAC}")),
    "must be a lower-case name of letters, digits and '-', such as edge": _matches(_LABEL),
    "In and NotIn need values, Exists and DoesNotExist take none": _values_fit,
    "must be a block of addresses, such as 192.0.2.0/28": lambda text, _old: masked(text) is not None,
    "must be in canonical form, with no bits set after the prefix, such as 192.0.2.0/28 or 2001:db8::/64": (
        _block_canonical
    ),
    "must not start at an unspecified, loopback, multicast, link-local or broadcast address: "
    "choose a block of the segment": _block_ordinary,
    NAMED_AFTER_ID: lambda router, _old: (
        router["metadata"]["name"] == f"vr-{router['spec']['virtualRouterID']}"
    ),
    "a virtualRouterID cannot be changed: create another VirtualRouter": lambda vrid, old: vrid == old,
    IPV4_FIT: lambda addresses, _old: _count(addresses, ipv6=False) <= MOST_IPV4,
    IPV6_FIT: lambda addresses, _old: _count(addresses, ipv6=True) <= MOST_IPV6,
    "only grows: a newer leader of the operator has planned since": lambda epoch, old: epoch >= old,
}


def broken(messages: Mapping[str, Twin], value: Any) -> list[str]:
    """The messages of the rules that do not hold for a value on its own."""
    return [message for message, holds in messages.items() if not holds(value, None)]
