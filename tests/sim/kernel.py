# SPDX-License-Identifier: Apache-2.0
"""A simulated host's kernel: the fence by address and by MAC, the addresses, and what outlives a speaker."""

from dataclasses import dataclass, field

from holdfast_speaker import effects as do

LIFETIME_US = 30_000_000


@dataclass(slots=True)
class Kernel:
    """What survives the speaker: the fence, and bound addresses, each from when until its lifetime ends."""

    bound: dict[str, tuple[int, int]] = field(default_factory=dict)
    guards: dict[int, do.Guard] = field(default_factory=dict)
    owners: dict[str, int] = field(default_factory=dict)  # address -> VRID
    leases: dict[int, tuple[int, int]] = field(default_factory=dict)  # VRID -> since, until
    guarded: set[int] = field(default_factory=set)
    quiet: set[int] = field(default_factory=set)
    orphans: set[str] = field(default_factory=set)
    macs: dict[str, bytes] = field(default_factory=dict)  # address -> virtual MAC that has a place here
    placed: dict[str, bytes] = field(default_factory=dict)  # bound address -> virtual MAC it lives on

    def alive(self, virtual_router_id: int, now_us: int) -> bool:
        since_us, until_us = self.leases.get(virtual_router_id, (0, 0))
        return since_us <= now_us < until_us

    def answers(self, address: str, now_us: int) -> bool:
        """Bound, and the fence lets a question in."""
        owner = self.owners.get(address)
        if not self.holds(address, now_us) or address in self.orphans:
            return False
        if address in self.placed:
            return self.speaks(self.placed[address], now_us)
        if owner is None or owner not in self.guarded:
            return True
        return self.alive(owner, now_us) and owner not in self.quiet

    def fenced_by(self, mac: bytes) -> int | None:
        """The VRID whose lease judges this virtual MAC."""
        text = mac.hex(":")
        return next(
            (vrid for vrid, g in self.guards.items() if any(text == each for _, each in g.macs)), None
        )

    def speaks(self, mac: bytes, now_us: int) -> bool:
        """Whether a frame of this virtual MAC leaves: what no fence knows is kept silent, as a stray."""
        owner = self.fenced_by(mac)
        return owner is not None and self.alive(owner, now_us) and owner not in self.quiet

    def serves(self, address: str, now_us: int) -> bool:
        """Whether a frame to the virtual MAC of this address comes in and is answered."""
        owner = self.fenced_by(self.placed.get(address, b""))
        return owner is not None and self.holds(address, now_us) and self.alive(owner, now_us)

    def prepare(self, wanted: do.Prepare) -> None:
        self.macs = {address: bytes.fromhex(mac.replace(":", "")) for address, mac in wanted.macs}
        for address, mac in self.macs.items():
            assert self.fenced_by(mac) is not None, f"{mac.hex(':')} of {address} is prepared without a fence"

    def guard(self, wanted: do.Guard) -> None:
        old = self.guards.get(wanted.virtual_router_id)
        for address in old.addresses if old else ():
            if self.owners.get(address) == wanted.virtual_router_id:
                del self.owners[address]
        self.guards[wanted.virtual_router_id] = wanted
        for address in wanted.addresses:
            self.owners[address] = wanted.virtual_router_id
        if self.orphans & set(wanted.addresses):
            self.guarded.add(wanted.virtual_router_id)
            self.orphans -= set(wanted.addresses)

    def unguard(self, virtual_router_id: int) -> None:
        self.guards.pop(virtual_router_id, None)
        self.guarded.discard(virtual_router_id)
        self.owners = {a: v for a, v in self.owners.items() if v != virtual_router_id}

    def take(self, virtual_router_id: int, at_us: int) -> None:
        self.leases[virtual_router_id] = (at_us, at_us + self.guards[virtual_router_id].lease_us)
        self.guarded.add(virtual_router_id)
        self.quiet.discard(virtual_router_id)

    def extend(self, virtual_router_id: int, at_us: int) -> bool:
        """Whether there was a lease to go on; an advert that leaves is such a thing too."""
        if not self.alive(virtual_router_id, at_us) or virtual_router_id not in self.guards:
            return False
        since_us = self.leases[virtual_router_id][0]
        self.leases[virtual_router_id] = (since_us, at_us + self.guards[virtual_router_id].lease_us)
        return True

    def end(self, virtual_router_id: int, at_us: int) -> None:
        since_us, until_us = self.leases.get(virtual_router_id, (0, 0))
        self.leases[virtual_router_id] = (since_us, min(until_us, at_us))

    def open_anew(self, now_us: int) -> None:
        """A new speaker's table: what is bound is an orphan, no lease is left."""
        self.guards.clear()
        self.owners.clear()
        self.leases.clear()
        self.guarded.clear()
        self.quiet.clear()
        self.macs.clear()
        self.orphans = {address for address in self.bound if self.holds(address, now_us)}

    def holds(self, address: str, now_us: int) -> bool:
        since_us, until_us = self.bound.get(address, (0, 0))
        return since_us <= now_us < until_us

    def bind(self, address: str, at_us: int) -> None:
        since_us = self.bound[address][0] if self.holds(address, at_us) else at_us
        self.bound[address] = (since_us, at_us + LIFETIME_US)
        if since_us == at_us:
            self.placed.pop(address, None)
            if address in self.macs:
                self.placed[address] = self.macs[address]

    def release(self, address: str, at_us: int) -> None:
        since_us, until_us = self.bound.get(address, (0, 0))
        self.bound[address] = (since_us, min(until_us, at_us))
