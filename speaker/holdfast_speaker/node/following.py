# SPDX-License-Identifier: Apache-2.0
"""The Active that a Backup follows: who it is, when it was heard, what it lists, who was there before."""

from collections.abc import Mapping
from ipaddress import ip_address

from holdfast_speaker.units import NEVER_US
from holdfast_speaker.vrrp.advert import Advert, Family


class Following:
    __slots__ = (
        "heard4_us",
        "heard_us",
        "hears",
        "listed",
        "mac",
        "obeyed",
        "predecessor",
        "resigned_us",
        "rfc_checksum",
    )

    def __init__(self) -> None:
        self.obeyed: dict[Family, bytes] = {}  # its source in each family
        self.mac = b""
        self.hears: str | None = None  # the same, as the report says it
        self.heard_us = self.heard4_us = self.resigned_us = -NEVER_US
        self.listed: dict[Family, bytes] = {}
        self.rfc_checksum = False
        self.predecessor: str | None = None  # the node that was Active last, if the plan knows it

    def nobody(self) -> bool:
        """Follow none from now on; whether that is news."""
        self.obeyed.clear()
        self.heard_us = self.heard4_us = -NEVER_US
        was, self.hears = self.hears, None
        return was is not None

    def follow(self, family: Family, source: bytes, nodes: Mapping[str, str]) -> bool:
        """This source is the Active in its family; whether that is news. ``nodes``: node by source."""
        self.obeyed[family] = source
        hears = str(ip_address(self.obeyed.get(4) or self.obeyed[6]))
        if hears == self.hears:
            return False
        self.hears, self.predecessor = hears, nodes.get(hears, hears)
        return True

    def learn_checksum(self, advert: Advert, now_us: int) -> bool:
        """Which IPv4 checksum the peer uses; whether that is news."""
        if advert.family != 4:
            return False
        self.heard4_us = now_us
        if advert.rfc_checksum is self.rfc_checksum or not advert.priority:
            return False
        self.rfc_checksum = advert.rfc_checksum
        return True
