# SPDX-License-Identifier: Apache-2.0
"""The fence: the kernel silences an address whose speaker stalls or dies (semantics.md 4.3, ``rules``).

A lease runs in the kernel. ``take`` begins it; each advert that leaves with our mark begins it anew, and
nothing else does; once it is over, nothing for or from the addresses passes, late adverts neither, until
it is taken again. The table outlives the process, which is the point of it.

Here lies what the table should be; a change is one transaction. When the table was flushed by another
hand it is made anew, but never its leases: only the election knows whether they are still ours.
Nothing here raises. What changes the table waits for a transaction of somebody else (kube-proxy) that is
under way; take, extend and quiet do not (``orders``), nor do alive, and mend when all is well.
"""

import errno
import logging
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from holdfast_speaker import virtual_mac
from holdfast_speaker.fence import guarding, mac_rules, orders, rules, words
from holdfast_speaker.fence import nftables as nft
from holdfast_speaker.fence.guarding import Guard
from holdfast_speaker.fence.nftables_socket import Nftables
from holdfast_speaker.fence.nics import Nics, Posts, all_indexes, covers, hooks, name_of
from holdfast_speaker.fence.words import ALIVE, GUARDED, ORPHANS, QUIET, TABLE

log = logging.getLogger(__name__)

_COARSE: Final = 6  # CLOCK_MONOTONIC_COARSE: its resolution is one tick of the kernel
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
class Standing:
    """What must be found in the table, but for the NICs' chains."""

    chains: frozenset[str]
    rules: int


_NOTHING: Final = Standing(frozenset(), 0)


class KernelFence:
    """``ports.Fence`` on nf_tables, in the network namespace of the thread that made it.

    ``fault``: why there is none on this kernel ("" : there is); every verb is then without effect, and
    what may be taken is taken. ``mark``: SO_MARK of the sockets that send adverts, nobody else's business.
    """

    def __init__(self) -> None:
        self.mark = orders.new_mark()
        self._orders = orders.Orders()
        self.fault = ""
        self._guards: dict[int, Guard] = {}
        self._guarded: set[int] = set()
        self._quiet: set[int] = set()
        self._taken: set[int] = set()
        self._lost: set[int] = set()
        self._parting: set[int] = set()  # unguarded, but macvlans of theirs are still there
        self._nics = Nics()
        self._generation = 0
        self._standing = _NOTHING
        try:
            self._kernel = Nftables()
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

    def open(self, orphans: Iterable[str], macs: Mapping[str, str] = {}) -> None:
        """Begin: an empty table in place of the last process's. No lease of that one is left.

        ``orphans``, addresses of the last process that are still bound here, are silent on every NIC
        until a router guards them or they are adopted; so are ``macs``, the virtual MACs of some of them.
        """
        for known in (self._guards, self._guarded, self._quiet, self._taken, self._lost, self._parting):
            known.clear()
        self._nics = Nics()
        left = Guard(0, 0, frozenset(orphans), dict(macs))
        if left.addresses or left.macs:
            self._guards[ORPHANS] = left
            self._guarded.add(ORPHANS)
            self._nics.wanted = all_indexes()
        if not self.fault:
            self._rebuild()
            self._kernel.commit(mac_rules.unbar())  # of one that died while it made the table

    def close(self) -> None:
        """No fence any more, as if there had never been one."""
        if not self.fault:
            self._kernel.commit([nft.new_table(TABLE), nft.delete_table(TABLE), *mac_rules.unbar()])
            self._kernel.close()
            self._orders.close()
            self.fault = "closed"

    def cover(self, indexes: frozenset[int]) -> None:
        """The fence stands on exactly these NICs. Of a bridge or bond name itself, never its ports."""
        self._nics.wanted = indexes
        self.shelter()

    def mend(self) -> frozenset[int]:
        """Look whether all of it is there, and put it there. Which routers lost their lease by that
        since the last time: to be taken again by those who are still Active."""
        if self.fault:
            return frozenset()
        self._part()
        chains = self._kernel.chains(TABLE)
        if self._whole(chains):
            self._mend_nics(chains)
        else:
            log.warning("table netdev %s was changed by another hand: making it anew", TABLE)
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
        """These are the router's addresses, all of them, at home on that NIC, whose own IPv4 address is
        ``own``. Takes nothing: until the first ``take`` they are as without a fence, but for orphans, which
        stay silent, and for ``macs``, the virtual MAC of each that has one: nobody hears from it before."""
        if self.fault:
            return
        self._parting.discard(virtual_router_id)
        theirs = frozenset(addresses)
        has = {address: mac for address, mac in macs.items() if address in theirs}
        new = Guard(index, max(1, lease_us // _ONE_MS), theirs, has, own)
        if virtual_router_id not in self._guards:  # its chains first: a map may send a frame there at once
            empty = Guard(new.index, new.lease_ms, own=own)
            made, _ = guarding.put(self._guards, virtual_router_id, empty)
            self._do(f"guard {virtual_router_id}", made, stated=True)
        messages, lost = guarding.put(self._guards, virtual_router_id, new)
        if ORPHANS in lost and virtual_router_id not in self._guarded:
            self._guarded.add(virtual_router_id)
            messages += _guarded(virtual_router_id)
        self._do(f"guard {virtual_router_id}", messages, stated=True)

    def unguard(self, virtual_router_id: int) -> None:
        """No such router any more. Nothing is said by its virtual MACs while their macvlans are still there:
        the kernel goes on telling multicast groups of an address that has just gone."""
        if virtual_router_id not in self._guards or self.fault:
            return
        for known in (self._guarded, self._quiet, self._taken, self._lost):
            known.discard(virtual_router_id)
        self._parting.add(virtual_router_id)
        self._part()
        if virtual_router_id in self._parting:
            self._end(virtual_router_id, ALIVE, GUARDED, QUIET)

    def _part(self) -> None:
        devices = {name for _, name in socket.if_nameindex()} if self._parting else set()
        for virtual_router_id in sorted(self._parting):
            macs = self._guards[virtual_router_id].macs.values()
            if devices.isdisjoint(map(virtual_mac.device, macs)):
                self._parting.discard(virtual_router_id)
                messages = guarding.remove(self._guards, virtual_router_id)
                self._do(f"unguard {virtual_router_id}", messages, stated=True)

    def adopt(self, address: str) -> None:
        """No orphan any more: released, or somebody else's."""
        left = self._guards.get(ORPHANS)
        if left is not None and address in {*left.addresses, *left.macs} and not self.fault:
            messages, _ = guarding.put(self._guards, ORPHANS, left.without_address(address))
            self._do(f"adopt {address}", messages, stated=True)

    def shelter(self) -> None:
        """Macvlans of virtual MACs came or went: each hears nothing but what is for its addresses."""
        if not self.fault:
            self._part()
            self._mend_nics(self._kernel.chains(TABLE))

    def heard_macs(self) -> frozenset[str]:
        """Virtual MACs of ours that were the sender of frames that came in within the last second."""
        asked = not self.fault and any(guard.macs for guard in self._guards.values())
        heard = self._kernel.members(TABLE, mac_rules.HEARD) if asked else None
        return frozenset(mac.hex(":") for mac in heard or ())

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
            *rules.forget(virtual_router_id, QUIET),
            *rules.begin(virtual_router_id, ALIVE, guard.lease_ms),
        ]
        ordered = virtual_router_id not in self._quiet and self._order(virtual_router_id, orders.TAKE, ALIVE)
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
        if self._order(virtual_router_id, orders.EXTEND, ALIVE):
            return True
        return self._kernel.commit(rules.prolong(virtual_router_id, guard.lease_ms)) == 0

    def alive(self, virtual_router_id: int) -> bool:
        return bool(self.fault) or self._kernel.contains(TABLE, ALIVE, words.key(virtual_router_id))

    def quiet(self, virtual_router_id: int) -> None:
        """No answer to ARP and ND any more; what comes all the same is still served."""
        if virtual_router_id in self._guards and not self.fault:
            self._quiet.add(virtual_router_id)
            if not self._order(virtual_router_id, orders.QUIET, QUIET):
                self._do(f"quiet {virtual_router_id}", rules.begin(virtual_router_id, QUIET), stated=True)

    def silent(self, virtual_router_id: int) -> None:
        """The lease is over; the addresses are still bound and still guarded."""
        self._end(virtual_router_id, ALIVE)

    def release(self, virtual_router_id: int) -> None:
        """The addresses are bound here no more: who still believes so is forwarded."""
        self._guarded.discard(virtual_router_id)
        self._quiet.discard(virtual_router_id)
        self._end(virtual_router_id, ALIVE, GUARDED, QUIET)

    def _end(self, virtual_router_id: int, *names: str) -> None:
        self._taken.discard(virtual_router_id)
        self._lost.discard(virtual_router_id)
        if virtual_router_id in self._guards and not self.fault:
            messages = rules.forget(virtual_router_id, *names)
            self._do(f"end of {', '.join(names)} of {virtual_router_id}", messages)

    def _order(self, virtual_router_id: int, order: int, effect: str) -> bool:
        """Whether the router is in the set ``effect`` after a frame that orders it."""
        device = self._nics.covered(self._guards[virtual_router_id].index)
        return (
            device is not None
            and self._orders.give(device, virtual_router_id, order)
            and self._kernel.contains(TABLE, effect, words.key(virtual_router_id))
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
            log.info("fence: %s refused: %s", what, name_of(code))
            whole = self._whole(self._kernel.chains(TABLE), unseen=True)
            code = 0 if whole else self._rebuild()
            if not code and (whole or not stated):
                code = self._kernel.commit(messages)
        if code:
            log.error("fence: %s refused twice: %s", what, name_of(code))
        if stated:
            self._standing = _NOTHING if code else self._expected()
        return code == 0

    def _rebuild(self) -> int:
        """The table from memory in one transaction; 0 or an errno. Leases that ran are over by it."""
        posts = self._nics.due()
        macs = {mac for guard in self._guards.values() for mac in guard.macs.values()}
        barred = bool(macs) and not self._kernel.commit(mac_rules.bar(macs, covers(posts)))
        code = self._make(posts)
        if barred:
            self._kernel.commit(mac_rules.unbar())
        return code

    def _make(self, posts: Posts) -> int:
        messages = rules.table(self.mark, self._orders.mark)
        messages += guarding.whole(self._guards)
        for virtual_router_id in self._guarded:
            messages += _guarded(virtual_router_id)
        for virtual_router_id in self._quiet:
            messages += rules.begin(virtual_router_id, QUIET)
        code = self._kernel.commit([*messages, *hooks(posts)])
        if code in (errno.ENOENT, errno.ENODEV):  # a NIC that went away this moment
            posts = {}
            code = self._kernel.commit(messages)
        if code:
            log.error("fence: table netdev %s cannot be made: %s", TABLE, name_of(code))
            self._standing = _NOTHING
            return code
        self._nics.posts = posts
        self._lost |= self._taken
        self._taken.clear()
        self._standing = self._expected()
        self._mend_nics(self._kernel.chains(TABLE))
        return 0

    def _expected(self) -> Standing:
        routers = len(self._guards.keys() - {ORPHANS})
        orphans = ORPHANS in self._guards
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
        found = self._kernel.rules(TABLE)
        if found is not None and found != self._standing.rules + self._nics.count(chains):
            return False
        self._generation = generation
        return True

    def _mend_nics(self, chains: frozenset[str] | None) -> None:
        if chains is not None:
            self._nics.mend(self._kernel, chains)


def _guarded(virtual_router_id: int) -> nft.Messages:
    return rules.begin(virtual_router_id, GUARDED, rules.GUARD_MS)


def _why(code: int) -> str:
    return _WHY.get(code) or f"nf_tables: {name_of(code)}"
