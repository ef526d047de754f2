# SPDX-License-Identifier: Apache-2.0
"""A NIC as the election sees it: who we are on it, whom we believe on it, since when we listen."""

from collections import OrderedDict
from ipaddress import IPv4Interface, ip_address, ip_interface

from holdfast_api.interfaces import primary
from holdfast_api.types import Interface
from holdfast_speaker.arp import claim
from holdfast_speaker.arp.announce import Announcer
from holdfast_speaker.events import Link
from holdfast_speaker.units import NEVER_US, SECOND_US
from holdfast_speaker.vrrp import inquiry
from holdfast_speaker.vrrp.advert import Advert, Discard, Family

LISTENED_US = 4 * SECOND_US  # longer than most Actives' interval: what was not heard by then is free
MOST_COMPANY = 16
MOST_ANSWERS = 64
MOST_ASKERS = 1024  # of all addresses
COMPANY_US = 600 * SECOND_US
SETTLING_US = 200_000  # a switch port forwards only some time after its link is up (semantics V04)


class Nic:
    __slots__ = (
        "_answers",
        "_askers",
        "_company",
        "_last_primaries",
        "_networks",
        "_primaries",
        "announcer",
        "anybody_us",
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
        self._company: OrderedDict[bytes, tuple[bytes, int]] = OrderedDict()  # by MAC, the latest last
        self._askers: OrderedDict[tuple[bytes, bytes], bytes] = OrderedDict()  # (address, MAC) -> whose
        self._answers: OrderedDict[bytes, int] = OrderedDict()  # by MAC: when it answered us, the latest last
        self.anybody_us = -NEVER_US  # when a frame of anybody came in
        self.heard_since_us: int | None = None
        self.listening_reported = False
        self.up_since_us: int | None = None  # since it came back; None: it was up when first seen
        self._last_primaries: dict[Family, bytes | None] = {4: None, 6: None}
        self._networks: tuple[tuple[int, int], ...] = ()
        self._adopt(link)

    def _adopt(self, link: Link) -> None:
        self.link = link
        interface = link.interface
        own = [ip_interface(cidr) for cidr in interface.addresses]
        self.mac = bytes.fromhex(interface.mac.replace(":", ""))
        self.sources = frozenset(address.ip.packed for address in own)
        networks = tuple(
            (int(address.network.network_address), int(address.netmask))
            for address in own
            if isinstance(address, IPv4Interface) and address.network.prefixlen < 32
        )
        self._networks = networks or self._networks  # who goes must still believe his successor
        self.is_addressed = any(not address.ip.is_link_local for address in own)
        four, six = primary(interface, 4), primary(interface, 6)
        self._primaries: dict[Family, bytes | None] = {
            4: ip_address(four).packed if four else None,
            6: ip_address(six).packed if six else None,
        }
        for family, source in self._primaries.items():
            self._last_primaries[family] = source or self._last_primaries[family]

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

    def serves(self, family: Family) -> bool:
        """Whether the host could answer a client of that family: it has an address of its own there."""
        own = map(ip_interface, self.link.interface.addresses)
        return any(each.version == family and not each.ip.is_link_local for each in own)

    @property
    def usable(self) -> bool:
        return self.link.up and self.link.interface.carrier

    def source(self, family: Family) -> bytes | None:
        """Where our adverts of this family leave from."""
        return self._primaries[family]

    def last_source(self, family: Family) -> bytes | None:
        """The same, or what it was: who lost his addresses can still say that he goes."""
        return self._last_primaries[family]

    def listened(self, now_us: int) -> bool:
        since_us = self.heard_since_us
        return self.usable and since_us is not None and now_us - since_us >= LISTENED_US

    def report(self, now_us: int) -> Interface:
        own = self.link.interface
        return Interface(
            own.name, own.mac, own.addresses, own.carrier and self.link.up, self.listened(now_us)
        )

    def note(self, frame: bytes, address: bytes, now_us: int) -> None:
        """Somebody is there, with this address (packed), or none that we could tell."""
        self.anybody_us = now_us
        if frame[:6] == self.mac and (claim.is_answer(frame) or inquiry.is_answer(frame)):
            self._answers[frame[6:12]] = now_us
            self._answers.move_to_end(frame[6:12])
            if len(self._answers) > MOST_ANSWERS:
                self._answers.popitem(last=False)
        if address:
            mac = frame[6:12]
            self._company[mac] = (address, now_us)
            self._company.move_to_end(mac)
            if len(self._company) > MOST_COMPANY:
                self._company.popitem(last=False)

    @property
    def answered_us(self) -> int:
        """When a frame came in that answers us: we are heard."""
        return next(reversed(self._answers.values()), -NEVER_US)

    def has_answered(self, mac: bytes, since_us: int) -> bool:
        """Whether this neighbour has answered the NIC's own MAC since then."""
        return self._answers.get(mac, -NEVER_US) >= since_us

    def gone(self, mac: bytes) -> None:
        """Silent where he should have spoken: that we hear him no more says nothing about us."""
        self._company.pop(mac, None)

    def note_question(self, asked: bytes, mac: bytes, asker: bytes) -> None:
        """Somebody asks who has an address, and may believe the answer for hours."""
        key = (asked, mac)
        self._askers[key] = asker
        self._askers.move_to_end(key)
        if len(self._askers) > MOST_ASKERS:
            self._askers.popitem(last=False)

    def askers(self, addresses: frozenset[bytes]) -> list[tuple[bytes, bytes, bytes]]:
        """Address, and MAC and address of who asked for it, for all of these; the latest last."""
        return [(asked, mac, whose) for (asked, mac), whose in self._askers.items() if asked in addresses]

    def company(self, but: bytes, now_us: int) -> list[tuple[bytes, bytes]]:
        """MAC and address of those who were heard within ten minutes, without this MAC."""
        return [
            (mac, address)
            for mac, (address, at_us) in self._company.items()
            if mac != but and now_us - at_us < COMPANY_US
        ]

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

    def is_settled(self, now_us: int) -> bool:
        """Whether what is announced now is heard."""
        return self.first_announcement_us(now_us) <= now_us

    def first_announcement_us(self, now_us: int) -> int:
        """When an announcement may leave: at once, or when a link that just came up forwards."""
        return now_us if self.up_since_us is None else max(now_us, self.up_since_us + SETTLING_US)
