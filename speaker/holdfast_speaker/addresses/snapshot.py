# SPDX-License-Identifier: Apache-2.0
"""The kernel's dumps, read: which NICs could carry an address, what is on them, who is around. Pure.

Layouts: linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h, linux/neighbour.h.
"""

import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final, TypeVar

from holdfast_api.types import Interface
from holdfast_speaker.events import Link
from holdfast_speaker.netlink import attributes
from holdfast_speaker.ports import Neighbour, Surroundings
from holdfast_speaker.virtual_mac import ALIAS, device

MAX_LINKS: Final = 64
MAX_ADDRESSES: Final = 64  # of its own, told of one NIC
MAX_NEIGHBOURS: Final = 64

_ARPHRD_ETHER: Final = 1
_IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_IFF_NOARP: Final = 0x80
_IFF_LOWER_UP: Final = 0x10000
_NOT_A_SEGMENT: Final = frozenset({"dummy", "vrf", "ifb", "nlmon"})

# Indexes of what IFLA_INET_CONF lists, one int each, from 1 (linux/ip.h: IPV4_DEVCONF_*).
RP_FILTER: Final = 8
ARP_IGNORE: Final = 19

_IFA_F_TEMPORARY: Final = 0x01  # of IPv6: privacy addresses, new ones every day
_IFA_F_DADFAILED: Final = 0x08
_IFA_F_TENTATIVE: Final = 0x40

_RT_TABLE_MAIN: Final = 254
_RTN_UNICAST: Final = 1
_NUD_USABLE: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # REACHABLE STALE DELAY PROBE PERMANENT
_NTF_ROUTER: Final = 0x80

_INT: Final = struct.Struct("=i")

_T = TypeVar("_T")


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
    parent: int = 0  # the NIC it sits on; 0 for none, or one in another network namespace
    alias: str = ""
    arp_ignore: int = 0
    rp_filter: int = 0
    addr_gen_mode: int | None = None  # None: no IPv6 on it

    @property
    def up(self) -> bool:
        return bool(self.flags & _IFF_UP)

    @property
    def is_ours(self) -> bool:
        """A virtual MAC's macvlan. Its name and MAC count too: it has no alias in its first microseconds."""
        named = not self.alias and self.name == device(self.mac)
        return self.kind == "macvlan" and (self.alias == ALIAS or named)


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
    found = dict(attributes(body, 16, len(body)))
    mac = found.get(1, b"")  # IFLA_ADDRESS
    if len(mac) != 6:
        return None
    info = dict(_inside(found.get(18, b"")))  # IFLA_LINKINFO
    kind, slave_kind = _name(info.get(1, b"")), _name(info.get(4, b""))  # IFLA_INFO_KIND, _SLAVE_KIND
    families = dict(_inside(found.get(26, b"")))  # IFLA_AF_SPEC
    inet = _ints(dict(_inside(families.get(socket.AF_INET, b""))).get(1, b""))  # IFLA_INET_CONF
    inet6 = dict(_inside(families.get(socket.AF_INET6, b"")))
    inet6_conf = _ints(inet6.get(2, b"")[:4])  # IFLA_INET6_CONF: DEVCONF_FORWARDING comes first
    mode = inet6.get(8)  # IFLA_INET6_ADDR_GEN_MODE
    foreign = 37 in found  # IFLA_LINK_NETNSID
    return KernelLink(
        index=index,
        name=_name(found.get(3, b"")),  # IFLA_IFNAME
        mac=mac.hex(":"),
        flags=flags,
        mtu=_INT.unpack(found[4])[0] if 4 in found else 1500,  # IFLA_MTU
        kind=kind,
        port=10 in found and slave_kind != "vrf",  # IFLA_MASTER; in a VRF it is still its segment's NIC
        forwarding=bool(inet6_conf) and inet6_conf[0] > 0,
        parent=_INT.unpack(found[5])[0] if 5 in found and not foreign else 0,  # IFLA_LINK
        alias=_name(found.get(20, b"")),  # IFLA_IFALIAS
        arp_ignore=inet[ARP_IGNORE - 1] if len(inet) >= ARP_IGNORE else 0,
        rp_filter=inet[RP_FILTER - 1] if len(inet) >= RP_FILTER else 0,
        addr_gen_mode=mode[0] if mode else None,
    )


def read_all(reader: Callable[[bytes], _T | None], bodies: Iterable[bytes]) -> list[_T]:
    """What the reader makes of them; a message it cannot read, from a future kernel, is left out."""
    found: list[_T] = []
    for body in bodies:
        with suppress(struct.error, IndexError):
            value = reader(body)
            if value is not None:
                found.append(value)
    return found


def _inside(nested: bytes) -> Iterator[tuple[int, bytes]]:
    return attributes(nested, 0, len(nested))


def _name(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _ints(values: bytes) -> tuple[int, ...]:
    return struct.unpack_from(f"={len(values) // 4}i", values)


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

    Left out: loopback, ports, what resolves no addresses, virtual MACs' macvlans, and the host's ends of
    pods' cables. Of more than MAX_LINKS those with a subnet stay.
    """
    on: dict[int, list[KernelAddress]] = {}
    for address in own:
        if address.usable:
            on.setdefault(address.index, []).append(address)
    eligible = [
        link
        for link in links
        if not link.port
        and not link.is_ours
        and not link.flags & (_IFF_LOOPBACK | _IFF_NOARP)
        and link.kind not in _NOT_A_SEGMENT
        and (link.kind != "veth" or _has_subnet(on.get(link.index, ())))
    ]
    eligible.sort(key=lambda link: (not _has_subnet(on.get(link.index, ())), link.index))
    chosen = sorted(eligible[:MAX_LINKS], key=lambda link: link.index)
    return tuple(_link(link, on.get(link.index, ())) for link in chosen)


def _link(link: KernelLink, addresses: Sequence[KernelAddress]) -> Link:
    interface = Interface(
        name=link.name,
        mac=link.mac,
        addresses=tuple(f"{a.address}/{a.prefix}" for a in addresses[:MAX_ADDRESSES]),
        carrier=link.up and bool(link.flags & _IFF_LOWER_UP),
    )
    return Link(link.index, interface, link.mtu, link.up)


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
