# SPDX-License-Identifier: Apache-2.0
"""Somebody else claims an address that is held here: defend it, tell of it, notice when it is over.

RFC 5227 2.4 (c): defended, never given up; one burst a second at most (semantics R6.2). Each burst comes
with a probe, which only another holder answers; five seconds without a claim end the conflict.
"""

from dataclasses import dataclass
from typing import Final

from holdfast_api.conditions import Reason
from holdfast_api.types import MOST_CONFLICTS, ReportedConflict
from holdfast_speaker.effects import Announce, Count, Log
from holdfast_speaker.node.address import Holding
from holdfast_speaker.node.host import Host
from holdfast_speaker.node.nic import Nic
from holdfast_speaker.units import NEVER_US, SECOND_US

DEFEND_US: Final = SECOND_US
OVER_US: Final = 5 * SECOND_US
PEER_SETTLES_US: Final = 2 * SECOND_US  # after a takeover the old Active's last words are no conflict
_SETTLING: Final = (Reason.ADDRESS_CLAIMED_BY_PEER, Reason.MAC_DOUBLED)
_WHO: Final = {
    Reason.ADDRESS_CLAIMED_BY_PEER: "a candidate",
    Reason.ADDRESS_CLAIMED: "a host that is no candidate",
    Reason.MAC_DOUBLED: "somebody with the same virtual MAC",
}


@dataclass(slots=True)
class _Claim:
    mac: str
    reason: Reason
    since_us: int
    last_us: int
    defended_us: int
    reported: bool = False


class Conflicts:
    """Of one router; at most one an address. ``deadline_us``: when ``wake`` is wanted."""

    def __init__(self, host: Host, router: str) -> None:
        self._host = host
        self._router = router
        self._claims: dict[str, _Claim] = {}
        self.deadline_us = NEVER_US

    def claimed(self, holding: Holding, mac: str, nic: Nic, *, peer: bool, now_us: int) -> None:
        """A frame of ``mac`` says that it has the address."""
        reason = Reason.ADDRESS_CLAIMED_BY_PEER if peer else Reason.ADDRESS_CLAIMED
        if mac == holding.mac.hex(":"):
            reason = Reason.MAC_DOUBLED
        claim = self._claims.get(holding.address)
        if claim is None:
            claim = self._claims[holding.address] = _Claim(mac, reason, now_us, now_us, -NEVER_US)
        claim.last_us = now_us
        if claim.mac != mac and (claim.reason in _SETTLING or reason not in _SETTLING):
            # A stranger is worse news than a peer.
            self._host.dirty = self._host.dirty or (claim.reason is not reason)
            claim.mac, claim.reason = mac, reason
        if now_us - claim.defended_us >= DEFEND_US:
            claim.defended_us = now_us
            self._host.out.append(Count("conflicts", self._router))
            facts = (("router", self._router), ("address", holding.address), ("mac", mac))
            self._host.out.append(
                Log("warning", f"Another claims an address held here: {_WHO[reason]}", facts)
            )
            nic.announcer.start((holding.address,), now_us)
        self._tell(claim, now_us)
        self.deadline_us = min(self.deadline_us, now_us + DEFEND_US)

    def _tell(self, claim: _Claim, now_us: int) -> None:
        settled = claim.reason not in _SETTLING or now_us - claim.since_us >= PEER_SETTLES_US
        if not claim.reported and settled:
            claim.reported = self._host.dirty = True

    def wake(self, now_us: int, nic: Nic | None) -> None:
        """Ask again who has them; forget what is over."""
        if now_us < self.deadline_us:
            return
        for address, claim in list(self._claims.items()):
            if nic is None or now_us - claim.last_us >= OVER_US:
                del self._claims[address]
                self._host.dirty = True
                facts = (("router", self._router), ("address", address), ("mac", claim.mac))
                self._host.out.append(Log("info", "Nobody else claims the address any more", facts))
            else:
                self._host.out.append(Announce(nic.link.index, "probe", (address,)))
        self.deadline_us = now_us + DEFEND_US if self._claims else NEVER_US

    def clear(self) -> None:
        """Nothing is held any more."""
        self._host.dirty = self._host.dirty or bool(self._claims)
        self._claims.clear()
        self.deadline_us = NEVER_US

    def report(self) -> tuple[ReportedConflict, ...]:
        found = [
            ReportedConflict(
                address,
                claim.mac,
                claim.reason.value,
                self._host.wall(claim.since_us),
            )
            for address, claim in sorted(self._claims.items())
            if claim.reported
        ]
        return tuple(found[:MOST_CONFLICTS])
