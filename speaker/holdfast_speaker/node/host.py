# SPDX-License-Identifier: Apache-2.0
"""What the routers of one node share: its NICs, what is heard on them, the plan's age, the way out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from holdfast_speaker.effects import Effect
from holdfast_speaker.node.heard import Hearing
from holdfast_speaker.node.nic import Nic
from holdfast_speaker.units import SECOND_US
from holdfast_speaker.vrrp.seal import Seal

PLAN_STALE_US = 600 * SECOND_US
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Host:
    """``out`` collects the effects of the event in hand; ``holders``: which router here has an address.

    ``jiffy_us``: the kernel's tick; ``least_interval_us``: no shorter advert interval runs here.
    ``afterwards``: said when the announcements of the event in hand are out.
    """

    name: str
    wall_offset_us: int
    jiffy_us: int = 0
    least_interval_us: int = 0
    seal: Seal | None = None  # adverts have an HMAC
    virtual_macs: bool = True  # the kernel has what they need
    out: list[Effect] = field(default_factory=list)
    nics: dict[int, Nic] = field(default_factory=dict)
    macs: frozenset[bytes] = frozenset()
    hearing: Hearing = field(default_factory=Hearing)
    holders: dict[str, str] = field(default_factory=dict)
    confirmed_us: int | None = None
    owners: dict[int, str] = field(default_factory=dict)  # of Binds and Releases not answered yet
    dirty: bool = True  # the report may have changed
    unsaved: bool = False  # the plan or a term has changed
    afterwards: list[Callable[[int], None]] = field(default_factory=list)
    _id: int = 0

    def next_id(self, router: str) -> int:
        """The id of a Bind or Release, whose answer goes to this router."""
        self._id += 1
        self.owners[self._id] = router
        return self._id

    def plan_is_confirmed(self, now_us: int) -> bool:
        """The API has stood behind the plan since start, and within ten minutes."""
        return self.confirmed_us is not None and now_us - self.confirmed_us < PLAN_STALE_US

    def silence(self, index: int, addresses: Iterable[str]) -> None:
        """No more announcements of these."""
        nic = self.nics.get(index)
        if nic is not None:
            nic.announcer.stop(addresses)

    def wall(self, now_us: int) -> str:
        """RFC 3339 with microseconds."""
        moment = _EPOCH + timedelta(microseconds=now_us + self.wall_offset_us)
        return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
