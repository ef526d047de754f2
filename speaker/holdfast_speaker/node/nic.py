# SPDX-License-Identifier: Apache-2.0
"""A NIC as the election sees it: who we are on it, whom we believe on it, since when we listen."""

from ipaddress import IPv4Interface, ip_address, ip_interface

from holdfast_api.interfaces import primary
from holdfast_api.types import Interface
from holdfast_speaker.arp.announce import Announcer
from holdfast_speaker.events import Link
from holdfast_speaker.units import SECOND_US
from holdfast_speaker.vrrp.advert import Advert, Discard, Family

LISTENED_US = 4 * SECOND_US  # longer than most Actives' interval: what was not heard by then is free
SETTLING_US = 200_000  # a switch port forwards only some time after its link is up (semantics V04)


class Nic:
    __slots__ = (
        "_networks",
        "_primaries",
        "announcer",
        "heard_since_us",
        "is_addressed",
        "link",
        "listening_reported",
        "mac",
        "sources",
        "up_since_us",
    )

    def __init__(self, link: Link, node: str) -> None:
        self.announcer = Announcer(link.index, node)
        self.heard_since_us: int | None = None
        self.listening_reported = False
        self.up_since_us: int | None = None  # since it came back; None: it was up when first seen
        self._adopt(link)

    def _adopt(self, link: Link) -> None:
        self.link = link
        interface = link.interface
        own = [ip_interface(cidr) for cidr in interface.addresses]
        self.mac = bytes.fromhex(interface.mac.replace(":", ""))
        self.sources = frozenset(address.ip.packed for address in own)
        self._networks = tuple(
            (int(address.network.network_address), int(address.netmask))
            for address in own
            if isinstance(address, IPv4Interface) and address.network.prefixlen < 32
        )
        self.is_addressed = any(not address.ip.is_link_local for address in own)
        four, six = primary(interface, 4), primary(interface, 6)
        self._primaries = {
            4: ip_address(four).packed if four else None,
            6: ip_address(six).packed if six else None,
        }

    def update(self, link: Link, now_us: int) -> None:
        """The same NIC, changed. What it heard before its carrier was lost says nothing about now."""
        was = self.usable
        self._adopt(link)
        if self.usable and not was:
            self.up_since_us = now_us
            if self.heard_since_us is not None:
                self.listen(now_us)

    def listen(self, since_us: int | None) -> None:
        """Its packet socket is open since then; None: it is not."""
        self.heard_since_us, self.listening_reported = since_us, False

    @property
    def usable(self) -> bool:
        return self.link.up and self.link.interface.carrier

    def source(self, family: Family) -> bytes | None:
        """Where our adverts of this family leave from."""
        return self._primaries[family]

    def listened(self, now_us: int) -> bool:
        since_us = self.heard_since_us
        return self.usable and since_us is not None and now_us - since_us >= LISTENED_US

    def report(self, now_us: int) -> Interface:
        own = self.link.interface
        return Interface(
            own.name, own.mac, own.addresses, own.carrier and self.link.up, self.listened(now_us)
        )

    def refuses(self, advert: Advert) -> Discard | None:
        """Why an advert that came in here is not believed: our own source, or none of the segment's."""
        if advert.source in self.sources:
            return Discard.OWN_SOURCE
        if advert.family == 6:
            return None
        source = int.from_bytes(advert.source)
        for network, mask in self._networks:
            if source & mask == network:
                return None
        return Discard.OFF_SUBNET

    def first_announcement_us(self, now_us: int) -> int:
        """When an announcement may leave: at once, or when a link that just came up forwards."""
        return now_us if self.up_since_us is None else max(now_us, self.up_since_us + SETTLING_US)
