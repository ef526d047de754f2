# SPDX-License-Identifier: Apache-2.0
"""The kernel's dumps, read: which NICs could carry an address, what is on them, who is around. Pure.

Layouts: linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h, linux/neighbour.h.
"""

import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

from holdfast_api.types import Interface
from holdfast_speaker.events import Link
from holdfast_speaker.netlink import attributes
from holdfast_speaker.ports import Neighbour, Surroundings

MAX_LINKS: Final = 64
MAX_ADDRESSES: Final = 64  # of its own, told of one NIC
MAX_NEIGHBOURS: Final = 64

_ARPHRD_ETHER: Final = 1
_IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_IFF_NOARP: Final = 0x80
_IFF_LOWER_UP: Final = 0x10000
_NOT_A_SEGMENT: Final = frozenset({"dummy", "vrf", "ifb", "nlmon"})

_IFA_F_TEMPORARY: Final = 0x01  # of IPv6: privacy addresses, new ones every day
_IFA_F_DADFAILED: Final = 0x08
_IFA_F_TENTATIVE: Final = 0x40

_RT_TABLE_MAIN: Final = 254
_RTN_UNICAST: Final = 1
_NUD_USABLE: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # REACHABLE STALE DELAY PROBE PERMANENT
_NTF_ROUTER: Final = 0x80

_INT: Final = struct.Struct("=i")


@dataclass(frozen=True, slots=True)
class KernelLink:
    index: int
    name: str
    mac: str
    flags: int
    mtu: int
    kind: str  # "" for hardware
    port: bool  # of a bridge or bond: not a place of its own
    forwarding: bool  # IPv6


@dataclass(frozen=True, slots=True)
class KernelAddress:
    index: int
    address: str
    prefix: int
    mark: int  # IFA_PROTO; 0 before Linux 5.18
    usable: bool  # as a source that stays


def text(packed: bytes) -> str:
    """Canonical form of 4 or 16 bytes, as the API has it (inet_ntop writes some IPv6 ones with dots)."""
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    shown = socket.inet_ntop(socket.AF_INET6, packed)
    return str(IPv6Address(packed)) if "." in shown else shown


def read_link(body: bytes) -> KernelLink | None:
    """One RTM_NEWLINK body; None for what is no Ethernet."""
    _, kind_of_hardware, index, flags = struct.unpack_from("=BxHiI", body)
    if kind_of_hardware != _ARPHRD_ETHER:
        return None
    name = mac = kind = slave_kind = ""
    mtu, master, forwarding = 1500, False, False
    for kind_of, value in attributes(body, 16, len(body)):
        if kind_of == 3:  # IFLA_IFNAME
            name = value.rstrip(b"\0").decode(errors="replace")
        elif kind_of == 1 and len(value) == 6:  # IFLA_ADDRESS
            mac = value.hex(":")
        elif kind_of == 4:  # IFLA_MTU
            mtu = _INT.unpack(value)[0]
        elif kind_of == 10:  # IFLA_MASTER
            master = True
        elif kind_of == 18:  # IFLA_LINKINFO
            info = dict(attributes(value, 0, len(value)))
            kind = info.get(1, b"").rstrip(b"\0").decode(errors="replace")  # IFLA_INFO_KIND
            slave_kind = info.get(4, b"").rstrip(b"\0").decode(errors="replace")  # IFLA_INFO_SLAVE_KIND
        elif kind_of == 26:  # IFLA_AF_SPEC
            forwarding = _forwards(value)
    if not mac:
        return None
    port = master and slave_kind != "vrf"  # a NIC in a VRF is still the NIC of its segment
    return KernelLink(index, name, mac, flags, mtu, kind, port, forwarding)


def _forwards(specific: bytes) -> bool:
    families = dict(attributes(specific, 0, len(specific)))
    inet6 = families.get(socket.AF_INET6, b"")
    settings = dict(attributes(inet6, 0, len(inet6))).get(2, b"")  # IFLA_INET6_CONF
    return len(settings) >= 4 and _INT.unpack_from(settings)[0] > 0  # DEVCONF_FORWARDING comes first


def read_address(body: bytes) -> KernelAddress | None:
    """One RTM_NEWADDR body."""
    family, prefix, flags, _, index = struct.unpack_from("=BBBBI", body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    packed = b""
    mark = 0
    for kind, value in attributes(body, 8, len(body)):
        if kind == 2 or (kind == 1 and not packed):  # IFA_LOCAL wins over IFA_ADDRESS, the peer's
            packed = value
        elif kind == 8:  # IFA_FLAGS
            flags = _INT.unpack(value)[0]
        elif kind == 11:  # IFA_PROTO
            mark = value[0]
    if len(packed) not in (4, 16):
        return None
    passing = _IFA_F_TENTATIVE | _IFA_F_DADFAILED | _IFA_F_TEMPORARY
    usable = family == socket.AF_INET or not flags & passing
    return KernelAddress(index, text(packed), prefix, mark, usable)


def _is_link_local(address: KernelAddress) -> bool:
    return address.address.startswith(("fe80:", "169.254."))


def _has_subnet(addresses: Iterable[KernelAddress]) -> bool:
    """Whether one of them is a global address with a subnet around it (a pod's gateway is a /32)."""
    return any(not _is_link_local(a) and a.prefix < (128 if ":" in a.address else 32) for a in addresses)


def links_seen(links: Iterable[KernelLink], own: Iterable[KernelAddress]) -> tuple[Link, ...]:
    """The NICs that may carry a virtual IP, by index; ``own`` are the host's addresses without ours.

    Left out: loopback, ports, what resolves no addresses, and the host's ends of pods' cables. Of
    more than MAX_LINKS those with a subnet stay.
    """
    on: dict[int, list[KernelAddress]] = {}
    for address in own:
        if address.usable:
            on.setdefault(address.index, []).append(address)
    eligible = [
        link
        for link in links
        if not link.port
        and not link.flags & (_IFF_LOOPBACK | _IFF_NOARP)
        and link.kind not in _NOT_A_SEGMENT
        and (link.kind != "veth" or _has_subnet(on.get(link.index, ())))
    ]
    eligible.sort(key=lambda link: (not _has_subnet(on.get(link.index, ())), link.index))
    chosen = sorted(eligible[:MAX_LINKS], key=lambda link: link.index)
    return tuple(_link(link, on.get(link.index, ())) for link in chosen)


def _link(link: KernelLink, addresses: Sequence[KernelAddress]) -> Link:
    up = bool(link.flags & _IFF_UP)
    interface = Interface(
        name=link.name,
        mac=link.mac,
        addresses=tuple(f"{a.address}/{a.prefix}" for a in addresses[:MAX_ADDRESSES]),
        carrier=up and bool(link.flags & _IFF_LOWER_UP),
    )
    return Link(link.index, interface, link.mtu, up)


# --- who is around --------------------------------------------------------------------------------


def read_gateways(body: bytes) -> list[tuple[int, str]]:
    """(ifindex, gateway) for a default route of the main table in one RTM_NEWROUTE body."""
    family, length, _, _, table, _, _, kind = struct.unpack_from("=8B", body)
    if length != 0 or table != _RT_TABLE_MAIN or kind != _RTN_UNICAST:
        return []
    return _hops(family, dict(attributes(body, 12, len(body))))


def _hops(family: int, route: dict[int, bytes]) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    if 4 in route and len(route.get(5, b"")) in (4, 16):  # RTA_OIF, RTA_GATEWAY
        found.append((_INT.unpack(route[4])[0], text(route[5])))
    hops = route.get(9, b"")  # RTA_MULTIPATH: struct rtnexthop and its attributes
    start = 0
    while start + 8 <= len(hops):
        length, _, _, index = struct.unpack_from("=HBBi", hops, start)
        if length < 8:
            break
        inner = dict(attributes(hops, start + 8, min(start + length, len(hops))))
        if len(inner.get(5, b"")) in (4, 16) and family in (socket.AF_INET, socket.AF_INET6):
            found.append((index, text(inner[5])))
        start += (length + 3) & ~3
    return found


@dataclass(frozen=True, slots=True)
class KernelNeighbour:
    index: int
    address: str
    mac: str
    age: int  # clock ticks since the kernel last heard of it
    router: bool


def read_neighbour(body: bytes) -> KernelNeighbour | None:
    """One RTM_NEWNEIGH body; None without a MAC to send to."""
    family, index, state, flags, _ = struct.unpack_from("=BxxxiHBB", body)
    if family not in (socket.AF_INET, socket.AF_INET6) or not state & _NUD_USABLE:
        return None
    found = dict(attributes(body, 12, len(body)))
    packed, mac = found.get(1, b""), found.get(2, b"")  # NDA_DST, NDA_LLADDR
    if len(packed) not in (4, 16) or len(mac) != 6 or mac[0] & 1 or not any(mac):
        return None
    cache = found.get(3, b"")  # NDA_CACHEINFO: confirmed, used, updated, refcount
    confirmed, _, updated = struct.unpack_from("=III", cache) if len(cache) >= 12 else (0, 0, 0)
    return KernelNeighbour(
        index, text(packed), mac.hex(":"), min(confirmed, updated), bool(flags & _NTF_ROUTER)
    )


def surroundings(
    *, forwarding: bool, gateways: Iterable[str], known: Iterable[KernelNeighbour], ours: frozenset[str]
) -> Surroundings:
    """Gateways with their MACs where known, then the MAX_NEIGHBOURS that were heard of last.

    An IPv6 neighbour that says it is a router counts as a gateway: a host that routes need not have
    a default route of its own.
    """
    by_address = {n.address: n for n in known}
    doors = dict.fromkeys(gateways)
    doors.update(dict.fromkeys(a for a, n in by_address.items() if n.router))
    first = tuple(
        Neighbour(address, by_address[address].mac if address in by_address else None) for address in doors
    )[:MAX_NEIGHBOURS]
    rest = sorted(
        (n for n in by_address.values() if n.address not in doors and n.address not in ours),
        key=lambda n: (n.age, n.address),
    )
    return Surroundings(
        forwarding=forwarding,
        gateways=first,
        neighbours=tuple(Neighbour(n.address, n.mac) for n in rest[:MAX_NEIGHBOURS]),
    )
