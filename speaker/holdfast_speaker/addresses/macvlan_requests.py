# SPDX-License-Identifier: Apache-2.0
"""rtnetlink's messages for a virtual MAC's macvlan. Layouts: linux/if_link.h, linux/rtnetlink.h. Pure."""

import socket
import struct
from typing import Final

from holdfast_speaker import netlink
from holdfast_speaker.addresses import snapshot
from holdfast_speaker.netlink import attribute
from holdfast_speaker.virtual_mac import ALIAS, device

UP: Final = 0x1
ARP_IGNORE: Final = 1  # answer only for addresses of the macvlan's own
RP_FILTER: Final = 2  # loose: the way back is by the parent. The kernel takes the greater of this and all's
NO_LINK_LOCAL: Final = 1  # IN6_ADDR_GEN_MODE_NONE
_PRIVATE: Final = 1

_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_LINK: Final = 5
_IFLA_LINKINFO: Final = 18
_IFLA_IFALIAS: Final = 20
_IFLA_AF_SPEC: Final = 26
_IFLA_GROUP: Final = 27


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _info(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change)


def _change(index: int, attributes: bytes) -> bytes:
    return netlink.request(netlink.RTM_SETLINK, netlink.NLM_F_ACK, _info(index) + attributes)


def create(parent: int, mac: str) -> bytes:
    """Neither alias nor AF_SPEC: the kernel ignores the one and refuses the other with EAFNOSUPPORT."""
    mode = attribute(2, attribute(1, struct.pack("=I", _PRIVATE)))  # IFLA_INFO_DATA, IFLA_MACVLAN_MODE
    body = _info() + attribute(_IFLA_IFNAME, device(mac).encode() + b"\0")
    body += attribute(_IFLA_ADDRESS, _packed(mac)) + attribute(_IFLA_LINK, struct.pack("=i", parent))
    body += attribute(_IFLA_LINKINFO, attribute(1, b"macvlan\0") + mode)  # IFLA_INFO_KIND
    flags = netlink.NLM_F_ACK | netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    return netlink.request(netlink.RTM_NEWLINK, flags, body)


def settings(index: int, mtu: int) -> bytes:
    answer = attribute(snapshot.ARP_IGNORE, struct.pack("=I", ARP_IGNORE))
    loose = attribute(snapshot.RP_FILTER, struct.pack("=I", RP_FILTER))
    inet = attribute(socket.AF_INET, attribute(1, answer + loose))  # IFLA_INET_CONF
    body = attribute(_IFLA_IFALIAS, ALIAS.encode()) + attribute(_IFLA_AF_SPEC, inet)
    if mtu:
        body += attribute(_IFLA_MTU, struct.pack("=I", mtu))
    return _change(index, body)


def no_link_local(index: int) -> bytes:
    mode = attribute(8, bytes((NO_LINK_LOCAL,)))  # IFLA_INET6_ADDR_GEN_MODE
    return _change(index, attribute(_IFLA_AF_SPEC, attribute(socket.AF_INET6, mode)))


def set_up(index: int) -> bytes:
    return netlink.request(netlink.RTM_SETLINK, netlink.NLM_F_ACK, _info(index, UP, UP))


def set_mac(index: int, mac: str) -> bytes:
    return _change(index, attribute(_IFLA_ADDRESS, _packed(mac)))


def put_in_group(index: int, group: int) -> bytes:
    return _change(index, attribute(_IFLA_GROUP, struct.pack("=I", group)))


def delete_group(group: int) -> bytes:
    body = _info() + attribute(_IFLA_GROUP, struct.pack("=I", group))
    return netlink.request(netlink.RTM_DELLINK, netlink.NLM_F_ACK, body)
