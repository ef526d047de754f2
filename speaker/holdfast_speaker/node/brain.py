# SPDX-License-Identifier: Apache-2.0
"""The brain of a speaker: what happened goes in, what shall be done comes out.

It owns one ``Instance`` per virtual router of this node, hands each event to those it concerns, and
merges their deadlines into one. It knows the time only from its arguments.
"""

from typing import Final

from holdfast_api.conditions import Reason
from holdfast_api.types import Condition, SpeakerStatus
from holdfast_speaker import events as on
from holdfast_speaker.arp import claim
from holdfast_speaker.effects import Count, Effect, Log, Release, Report, SavePlan
from holdfast_speaker.node.address import ON_NIC
from holdfast_speaker.node.host import Host
from holdfast_speaker.node.nic import LISTENED_US, Nic
from holdfast_speaker.node.report import status
from holdfast_speaker.node.routers import Routers
from holdfast_speaker.units import MILLISECOND_US, NEVER_US, SECOND_US
from holdfast_speaker.vrrp.advert import Discard, parse
from holdfast_speaker.vrrp.inquiry import parse as parse_inquiry
from holdfast_speaker.vrrp.router import State
from holdfast_speaker.vrrp.seal import Seal

# Reports and plan files wait a little: what they tell is complete then, and they never delay a takeover.
REPORT_DELAY_US: Final = 10 * MILLISECOND_US
REPORT_PACE_US: Final = 50 * MILLISECOND_US
SAVE_DELAY_US: Final = 100 * MILLISECOND_US
EXPIRE_PACE_US: Final = 5 * SECOND_US
STOP_TIMEOUT_US: Final = 3 * SECOND_US  # a hand-over takes less, at adverts of up to half a second
LEFTOVER_PAUSE_US: Final = SECOND_US
_DISCARDS: Final = {reason: Count("discards", reason.value) for reason in Discard}
_RECEIVED: Final = Count("adverts_received")


class Node:
    """The same events give the same effects; nothing the network or the API says makes ``handle`` raise."""

    def __init__(
        self,
        name: str,
        version: str,
        *,
        wall_offset_us: int,
        jiffy_us: int = 0,
        least_interval_us: int = 0,
        seal: Seal | None = None,
        preflight: tuple[Condition, ...] = (),
        virtual_macs: bool = True,
    ) -> None:
        self._host = Host(name, wall_offset_us, jiffy_us, least_interval_us, seal, virtual_macs)
        # Questions and answers have no HMAC: where nothing is believed without, neither are they.
        self._enforces = seal is not None and seal.mode == "enforce"
        self._version = version
        self._preflight = preflight
        self._routers = Routers(self._host)
        self._leftovers: dict[tuple[int, str], int] = {}  # when we last asked for its removal
        self._reported: SpeakerStatus | None = None
        self._reported_us = -NEVER_US
        self._report_us = self._save_us = NEVER_US  # when due
        self._expired_us = 0
        self._stop_us: int | None = None
        self.stopped = False

    @property
    def deadline(self) -> int | None:
        """When ``handle(TimerFired())`` is wanted next, on the clock of ``now_us``."""
        if self.stopped:
            return None
        deadline_us = min(self._routers.agenda.next_us(), self._housekeeping_us())
        for nic in self._host.nics.values():
            deadline_us = min(deadline_us, nic.announcer.deadline_us)
        return None if deadline_us == NEVER_US else deadline_us

    def handle(self, event: on.Event, now_us: int) -> tuple[Effect, ...]:
        """What shall be done because of this, in this order."""
        match event:
            case on.FrameReceived():
                self._hear(event.index, event.frame, now_us)
            case on.TimerFired():
                self._wake(now_us)
            case on.Bound() | on.Released():
                self._answered(event, now_us)
            case on.Taken():
                self._taken(event, now_us)
            case on.LeaseLost():
                self._lose(event, now_us)
            case on.MacsHeard():
                self._hear_macs(event.macs, now_us)
            case on.AddressesSeen():
                self._see_addresses(event.bound, now_us)
            case on.LinksSeen():
                self._see_links(event.interfaces, now_us)
            case on.StopRequested():
                self._stop(now_us)
            case _:
                self._routers.read(event, now_us)
        for nic in self._host.nics.values():
            if nic.announcer.deadline_us <= now_us:
                nic.announcer.wake(now_us, self._host.out)
        while self._host.afterwards:
            self._host.afterwards.pop(0)(now_us)
        self._conclude(now_us)
        effects = tuple(self._host.out)
        self._host.out.clear()
        return effects

    def _conclude(self, now_us: int) -> None:
        host = self._host
        if self._stop_us is not None and not self.stopped:
            if now_us >= self._stop_us:  # no time for a hand-over any more
                for instance in self._routers.instances.values():
                    instance.halt(Reason.STOPPING, now_us)
            holding = any(instance.holdings.on_nic() for instance in self._routers.instances.values())
            self.stopped = now_us >= self._stop_us or not (holding or host.owners)
            host.dirty = host.dirty or self.stopped
        if host.hearing.changed:
            host.hearing.changed, host.dirty = False, True
        if host.unsaved:
            host.unsaved = False
            self._save_us = min(self._save_us, now_us + SAVE_DELAY_US)
        if host.dirty:
            host.dirty = False
            due_us = max(now_us + REPORT_DELAY_US, self._reported_us + REPORT_PACE_US)
            self._report_us = min(self._report_us, due_us)
        if self._save_us <= now_us or (self.stopped and self._save_us != NEVER_US):
            self._save_us = NEVER_US
            self._routers.book.terms.update(
                (name, instance.term) for name, instance in self._routers.instances.items() if instance.term
            )
            routers = tuple(self._routers.book.routers[name] for name in sorted(self._routers.book.routers))
            terms = tuple(sorted(self._routers.book.terms.items()))
            host.out.append(SavePlan(routers, terms))
        if self._report_us <= now_us or (self.stopped and self._report_us != NEVER_US):
            self._report_us = NEVER_US
            report = status(
                self._version, host, self._routers.instances, self._routers.book, self._preflight, now_us
            )
            if report != self._reported:
                self._reported, self._reported_us = report, now_us
                host.out.append(Report(report))

    # --- the segment ----------------------------------------------------------------------------

    def _hear(self, index: int, frame: bytes, now_us: int) -> None:
        host = self._host
        nic = host.nics.get(index)
        if nic is None or nic.heard_since_us is None:
            host.out.append(_DISCARDS[Discard.NOT_HEARD])
            return
        kind = frame[12:14]
        if kind == b"\x08\x06" or (kind == b"\x86\xdd" and frame[20:21] == b"\x3a"):
            self._hear_claim(nic, frame, now_us)
            return
        advert = parse(frame)
        if advert is Discard.TYPE and not self._enforces and (inquiry := parse_inquiry(frame)) is not None:
            nic.note(frame, inquiry.source, now_us)
            asked = self._routers.running.get((index, inquiry.virtual_router_id))
            if asked is not None:
                asked.inquired(inquiry, frame[6:12], now_us)
                self._routers.agenda.arm(asked)
            return
        if isinstance(advert, Discard):
            host.out.append(_DISCARDS[advert])
            return
        refusal = nic.refuses(advert)
        if refusal is not None:
            host.out.append(_DISCARDS[refusal])
            return
        if host.seal is not None:
            doubt = host.seal.check(advert, now_us, index=index)
            if doubt is not None:
                host.out.append(_DISCARDS[doubt])
                if doubt not in host.seal.tolerates:
                    return
        nic.note(frame, advert.source, now_us)
        host.out.append(_RECEIVED)
        host.hearing.note(index, advert, now_us)
        instance = self._routers.running.get((index, advert.virtual_router_id))
        if instance is not None:
            instance.hear(advert, frame[6:12], now_us)
            self._routers.agenda.arm(instance)

    def _hear_claim(self, nic: Nic, frame: bytes, now_us: int) -> None:
        claimed = claim.parse(frame)
        ours = claimed is None or claimed.mac in self._host.macs
        # A virtual MAC is nobody: whose it is changes.
        nobody = ours or claimed is None or claimed.mac in self._routers.dressed
        nic.note(frame, b"" if claimed is None or nobody else claimed.address, now_us)
        for called in self._routers.dressed.get(frame[:6], ()):
            if called.nic is nic and claim.is_answer(frame):
                called.reach.heard(frame[:6])
                self._routers.agenda.arm(called)
        if claimed is None or ours:
            return
        asked = claim.target(frame)
        if asked is not None and asked in self._routers.claimants:
            nic.note_question(asked, claimed.mac, claimed.address)
        for instance in self._routers.claimants.get(claimed.address, ()):
            holding = instance.holdings.by_packed.get(claimed.address)
            if holding is not None and instance.nic is nic:
                instance.claimed_by(holding, claimed.mac, now_us)
                self._routers.agenda.arm(instance)

    def _hear_macs(self, macs: frozenset[str], now_us: int) -> None:
        for text in sorted(macs):
            mac = bytes.fromhex(text.replace(":", ""))
            for instance in self._routers.dressed.get(mac, ()):
                instance.mac_heard(mac, now_us)
                self._routers.agenda.arm(instance)

    # --- time -----------------------------------------------------------------------------------

    def _wake(self, now_us: int) -> None:
        """Elections first: who finds itself late must not announce. Announcements follow in ``handle``."""
        while (instance := self._routers.agenda.due(now_us)) is not None:
            instance.wake(now_us)
            self._routers.agenda.arm(instance)
            self._routers.sweep(instance, now_us)
        for nic in self._host.nics.values():
            if nic.heard_since_us is not None and nic.heard_since_us + LISTENED_US <= now_us:
                self._host.dirty = self._host.dirty or not nic.listening_reported
                nic.listening_reported = True
        if now_us - self._expired_us >= EXPIRE_PACE_US:
            self._expired_us = now_us
            self._host.hearing.expire(now_us)
            self._leftovers = {
                key: at_us for key, at_us in self._leftovers.items() if now_us - at_us < EXPIRE_PACE_US
            }

    def _housekeeping_us(self) -> int:
        deadline_us = min(self._report_us, self._save_us)
        if self._stop_us is not None:
            deadline_us = min(deadline_us, self._stop_us)
        if self._host.hearing.table or self._leftovers:
            deadline_us = min(deadline_us, self._expired_us + EXPIRE_PACE_US)
        for nic in self._host.nics.values():
            if nic.heard_since_us is not None and not nic.listening_reported:
                deadline_us = min(deadline_us, nic.heard_since_us + LISTENED_US)
        return deadline_us

    # --- the kernel -----------------------------------------------------------------------------

    def _answered(self, event: on.Bound | on.Released, now_us: int) -> None:
        instance = self._routers.instances.get(self._host.owners.pop(event.id, ""))
        if instance is None:
            return
        if isinstance(event, on.Bound):
            instance.bound(event, now_us)
        else:
            # Another router of ours may wait for what was just released.
            claimants = self._routers.claimants
            free = [
                (packed, other)
                for packed in instance.released(event, now_us)
                for other in claimants.get(packed, ())
            ]
            if any(other is not instance for _, other in free):
                self._routers.prepare()
            for packed, other in free:
                other.look_again(packed, now_us)
                self._routers.agenda.arm(other)
        self._routers.agenda.arm(instance)
        self._routers.sweep(instance, now_us)
        for other in list(self._routers.instances.values()):
            # A takeover of many routers must not make the adverts of the first ones late.
            if other.router.state is State.ACTIVE and other.router.deadline_us <= now_us:
                other.wake(now_us)
                self._routers.agenda.arm(other)

    def _taken(self, event: on.Taken, now_us: int) -> None:
        instance = self._routers.instances.get(self._host.owners.pop(event.id, ""))
        if instance is not None:
            instance.taken(event, now_us)
            self._routers.agenda.arm(instance)
            self._routers.sweep(instance, now_us)

    def _lose(self, lost: on.LeaseLost, now_us: int) -> None:
        for instance in self._routers.instances.values():
            if instance.virtual_router_id == lost.virtual_router_id and instance.nic is not None:
                instance.lease_lost(now_us, removed=lost.removed)
                self._routers.agenda.arm(instance)

    def _see_addresses(self, present: frozenset[tuple[int, str]], now_us: int) -> None:
        for instance in self._routers.instances.values():
            instance.seen(present, now_us)
            self._routers.agenda.arm(instance)
        kept, waiting = self._routers.keep(present, now_us)
        known = kept | {
            (holding.index, holding.address)
            for instance in self._routers.instances.values()
            for holding in instance.holdings.by_address.values()
            if holding.kept or holding.phase in ON_NIC or now_us - holding.released_us < LEFTOVER_PAUSE_US
        }
        if waiting:
            return  # without a plan nobody knows what is left over: it stays, fenced
        leftovers: dict[int, list[str]] = {}
        for index, address in sorted(present - known):
            if now_us - self._leftovers.get((index, address), -NEVER_US) >= LEFTOVER_PAUSE_US:
                self._leftovers[index, address] = now_us
                leftovers.setdefault(index, []).append(address)
        for index, addresses in leftovers.items():
            facts = (("ifindex", index), ("addresses", ", ".join(addresses[:10])))
            self._host.out.append(Log("info", "Removing addresses with our mark that are not held", facts))
            self._host.out.append(Release(self._host.next_id(""), index, tuple(addresses)))

    def _see_links(self, links: tuple[on.Link, ...], now_us: int) -> None:
        host = self._host
        self._routers.links_seen = True
        present = {link.index for link in links}
        for index in sorted(host.nics.keys() - present):
            del host.nics[index]
            host.hearing.forget(index)
        for link in sorted(links, key=lambda link: link.index):
            nic = host.nics.get(link.index)
            if nic is None:
                host.nics[link.index] = Nic(link, host.name)
            else:
                was, mac = nic.usable, nic.mac
                nic.update(link, now_us)
                if nic.mac != mac:
                    nic.announcer.again(now_us)
                if nic.usable and not was:
                    host.hearing.forget(link.index)
        host.macs = frozenset(nic.mac for nic in host.nics.values())
        host.dirty = True
        self._routers.place_all(now_us)

    def _stop(self, now_us: int) -> None:
        if self._stop_us is None:
            self._stop_us = now_us + STOP_TIMEOUT_US
            self._routers.stopping = True
            self._routers.place_all(now_us)
