# SPDX-License-Identifier: Apache-2.0
"""The fence: the kernel silences an address whose speaker stalls or dies (semantics.md 4.3, ``fence_rules``).

A lease runs in the kernel. ``take`` begins it; each advert that leaves with our mark begins it anew, and
nothing else does; once it is over, nothing for or from the addresses passes, late adverts neither, until
it is taken again. The table outlives the process, which is the point of it.

Here lies what the table should be; a change is one transaction. When the table was flushed by another
hand it is made anew, but never its leases: only the election knows whether they are still ours.
Nothing here raises. What changes the table waits for a transaction of somebody else (kube-proxy) that is
under way; take, extend and quiet do not (``fence_orders``), nor do alive, and mend when all is well.
"""

import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from holdfast_speaker import fence_orders
from holdfast_speaker import fence_rules as rules
from holdfast_speaker import nftables as nft

log = logging.getLogger(__name__)

_COARSE: Final = 6  # CLOCK_MONOTONIC_COARSE: its resolution is one tick of the kernel
_LOOPBACK: Final = 1
_ONE_MS: Final = 1000
_WHY: Final = {
    errno.EPERM: "no right to it: NET_ADMIN is missing",
    errno.EOPNOTSUPP: "no hook for outgoing frames: Linux 5.16 with NETFILTER_EGRESS is needed",
    errno.ENOENT: "the kernel lacks a part of nf_tables: nft_numgen or the netdev family",
    errno.EPROTONOSUPPORT: "the kernel has no nf_tables",
}


def jiffy_us() -> int:
    """One tick of the kernel: the grain of a lease."""
    return round(time.clock_getres(_COARSE) * 1e6)


@dataclass(frozen=True, slots=True)
class Guard:
    """What the kernel knows of a virtual router."""

    index: int
    lease_ms: int
    addresses: frozenset[str]


@dataclass(frozen=True, slots=True)
class Standing:
    """What must be found in the table, but for the NICs' chains."""

    chains: frozenset[str]
    rules: int


_NOWHERE: Final = Guard(0, 0, frozenset())
_NOTHING: Final = Standing(frozenset(), 0)


class KernelFence:
    """``ports.Fence`` on nf_tables, in the network namespace of the thread that made it.

    ``fault``: why there is none on this kernel ("" : there is); every verb is then without effect, and
    what may be taken is taken. ``mark``: SO_MARK of the sockets that send adverts, nobody else's business.
    """

    def __init__(self) -> None:
        self.mark = fence_orders.new_mark()
        self._orders = fence_orders.Orders()
        self.fault = ""
        self._guards: dict[int, Guard] = {}
        self._guarded: set[int] = set()
        self._quiet: set[int] = set()
        self._taken: set[int] = set()
        self._lost: set[int] = set()
        self._wanted: frozenset[int] = frozenset()
        self._covered: dict[int, str] = {}
        self._generation = 0
        self._standing = _NOTHING
        try:
            self._kernel = nft.Nftables()
        except OSError as error:
            self.fault = _why(error.errno or errno.EIO)
            self._orders.close()
            return
        code = self._kernel.commit(rules.trial())
        if code:
            self.fault = _why(code)
            self._kernel.close()
            self._orders.close()

    # --- the whole ------------------------------------------------------------------------------

    def open(self, orphans: Iterable[str]) -> None:
        """Begin: an empty table in place of the last process's. No lease of that one is left.

        ``orphans``, addresses of the last process that are still bound here, are silent on every NIC
        until a router guards them or they are adopted.
        """
        for known in (self._guards, self._guarded, self._quiet, self._taken, self._lost, self._covered):
            known.clear()
        left = frozenset(orphans)
        self._wanted = frozenset()
        if left:
            self._guards[rules.ORPHANS] = Guard(0, 0, left)
            self._guarded.add(rules.ORPHANS)
            self._wanted = frozenset(index for index, _ in socket.if_nameindex() if index != _LOOPBACK)
        if not self.fault:
            self._rebuild()

    def close(self) -> None:
        """No fence any more, as if there had never been one."""
        if not self.fault:
            self._kernel.commit([nft.new_table(rules.TABLE), nft.delete_table(rules.TABLE)])
            self._kernel.close()
            self._orders.close()
            self.fault = "closed"

    def cover(self, indexes: frozenset[int]) -> None:
        """The fence stands on exactly these NICs. Of a bridge or bond name itself, never its ports."""
        self._wanted = indexes
        if not self.fault:
            self._cover(self._kernel.chains(rules.TABLE))

    def mend(self) -> frozenset[int]:
        """Look whether all of it is there, and put it there. Which routers lost their lease by that
        since the last time: to be taken again by those who are still Active."""
        if self.fault:
            return frozenset()
        chains = self._kernel.chains(rules.TABLE)
        if self._whole(chains):
            self._cover(chains)
        else:
            log.warning("table netdev %s was changed by another hand: making it anew", rules.TABLE)
            self._rebuild()
        lost = frozenset(self._lost)
        self._lost.clear()
        return lost

    def refresh(self) -> None:
        """Guards hold for 60 s; call it every 10 s. After the death of a speaker they end by themselves,
        later than its addresses. Adverts prolong those of their routers, so there is seldom one left."""
        if not self.fault:
            waiting = sorted(self._guarded - self._taken)
            self._do("refresh", [m for v in waiting for m in _guarded(v)])

    # --- which addresses ------------------------------------------------------------------------

    def guard(
        self,
        virtual_router_id: int,
        index: int,
        lease_us: int,
        addresses: Iterable[str],
        macs: Mapping[str, str] = {},
        own: str | None = None,
    ) -> None:
        """These are the router's addresses, all of them, at home on that NIC. Takes nothing: until the
        first ``take`` they are as without a fence, but for orphans, which stay silent."""
        if self.fault:
            return
        new = Guard(index, max(1, lease_us // _ONE_MS), frozenset(addresses))
        old = self._guards.get(virtual_router_id)
        if new == old:
            return
        messages: nft.Messages = []
        if old is None:
            messages += rules.router(virtual_router_id, index, new.lease_ms)
        elif (old.index, old.lease_ms) != (new.index, new.lease_ms):
            messages += rules.reroute(virtual_router_id, index, new.lease_ms)
        had = (old or _NOWHERE).addresses
        moved = {
            other: guard.addresses & new.addresses
            for other, guard in self._guards.items()
            if other != virtual_router_id and not guard.addresses.isdisjoint(new.addresses)
        }
        messages += rules.disown((had - new.addresses).union(*moved.values()))
        messages += rules.own(virtual_router_id, new.addresses - had)
        for other, lost in moved.items():
            guard = self._guards[other]
            self._guards[other] = Guard(guard.index, guard.lease_ms, guard.addresses - lost)
        self._guards[virtual_router_id] = new
        if rules.ORPHANS in moved and virtual_router_id not in self._guarded:
            self._guarded.add(virtual_router_id)
            messages += _guarded(virtual_router_id)
        self._do(f"guard {virtual_router_id}", messages, stated=True)

    def unguard(self, virtual_router_id: int) -> None:
        """No such router any more."""
        guard = self._guards.pop(virtual_router_id, None)
        if guard is None or self.fault:
            return
        for known in (self._guarded, self._quiet, self._taken, self._lost):
            known.discard(virtual_router_id)
        messages = rules.remove(virtual_router_id, guard.addresses)
        self._do(f"unguard {virtual_router_id}", messages, stated=True)

    def shelter(self) -> None:
        """Macvlans of virtual MACs came or went: each hears nothing but what is for its addresses."""

    def heard_macs(self) -> frozenset[str]:
        """Virtual MACs of ours that were the sender of frames that came in within the last second."""
        return frozenset()

    def adopt(self, address: str) -> None:
        """No orphan any more: released, or somebody else's."""
        guard = self._guards.get(rules.ORPHANS)
        if guard is not None and address in guard.addresses and not self.fault:
            self._guards[rules.ORPHANS] = Guard(0, 0, guard.addresses - {address})
            self._do(f"adopt {address}", rules.disown((address,)), stated=True)

    # --- leases ---------------------------------------------------------------------------------

    def take(self, virtual_router_id: int) -> bool:
        """A lease from now on, and answers. False: the kernel refused, do not bind."""
        guard = self._guards.get(virtual_router_id)
        if self.fault:
            return True
        if guard is None:
            log.error("fence: take of virtual router %d, which nobody guards", virtual_router_id)
            return False
        messages = [
            *_guarded(virtual_router_id),
            *rules.forget(virtual_router_id, rules.QUIET),
            *rules.begin(virtual_router_id, rules.ALIVE, guard.lease_ms),
        ]
        ordered = virtual_router_id not in self._quiet and self._order(
            virtual_router_id, fence_orders.TAKE, rules.ALIVE
        )
        if not ordered and not self._do(f"take {virtual_router_id}", messages):
            return False
        self._guarded.add(virtual_router_id)
        self._taken.add(virtual_router_id)
        self._quiet.discard(virtual_router_id)
        self._lost.discard(virtual_router_id)
        return True

    def extend(self, virtual_router_id: int) -> bool:
        """The lease begins anew without an advert. False: it was over already."""
        if self.fault:
            return True
        guard = self._guards.get(virtual_router_id)
        if guard is None:
            return False
        if self._order(virtual_router_id, fence_orders.EXTEND, rules.ALIVE):
            return True
        return self._kernel.commit(rules.prolong(virtual_router_id, guard.lease_ms)) == 0

    def alive(self, virtual_router_id: int) -> bool:
        return bool(self.fault) or self._kernel.contains(
            rules.TABLE, rules.ALIVE, rules.key(virtual_router_id)
        )

    def quiet(self, virtual_router_id: int) -> None:
        """No answer to ARP and ND any more; what comes all the same is still served."""
        if virtual_router_id in self._guards and not self.fault:
            self._quiet.add(virtual_router_id)
            if not self._order(virtual_router_id, fence_orders.QUIET, rules.QUIET):
                self._do(
                    f"quiet {virtual_router_id}", rules.begin(virtual_router_id, rules.QUIET), stated=True
                )

    def silent(self, virtual_router_id: int) -> None:
        """The lease is over; the addresses are still bound and still guarded."""
        self._end(virtual_router_id, rules.ALIVE)

    def release(self, virtual_router_id: int) -> None:
        """The addresses are bound here no more: who still believes so is forwarded."""
        self._guarded.discard(virtual_router_id)
        self._quiet.discard(virtual_router_id)
        self._end(virtual_router_id, rules.ALIVE, rules.GUARDED, rules.QUIET)

    def _end(self, virtual_router_id: int, *names: str) -> None:
        self._taken.discard(virtual_router_id)
        self._lost.discard(virtual_router_id)
        if virtual_router_id in self._guards and not self.fault:
            messages = rules.forget(virtual_router_id, *names)
            self._do(f"end of {', '.join(names)} of {virtual_router_id}", messages)

    def _order(self, virtual_router_id: int, order: int, effect: str) -> bool:
        """Whether the router is in the set ``effect`` after a frame that orders it."""
        device = self._covered.get(self._guards[virtual_router_id].index)
        return (
            device is not None
            and self._orders.give(device, virtual_router_id, order)
            and self._kernel.contains(rules.TABLE, effect, rules.key(virtual_router_id))
        )

    # --- the kernel -----------------------------------------------------------------------------

    def _do(self, what: str, messages: nft.Messages, *, stated: bool = False) -> bool:
        """One transaction. Refused, it is tried again, on a table made anew where it is not whole.

        ``stated``: what it does is in the memory that the table is made from, so that is enough.
        """
        if not messages:
            return True
        code = self._kernel.commit(messages)
        if code:
            log.info("fence: %s refused: %s", what, _name(code))
            whole = self._whole(self._kernel.chains(rules.TABLE), unseen=True)
            code = 0 if whole else self._rebuild()
            if not code and (whole or not stated):
                code = self._kernel.commit(messages)
        if code:
            log.error("fence: %s refused twice: %s", what, _name(code))
        if stated:
            self._standing = _NOTHING if code else self._expected()
        return code == 0

    def _rebuild(self) -> int:
        """The table from memory in one transaction; 0 or an errno. Leases that ran are over by it."""
        messages = rules.table(self.mark, self._orders.mark)
        for virtual_router_id, guard in self._guards.items():
            messages += rules.router(virtual_router_id, guard.index, guard.lease_ms)
            messages += rules.own(virtual_router_id, guard.addresses)
        for virtual_router_id in self._guarded:
            messages += _guarded(virtual_router_id)
        for virtual_router_id in self._quiet:
            messages += rules.begin(virtual_router_id, rules.QUIET)
        names = _names(self._wanted)
        covers = [m for index, name in names.items() for m in rules.cover(index, name)]
        code = self._kernel.commit([*messages, *covers])
        if code in (errno.ENOENT, errno.ENODEV):  # a NIC that went away this moment
            names = {}
            code = self._kernel.commit(messages)
        if code:
            log.error("fence: table netdev %s cannot be made: %s", rules.TABLE, _name(code))
            self._standing = _NOTHING
            return code
        self._covered = names
        self._lost |= self._taken
        self._taken.clear()
        self._standing = self._expected()
        self._cover(self._kernel.chains(rules.TABLE))
        return 0

    def _expected(self) -> Standing:
        routers = len(self._guards.keys() - {rules.ORPHANS})
        orphans = rules.ORPHANS in self._guards
        return Standing(
            frozenset(rules.all_chains(self._guards)), rules.count_rules(routers, orphans=orphans)
        )

    def _whole(self, chains: frozenset[str] | None, *, unseen: bool = False) -> bool:
        """Whether nobody took anything away. When that cannot be seen now, nobody did.

        The rules are counted only when somebody changed something, or it may be ``unseen``.
        """
        if chains is None:
            return True
        if not self._standing.chains <= chains or not self._standing.chains:
            return False
        generation = self._kernel.generation()
        if generation and generation == self._generation and not unseen:
            return True
        found = self._kernel.rules(rules.TABLE)
        bases = sum(base in chains for index in self._covered for base in rules.bases(index))
        if found is not None and found != self._standing.rules + bases:
            return False
        self._generation = generation
        return True

    def _cover(self, chains: frozenset[str] | None) -> None:
        """Each wanted NIC under its present name: a rename takes the hook away (Linux 6.16), older
        kernels drop the chain with the NIC."""
        if chains is None:
            return
        names = _names(self._wanted)
        for index in sorted(self._covered.keys() | names.keys()):
            name = names.get(index)
            bases = [base for base in rules.bases(index) if base in chains]
            if name is not None and self._covered.get(index) == name and len(bases) == 2:
                continue
            messages = [nft.delete_chain(rules.TABLE, base) for base in bases]
            if name is not None:
                messages += rules.cover(index, name)
            code = self._kernel.commit(messages) if messages else 0
            if code:
                log.warning("fence: NIC %s (%d): %s", name or "gone", index, _name(code))
            elif name is None:
                self._covered.pop(index, None)
            else:
                self._covered[index] = name


def _guarded(virtual_router_id: int) -> nft.Messages:
    return rules.begin(virtual_router_id, rules.GUARDED, rules.GUARD_MS)


def _names(indexes: Iterable[int]) -> dict[int, str]:
    names = {}
    for index in sorted(indexes):
        with contextlib.suppress(OSError):
            names[index] = socket.if_indextoname(index)
    return names


def _name(code: int) -> str:
    return f"{os.strerror(code)} ({errno.errorcode.get(code, code)})"


def _why(code: int) -> str:
    return _WHY.get(code) or f"nf_tables: {_name(code)}"
