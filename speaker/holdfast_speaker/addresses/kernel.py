# SPDX-License-Identifier: Apache-2.0
"""Addresses on NICs: bind, release, refresh and the watch over all of it. The only importer of pyroute2.

pyroute2 writes each form of request once; index and address are patched into it, so that 1,000 go to
the kernel in about 10 ms (semantics.md R4.4, R4.5). Ours is what carries IFA_PROTO ``MARK`` (R5.1);
before Linux 5.18, which has no such mark, what this process bound.

An address with a virtual MAC sits on the macvlan of its MAC (``seats.py``); who asks names the NIC below
it, and is told of an address only where it belongs.
"""

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from holdfast_speaker import netlink
from holdfast_speaker.addresses import snapshot
from holdfast_speaker.addresses.around import Around, Place
from holdfast_speaker.addresses.macvlans import SKIP_STATISTICS, Macvlans
from holdfast_speaker.addresses.news import News
from holdfast_speaker.addresses.seats import Seats, Spot
from holdfast_speaker.addresses.snapshot import KernelAddress, KernelLink
from holdfast_speaker.bare_package import bare_package
from holdfast_speaker.events import AddressesSeen, LinksSeen
from holdfast_speaker.ports import Surroundings

with bare_package("pyroute2"):  # its __init__ imports all of it: 160 modules and 8 MiB that nobody asks here
    from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST
    from pyroute2.netlink.rtnl import RTM_DELADDR, RTM_NEWADDR
    from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD, IFA_F_NOPREFIXROUTE, ifaddrmsg

log = logging.getLogger(__name__)

MARK: Final = 0xBA
LIFETIME_S: Final = 30
_SCOPE_LINK: Final = 253
_LOOK_AGAIN_S: Final = 10.0
_TROUBLE_S: Final = 1.0
_MARKED_AT_ONCE: Final = 64
_INDEX_AT: Final = 20  # in a request: 16 of struct nlmsghdr, then ifaddrmsg.ifa_index at 4


@dataclass(frozen=True, slots=True)
class _Template:
    """A request with a hole for the address wherever pyroute2 put it, and one for the index."""

    parts: tuple[bytes, ...]

    def at(self, index: int, packed: bytes) -> bytes:
        whole = packed.join(self.parts)
        return whole[:_INDEX_AT] + struct.pack("=i", index) + whole[_INDEX_AT + 4 :]


def _template(family: int, kind: int, flags: int) -> _Template:
    """RTM_NEWADDR or RTM_DELADDR as R1.5 and R5.1 want it: /32 scope link; /128 nodad, never a source."""
    size, example = (4, "203.0.113.77") if family == socket.AF_INET else (16, "2001:db8:ca11:ab1e::77")
    message = ifaddrmsg()  # type: ignore[no-untyped-call]
    message["family"] = family
    message["prefixlen"] = size * 8
    message["scope"] = _SCOPE_LINK if family == socket.AF_INET else 0
    attributes: list[tuple[str, object]] = [("IFA_LOCAL", example), ("IFA_ADDRESS", example)]
    if kind == RTM_NEWADDR:
        preferred = LIFETIME_S
        if family == socket.AF_INET6:
            attributes.append(("IFA_FLAGS", IFA_F_NODAD | IFA_F_NOPREFIXROUTE))
            preferred = 0
        attributes.append(("IFA_CACHEINFO", {"ifa_preferred": preferred, "ifa_valid": LIFETIME_S}))
        attributes.append(("IFA_PROTO", MARK))
    message["attrs"] = attributes
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | flags
    message.encode()  # type: ignore[no-untyped-call]
    return _Template(tuple(bytes(message.data).split(socket.inet_pton(family, example))))


class _Requests:
    """Ready-made requests of one family."""

    __slots__ = ("add", "remove", "renew")

    def __init__(self, family: int) -> None:
        self.add = _template(family, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL)
        self.renew = _template(family, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)
        self.remove = _template(family, RTM_DELADDR, 0)


class KernelAddresses:
    """``ports.Addresses`` on rtnetlink. Needs NET_ADMIN; writes nothing to /proc/sys."""

    def __init__(self, news_buffer_bytes: int = 4 << 20) -> None:
        self._news_buffer_bytes = news_buffer_bytes
        self._netlink = netlink.Requests()
        self._macvlans = Macvlans()
        self._requests = {family: _Requests(family) for family in (socket.AF_INET, socket.AF_INET6)}
        self._seats = Seats(self._macvlans)
        self._done_since_look: list[tuple[Spot, bool]] = []
        self._marks_known = False  # this kernel has them
        self._marked_anew: dict[Spot, float] = {}
        self._links: dict[int, KernelLink] = {}
        self._around = Around(self._places, self._macvlans.parent_of)
        self._news: News | None = None

    def close(self) -> None:
        self._macvlans.close()
        self._netlink.close()

    # --- the three verbs --------------------------------------------------------------------------

    def prepare(self, index: int, addresses: frozenset[str], macs: Mapping[str, str] = {}) -> None:
        if index not in self._seats.prepared:
            self._around.soon.set()
        if self._seats.prepare(index, addresses, macs) and self._news is not None:
            self._news.soon()

    def bind(self, index: int, addresses: Sequence[str]) -> dict[str, str]:
        """Bound anew, or refreshed where it is ours already. A stranger's own /32 is not taken over."""
        faults: dict[str, str] = {}
        left = addresses
        for _ in range(2):
            seats, without = self._seats.assign(index, left)
            errors = self._bind(index, seats)
            faults |= without | {a: netlink.why_not(code) if code else "" for a, code in errors.items()}
            left = [a for a, code in errors.items() if code == errno.ENODEV and seats[a] != index]
            if not left:
                break
            for address in left:  # another hand deleted the macvlan a moment ago: it is made anew
                self._macvlans.forget(seats[address])
        return {address: why for address, why in faults.items() if why}

    def _bind(self, index: int, seats: Mapping[str, int]) -> dict[str, int]:
        spots = [(seat, address) for address, seat in seats.items()]
        errors = self._send(spots, lambda form, spot: form.renew if self._seats.has(spot) else form.add)
        taken = [spot for spot in spots if errors[spot] == errno.EEXIST]
        if taken:
            ours = self._marked_now({seat for seat, _ in taken})
            errors |= self._send([spot for spot in taken if spot in ours], lambda form, _: form.renew)
        bound = [spot for spot in spots if errors[spot] == 0]
        fresh = [spot for spot in bound if not self._seats.has(spot)]
        for spot in bound:
            self._note(spot, bound=True)
        elsewhere = [
            (other, a) for seat, a in bound for other in self._seats.where(index, a) if other != seat
        ]
        if elsewhere:
            self._remove(elsewhere)
            self._seats.sweep()
        sixes = [(seat, socket.inet_pton(socket.AF_INET6, a)) for seat, a in fresh if ":" in a]
        if sixes and not netlink.await_local(sixes):
            log.warning("the kernel is slow to receive for %d new IPv6 addresses", len(sixes))
        if fresh:
            self._around.soon.set()  # whom the last copies' questions go to must not be 10 s old
            if self._news is not None:
                self._news.soon()
        return {address: errors[seat, address] for address, seat in seats.items()}

    def release(self, index: int, addresses: Sequence[str]) -> dict[str, str]:
        failed = self._remove(
            [(seat, address) for address in addresses for seat in self._seats.where(index, address)]
        )
        self._seats.sweep()
        return failed

    def refresh(self, index: int, addresses: Sequence[str]) -> None:
        """Only what is ours; what was lost meanwhile is told by the watch."""
        self._renew([(seat, address) for address in addresses for seat in self._seats.where(index, address)])

    async def release_everything(self) -> int:
        """And no macvlan of ours is left either: those take 40 ms, or 200 of them 60."""
        self._macvlans.unwant()
        left = self._seats.spots
        try:
            links, addresses = await self._dump()
            self._macvlans.see(links)
            left = {(a.index, a.address) for a in addresses if self._is_ours(a)}
        except OSError as error:
            log.error("cannot ask the kernel for addresses left behind: %s", error)
        for address, why in self._remove(sorted(left)).items():
            log.error("cannot release %s: %s", address, why)
        await self._macvlans.remove_everything()
        return len(left)

    def marked(self) -> frozenset[tuple[int, str]]:
        """What an earlier life left bound; asked once, at start, so it may block. Idle macvlans go."""
        left = self._left_behind()
        self._seats.found(left)
        return frozenset((self._macvlans.parent_of(seat), address) for seat, address in left)

    def leftover_macs(self) -> dict[str, str]:
        """The virtual MACs of what an earlier life left bound, for those that have one."""
        found = ((address, self._macvlans.mac_of(seat)) for seat, address in self._left_behind())
        return {address: mac for address, mac in found if mac is not None}

    def _left_behind(self) -> set[Spot]:
        try:
            links = netlink.dump_now(netlink.RTM_GETLINK, bytes(16) + SKIP_STATISTICS)
            addresses = netlink.dump_now(netlink.RTM_GETADDR, bytes(8))
        except OSError as error:
            log.error("cannot ask the kernel for addresses left behind: %s", error)
            return set()
        self._macvlans.see(snapshot.read_all(snapshot.read_link, links))
        found = snapshot.read_all(snapshot.read_address, addresses)
        return {(a.index, a.address) for a in found if a.mark == MARK}

    def surroundings(self, index: int) -> Surroundings:
        return self._around.on(index) or Surroundings(forwarding=self._forwards(index))

    # --- requests ---------------------------------------------------------------------------------

    def _remove(self, spots: Sequence[Spot]) -> dict[str, str]:
        failed: dict[str, str] = {}
        for spot, code in self._send(spots, lambda form, _: form.remove).items():
            if code in (0, errno.EADDRNOTAVAIL, errno.ENODEV):
                self._note(spot, bound=False)
            else:
                failed[spot[1]] = netlink.why_not(code)
        return failed

    def _renew(self, spots: Sequence[Spot]) -> None:
        errors = self._send(spots, lambda form, _: form.renew)
        refused = {netlink.why_not(code) for code in errors.values() if code not in (0, errno.ENODEV)}
        if refused:
            log.warning("refreshing %d addresses: %s", len(spots), ", ".join(sorted(refused)))

    def _send(self, spots: Sequence[Spot], form: Callable[[_Requests, Spot], _Template]) -> dict[Spot, int]:
        errors = dict.fromkeys(spots, errno.EINVAL)
        messages: dict[Spot, bytes] = {}
        for spot in errors:
            seat, address = spot
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                packed = socket.inet_pton(family, address)
            except OSError:
                continue
            messages[spot] = form(self._requests[family], spot).at(seat, packed)
        errors.update(zip(messages, self._netlink.send(tuple(messages.values())), strict=True))
        return errors

    def _note(self, spot: Spot, *, bound: bool) -> None:
        self._seats.note(spot, bound=bound)
        self._done_since_look.append((spot, bound))

    def _is_ours(self, address: KernelAddress) -> bool:
        full = 128 if ":" in address.address else 32
        return address.mark == MARK or (
            address.mark == 0 and address.prefix == full and self._seats.has((address.index, address.address))
        )

    def _marked_now(self, seats: set[int]) -> set[Spot]:
        """Our addresses on these, asked now: a rare question, so it may block (about 1 ms)."""
        index = next(iter(seats)) if len(seats) == 1 else 0
        try:
            bodies = netlink.dump_now(netlink.RTM_GETADDR, struct.pack("=BBBBi", 0, 0, 0, 0, index))
        except OSError:
            return set()
        found = snapshot.read_all(snapshot.read_address, bodies)
        return {(a.index, a.address) for a in found if a.index in seats and a.mark == MARK}

    # --- the watch --------------------------------------------------------------------------------

    async def watch(self) -> AsyncIterator[LinksSeen | AddressesSeen]:
        loop = asyncio.get_running_loop()
        with closing(netlink.Monitor(MARK, self._news_buffer_bytes)) as monitor:
            news = self._news = News(monitor, known=self._is_known)
            loop.add_reader(monitor.fileno(), news.read)
            around = asyncio.create_task(self._around.look_often())
            try:
                told: LinksSeen | None = None
                while True:
                    try:
                        links, spots, suspects = await self._look()
                    except OSError as error:
                        log.warning("cannot read the host's addresses: %s", error)
                        await asyncio.sleep(_TROUBLE_S)
                        continue
                    if links != told:
                        told = links
                        yield links
                    yield AddressesSeen(self._as_of_now(spots, suspects))
                    await news.wait(_LOOK_AGAIN_S)
            finally:
                self._news = None
                loop.remove_reader(monitor.fileno())
                around.cancel()

    def _is_known(self, index: int) -> bool:
        return index in self._links or self._macvlans.knows(index)

    async def _look(self) -> tuple[LinksSeen, set[Spot], frozenset[int]]:
        """NICs; our addresses; the macvlans another hand put out of order, which are mended by now."""
        self._done_since_look.clear()
        kernel_links, addresses = await self._dump()
        spots = {(a.index, a.address) for a in addresses if self._is_ours(a)}
        links = snapshot.links_seen(kernel_links, [a for a in addresses if not self._is_ours(a)])
        chosen = {link.index for link in links}
        self._links.clear()
        self._links.update((link.index, link) for link in kernel_links if link.index in chosen)
        self._mark_anew(addresses)
        present = {link.index for link in kernel_links}
        self._seats.unprepare(self._seats.prepared.keys() - present)
        suspects = self._macvlans.see(kernel_links)
        await self._macvlans.mend()
        return LinksSeen(links), spots, suspects

    async def _dump(self) -> tuple[list[KernelLink], list[KernelAddress]]:
        self._macvlans.begin_look()
        links = await netlink.dump(netlink.RTM_GETLINK, bytes(16) + SKIP_STATISTICS)
        addresses = await netlink.dump(netlink.RTM_GETADDR, bytes(8))
        return (
            snapshot.read_all(snapshot.read_link, links),
            snapshot.read_all(snapshot.read_address, addresses),
        )

    def _mark_anew(self, addresses: Iterable[KernelAddress]) -> None:
        """Another program's "ip address replace" took our mark, and often the lifetime, off addresses.

        Should we die like that they would stay for ever. Each at most once a second: it may do so again.
        """
        self._marks_known = self._marks_known or any(a.mark == MARK for a in addresses)
        if not self._marks_known:
            return
        now = asyncio.get_running_loop().time()
        recent = {spot: at for spot, at in self._marked_anew.items() if now - at < _TROUBLE_S}
        bare = [(a.index, a.address) for a in addresses if a.mark != MARK and self._is_ours(a)]
        bare = [spot for spot in bare if spot not in recent][:_MARKED_AT_ONCE]
        self._marked_anew = recent | dict.fromkeys(bare, now)
        for _, address in bare:
            log.warning("another program replaced %s, held here: marked anew", address)
        self._renew(bare)

    def _as_of_now(self, spots: set[Spot], suspects: frozenset[int]) -> frozenset[tuple[int, str]]:
        """The dump, corrected by what we bound and released while it was read; each by its NIC.

        Left out is what sits elsewhere than where it belongs: it is to be bound anew.
        """
        for spot, there in self._done_since_look:
            (spots.add if there else spots.discard)(spot)
        self._done_since_look.clear()
        self._seats.found(spots)
        return self._seats.in_place(suspects)

    def _places(self) -> list[Place]:
        """The NICs that have addresses to announce."""
        return [
            Place(index, addresses, self._forwards(index), shared=bool(self._macvlans.on(index)))
            for index, addresses in self._seats.prepared.items()
            if addresses
        ]

    def _forwards(self, index: int) -> bool:
        link = self._links.get(index)
        return link is not None and link.forwarding
