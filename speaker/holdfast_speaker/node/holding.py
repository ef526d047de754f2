# SPDX-License-Identifier: Apache-2.0
"""The addresses of one virtual router on this node: probed for, bound, refreshed, released.

Each address is in one phase:

    WAITING --> PROBING --> WAITING --> BINDING --> BOUND --> RELEASING --> WAITING, or forgotten

Whether we may hold any of them is the router's business; here is only how it is done, once it may be.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from holdfast_api.conditions import Reason
from holdfast_api.types import FailedAddress, VirtualRouterSpec
from holdfast_speaker.arp.acd import Probe
from holdfast_speaker.arp.announce import CHUNK
from holdfast_speaker.effects import Announce, Bind, Count, Log, Refresh, Release
from holdfast_speaker.events import Bound, Released
from holdfast_speaker.node.address import HELD, ON_NIC, Holding, Phase
from holdfast_speaker.node.host import Host
from holdfast_speaker.node.plan import virtual_mac
from holdfast_speaker.units import MILLISECOND_US, NEVER_US, SECOND_US

REFRESH_US: Final = 10 * SECOND_US  # the kernel's lifetime is 30 s
REFRESH_CHUNK: Final = 100
REFRESH_PACE_US: Final = 100 * MILLISECOND_US
ANSWERED_RETRY_US: Final = 10 * SECOND_US
PEER_ANSWERED_RETRY_US: Final = SECOND_US
ELSEWHERE_RETRY_US: Final = 100 * MILLISECOND_US
PROBE_VALID_US: Final = 5 * SECOND_US
BIND_RETRY_US: Final = SECOND_US
MAX_BIND_RETRY_US: Final = 60 * SECOND_US
ANSWER_TIMEOUT_US: Final = 5 * SECOND_US  # the loop answers each Bind and Release; this is for bugs only
LOSSES_AT_ONCE: Final = 3  # re-added without delay, within LOSS_WINDOW_US
LOSS_WINDOW_US: Final = 60 * SECOND_US
UNSEEN_US: Final = 2 * SECOND_US  # the kernel's news of a new address may lag behind its binding


class Holdings:
    """All of them, in numerical order. ``deadline_us``: when ``wake`` is to be called."""

    def __init__(self, host: Host, router: str, virtual_router_id: int) -> None:
        self._host = host
        self._router = router
        self._virtual_router_id = virtual_router_id
        self.by_address: dict[str, Holding] = {}
        self.by_packed: dict[bytes, Holding] = {}
        self._pending: dict[int, tuple[int, tuple[Holding, ...]]] = {}  # id -> (until, what)
        self._probes: list[Probe] = []
        self._refresh_us = NEVER_US
        self._refreshing: list[str] = []
        self.striving = False  # the router is Active, or about to be: retries count
        self.deadline_us = NEVER_US

    # --- what is wanted, what is known ----------------------------------------------------------

    def want(self, spec: VirtualRouterSpec) -> None:
        """The plan's addresses. What is bound and not among them is for ``unwanted``."""
        for holding in self.by_address.values():
            holding.wanted = False
        for planned in spec.addresses:
            holding = self.by_address.get(planned.address) or Holding(planned.address)
            self.by_address[planned.address] = holding
            holding.claimed = planned.claimed
            holding.mac = virtual_mac(spec, planned) or b""
            holding.wanted = planned.state == "Held"
        self._tidy()

    def _tidy(self) -> None:
        for holding in list(self.by_address.values()):
            if not holding.wanted and holding.phase is Phase.PROBING:
                self._stop_probing(holding)
            if not holding.wanted and holding.phase is Phase.WAITING and not holding.kept:
                del self.by_address[holding.address]
        ordered = sorted(self.by_address.values(), key=lambda h: (h.family, h.packed))
        self.by_address = {holding.address: holding for holding in ordered}
        self.by_packed = {holding.packed: holding for holding in ordered}

    def vouch(self, listed: Iterable[bytes], mac: str) -> None:
        """A live Active of this router lists these. If it was he who answered a probe, he was no stranger."""
        for packed in listed:
            holding = self.by_packed.get(packed)
            if holding is not None:
                holding.vouched = True
                if mac and holding.answered_by == mac:
                    holding.answered_us, holding.answered_by, holding.retry_us = -NEVER_US, "", 0

    def wanted(self) -> list[Holding]:
        return [holding for holding in self.by_address.values() if holding.wanted]

    def in_phase(self, *phases: Phase) -> list[Holding]:
        return [holding for holding in self.by_address.values() if holding.phase in phases]

    def virtual(self) -> frozenset[bytes]:
        """The virtual MACs."""
        return frozenset(h.mac for h in self.by_address.values() if h.mac)

    def on_nic(self) -> list[Holding]:
        return [holding for holding in self.by_address.values() if holding.kept or holding.phase in ON_NIC]

    def kept(self) -> list[Holding]:
        return [holding for holding in self.by_address.values() if holding.kept]

    def held(self) -> tuple[str, ...]:
        """What is on a NIC, also while it is being released: nobody else may have it yet."""
        holdings = self.by_address.values()
        return tuple(holding.address for holding in holdings if holding.kept or holding.phase in HELD)

    def held_by(self, macs: frozenset[bytes]) -> tuple[str, ...]:
        """What is bound with one of these virtual MACs."""
        return tuple(holding.address for holding in self.in_phase(Phase.BOUND) if holding.mac in macs)

    def failed(self) -> tuple[FailedAddress, ...]:
        return tuple(
            FailedAddress(holding.address, holding.reason.value, holding.message)
            for holding in self.by_address.values()
            if holding.wanted and holding.reason is not None and holding.phase is not Phase.BOUND
        )

    # --- before binding -------------------------------------------------------------------------

    def ready(self, index: int, now_us: int) -> list[Holding]:
        """What may be bound on this NIC now. What must be probed for first is, from now on."""
        ready: list[Holding] = []
        to_probe: list[Holding] = []
        confirmed = self._host.plan_is_confirmed(now_us)
        for holding in self.by_address.values():
            if not holding.wanted or holding.phase is not Phase.WAITING or holding.retry_us > now_us:
                continue
            if self._is_elsewhere(holding, index, now_us):
                continue
            # Who was answered by a stranger asks again, whatever the plan or another's advert says.
            denied = now_us - holding.answered_us < ANSWERED_RETRY_US
            known = not denied and (holding.vouched or (holding.claimed and confirmed))
            if known or now_us - holding.probed_us < PROBE_VALID_US:
                ready.append(holding)
            else:
                holding.phase = Phase.PROBING
                holding.index = index
                to_probe.append(holding)
        if to_probe:
            probe = Probe(tuple(holding.address for holding in to_probe), now_us)
            self._probes.append(probe)
            self._ask(probe, now_us)
        return ready

    def _is_elsewhere(self, holding: Holding, index: int, now_us: int) -> bool:
        other = self._host.holders.get(holding.address, self._router)
        lister = self._host.hearing.lister(index, self._virtual_router_id, holding.packed, now_us)
        if other != self._router:
            message = f"{other} still holds it on this node"
        elif lister is not None:
            message = f"virtual router {lister[0]} on this segment lists it in its adverts, from {lister[1]}"
        else:
            return False
        holding.retry_us = now_us + ELSEWHERE_RETRY_US
        self._fault(holding, Reason.LISTED_ELSEWHERE, message)
        return True

    def _fault(self, holding: Holding, reason: Reason, message: str) -> None:
        if (holding.reason, holding.message) != (reason, message):
            holding.reason, holding.message = reason, message
            self._host.dirty = True
            facts = (("router", self._router), ("address", holding.address), ("reason", reason.value))
            self._host.out.append(Log("warning", f"Not bound: {message}", facts))

    def _ask(self, probe: Probe, now_us: int) -> None:
        asked = probe.wake(now_us)
        for at in range(0, len(asked), CHUNK):
            chunk = asked[at : at + CHUNK]
            self._host.out.append(Announce(self.by_address[chunk[0]].index, "probe", chunk))
        if not probe.ended:
            return
        self._probes.remove(probe)
        for address in probe.addresses:
            holding = self.by_address[address]
            holding.phase, holding.probed_us = Phase.WAITING, now_us

    def _stop_probing(self, holding: Holding) -> None:
        holding.phase = Phase.WAITING
        for probe in self._probes:
            probe.drop(holding.address)
        self._probes = [probe for probe in self._probes if probe.addresses]

    def answered(self, holding: Holding, mac: str, *, peer: bool, now_us: int) -> None:
        """Somebody has the address that we probe for."""
        self._stop_probing(holding)
        if not peer:
            holding.answered_us, holding.answered_by = now_us, mac
        holding.retry_us = now_us + (PEER_ANSWERED_RETRY_US if peer else ANSWERED_RETRY_US)
        who = "a candidate" if peer else "a host that is no candidate"
        self._fault(holding, Reason.ADDRESS_ANSWERED, f"{who} has it: {mac} answered the probe")
        self._host.out.append(Count("conflicts", self._router))

    def pause(self) -> None:
        """We may hold nothing for now: no probes. Faults and their retries are kept."""
        self.striving = False
        for holding in self.in_phase(Phase.PROBING):
            self._stop_probing(holding)

    def rest(self, now_us: int) -> None:
        """Somebody else is Active: no probes, no faults; what could not be bound keeps a short pause."""
        self.pause()
        for holding in self.by_address.values():
            failed = holding.reason is Reason.BIND_FAILED or holding.backoff_us > 0
            holding.retry_us = min(holding.retry_us, now_us + BIND_RETRY_US) if failed else 0
            if holding.reason is not None:
                holding.reason, self._host.dirty = None, True

    # --- binding --------------------------------------------------------------------------------

    def begin(self, ready: Sequence[Holding], index: int, now_us: int) -> Bind:
        """From now on these are being bound; the effect that does it."""
        for holding in ready:
            holding.phase, holding.index, holding.seen = Phase.BINDING, index, False
            holding.kept, holding.placed_mac = False, holding.mac
            self._host.holders[holding.address] = self._router
        bind = Bind(self._host.next_id(self._router), index, tuple(holding.address for holding in ready))
        self._pending[bind.id] = (now_us + ANSWER_TIMEOUT_US, tuple(ready))
        return bind

    def bound(self, event: Bound, now_us: int) -> tuple[str, ...]:
        """What is ours since this event."""
        pending = self._pending.pop(event.id, None)
        if pending is None:
            return ()
        ok = set(event.bound)
        why = dict(event.failed)
        fresh: list[str] = []
        for holding in pending[1]:
            if holding.phase is not Phase.BINDING:
                continue  # given up meanwhile: a Release is under way
            if holding.address in ok:
                holding.phase, holding.bound_us, holding.vouched = Phase.BOUND, now_us, True
                holding.reason, holding.backoff_us = None, 0
                fresh.append(holding.address)
            else:
                self._failed(holding, why.get(holding.address, "the kernel gave no reason"), now_us)
        if fresh and self._refresh_us == NEVER_US:
            stagger_us = self._virtual_router_id % 20 * REFRESH_PACE_US
            self._refresh_us = now_us + REFRESH_US - stagger_us
        self._host.dirty = True
        return tuple(fresh)

    def _failed(self, holding: Holding, why: str, now_us: int) -> None:
        self._let_go(holding)
        holding.backoff_us = min(max(holding.backoff_us * 2, BIND_RETRY_US), MAX_BIND_RETRY_US)
        holding.retry_us = now_us + holding.backoff_us
        self._fault(holding, Reason.BIND_FAILED, why)

    def missing(self, present: frozenset[tuple[int, str]], now_us: int) -> int:
        """Somebody removed addresses of ours; the number of them. They wait to be bound again."""
        lost = 0
        for holding in self.kept():
            if (holding.index, holding.address) not in present:
                holding.kept = False
                self._let_go(holding)
        for holding in self.in_phase(Phase.BOUND):
            if (holding.index, holding.address) in present:
                holding.seen = True
                continue
            if not holding.seen and now_us - holding.bound_us < UNSEEN_US:
                continue
            lost += 1
            recent = now_us - holding.lost_us < LOSS_WINDOW_US
            holding.losses = holding.losses + 1 if recent else 1
            holding.lost_us = now_us
            self._host.silence(holding.index, (holding.address,))
            self._let_go(holding)
            holding.retry_us = now_us
            if holding.losses > LOSSES_AT_ONCE:
                holding.retry_us += min(SECOND_US << min(holding.losses - 4, 5), 30 * SECOND_US)
                message = (
                    f"another program removed it {holding.losses} times within a minute each: "
                    "usually NetworkManager, or systemd-networkd without KeepConfiguration=yes"
                )
                self._fault(holding, Reason.BIND_FAILED, message)
        return lost

    # --- letting go -----------------------------------------------------------------------------

    def keep(self) -> None:
        """No longer ours to answer for, but on the NIC until the new Active has it. Not announced."""
        for holding in self.in_phase(Phase.BOUND):
            holding.phase, holding.kept = Phase.WAITING, True
            self._host.silence(holding.index, (holding.address,))
        if not self.in_phase(Phase.BINDING):
            self._refresh_us, self._refreshing = NEVER_US, []

    def leave(self, holding: Holding, index: int) -> None:
        """Found on the NIC at start: it stays there, fenced, until somebody is Active."""
        holding.kept, holding.index, holding.placed_mac = True, index, holding.mac
        self._host.holders.setdefault(holding.address, self._router)

    def _let_go(self, holding: Holding) -> None:
        holding.phase = Phase.WAITING
        if self._host.holders.get(holding.address) == self._router:
            del self._host.holders[holding.address]
        self._host.dirty = True

    def release(self, holdings: Sequence[Holding], now_us: int) -> None:
        """Off the NIC, silent from now on."""
        for holding in holdings:
            if holding.phase is Phase.PROBING:
                self._stop_probing(holding)
        by_index: dict[int, list[Holding]] = {}
        for holding in holdings:
            by_index.setdefault(holding.index, []).append(holding)
        for index, several in sorted(by_index.items()):
            addresses = tuple(holding.address for holding in several)
            self._host.silence(index, addresses)
            for holding in several:
                holding.phase, holding.kept, holding.released_us = Phase.RELEASING, False, now_us
            release = Release(self._host.next_id(self._router), index, addresses)
            self._pending[release.id] = (now_us + ANSWER_TIMEOUT_US, tuple(several))
            self._host.out.append(release)
            self._host.dirty = True
        if not self.in_phase(Phase.BINDING, Phase.BOUND):
            self._refresh_us, self._refreshing = NEVER_US, []

    def released(self, event: Released, now_us: int) -> list[bytes]:
        """What is free since this event, packed."""
        pending = self._pending.pop(event.id, None)
        if pending is None:
            return []
        free: list[bytes] = []
        why = dict(event.failed)
        stuck = [holding for holding in pending[1] if holding.address in why]
        for holding in pending[1]:
            if holding.phase is Phase.RELEASING and holding.address not in why:
                self._let_go(holding)
                holding.released_us = now_us
                free.append(holding.packed)
        if stuck:
            self._pending[event.id] = (now_us + SECOND_US, tuple(stuck))  # again in a second
            facts = (("router", self._router), ("address", stuck[0].address), ("why", why[stuck[0].address]))
            self._host.out.append(Log("error", "An address could not be removed; again in a second", facts))
        self._tidy()
        return free

    def gone(self, index: int) -> None:
        """The NIC is gone, and all that was on it."""
        for holding in [*self.on_nic(), *self.in_phase(Phase.PROBING)]:
            if holding.index == index:
                holding.kept = False
                self._stop_probing(holding)
                self._let_go(holding)
        self._tidy()

    # --- time -----------------------------------------------------------------------------------

    def wake(self, now_us: int) -> None:
        """Probes, lifetimes, answers that did not come."""
        for probe in list(self._probes):
            if probe.deadline_us <= now_us:
                self._ask(probe, now_us)
        for number, (until_us, holdings) in list(self._pending.items()):
            if until_us > now_us:
                continue
            del self._pending[number]
            self._host.owners.pop(number, None)
            for holding in holdings:
                if holding.phase is Phase.BINDING:
                    self._failed(holding, "the kernel did not answer", now_us)
            self.release([holding for holding in holdings if holding.phase is Phase.RELEASING], now_us)
        if self._refresh_us <= now_us:
            self._refresh(now_us)

    def _refresh(self, now_us: int) -> None:
        if not self._refreshing:
            self._refreshing = [holding.address for holding in self.in_phase(Phase.BOUND)]
        chunk, self._refreshing = self._refreshing[:REFRESH_CHUNK], self._refreshing[REFRESH_CHUNK:]
        bound = [self.by_address[a] for a in chunk if a in self.by_address]
        bound = [holding for holding in bound if holding.phase is Phase.BOUND]
        for index in sorted({holding.index for holding in bound}):
            addresses = tuple(holding.address for holding in bound if holding.index == index)
            self._host.out.append(Refresh(index, addresses))
        self._refresh_us = now_us + (REFRESH_PACE_US if self._refreshing else REFRESH_US)

    def arm(self) -> None:
        """Find the next deadline."""
        deadline_us = self._refresh_us
        for probe in self._probes:
            deadline_us = min(deadline_us, probe.deadline_us)
        for until_us, _ in self._pending.values():
            deadline_us = min(deadline_us, until_us)
        if self.striving:
            for holding in self.by_address.values():
                if holding.wanted and holding.phase is Phase.WAITING:
                    deadline_us = min(deadline_us, holding.retry_us)
        self.deadline_us = deadline_us
