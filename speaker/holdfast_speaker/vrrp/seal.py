# SPDX-License-Identifier: Apache-2.0
"""Adverts under a key: signs ours, judges those of others (draft-cassen-vrrp-auth-hmac).

What is stale is refused before its HMAC is computed, so that old captures cost nothing; whom we heard last
moves only after the HMAC held, so that a forger moves nothing. Time is the caller's monotonic one, plus an
offset to UTC that the caller keeps right; a clock that steps costs at most a second of adverts as long as
all clocks end up together.
"""

from typing import Final, Literal

from holdfast_speaker.units import SECOND_US
from holdfast_speaker.vrrp import trailer as layout
from holdfast_speaker.vrrp.advert import Advert, Discard, build
from holdfast_speaker.vrrp.keyring import Keyring

Mode = Literal["permissive", "enforce"]

MOST_SENDERS: Final = 1024
LEAST_WINDOW_US: Final = 5 * SECOND_US
_SLACK_US: Final = SECOND_US
# Without these an advert is as good as an unsigned one, or its sender's clock is wrong.
_TOLERATED: Final = frozenset({Discard.UNSIGNED, Discard.TRAILING, Discard.UNKNOWN_KEY, Discard.STALE})


class Seal:
    """``tolerates``: the doubts that ``check`` tells of, and that cost an advert nothing in this mode."""

    def __init__(self, mode: Mode, *, wall_offset_us: int) -> None:
        self.mode = mode
        self.tolerates = _TOLERATED if mode == "permissive" else frozenset[Discard]()
        self.keyring = Keyring()
        self.wall_offset_us = wall_offset_us  # UTC, microseconds since 1970, minus the monotonic clock
        self._sent: dict[int, int] = {}  # by VRID: the sequence of our last advert
        self._heard: dict[tuple[int, int, bytes], int] = {}  # by NIC, VRID and source; the latest last

    @property
    def signs(self) -> bool:
        """Whether our adverts have a trailer, and 28 bytes less for addresses."""
        return bool(self.keyring)

    # --- ours -----------------------------------------------------------------------------------

    def sign(self, advert: Advert, mac: bytes, now_us: int) -> bytes:
        """The frame that leaves from the NIC with this MAC: signed, or as it is when there is no key.

        Each call is a new sequence: what it returns is sent once.
        """
        key = self.keyring.signing(now_us)
        if key is None:
            return build(advert, mac)
        sequence = self._next(advert, now_us)
        return build(layout.signed(advert, key.id, key.secret, sequence), mac)

    def _next(self, advert: Advert, now_us: int) -> int:
        """Later than the last, and not before now.

        After our clock was set back by more than the others can bridge they hear only a fresh start, and
        by then they have forgotten the mark that it falls below (see ``_replayed``). The slack is on this
        side: who starts afresh too early is not heard for a whole window, who does too late for a second.
        """
        now = self._now(now_us)
        last = self._sent.get(advert.virtual_router_id)
        if last is not None and layout.distance(now, last) <= 0:
            bridged_us = _window_us(advert) + _SLACK_US
            now = now if layout.ahead_us(last, now) > bridged_us else layout.following(last)
        self._sent[advert.virtual_router_id] = now
        return now

    def _now(self, now_us: int) -> int:
        return layout.sequence_at(now_us + self.wall_offset_us)

    # --- theirs ---------------------------------------------------------------------------------

    def check(self, advert: Advert, now_us: int, *, index: int = 0) -> Discard | None:
        """What speaks against an advert that came in on the NIC ``index``; None: it is proved and fresh.

        In every mode; the caller obeys it all the same when ``tolerates`` has the answer.
        """
        if not advert.trailer:
            return Discard.UNSIGNED
        trailer = layout.read(advert.trailer)
        if trailer is None:
            return Discard.TRAILING
        now = self._now(now_us)
        stale = abs(layout.ahead_us(trailer.sequence, now)) > _window_us(advert)
        if stale and Discard.STALE not in self.tolerates:
            return Discard.STALE
        known = False
        for secret in self.keyring.accepted(trailer.key_id, now_us):
            known = True
            if layout.holds(advert, trailer, secret):
                break
        else:
            return Discard.BAD_MAC if known else Discard.UNKNOWN_KEY
        if self._replayed((index, advert.virtual_router_id, advert.source), advert, trailer.sequence, now):
            return Discard.REPLAYED
        return Discard.STALE if stale else None

    def _replayed(self, sender: tuple[int, int, bytes], advert: Advert, sequence: int, now: int) -> bool:
        """Whether this was heard before, or something later was; else it is the latest from now on.

        A mark further ahead than the window is none: whatever it would refuse is stale, except what its
        sender says after its clock was set back.
        """
        last = self._heard.get(sender)
        if last is not None and layout.ahead_us(last, now) > _window_us(advert):
            last = None
        if last is not None and layout.distance(sequence, last) <= 0:
            return True
        self._heard.pop(sender, None)
        self._heard[sender] = sequence
        if len(self._heard) > MOST_SENDERS:
            del self._heard[next(iter(self._heard))]
        return False


def _window_us(advert: Advert) -> int:
    return max(3 * advert.interval_us, LEAST_WINDOW_US)
