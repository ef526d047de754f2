# SPDX-License-Identifier: Apache-2.0
"""What a VirtualRouter means for one node; and whether it means anything at all."""

from ipaddress import ip_address

from holdfast_api.types import Candidate, RouterAddress, VirtualRouter, VirtualRouterSpec
from holdfast_speaker.node.host import Host
from holdfast_speaker.units import MILLISECOND_US, SECOND_US
from holdfast_speaker.vrrp.advert import MAX_ADDRESSES, MAX_INTERVAL_US
from holdfast_speaker.vrrp.router import Settings

MAX_IPV6: int = 88  # with a link-local one and a trailer they fit 1,500 bytes
_OCTETS = 6
MAX_ROUTERS = 1024  # more than there are VRIDs; the rest of a list is refused


def candidate(spec: VirtualRouterSpec, node: str) -> Candidate | None:
    return next((candidate for candidate in spec.candidates if candidate.node == node), None)


def is_first(spec: VirtualRouterSpec, node: str) -> bool:
    """Whether the node is the one that takes a new router at once: the highest priority, then the order."""
    best = max(spec.candidates, key=lambda candidate: candidate.priority, default=None)
    return best is not None and best.node == node


def settings(spec: VirtualRouterSpec, priority: int, host: Host) -> Settings:
    """An interval too short for this host's kernel is raised to the shortest that it can fence."""
    order, own = spec.handover, candidate(spec, host.name)
    return Settings(
        priority,
        max(spec.advert_interval_milliseconds * MILLISECOND_US, host.least_interval_us),
        "Never" if own is not None and own.meek else spec.failback,  # its Node is not ready
        spec.failback_delay_seconds * SECOND_US,
        host.jiffy_us,
        heir=order is not None and order.to == host.name,
        bypassed=order is not None and order.to != host.name,
    )


def fault(router: VirtualRouter) -> str | None:
    """What is wrong with it, with the field; None: it can be run."""
    spec = router.spec
    interval_us = spec.advert_interval_milliseconds * MILLISECOND_US
    if not 1 <= spec.virtual_router_id <= 255:
        return f"spec.virtualRouterID is {spec.virtual_router_id}: must be 1 to 255"
    if not 0 < interval_us <= MAX_INTERVAL_US or interval_us % (10 * MILLISECOND_US):
        return (
            f"spec.advertIntervalMilliseconds is {spec.advert_interval_milliseconds}: "
            "must be a multiple of 10, from 10 to 40,950"
        )
    if spec.failback_delay_seconds < 0:
        return "spec.failbackDelaySeconds must not be negative"
    for each in spec.candidates:
        if not 1 <= each.priority <= 254:
            return f"spec.candidates: the priority of {each.node} is {each.priority}: must be 1 to 254"
    return _addresses_fault(spec)


def virtual_mac(spec: VirtualRouterSpec, planned: RouterAddress) -> bytes | None:
    """The MAC that moves along with this address; b"" where the NIC's own is used, None: it is no MAC."""
    if spec.mode != "VirtualMAC" or planned.mac_address is None:
        return b""
    octets = planned.mac_address.split(":")
    if len(octets) != _OCTETS or not all(len(octet) == 2 for octet in octets):
        return None
    try:
        mac = bytes.fromhex("".join(octets))
    except ValueError:
        return None
    return mac if len(mac) == _OCTETS and any(mac) and not mac[0] & 1 else None


def _addresses_fault(spec: VirtualRouterSpec) -> str | None:
    seen: set[str] = set()
    sixes = 0
    for planned in spec.addresses:
        try:
            address = ip_address(planned.address)
        except ValueError:
            return f"spec.addresses: {planned.address[:64]!r} is no IP address"
        if str(address) != planned.address:
            return f"spec.addresses: {planned.address[:64]!r} is not canonical: write {address}"
        if planned.address in seen:
            return f"spec.addresses: {planned.address} stands there twice"
        seen.add(planned.address)
        sixes += address.version == 6
        mac = virtual_mac(spec, planned)
        if mac is None and planned.mac_address is not None:
            return f"spec.addresses: {planned.mac_address[:32]!r} is no MAC address of one host"
        node = next((each.node for each in spec.candidates if mac and mac.hex(":") in each.macs), None)
        if node is not None:
            return f"spec.addresses: {planned.mac_address} is the MAC address of {node}"
    if len(seen) - sixes > MAX_ADDRESSES or sixes > MAX_IPV6:
        return f"spec.addresses: at most {MAX_ADDRESSES} IPv4 and {MAX_IPV6} IPv6 addresses fit an advert"
    return None
