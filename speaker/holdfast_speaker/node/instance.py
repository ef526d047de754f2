# SPDX-License-Identifier: Apache-2.0
"""One virtual router on this node: its election, its adverts, its addresses, its report.

``settle`` is the one place that compares what is wanted with what is and does the next step; events only
say that it is time to look. The order of effects in a takeover: advert, bind; when bound: announce.
"""

from ipaddress import ip_address
from typing import Final

from holdfast_api.conditions import Reason
from holdfast_api.types import RouterReport, Transition, VirtualRouter
from holdfast_speaker.effects import Count, Effect, Log
from holdfast_speaker.events import Bound, Released
from holdfast_speaker.node import plan
from holdfast_speaker.node.address import Holding, Phase
from holdfast_speaker.node.adverts import sends
from holdfast_speaker.node.holding import Holdings
from holdfast_speaker.node.host import Host
from holdfast_speaker.node.nic import Nic
from holdfast_speaker.node.takeover import Takeover
from holdfast_speaker.units import NEVER_US, SECOND_US
from holdfast_speaker.vrrp.advert import Advert, Family
from holdfast_speaker.vrrp.router import Act, Acts, Router, Settings, State
from holdfast_speaker.vrrp.timing import active_down_us

_FAMILIES: Final[tuple[Family, ...]] = (4, 6)
_DEFEND_US: Final = SECOND_US


class Instance:
    """``deadline_us`` and ``armed_us`` as the agenda wants them."""

    def __init__(self, host: Host, virtual_router: VirtualRouter, term: int) -> None:
        self._host = host
        self.virtual_router = virtual_router
        self.name = virtual_router.metadata.name
        self.nic: Nic | None = None
        self.term = term
        self.leaving = False  # deleted: gone as soon as nothing is held
        self.invalid = ""  # why the newest version can't be read; the last good one is in force
        self.holdings = Holdings(host, self.name, virtual_router.spec.virtual_router_id)
        own = plan.candidate(virtual_router.spec, host.name)
        self._priority = own.priority if own else 1
        self._first = False
        self._nodes: dict[str, str] = {}
        self.router = Router(self._settings())
        self.reason: Reason | None = Reason.STARTING
        self._since_us = 0
        self._obeyed: dict[Family, bytes] = {}  # the Active we follow, by its source in each family
        self._heard4_us = self._heard_us = -NEVER_US
        self._resigned_us = self._defended_us = -NEVER_US
        self._listed: dict[Family, bytes] = {}
        self._rfc_checksum = False
        self._hears: str | None = None
        self._predecessor: str | None = None
        self._takeover: Takeover | None = None  # under way: nothing is announced yet
        self._transition: Transition | None = None
        self._adverts: tuple[Effect, ...] | None = None
        self.deadline_us = self.armed_us = NEVER_US
        self.adopt(virtual_router, 0)

    # --- the plan -------------------------------------------------------------------------------

    @property
    def virtual_router_id(self) -> int:
        return self.virtual_router.spec.virtual_router_id

    def _settings(self) -> Settings:
        return plan.settings(self.virtual_router.spec, self._priority)

    def adopt(self, virtual_router: VirtualRouter, now_us: int) -> None:
        """A new version of the plan; ``place`` and ``settle`` follow."""
        self.virtual_router, self.invalid = virtual_router, ""
        spec = virtual_router.spec
        own = plan.candidate(spec, self._host.name)
        self._priority = own.priority if own else self._priority
        self._first = plan.is_first(spec, self._host.name)
        self._nodes = {source: each.node for each in spec.candidates for source in each.sources}
        self.holdings.want(spec.addresses)
        self._adverts = None
        self._perform(self.router.configure(self._settings(), now_us), now_us)
        self._listed.clear()  # what the Active lists may be an address that is new to us
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
            self.holdings.gone(self.nic.link.index)
            self.nic = None
        nic = where if isinstance(where, Nic) else None
        if nic is not None and not any(nic.source(family) for family in self._families()):
            nic, where = None, Reason.NO_INTERFACE_ON_SUBNET
        if nic is None:
            self.halt(where if isinstance(where, Reason) else Reason.NO_INTERFACE_ON_SUBNET, now_us)
        elif nic is not self.nic or self.router.state is State.INITIALIZE:
            self.halt(Reason.STARTING, now_us)
            self._start(nic, now_us)
        self._adverts = None

    def _families(self) -> tuple[Family, ...]:
        wanted = {holding.family for holding in self.holdings.wanted()}
        return tuple(family for family in _FAMILIES if family in wanted) or _FAMILIES

    def halt(self, reason: Reason, now_us: int) -> None:
        """To Initialize: an Active says priority 0 and releases."""
        if self.reason is not reason or self.router.state is not State.INITIALIZE:
            self._since_us, self._host.dirty = now_us, True
        acts = self.router.stop()
        self.reason = reason
        self._perform(acts, now_us)
        self.holdings.rest(now_us)
        self.nic = None
        self._follow_nobody()

    def _start(self, nic: Nic, now_us: int) -> None:
        self.nic, self.reason, self._since_us = nic, None, now_us
        for holding in self.holdings.by_address.values():
            holding.vouched = False  # on another segment, or after we were deaf
        down_us = active_down_us(self._priority, self.router.settings.interval_us)
        heard = self._host.hearing.table.get((nic.link.index, self.virtual_router_id))
        listening_us = now_us if nic.heard_since_us is None else nic.heard_since_us
        if heard is not None and heard.live_until_us > now_us:
            self._heard_us = heard.at_us
            down_at_us = heard.at_us + active_down_us(self._priority, heard.interval_us)
            for family, listed in heard.lists.items():
                self._vouch(family, listed)
            self._follow(4 if len(heard.source) == 4 else 6, heard.source)
        elif self._first:
            down_at_us = max(now_us, listening_us + down_us)
        else:
            down_at_us = now_us + down_us
        self.router.start(now_us, down_at_us=down_at_us)
        self._host.dirty = True

    # --- what is heard --------------------------------------------------------------------------

    def hear(self, advert: Advert, now_us: int) -> None:
        """A believed advert on our VRID and NIC."""
        nic, router = self.nic, self.router
        if nic is None:
            return
        family = advert.family
        if advert.priority and advert.listed != self._listed.get(family):
            self._vouch(family, advert.listed)
        if family == 4:
            self._heard4_us = now_us
            if advert.rfc_checksum is not self._rfc_checksum and advert.priority:
                self._rfc_checksum, self._adverts = advert.rfc_checksum, None
        own = nic.source(family)
        greater: bool | None = own is None or advert.source > own
        if family == 6 and now_us - self._heard4_us < 3 * advert.interval_us:
            greater = None  # of two that advertise in both families, IPv4 breaks the tie
        was = router.state
        known = self._obeyed.get(family)
        obeyed = known is None or known == advert.source or router.due(now_us)
        acts = router.hear(
            now_us, priority=advert.priority, interval_us=advert.interval_us, greater=greater, obeyed=obeyed
        )
        if acts:
            self._perform(acts, now_us)
        if router.state is State.BACKUP:
            if advert.priority == 0:
                if obeyed:
                    self._resigned_us = now_us
            else:
                self._heard_us = now_us
                if known != advert.source or was is State.ACTIVE or self._hears is None:
                    self._follow(family, advert.source)
                if self.holdings.striving or self.holdings.deadline_us != NEVER_US:
                    self.settle(now_us)
        self.deadline_us = min(router.deadline_us, self.holdings.deadline_us)

    def _vouch(self, family: Family, listed: bytes) -> None:
        self._listed[family] = listed
        size = 4 if family == 4 else 16
        self.holdings.vouch(listed[at : at + size] for at in range(0, len(listed), size))

    def _follow(self, family: Family, source: bytes) -> None:
        self._obeyed[family] = source
        hears = str(ip_address(self._obeyed.get(4) or self._obeyed[6]))
        if hears != self._hears:
            self._hears, self._host.dirty = hears, True
            self._predecessor = self._nodes.get(hears, hears)

    def _follow_nobody(self) -> None:
        self._obeyed.clear()
        self._heard_us = self._heard4_us = -NEVER_US
        if self._hears is not None:
            self._hears, self._host.dirty = None, True

    def _hears_active(self, now_us: int) -> bool:
        heard = (
            self._host.hearing.table.get((self.nic.link.index, self.virtual_router_id)) if self.nic else None
        )
        return heard is not None and heard.live_until_us > now_us

    def claimed_by(self, holding: Holding, mac: bytes, now_us: int) -> None:
        """Somebody else's ARP or ND says that he has an address of ours (semantics R6.1 to R6.3)."""
        text = mac.hex(":")
        peer = any(text in candidate.macs for candidate in self.virtual_router.spec.candidates)
        if holding.phase is Phase.PROBING:
            self.holdings.answered(holding, text, peer=peer, now_us=now_us)
            self.settle(now_us)
        elif holding.phase is Phase.BOUND and self.nic and now_us - holding.defended_us >= _DEFEND_US:
            holding.defended_us = now_us
            self._host.out.append(Count("conflicts", self.name))
            facts = (("router", self.name), ("address", holding.address), ("mac", text))
            who = "a candidate" if peer else "a host that is no candidate"
            self._host.out.append(Log("warning", f"Another claims an address held here: {who}", facts))
            self.nic.announcer.start((holding.address,), now_us)

    # --- the next step --------------------------------------------------------------------------

    def settle(self, now_us: int) -> None:
        """Compare what is wanted with what is, and do the next step."""
        holdings, nic, router = self.holdings, self.nic, self.router
        bound = holdings.in_phase(Phase.BINDING, Phase.BOUND)
        unwanted = [holding for holding in bound if not holding.wanted or nic is None]
        if unwanted:
            self._adverts = None
            holdings.release(unwanted, now_us)
        active, due = router.state is State.ACTIVE, router.due(now_us)
        holdings.striving = nic is not None and (active or due)
        if nic is not None and (holdings.striving or (self._first and not self._hears_active(now_us))):
            ready = holdings.ready(nic.link.index, now_us)
            if holdings.striving and ready:
                bind = holdings.begin(ready, nic.link.index, now_us)
                self._adverts = None
                if due:
                    self._take(now_us)
                self._host.out.append(bind)
            elif active and not holdings.in_phase(Phase.BINDING, Phase.BOUND):
                # Not while it probes either: what an Active lists, the others take without a probe.
                self._perform(router.give_up(now_us), now_us)
        elif self._hears is not None:
            holdings.rest(now_us)
        else:
            holdings.pause()
        self.arm()

    def _take(self, now_us: int) -> None:
        router, planned = self.router, self.virtual_router.spec.planned_from
        detection_us: int | None = None
        if router.resigned:
            why, detection_us = Reason.ACTIVE_RESIGNED, now_us - self._resigned_us
        elif router.preempting:
            why = Reason.PREEMPTED
        elif self._heard_us >= 0:
            why, detection_us = Reason.ACTIVE_SILENT, now_us - self._heard_us
        elif self._predecessor is None and planned.active is None:
            why = Reason.FIRST_ACTIVE
        else:
            why = Reason.ACTIVE_SILENT
        if self._predecessor is None:
            self._predecessor = planned.active
        self.term = max(self.term, planned.term) + 1
        self._takeover = Takeover(now_us, why, self._predecessor, detection_us)
        self._since_us, self._host.dirty, self._host.unsaved = now_us, True, True
        self._follow_nobody()
        self._perform(router.take(now_us), now_us)
        self._host.out.append(Count("transitions", why.value))

    def _perform(self, acts: Acts, now_us: int) -> None:
        for act in acts:
            match act:
                case Act.ADVERTISE:
                    self._advertise()
                case Act.RESIGN:
                    self._resign()
                case Act.YIELD:
                    self._yield(now_us)
                case Act.DEFEND:
                    self._defend(now_us)

    def _yield(self, now_us: int) -> None:
        self.holdings.release(self.holdings.in_phase(Phase.BINDING, Phase.BOUND), now_us)
        self.holdings.pause()
        self._takeover, self._adverts = None, None
        self._predecessor, self._since_us = self._host.name, now_us
        self._follow_nobody()
        self._host.dirty = True
        facts = (("router", self.name), ("term", self.term))
        self._host.out.append(Log("info", "No longer Active", facts))

    def _defend(self, now_us: int) -> None:
        """Another claimed the router: no cache may stay wrong (semantics R4.3)."""
        if self.nic is not None and now_us - self._defended_us >= _DEFEND_US:
            self._defended_us = now_us
            ours = [holding.address for holding in self.holdings.in_phase(Phase.BOUND)]
            self.nic.announcer.start(ours, now_us)

    # --- adverts --------------------------------------------------------------------------------

    def _advertise(self) -> None:
        if self._adverts is None:
            self._adverts = self._sends(self._priority)
        self._host.out.extend(self._adverts)

    def _resign(self) -> None:
        self._host.out.extend(self._sends(0))

    def _sends(self, priority: int) -> tuple[Effect, ...]:
        if self.nic is None:
            return ()
        return sends(
            self.nic,
            self.holdings,
            virtual_router_id=self.virtual_router_id,
            priority=priority,
            interval_us=self.router.settings.interval_us,
            rfc_checksum=self._rfc_checksum,
        )

    # --- what the kernel answers ----------------------------------------------------------------

    def bound(self, event: Bound, now_us: int) -> None:
        """What is bound is announced, first copies first; unless binding took so long that we lapsed."""
        self._perform(self.router.wake(now_us), now_us)
        fresh = self.holdings.bound(event, now_us)
        self._adverts = None
        if fresh and self.nic is not None:
            self.nic.announcer.start(fresh, self.nic.first_announcement_us(now_us))
            if self._takeover is not None:
                self._transition = self._takeover.report(self._host, now_us, announced=len(fresh))
                self._takeover = None
                facts = (("router", self.name), ("reason", self._transition.reason), ("term", self.term))
                self._host.out.append(Log("info", "Active", (*facts, ("addresses", len(fresh)))))
        self.settle(now_us)

    def released(self, event: Released, now_us: int) -> list[bytes]:
        """What is free since then, packed."""
        free = self.holdings.released(event, now_us)
        self.settle(now_us)
        return free

    def look_again(self, packed: bytes, now_us: int) -> None:
        """An address of ours that another router of this node had is free now."""
        holding = self.holdings.by_packed.get(packed)
        if holding is not None and holding.phase is Phase.WAITING:
            holding.retry_us = min(holding.retry_us, now_us)
            self.settle(now_us)

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
        acts = self.router.wake(now_us)
        if acts:
            self._perform(acts, now_us)
        if self.holdings.deadline_us <= now_us:
            self.holdings.wake(now_us)
            self.settle(now_us)
        elif self.router.state is State.BACKUP:
            self.settle(now_us)
        else:
            self.deadline_us = min(self.router.deadline_us, self.holdings.deadline_us)

    def arm(self) -> None:
        self.holdings.arm()
        self.deadline_us = min(self.router.deadline_us, self.holdings.deadline_us)

    def report(self) -> RouterReport:
        """What the Speaker object says of this router."""
        metadata, state = self.virtual_router.metadata, self.router.state
        reason = self.reason if state is State.INITIALIZE else None
        return RouterReport(
            name=self.name,
            uid=metadata.uid,
            observed_generation=metadata.generation,
            state=state.value,
            term=self.term,
            since=self._host.wall(self._since_us),
            interface=self.nic.link.interface.name if self.nic else "",
            held=self.holdings.held(),
            failed=self.holdings.failed(),
            reason=Reason.INVALID_PLAN.value if self.invalid else reason.value if reason else "",
            hears=self._hears,
            last_transition=self._transition,
        )
