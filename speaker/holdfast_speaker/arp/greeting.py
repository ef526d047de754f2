# SPDX-License-Identifier: Apache-2.0
"""Are you there? An ordinary question from our own address to one neighbour: ARP (RFC 826), or NS (RFC 4861).

Unicast, as for a cache entry that is checked (RFC 1122 2.3.2.1, RFC 4861 7.3.3): nobody else is bothered.
"""

from struct import Struct
from typing import Final

_ARP: Final = Struct("!HHBBH6s4s6s4s")
_IPV6: Final = Struct("!IHBB16s16s")
_NS: Final = Struct("!BBHI16sBB6s")
_ICMPV6: Final = 58
_SOLICITATION: Final = 135


def build(*, address: bytes, mac: bytes, own: bytes, own_mac: bytes) -> bytes | None:
    """The whole Ethernet frame that asks ``address`` at ``mac``; None where the families differ."""
    if len(address) != len(own):
        return None
    if len(address) == 4:
        question = _ARP.pack(1, 0x0800, 6, 4, 1, own_mac, own, bytes(6), address)
        return b"".join((mac, own_mac, b"\x08\x06", question))
    head = (_SOLICITATION, 0)
    rest = (0, address, 1, 1, own_mac)
    total = int.from_bytes(own + address) + _NS.size + _ICMPV6 + int.from_bytes(_NS.pack(*head, 0, *rest))
    message = _NS.pack(*head, 0xFFFF - total % 0xFFFF, *rest)
    header = _IPV6.pack(6 << 28, _NS.size, _ICMPV6, 255, own, address)
    return b"".join((mac, own_mac, b"\x86\xdd", header, message))
