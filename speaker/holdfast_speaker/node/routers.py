# SPDX-License-Identifier: Apache-2.0
"""All virtual routers of this node: which there are (the plan), and on which NIC each one runs."""

from typing import Final, assert_never

from holdfast_api.conditions import Reason
from holdfast_api.interfaces import choose
from holdfast_api.types import Interface, VirtualRouter
from holdfast_speaker import events as on
from holdfast_speaker.effects import Cover, Hear, Log, Prepare
from holdfast_speaker.node.address import Holding
from holdfast_speaker.node.agenda import Agenda
from holdfast_speaker.node.book import Book
from holdfast_speaker.node.host import Host
from holdfast_speaker.node.instance import Instance
from holdfast_speaker.node.nic import Nic
from holdfast_speaker.units import NEVER_US, SECOND_US

MAX_NICS: Final = 64
PLANLESS_US: Final = 10 * SECOND_US  # how long leftovers wait for a plan, before they are removed

PlanEvent = (
    on.RoutersListed
    | on.RouterChanged
    | on.RouterRejected
    | on.RouterDeleted
    | on.PlanRestored
    | on.ApiConfirmed
)


class Routers:
    """``instances`` by name, in order; ``running`` by ifindex and VRID; ``claimants`` by packed address;
    ``dressed`` by virtual MAC.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.book = Book()
        self.instances: dict[str, Instance] = {}
        self.running: dict[tuple[int, int], Instance] = {}
        self.claimants: dict[bytes, tuple[Instance, ...]] = {}
        self.dressed: dict[bytes, tuple[Instance, ...]] = {}
        self.agenda: Agenda[Instance] = Agenda()
        self.links_seen = False
        self.stopping = False
        self._start_us: int | None = None
        self._hearing_on: frozenset[int] = frozenset()
        self._covered: frozenset[int] = frozenset()
        self._prepared: dict[int, Prepare] = {}
        self._wheres: dict[str, Nic | Reason] = {}
        self._clashing: set[str] = set()  # another router has their VRID on their NIC

    # --- the plan -------------------------------------------------------------------------------

    def read(self, event: PlanEvent, now_us: int) -> None:
        """What the API, or the plan kept on this node, says."""
        book, host = self.book, self.host
        gone: tuple[str, ...] = ()
        if isinstance(event, on.PlanRestored):
            if host.confirmed_us is not None:
                return  # the API was faster
            book.terms.update((name, event.terms[name]) for name in sorted(event.terms))
            changed = self._adopt(event.routers, now_us)
        else:
            host.confirmed_us = now_us
            changed = set()
            match event:
                case on.ApiConfirmed():
                    return
                case on.RoutersListed():
                    names = [router.metadata.name for router in event.routers]
                    gone = book.missing([*names, *(name for name, _ in event.rejected)])
                    self._withdraw(gone, now_us)
                    for name, why in event.rejected:
                        self._reject(name, why)
                    changed = self._adopt(event.routers, now_us)
                case on.RouterChanged():
                    changed = self._adopt((event.router,), now_us)
                case on.RouterRejected():
                    self._reject(event.name, event.why)
                case on.RouterDeleted():
                    known = event.name in book.routers or event.name in book.rejected
                    gone = (event.name,) if known else ()
                    self._withdraw(gone, now_us)
                case _:
                    assert_never(event)
        if changed or gone:
            host.unsaved = True
            host.hearing.learn(book.addresses(), book.sources())
            self._place(changed, now_us)

    def _adopt(self, routers: tuple[VirtualRouter, ...], now_us: int) -> set[str]:
        """The names of those that are news."""
        changed: set[str] = set()
        for router in sorted(routers, key=lambda router: router.metadata.name):
            name = router.metadata.name
            if not self.book.accept(router):
                if name in self.book.rejected:
                    self._reject(name, self.book.rejected[name])
                elif name in self.instances and name in self.book.routers:
                    self.instances[name].virtual_router = self.book.routers[name]
                continue
            changed.add(name)
            instance = self.instances.get(name)
            if instance is not None:
                instance.leaving = False
                instance.adopt(router, now_us)
            elif any(candidate.node == self.host.name for candidate in router.spec.candidates):
                self.instances[name] = Instance(self.host, router, self.book.terms.get(name, 0))
                self.instances = dict(sorted(self.instances.items()))
        return changed

    def _reject(self, name: str, why: str) -> None:
        self.book.reject(name, why)
        instance = self.instances.get(name)
        if instance is None or instance.invalid != why:
            facts = (("router", name[:64]), ("why", why[:200]))
            self.host.out.append(
                Log("error", "A VirtualRouter can't be read; its last good version stays", facts)
            )
        if instance is not None:
            instance.invalid = why
        self.host.dirty = True

    def _withdraw(self, names: tuple[str, ...], now_us: int) -> None:
        for name in names:
            self.book.delete(name)
            instance = self.instances.get(name)
            if instance is None:
                continue
            instance.leaving = True
            nic = instance.nic
            instance.halt(Reason.NOT_CANDIDATE, now_us)
            if nic is not None:
                self.host.hearing.forget(nic.link.index, instance.virtual_router_id)
            self.agenda.arm(instance)
            self.sweep(instance, now_us)

    def keep(self, present: frozenset[tuple[int, str]], now_us: int) -> tuple[set[tuple[int, str]], bool]:
        """What an earlier life of this speaker left, and a router here may soon hold: it stays, fenced.

        Also: whether it is too early to say of the rest that it is nobody's.
        """
        if self._start_us is None:
            self._start_us = now_us
        planless = not self.book.routers and self.host.confirmed_us is None
        found: set[tuple[int, str]] = set()
        for instance in self.instances.values():
            fresh = instance.keep(present)
            found.update(fresh)
            if fresh:
                self.agenda.arm(instance)
        return found, (planless or not self.links_seen) and now_us - self._start_us < PLANLESS_US

    def sweep(self, instance: Instance, now_us: int) -> None:
        """A deleted router is forgotten when nothing of it is on a NIC any more."""
        if instance.leaving and not instance.holdings.on_nic():
            instance.gate.unguard()
            instance.deadline_us = NEVER_US
            self._wheres.pop(instance.name, None)
            self._clashing.discard(instance.name)
            if self.instances.pop(instance.name, None) is not None:
                self.host.dirty = True
                self._index()
                if self._clashing:
                    self._place(set(), now_us)

    # --- where each router runs -----------------------------------------------------------------

    def place_all(self, now_us: int) -> None:
        """Links or plan have changed: choose each router's NIC anew."""
        self._place(set(self.instances), now_us)

    def _place(self, changed: set[str], now_us: int) -> None:
        """These may run elsewhere than before; and with them others of the same VRID."""
        interfaces = [nic.link.interface for nic in self.host.nics.values()]
        taken: dict[tuple[int, int], str] = {}
        moved: list[Instance] = []
        for name, instance in self.instances.items():
            if name in changed:
                self._wheres[name] = self._where(instance, interfaces)
            where = self._wheres[name]
            clash = (
                isinstance(where, Nic)
                and taken.setdefault((where.link.index, instance.virtual_router_id), name) != name
            )
            if name in changed or clash is not (name in self._clashing):
                moved.append(instance)
            (self._clashing.add if clash else self._clashing.discard)(name)
        self._listen([where.link.index for where in self._wheres.values() if isinstance(where, Nic)], now_us)
        for instance in moved:
            clash = instance.name in self._clashing
            instance.place(Reason.INVALID_PLAN if clash else self._wheres[instance.name], now_us)
        self._index()
        if not self.stopping:
            self.prepare()
        for instance in moved:
            instance.settle(now_us)
            self.agenda.arm(instance)

    def _where(self, instance: Instance, interfaces: list[Interface]) -> Nic | Reason:
        if self.stopping:
            return Reason.STOPPING
        if not instance.holdings.virtual().isdisjoint(self.host.macs):
            return Reason.MAC_OF_NODE
        if not instance.runs_here:
            return Reason.NOT_CANDIDATE
        if instance.holdings.virtual() and not self.host.virtual_macs:
            return Reason.VIRTUAL_MAC_UNAVAILABLE
        if not self.links_seen:
            return Reason.STARTING
        spec = instance.virtual_router.spec
        addresses = [planned.address for planned in spec.addresses if planned.state == "Held"]
        addresses = addresses or [planned.address for planned in spec.addresses]
        chosen = choose(interfaces, spec.interfaces, addresses)
        if isinstance(chosen, Reason):
            return chosen
        nic = next(nic for nic in self.host.nics.values() if nic.link.interface is chosen)
        return nic if nic.usable else Reason.NO_CARRIER

    def _index(self) -> None:
        self.running = {
            (instance.nic.link.index, instance.virtual_router_id): instance
            for instance in self.instances.values()
            if instance.nic is not None
        }
        claimants: dict[bytes, list[Instance]] = {}
        dressed: dict[bytes, dict[Instance, None]] = {}
        for instance in self.instances.values():
            for packed, holding in instance.holdings.by_packed.items():
                claimants.setdefault(packed, []).append(instance)
                if holding.mac:
                    dressed.setdefault(holding.mac, {})[instance] = None
        self.dressed = {mac: tuple(several) for mac, several in dressed.items()}
        self.claimants = {packed: tuple(several) for packed, several in claimants.items()}

    def _listen(self, chosen: list[int], now_us: int) -> None:
        """Hear every NIC that has addresses of its own, and those chosen by name; the chosen ones first."""
        others = [index for index, nic in sorted(self.host.nics.items()) if nic.is_addressed]
        wanted = frozenset(list(dict.fromkeys([*sorted(chosen), *others]))[:MAX_NICS])
        for index, nic in self.host.nics.items():
            if index not in wanted:
                if nic.heard_since_us is not None:
                    self.host.hearing.forget(index)
                nic.listen(None)
            elif nic.heard_since_us is None:
                nic.listen(now_us)
        present = frozenset(self.host.nics)
        if present != self._covered:
            self._covered = present
            self.host.out.append(Cover(present))
        if wanted != self._hearing_on:
            self._hearing_on = wanted
            self.host.out.append(Hear(wanted))

    def prepare(self) -> None:
        """Say what may soon be bound; with virtual MACs that are fenced: another router here may have it."""
        wanted: dict[int, list[Holding]] = {index: [] for index in self._prepared}
        for instance in self.instances.values():
            if instance.nic is not None:
                instance.guard()  # no virtual MAC before it is fenced
                wanted.setdefault(instance.nic.link.index, []).extend(instance.holdings.wanted())
        fenced = {each for instance in self.instances.values() for each in instance.gate.macs}
        for index, holdings in sorted(wanted.items()):
            pairs = [(holding.address, holding.mac.hex(":")) for holding in holdings if holding.mac]
            macs = sorted(pair for pair in pairs if (index, *pair) in fenced)
            whole = Prepare(index, frozenset(holding.address for holding in holdings), tuple(macs))
            if self._prepared.get(index, Prepare(index, frozenset())) != whole:
                self.host.out.append(whole)
            self._prepared[index] = whole
        self._prepared = {index: whole for index, whole in self._prepared.items() if whole.addresses}
