# SPDX-License-Identifier: Apache-2.0
"""What the loop asks of each door. The simulator and the tests of the loop bring their own."""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Protocol

from holdfast_api.types import SpeakerStatus
from holdfast_speaker.events import AddressesSeen, Event, LinksSeen


class Wire(Protocol):
    """Packet sockets on the NICs that are heard (``link.py``)."""

    def hear(self, indexes: frozenset[int]) -> None: ...
    def send(self, index: int, frames: Iterable[bytes]) -> int:
        """Number of frames that left; a full queue or a NIC that is gone loses the rest, never raises."""
        ...


class Addresses(Protocol):
    """rtnetlink (``addresses.py``). The three verbs block for about 10 us an address and never raise."""

    def prepare(self, index: int, addresses: frozenset[str]) -> None: ...
    def bind(self, index: int, addresses: Sequence[str]) -> dict[str, str]:
        """Why not, for each address that is not bound afterwards."""
        ...

    def release(self, index: int, addresses: Sequence[str]) -> dict[str, str]: ...
    def refresh(self, index: int, addresses: Sequence[str]) -> None: ...
    def watch(self) -> AsyncIterator[LinksSeen | AddressesSeen]: ...


class Cluster(Protocol):
    """The API (``cluster.py``): events in, the latest report out."""

    def events(self) -> AsyncIterator[Event]: ...
    def report(self, status: SpeakerStatus) -> None: ...
