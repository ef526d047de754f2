# SPDX-License-Identifier: Apache-2.0
"""One virtual router on this node: its election, its fence, its addresses, its report.

``settle`` compares what is wanted with what is; events only say that it is time to look. See ``tenure``.
"""

from functools import partial
from typing import Final

from holdfast_api.conditions import Reason
from holdfast_api.types import VirtualRouter
from holdfast_speaker.effects import Log
from holdfast_speaker.events import Bound, Released, Taken
from holdfast_speaker.node import plan
from holdfast_speaker.node.address import Holding, Phase
from holdfast_speaker.node.host import Host
from holdfast_speaker.node.nic import Nic
from holdfast_speaker.node.tenure import Tenure
from holdfast_speaker.units import NEVER_US
from holdfast_speaker.vrrp.advert import Advert, Family
from holdfast_speaker.vrrp.inquiry import Inquiry
from holdfast_speaker.vrrp.router import Act, State
from holdfast_speaker.vrrp.timing import active_down_us

_FAMILIES: Final[tuple[Family, ...]] = (4, 6)


class Instance(Tenure):
    """Make one with a VirtualRouter, then ``place`` it on a NIC, and ``settle`` whenever anything changed."""

    def __init__(self, host: Host, virtual_router: VirtualRouter, term: int) -> None:
        super().__init__(host, virtual_router, term)
        self.adopt(virtual_router, 0)

    # --- the plan -------------------------------------------------------------------------------

    def adopt(self, virtual_router: VirtualRouter, now_us: int) -> None:
        """A new version of the plan; ``place`` and ``settle`` follow."""
        self.virtual_router, self.invalid = virtual_router, ""
        spec = virtual_router.spec
        self._first = plan.is_first(spec, self._host.name)
        self._nodes = {source: each.node for each in spec.candidates for source in each.sources}
        self.suspicion.learn(spec.candidates)
        self.holdings.want(spec)
        self._adverts = None
        self._configure(now_us)
        self.following.listed.clear()  # what the Active lists may be an address that is new to us
        if self.departure.ordered(spec.handover, self._host.name):
            self._perform(self.router.resign(now_us), now_us)
        self._host.dirty = True

    @property
    def runs_here(self) -> bool:
        """Whether this node takes part: it is a candidate, or it is Active and nobody else could be."""
        if self.leaving:
            return False
        spec = self.virtual_router.spec
        if plan.candidate(spec, self._host.name) is not None:
            return True
        return not spec.candidates and self.router.state is State.ACTIVE

    def place(self, where: Nic | Reason, now_us: int) -> None:
        """Run on this NIC from now on, or not at all and why."""
        if self.nic is not None and self.nic.link.index not in self._host.nics:
            self.halt(Reason.NO_INTERFACE_ON_SUBNET, now_us)  # as a bridge's port it still sends
        nic = where if isinstance(where, Nic) else None
        if nic is not None and not any(nic.source(family) for family in self._families()):
            nic, where = None, Reason.NO_INTERFACE_ON_SUBNET
        if nic is None:
            self._leave(where if isinstance(where, Reason) else Reason.NO_INTERFACE_ON_SUBNET, now_us)
        else:
            self.departure.stay()
            self._weigh(nic, self._families(), now_us)
            if nic is not self.nic or self.router.state is State.INITIALIZE:
                self.halt(Reason.STARTING, now_us)
                self._start(nic, now_us)
        self._adverts = None

    def _families(self) -> tuple[Family, ...]:
        wanted = {holding.family for holding in self.holdings.wanted()}
        return tuple(family for family in _FAMILIES if family in wanted) or _FAMILIES

    def _leave(self, reason: Reason, now_us: int) -> None:
        """Stop here: at once, or by a hand-over where somebody could take what we have."""
        offers = self._has_others() and not self.leaving and self.departure.offers(reason)
        serves = self.router.state is State.ACTIVE or (self.departure.ceding and self.holdings.kept())
        if offers and self.nic is not None and serves:  # what an earlier life left serves nobody
            if self.departure.go(reason, now_us):
                self._perform(self.router.resign(now_us), now_us)
            return
        self.halt(reason, now_us)

    def halt(self, reason: Reason, now_us: int) -> None:
        """To Initialize: an Active says priority 0 and releases."""
        if self.reason is not reason or self.router.state is not State.INITIALIZE:
            self.since_us, self._host.dirty = now_us, True
        acts = self.router.stop()
        self.reason = reason
        self._perform(acts, now_us)
        self.holdings.release(self.holdings.kept(), now_us)
        self.holdings.rest(now_us)
        self.gate.forget()
        self._unguard()
        self.nic = None
        self._follow_nobody()

    def _start(self, nic: Nic, now_us: int) -> None:
        self.nic, self.reason, self.since_us = nic, None, now_us
        for holding in self.holdings.by_address.values():
            holding.vouched = False  # on another segment, or after we were deaf
        down_us = active_down_us(self._priority, self.router.settings.interval_us)
        heard = self._host.hearing.living(nic.link.index, self.virtual_router_id, now_us)
        listening_us = now_us if nic.heard_since_us is None else nic.heard_since_us
        if heard is not None:
            self.following.heard_us = heard.at_us
            down_at_us = heard.at_us + active_down_us(self._priority, heard.interval_us)
            for family, listed in heard.lists.items():
                self._vouch(family, listed)
            self._follow(4 if len(heard.source) == 4 else 6, heard.source, now_us)
        else:
            since_us = listening_us if self._first else now_us
            down_at_us = max(now_us, since_us + down_us)
            if down_at_us > now_us:  # others may hear an Active that we don't: asked before our time is up
                self.suspicion.heard(since_us, self.router.settings.interval_us)
        self.router.start(now_us, down_at_us=down_at_us)
        self._host.dirty = True

    # --- what is heard --------------------------------------------------------------------------

    def hear(self, advert: Advert, mac: bytes, now_us: int) -> None:
        """A believed advert on our VRID and NIC, from this MAC."""
        nic, router, following, family = self.nic, self.router, self.following, advert.family
        if nic is None:
            return
        if advert.priority and advert.listed != following.listed.get(family):
            self._vouch(family, advert.listed, mac)
        if following.learn_checksum(advert, now_us):
            self._adverts = None
        greater: bool | None = advert.source > (nic.source(family) or b"")
        if family == 6 and now_us - following.heard4_us < 3 * advert.interval_us:
            greater = None  # of two that advertise in both families, IPv4 breaks the tie
        was, resigned = router.state, router.resigned
        known = following.obeyed.get(family)
        obeyed = known is None or known == advert.source or router.due(now_us)
        acts = router.hear(
            now_us, priority=advert.priority, interval_us=advert.interval_us, greater=greater, obeyed=obeyed
        )
        if acts:
            self._perform(acts, now_us)
        if router.state is State.BACKUP:
            if advert.priority == 0:
                if obeyed:
                    following.resigned_us = now_us
            else:
                if mac != following.mac and not resigned:
                    nic.gone(following.mac)
                following.heard_us, following.mac = now_us, mac
                self.suspicion.heard(now_us, advert.interval_us, advert.source)
                if known != advert.source or was is State.ACTIVE or following.hears is None:
                    self._follow(family, advert.source, now_us)
                if self.departure.ceding or self.holdings.striving or self.holdings.deadline_us != NEVER_US:
                    self._cede_listed(advert, now_us)
                    self.settle(now_us)
        elif router.state is State.ACTIVE and (
            self.suspicion.unheeded(router.unheeded, nic, now_us) or self._is_ignored(advert)
        ):
            self._perform(router.cede(now_us), now_us)
            self.suspicion.heard(now_us, advert.interval_us)
            self._follow(family, advert.source, now_us)
        self._rearm()

    def _vouch(self, family: Family, listed: bytes, mac: bytes = b"") -> None:
        self.following.listed[family] = listed
        size = 4 if family == 4 else 16
        self.holdings.vouch((listed[at : at + size] for at in range(0, len(listed), size)), mac.hex(":"))

    def _follow(self, family: Family, source: bytes, now_us: int) -> None:
        if self.following.follow(family, source, self._nodes):
            self._host.dirty = True
        if self.holdings.kept() and not self.departure.ceding:  # left by an earlier life
            self.departure.cede(now_us)

    def _hears_active(self, nic: Nic, now_us: int) -> bool:
        return self._host.hearing.living(nic.link.index, self.virtual_router_id, now_us) is not None

    def inquired(self, inquiry: Inquiry, mac: bytes, now_us: int) -> None:
        """Another candidate asks whether we hear the Active, or answers our question."""
        if self.nic is None:
            return
        silent_us = now_us - self.following.heard_us
        hears = self.router.state is State.ACTIVE or 2 * silent_us < 3 * self.router.settings.interval_us
        self.suspicion.inquired(inquiry, mac, self.nic, now_us, hears=hears)
        self._rearm()

    def claimed_by(self, holding: Holding, mac: bytes, now_us: int) -> None:
        """Somebody else's ARP or ND says that he has an address of ours (semantics R6.1 to R6.3)."""
        text = mac.hex(":")
        peer = any(text in candidate.macs for candidate in self.virtual_router.spec.candidates)
        if holding.phase is Phase.PROBING:
            # Also an Active that the plan does not name: keepalived, say.
            peer = peer or mac in (self.following.mac, holding.mac)
            self.holdings.answered(holding, text, peer=peer, now_us=now_us)
            self.settle(now_us)
        elif holding.phase is Phase.BOUND:
            self._conflict(holding, text, peer=peer, now_us=now_us)

    # --- the next step --------------------------------------------------------------------------

    def settle(self, now_us: int) -> None:
        """Compare what is wanted with what is, and do the next step."""
        holdings, nic, router, gone = self.holdings, self.nic, self.router, self.departure.reason
        if gone is not None and nic is not None and router.state is State.BACKUP and not holdings.on_nic():
            self.halt(gone, now_us)
            nic = None
        unwanted = [
            holding
            for holding in [*holdings.in_phase(Phase.BINDING, Phase.BOUND), *holdings.kept()]
            if not holding.wanted
            or nic is None
            or holding.mac != holding.placed_mac
            or (holding.kept and holding.index != nic.link.index)
        ]
        if unwanted:
            self._adverts = None
            holdings.release(unwanted, now_us)
        if now_us >= self.gate.again_us:
            self.gate.again_us = 0
        active, due = router.state is State.ACTIVE, router.due(now_us)
        if due and nic is not None and not router.resigned and not router.preempting:
            due = not self.suspicion.holds(nic, self.following.mac, now_us)
        holdings.striving = nic is not None and (active or due)
        if nic is not None and (holdings.striving or (self._first and not self._hears_active(nic, now_us))):
            ready = holdings.ready(nic.link.index, now_us)
            if active and ready:
                self._adverts = None
                self._bind(ready, nic, now_us)
            elif due and ready:
                self._ask_for_lease(now_us)
                holdings.striving = False  # its answer, or the time to ask again, brings us back
            elif active and not holdings.in_phase(Phase.BINDING, Phase.BOUND):
                # Not while it probes either: what an Active lists, the others take without a probe.
                self._perform(router.give_up(now_us), now_us)
        elif self.following.hears is not None:
            holdings.rest(now_us)
        else:
            holdings.pause()
        self.guard()
        self.arm()

    def _bind(self, ready: list[Holding], nic: Nic, now_us: int) -> None:
        bind = self.holdings.begin(ready, nic.link.index, now_us)
        self.guard()
        self._host.out.append(bind)

    def _ask_for_lease(self, now_us: int) -> None:
        """Too late by an interval, the decision is worth nothing any more."""
        if self.gate.asked is None and now_us >= self.gate.again_us:
            self.guard()
            self.gate.ask(now_us + self.router.settings.interval_us)
            self._host.dirty = True

    def taken(self, event: Taken, now_us: int) -> None:
        """The fence is open, or not; what came in since the decision has been heard."""
        if not self.gate.answered(event.id, is_open=event.open, now_us=now_us):
            if self.gate.refused(event.id, is_open=event.open):
                self.lease_lost(now_us)
            self.settle(now_us)
            return
        nic, holdings = self.nic, self.holdings
        ready: list[Holding] = []
        if nic is not None and self.router.due(now_us):
            holdings.striving = True
            ready = holdings.ready(nic.link.index, now_us)
        if nic is None or not ready:  # a live Active was heard meanwhile: give it back
            self.gate.release()
            self.settle(now_us)
            return
        self._take(now_us)
        self._bind(ready, nic, now_us)
        self.settle(now_us)

    def _keep(self, now_us: int) -> None:
        """Nobody took over."""
        reason = self.departure.refused(now_us)
        if reason is not None:
            self.halt(reason, now_us)
        else:
            self._perform(self.router.advertise(now_us), now_us)

    # --- what the kernel answers ----------------------------------------------------------------

    def bound(self, event: Bound, now_us: int) -> None:
        """What is bound is announced, first copies first; unless binding took so long that we lapsed."""
        self._wake_router(now_us)
        fresh = self.holdings.bound(event, now_us)
        self._adverts = None
        if fresh and self.router.state is not State.ACTIVE:  # meanwhile somebody else is
            self.holdings.release(self.holdings.in_phase(Phase.BOUND), now_us)
        elif fresh and self.nic is not None:
            silent = self._takeover is not None and self._takeover.why is Reason.ACTIVE_SILENT
            first_us = self.nic.first_announcement_us(now_us)
            self._speak_for(fresh, first_us, asking=silent)
            self._host.afterwards += [self._tell_held, partial(self._tell_askers, fresh, self.nic)]
            if self._takeover is not None:
                self.transition = self._takeover.report(self._host, now_us, announced=len(fresh))
                self._takeover = None
                facts = (("router", self.name), ("reason", self.transition.reason), ("term", self.term))
                self._host.out.append(Log("info", "Active", (*facts, ("addresses", len(fresh)))))
        self.settle(now_us)

    def released(self, event: Released, now_us: int) -> list[bytes]:
        """What is free since then, packed."""
        free = self.holdings.released(event, now_us)
        if not self.holdings.on_nic() and self.router.state is not State.ACTIVE:
            if self.gate.asked is None:
                self.gate.release()
            self.departure.over()
            if self.departure.reason is not None and self.nic is not None:
                self.halt(self.departure.reason, now_us)
            elif self.nic is None:
                self._unguard()
        self.settle(now_us)
        return free

    def lease_lost(self, now_us: int, *, removed: bool = False) -> None:
        """The kernel has silenced us: whoever waits for our adverts may take over (semantics R4.1)."""
        if removed and self.router.is_punctual(now_us):  # they did leave while no fence stood
            self._retake(now_us)
        else:
            self._perform(self.router.lapse(now_us), now_us)
            self.holdings.release(self.holdings.kept(), now_us)
            self.settle(now_us)

    def look_again(self, packed: bytes, now_us: int) -> None:
        """An address of ours that another router of this node had is free now."""
        holding = self.holdings.by_packed.get(packed)
        if holding is not None and holding.phase is Phase.WAITING:
            holding.retry_us = min(holding.retry_us, now_us)
            self.settle(now_us)

    def keep(self, present: frozenset[tuple[int, str]]) -> list[tuple[int, str]]:
        """Of what is on this NIC with our mark: what may be ours again soon, since nobody else is Active."""
        if self.nic is None or self.router.state is not State.BACKUP or self.following.hears is not None:
            return []
        index = self.nic.link.index
        kept = []
        for holding in self.holdings.wanted():
            if holding.phase in (Phase.WAITING, Phase.PROBING) and (index, holding.address) in present:
                self.holdings.leave(holding, index)
                kept.append((index, holding.address))
        return kept

    def seen(self, present: frozenset[tuple[int, str]], now_us: int) -> None:
        """The kernel's own list: what somebody removed is bound again in this turn."""
        lost = self.holdings.missing(present, now_us)
        if lost:
            facts = (("router", self.name), ("addresses", lost))
            self._host.out.append(Log("warning", "Another program removed addresses held here", facts))
            self._adverts = None
            self.settle(now_us)

    # --- time -----------------------------------------------------------------------------------

    def wake(self, now_us: int) -> None:
        self._wake_router(now_us)
        self.conflicts.wake(now_us, self.nic)
        if self.nic is not None:
            self.suspicion.wake(self.nic, now_us)
            self._wake_reach(self.nic, now_us)
        self._wake_departure(now_us)
        if self.holdings.deadline_us <= now_us:
            self.holdings.wake(now_us)
            self.settle(now_us)
        elif self.router.state is State.BACKUP:
            self.settle(now_us)
        else:
            self._rearm()

    def _wake_router(self, now_us: int) -> None:
        acts = self.router.wake(now_us)
        if acts:
            self._perform(acts, now_us)
            if Act.KEEP in acts:
                self._keep(now_us)

    def _wake_departure(self, now_us: int) -> None:
        match self.departure.wake(now_us, extend_us=self.router.lease_us // 3):
            case "extend":
                self.gate.extend()
            case "over":
                self.gate.silence()
                self.holdings.release(self.holdings.kept(), now_us)
            case "offer":
                self._perform(self.router.resign(now_us), now_us)

    def arm(self) -> None:
        self.holdings.arm()
        self._rearm()
