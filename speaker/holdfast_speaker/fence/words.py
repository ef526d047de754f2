# SPDX-License-Identifier: Apache-2.0
"""What all rules of the fence are made of: the names that are known everywhere, and matches."""

import socket
import struct
from collections.abc import Iterable
from typing import Final

from holdfast_speaker.fence import nftables as nft

TABLE: Final = "holdfast"
ALIVE, GUARDED, QUIET = "alive", "guarded", "quiet"
TAGGED: Final = "tagged"
ORPHANS: Final = 0
ADDRESSES: Final = 8192

ARP, IPV4, IPV6 = b"\x08\x06", b"\x08\x00", b"\x86\xdd"
SOLICITATION, ADVERTISEMENT = 135, 136

QUESTION: Final = (nft.payload(nft.NETWORK, 6, 2), nft.equal(b"\0\1"))  # of ARP
ARP_SENDER, ARP_TARGET = nft.payload(nft.NETWORK, 14, 4), nft.payload(nft.NETWORK, 24, 4)
SOURCE4, SOURCE6 = nft.payload(nft.NETWORK, 12, 4), nft.payload(nft.NETWORK, 8, 16)
TARGET6: Final = nft.payload(nft.TRANSPORT, 8, 16)  # of a solicitation or an advertisement


def key(virtual_router_id: int) -> bytes:
    return struct.pack("=I", virtual_router_id)


def protocol(number: bytes) -> tuple[bytes, ...]:
    return nft.meta(nft.PROTOCOL), nft.equal(number)


def icmp(kind: int) -> tuple[bytes, ...]:
    """Other protocols that begin with this byte are let in: 16 more of theirs would have to be an address.

    No question for ICMPv6: ``nft`` would read what follows as a field of it, which not all can load again.
    """
    return nft.payload(nft.TRANSPORT, 0, 1), nft.equal(bytes((kind,)))


def marked(mark: int) -> tuple[bytes, ...]:
    return nft.meta(nft.MARK), nft.equal(struct.pack("=I", mark))


def nic(index: int) -> bytes:
    """Compared with what meta() says of it. 0: no NIC on that side, the frame is on its way out."""
    return struct.pack("=I", index)


def tagged(chain: str) -> bytes:
    """What is of a VLAN is left alone in this chain from here on."""
    return nft.new_rule(TABLE, chain, nft.jump(TAGGED))


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def by_family(addresses: Iterable[str]) -> list[tuple[int, list[bytes]]]:
    four: list[bytes] = []
    six: list[bytes] = []
    for address in addresses:
        (six if ":" in address else four).append(packed(address))
    return [(4, four), (6, six)]
