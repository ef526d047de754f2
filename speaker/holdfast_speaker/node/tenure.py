# SPDX-License-Identifier: Apache-2.0
"""What this node does as a router's Active, and to stop being it: fence, adverts, announcements, letting go.

When it becomes Active, or ceases to be, is decided by ``vrrp.router`` and put into practice by ``instance``.
The order of a takeover: fence, advert, bind; when bound: announce, advert.
"""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

from holdfast_api.conditions import Reason
from holdfast_api.types import Transition, VirtualRouter, VirtualRouterSpec
from holdfast_speaker.arp import greeting
from holdfast_speaker.arp.announce import BURST_US
from holdfast_speaker.effects import Count, Effect, Log, Send
from holdfast_speaker.node import plan
from holdfast_speaker.node.address import Holding, Phase
from holdfast_speaker.node.adverts import sends
from holdfast_speaker.node.conflict import DEFEND_US, Conflicts
from holdfast_speaker.node.departure import Departure
from holdfast_speaker.node.following import Following
from holdfast_speaker.node.gate import Gate
from holdfast_speaker.node.holding import Holdings
from holdfast_speaker.node.host import Host
from holdfast_speaker.node.nic import Nic
from holdfast_speaker.node.reach import Reach
from holdfast_speaker.node.suspicion import UNHEEDED_CEDES, Suspicion
from holdfast_speaker.node.takeover import Takeover
from holdfast_speaker.units import NEVER_US, SECOND_US
from holdfast_speaker.vrrp.advert import Advert, Family
from holdfast_speaker.vrrp.router import Act, Acts, Router, State

MOST_TOLD: Final = 256  # of those who asked, at a takeover: 2 ms


class Tenure:
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
        self.gate = Gate(host, self.name, virtual_router.spec.virtual_router_id)
        self.conflicts = Conflicts(host, self.name)
        self.reach = Reach(host, self.name)
        self.departure = Departure(virtual_router.spec.handover)
        self.suspicion = Suspicion(host, virtual_router.spec.virtual_router_id)
        own = plan.candidate(virtual_router.spec, host.name)
        self._priority = own.priority if own else 1
        self._lame = False  # the NIC has no address of its own in one of the families
        self._first = False
        self.router = Router(plan.settings(virtual_router.spec, self._priority, host))
        self.reason: Reason | None = Reason.STARTING
        self.since_us = 0
        self.following = Following()
        self._nodes: dict[str, str] = {}
        self._defended_us = self._repeated_us = -NEVER_US
        self._muted = False  # offered, and silent by its virtual MACs until somebody takes it
        self._takeover: Takeover | None = None  # under way: nothing is announced yet
        self.transition: Transition | None = None
        self._adverts: tuple[Effect, ...] | None = None
        self.deadline_us = self.armed_us = NEVER_US

    @property
    def virtual_router_id(self) -> int:
        return self.virtual_router.spec.virtual_router_id

    def _take(self, now_us: int) -> None:
        router, following, planned = self.router, self.following, self.virtual_router.spec.planned_from
        detection_us: int | None = None
        if router.resigned:
            why = Reason.HANDED_OVER if router.settings.heir else Reason.ACTIVE_RESIGNED
            detection_us = now_us - following.resigned_us
        elif router.preempting:
            why = Reason.PREEMPTED
        elif following.heard_us >= 0:
            why, detection_us = Reason.ACTIVE_SILENT, now_us - following.heard_us
        elif following.predecessor is None and planned.active is None:
            why = Reason.FIRST_ACTIVE
        else:
            why = Reason.ACTIVE_SILENT
        if following.predecessor is None:
            following.predecessor = planned.active
        self.term = max(self.term, planned.term) + 1
        self._takeover = Takeover(now_us, why, following.predecessor, detection_us)
        self._muted = False
        self.since_us, self._host.dirty, self._host.unsaved = now_us, True, True
        self.departure.over()
        self.departure.again(now_us + 3 * router.settings.interval_us)
        self._follow_nobody()
        self._adverts = None
        self._perform(router.take(now_us), now_us)
        self._host.out.append(Count("transitions", why.value))

    def _perform(self, acts: Acts, now_us: int) -> None:
        for act in acts:
            match act:
                case Act.ADVERTISE:
                    self._advertise(now_us)
                case Act.RESIGN:
                    self._mute()
                    self._host.out.extend(self._sends(0, now_us))
                case Act.YIELD:
                    self._yield(now_us)
                case Act.CEDE:
                    self._cede(now_us)
                case Act.KEEP:  # the rest is the instance's to judge: it may have a reason to go nevertheless
                    self._unmute(now_us)
                case Act.EXTEND:
                    self.gate.extend()
                case Act.RETAKE:
                    self._retake(now_us)
                case Act.DEFEND:
                    self._defend(now_us)

    def _mute(self) -> None:
        """Nothing is said by virtual MACs: a frame after the successor's would win the switch's port back."""
        if self.holdings.virtual():
            self._muted = True
            self.gate.quiet()
            self.reach.clear()
            for holding in self.holdings.in_phase(Phase.BOUND):
                self._host.silence(holding.index, (holding.address,))

    def _unmute(self, now_us: int) -> None:
        """Nobody took it. Somebody may have tried, though: all is announced again."""
        if self._muted:
            self._muted = False
            self._retake(now_us)
            self._speak_for([holding.address for holding in self.holdings.in_phase(Phase.BOUND)], now_us)

    def _retake(self, now_us: int) -> None:
        self.gate.retake(now_us, self.router.lease_us)
        if self._muted:
            self.gate.quiet()

    def _speak_for(self, addresses: Iterable[str], at_us: int, *, asking: bool = False) -> None:
        """Announce them, and try virtual MACs that are new; later, if the router is on offer."""
        if self.nic is not None and not self._muted:
            self.nic.announcer.start(addresses, at_us, asking=asking)
            self.reach.begin(self.holdings.in_phase(Phase.BOUND), at_us)

    def _wake_reach(self, nic: Nic, now_us: int) -> None:
        if now_us >= self.reach.deadline_us:
            bound = self.holdings.in_phase(Phase.BOUND)
            self.reach.wake(nic, bound, self.suspicion.targets(nic, now_us), now_us)

    def _weigh(self, nic: Nic, families: Iterable[Family], now_us: int) -> None:
        """A host without an address of its own in one family can't answer its clients: anybody else first."""
        lame = not all(nic.serves(family) for family in families)
        if lame is self._lame:
            return
        self._lame = lame
        self._configure(now_us)
        if lame:
            facts = (("router", self.name), ("interface", nic.link.interface.name))
            text = "The interface has no address of its own in one of the families: anybody else goes first"
            self._host.out.append(Log("warning", text, facts))
            if self._has_others():
                self._perform(self.router.resign(now_us), now_us)

    def _has_others(self) -> bool:
        """Whether the plan names another candidate."""
        return any(each.node != self._host.name for each in self.virtual_router.spec.candidates)

    def _configure(self, now_us: int) -> None:
        """The router by the plan, and by what this host is worth."""
        spec = self.virtual_router.spec
        self._priority = self._weight(spec)
        self._perform(self.router.configure(plan.settings(spec, self._priority, self._host), now_us), now_us)

    def _weight(self, spec: VirtualRouterSpec) -> int:
        """Lame ones come after all others, in their order."""
        own = plan.candidate(spec, self._host.name)
        if own is None:
            return self._priority
        return max(1, own.priority // 3) if self._lame else own.priority

    def _yield(self, now_us: int) -> None:
        self.gate.silence()
        self._no_longer_active(now_us)
        self.holdings.release(self.holdings.in_phase(Phase.BINDING, Phase.BOUND), now_us)
        self.holdings.release(self.holdings.kept(), now_us)

    def _cede(self, now_us: int) -> None:
        """Somebody takes over: he is asked from now on, and we serve what still comes in until he has it."""
        self.gate.quiet()
        self._no_longer_active(now_us)
        self.holdings.release(self.holdings.in_phase(Phase.BINDING), now_us)
        self.holdings.keep()
        self.departure.cede(now_us)

    def _no_longer_active(self, now_us: int) -> None:
        self.holdings.pause()
        self.conflicts.clear()
        self.reach.clear()
        self._takeover, self._adverts = None, None
        self.following.predecessor, self.since_us = self._host.name, now_us
        self._follow_nobody()
        self._host.dirty = True
        facts: tuple[tuple[str, str | int], ...] = (("router", self.name), ("term", self.term))
        if self.router.state is State.INITIALIZE and self.reason is not None:
            facts = (*facts, ("reason", self.reason.value))
        self._host.out.append(Log("info", "No longer Active", facts))

    def _cede_listed(self, advert: Advert, now_us: int) -> None:
        """The new Active has bound and announced these."""
        if self.departure.lingers(now_us):
            return
        listed = set(advert.addresses())
        there = [h for h in self.holdings.kept() if h.packed in listed]
        if there:
            self.holdings.release(there, now_us)

    def _defend(self, now_us: int) -> None:
        """Another claimed the router: no cache may stay wrong (semantics R4.3).

        Announced at once, but once a second; and again soon after his last word, while he still serves
        whoever believed him last.
        """
        since_us, again_us = now_us - self._defended_us, BURST_US[1]
        if self.nic is None or since_us < again_us or now_us - self._repeated_us < again_us // 3:
            return  # a copy is still to come
        if since_us >= DEFEND_US:
            self._defended_us, again_us = now_us, 0
        else:
            self._repeated_us = now_us
        ours = [holding.address for holding in self.holdings.in_phase(Phase.BOUND)]
        self.nic.announcer.start(ours, now_us + again_us)

    def _is_ignored(self, advert: Advert) -> bool:
        """A stranger goes on in spite of us, with addresses of ours: two must not hold them.

        keepalived drops an advert whose addresses are not exactly its own (semantics V28).
        """
        if self.router.unheeded < UNHEEDED_CEDES or str(ip_address(advert.source)) in self._nodes:
            return False
        return any(packed in self.holdings.by_packed for packed in advert.addresses())

    def mac_heard(self, mac: bytes, now_us: int) -> None:
        """Somebody else sent frames with a virtual MAC, within the last second: not before we took it."""
        for holding in self.holdings.in_phase(Phase.BOUND):
            if holding.mac == mac and now_us - holding.bound_us > SECOND_US:
                self._conflict(holding, mac.hex(":"), peer=False, now_us=now_us)

    def _conflict(self, holding: Holding, mac: str, *, peer: bool, now_us: int) -> None:
        if self.nic is not None and self.router.serving:
            self.conflicts.claimed(holding, mac, self.nic, peer=peer, now_us=now_us)
            self._rearm()

    def _follow_nobody(self) -> None:
        if self.following.nobody():
            self._host.dirty = True
        self.suspicion.clear()

    # --- adverts and the fence ------------------------------------------------------------------

    def _advertise(self, now_us: int) -> None:
        self.guard()  # a longer interval: the lease grows before the pauses do
        seal = self._host.seal
        adverts = self._adverts
        if adverts is None or (seal is not None and seal.signs):
            adverts = self._sends(self._priority, now_us)
            self._adverts = adverts if self.nic is not None and self.nic.is_settled(now_us) else None
        self._host.out.extend(adverts)

    def _sends(self, priority: int, now_us: int) -> tuple[Effect, ...]:
        if self.nic is None:
            return ()
        return sends(
            self.nic,
            self.holdings,
            virtual_router_id=self.virtual_router_id,
            priority=priority,
            interval_us=self.router.settings.interval_us,
            rfc_checksum=self.following.rfc_checksum,
            seal=self._host.seal,
            now_us=now_us,
        )

    def _tell_askers(self, fresh: tuple[str, ...], nic: Nic, now_us: int) -> None:
        """Who asked for an address once, and ignores what nobody asked for, obeys a question (R1.1)."""
        del now_us
        known = self.holdings.by_address
        asked = frozenset(known[address].packed for address in fresh if address in known)
        by_packed = self.holdings.by_packed
        frames = [
            frame
            for own, mac, asker in nic.askers(asked)
            if (
                frame := greeting.build(
                    address=asker, mac=mac, own=own, own_mac=by_packed[own].mac or nic.mac
                )
            )
        ]
        self._host.out.extend(Send(nic.link.index, frame) for frame in frames[-MOST_TOLD:])

    def _tell_held(self, now_us: int) -> None:
        """Bound and announced: now an advert may list them."""
        if self.router.state is State.ACTIVE and not self.router.resigning:
            self._adverts = None
            self._perform(self.router.advertise(now_us), now_us)
            self._rearm()

    def guard(self) -> None:
        """All that is or may soon be on the NIC, unless another router of this node still has it."""
        if self.nic is None:
            return
        holders, own_macs = self._host.holders, self._host.macs
        guarded = [
            h for h in self.holdings.by_address.values() if holders.get(h.address, self.name) == self.name
        ]
        addresses = tuple(holding.address for holding in guarded)
        # Fenced by a MAC of its own, the whole host would be silent.
        macs = tuple((h.address, h.mac.hex(":")) for h in guarded if h.mac and h.mac not in own_macs)
        source = self.nic.source(4)
        own = str(ip_address(source)) if source else None
        self.gate.guard(self.nic.link.index, self.router.lease_us, addresses, macs, own)

    def _unguard(self) -> None:
        if not self.holdings.on_nic():
            self.gate.unguard()

    def _rearm(self) -> None:
        deadline_us = min(self.router.deadline_us, self.holdings.deadline_us, self.conflicts.deadline_us)
        deadline_us = min(deadline_us, self.reach.deadline_us)
        if self.gate.asked is None and self.router.state is State.BACKUP:
            deadline_us = min(deadline_us, self.gate.again_us or NEVER_US)
        self.deadline_us = min(deadline_us, self.suspicion.deadline_us, self.departure.deadline_us)
