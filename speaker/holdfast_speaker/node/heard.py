# SPDX-License-Identifier: Apache-2.0
"""Every VRID heard on every NIC: who is Active there, what he lists, who is a stranger.

Bounds: 255 VRIDs a NIC, one packed list a family and VRID; only addresses of our own plan are indexed;
what was not heard for a minute is forgotten.
"""

from collections.abc import Mapping
from ipaddress import ip_address

from holdfast_speaker.units import SECOND_US
from holdfast_speaker.vrrp.advert import Advert, Family

EXPIRY_US = 60 * SECOND_US
_INTRUDER_EXPIRY_US = 10 * SECOND_US  # on a VRID of the plan: a conflict is over soon after its last advert
_STRANGER_SETTLES_US = 5 * SECOND_US  # on a VRID of the plan: its candidates may have just changed
_UNKNOWN_SETTLES_US = SECOND_US  # on any other: a router of ours may have just been deleted


class Heard:
    """What is known of one VRID on one NIC."""

    __slots__ = (
        "at_us",
        "foreign_at_us",
        "foreign_since_us",
        "foreign_source",
        "friends",
        "interval_us",
        "lists",
        "live_until_us",
        "ours",
        "reported",
        "source",
    )

    def __init__(self) -> None:
        self.at_us = 0  # of the last advert with a priority
        self.interval_us = 0
        self.source = b""
        self.live_until_us = 0
        self.lists: dict[Family, bytes] = {}
        self.ours: tuple[bytes, ...] = ()  # those of the listed addresses that our plan knows
        self.friends: set[bytes] = set()  # sources judged to be the plan's own, a subset of its candidates'
        self.foreign_source: bytes | None = None
        self.foreign_since_us = self.foreign_at_us = 0
        self.reported = False


class Hearing:
    """The table. ``changed``: the strangers to be reported are others than before."""

    __slots__ = ("_addresses", "_listed", "_sources", "changed", "table")

    def __init__(self) -> None:
        self.table: dict[tuple[int, int], Heard] = {}  # (ifindex, VRID)
        self.changed = False
        self._addresses: frozenset[bytes] = frozenset()
        self._sources: Mapping[int, frozenset[bytes]] = {}
        self._listed: dict[tuple[int, bytes], dict[int, None]] = {}

    def learn(self, addresses: frozenset[bytes], sources: Mapping[int, frozenset[bytes]]) -> None:
        """The plan's addresses, and for each of its VRIDs the candidates' sources."""
        self._sources = sources
        for (_, virtual_router_id), heard in self.table.items():
            heard.friends.clear()
            if not heard.reported:
                heard.foreign_source = None
            elif heard.foreign_source in sources.get(virtual_router_id, ()):
                heard.reported, heard.foreign_source, self.changed = False, None, True
        if addresses != self._addresses:
            self._addresses = addresses
            self._listed.clear()
            for (index, virtual_router_id), heard in self.table.items():
                heard.ours = ()
                self._list(index, virtual_router_id, heard)

    def note(self, index: int, advert: Advert, now_us: int) -> None:
        """A believed advert."""
        key = (index, advert.virtual_router_id)
        heard = self.table.get(key)
        if heard is None:
            if advert.priority == 0:
                return
            heard = self.table[key] = Heard()
        if advert.priority == 0:
            heard.live_until_us = min(heard.live_until_us, now_us)
            return
        heard.at_us = now_us
        heard.interval_us = advert.interval_us
        heard.live_until_us = now_us + 4 * advert.interval_us
        heard.source = advert.source
        if heard.lists.get(advert.family) != advert.listed:
            heard.lists[advert.family] = advert.listed
            self._list(index, advert.virtual_router_id, heard)
        if advert.source not in heard.friends:
            self._judge(heard, advert, now_us)

    def _list(self, index: int, virtual_router_id: int, heard: Heard) -> None:
        for packed in heard.ours:
            self._listed.get((index, packed), {}).pop(virtual_router_id, None)
        ours: list[bytes] = []
        for family, listed in heard.lists.items():
            size = 4 if family == 4 else 16
            each = {listed[at : at + size]: None for at in range(0, len(listed), size)}
            ours.extend(packed for packed in each if packed in self._addresses)
        heard.ours = tuple(ours)
        for packed in ours:
            self._listed.setdefault((index, packed), {})[virtual_router_id] = None

    def _judge(self, heard: Heard, advert: Advert, now_us: int) -> None:
        """A stranger is one the plan does not name, once he has been heard for a while."""
        known = self._sources.get(advert.virtual_router_id)
        if known is not None:
            if advert.source in known:
                heard.friends.add(advert.source)
                return
            if not any(len(source) == len(advert.source) for source in known):
                return  # of this family the plan names nobody; and remembering everybody has no bound
        if heard.foreign_source != advert.source:
            # The first stranger is kept while he lives: two that alternate must not flap the report.
            if heard.foreign_source is not None and now_us - heard.foreign_at_us < _STRANGER_SETTLES_US:
                return
            heard.foreign_source, heard.foreign_since_us = advert.source, now_us
            self.changed = self.changed or heard.reported
        heard.foreign_at_us = now_us
        if not heard.reported:
            settled_us = now_us - heard.foreign_since_us
            if known is not None:
                heard.reported = settled_us >= _STRANGER_SETTLES_US
            else:
                heard.reported = settled_us >= _UNKNOWN_SETTLES_US or advert.interval_us >= SECOND_US
            self.changed = self.changed or heard.reported

    def living(self, index: int, virtual_router_id: int, now_us: int) -> Heard | None:
        """What is known of a VRID on this NIC, if an Active lives there."""
        heard = self.table.get((index, virtual_router_id))
        return heard if heard is not None and heard.live_until_us > now_us else None

    def lister(
        self, index: int, virtual_router_id: int, packed: bytes, now_us: int
    ) -> tuple[int, str] | None:
        """A living virtual router on this NIC, not this one, that lists the address; and its source."""
        for other in self._listed.get((index, packed), ()):
            heard = self.living(index, other, now_us)
            if other != virtual_router_id and heard is not None:
                return other, str(ip_address(heard.source))
        return None

    def strangers(self) -> tuple[tuple[int, int, str], ...]:
        """(ifindex, VRID, source) of what is not ours, in that order."""
        return tuple(
            (index, virtual_router_id, str(ip_address(heard.foreign_source)))
            for (index, virtual_router_id), heard in sorted(self.table.items(), key=lambda item: item[0])
            if heard.reported and heard.foreign_source is not None
        )

    def expire(self, now_us: int) -> None:
        """Forget what was not heard for a minute."""
        for key, heard in list(self.table.items()):
            planned = key[1] in self._sources
            expiry_us = max(_INTRUDER_EXPIRY_US, 4 * heard.interval_us) if planned else EXPIRY_US
            if heard.reported and now_us - heard.foreign_at_us >= expiry_us:
                heard.reported, heard.foreign_source, self.changed = False, None, True
            if now_us - heard.at_us >= max(EXPIRY_US, heard.live_until_us - heard.at_us):
                self._drop(key, heard)

    def forget(self, index: int, virtual_router_id: int | None = None) -> None:
        """A NIC that is gone or was deaf, or one VRID on it: nothing heard there counts any more."""
        for key, heard in list(self.table.items()):
            if key[0] == index and virtual_router_id in (None, key[1]):
                self._drop(key, heard)

    def _drop(self, key: tuple[int, int], heard: Heard) -> None:
        self.changed = self.changed or heard.reported
        for packed in heard.ours:
            self._listed.get((key[0], packed), {}).pop(key[1], None)
        del self.table[key]
