# SPDX-License-Identifier: Apache-2.0
"""One address of a virtual router on this node, and the phase it is in."""

from enum import Enum
from ipaddress import ip_address
from typing import Final

from holdfast_api.conditions import Reason
from holdfast_speaker.units import NEVER_US
from holdfast_speaker.vrrp.advert import Family


class Phase(Enum):
    WAITING = "waiting"
    PROBING = "probing"
    BINDING = "binding"
    BOUND = "bound"
    RELEASING = "releasing"


ON_NIC: Final = (Phase.BINDING, Phase.BOUND, Phase.RELEASING)
HELD: Final = (Phase.BOUND, Phase.RELEASING)


class Holding:
    """One address. ``index`` is the NIC it is on while its phase is one of ON_NIC, or it is ``kept``.

    mac: its virtual MAC by the plan (b"": the NIC's own); ``placed_mac``: the one it is on the NIC with.
    kept: on the NIC, though we are not Active (any more): left by an earlier life, or being handed over.
    """

    __slots__ = (
        "address",
        "answered_by",
        "answered_us",
        "backoff_us",
        "bound_us",
        "claimed",
        "defended_us",
        "family",
        "index",
        "kept",
        "losses",
        "lost_us",
        "mac",
        "message",
        "packed",
        "phase",
        "placed_mac",
        "probed_us",
        "reason",
        "released_us",
        "retry_us",
        "seen",
        "vouched",
        "wanted",
    )

    def __init__(self, address: str) -> None:
        self.address = address
        self.packed = ip_address(address).packed
        self.family: Family = 4 if len(self.packed) == 4 else 6
        self.mac = self.placed_mac = b""
        self.wanted = False
        self.claimed = False
        self.vouched = False  # a live Active listed it, or we held it: no stranger's address
        self.phase = Phase.WAITING
        self.index = 0
        self.kept = False
        self.seen = False  # the kernel's own list has shown it since it was bound
        self.bound_us = self.retry_us = self.backoff_us = self.losses = 0
        self.answered_by = ""  # the MAC of the stranger who answered a probe last
        self.probed_us = self.answered_us = self.lost_us = -NEVER_US
        self.released_us = self.defended_us = -NEVER_US
        self.reason: Reason | None = None
        self.message = ""
