# SPDX-License-Identifier: Apache-2.0
"""Addresses on NICs: bind, release, refresh and the watch over all of it. The only importer of pyroute2.

pyroute2 writes each form of request once per NIC; an address is patched into it, so that 1,000 go to
the kernel in about 10 ms (semantics.md R4.4, R4.5). Ours is what carries IFA_PROTO ``MARK`` (R5.1);
before Linux 5.18, which has no such mark, what this process bound.
"""

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from holdfast_speaker import netlink, snapshot
from holdfast_speaker.bare_package import bare_package
from holdfast_speaker.events import AddressesSeen, LinksSeen
from holdfast_speaker.ports import Surroundings
from holdfast_speaker.snapshot import KernelAddress, KernelLink

with bare_package("pyroute2"):  # its __init__ imports all of it: 160 modules and 8 MiB that nobody asks here
    from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST
    from pyroute2.netlink.rtnl import RTM_DELADDR, RTM_NEWADDR
    from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD, IFA_F_NOPREFIXROUTE, ifaddrmsg

log = logging.getLogger(__name__)

MARK: Final = 0xBA
LIFETIME_S: Final = 30
_SCOPE_LINK: Final = 253
_LOOK_AGAIN_S: Final = 10.0
_QUIET_S: Final = 0.005  # between two looks at NICs we know
_CALM_S: Final = 0.1  # between two looks because of others: pods come and go
_TROUBLE_S: Final = 1.0
_MARKED_AT_ONCE: Final = 64
_SKIP_STATISTICS: Final = netlink.attribute(29, struct.pack("=I", 8))  # IFLA_EXT_MASK, SKIP_STATS

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Template:
    """A request with a hole for the address wherever pyroute2 put it."""

    parts: tuple[bytes, ...]

    def with_address(self, packed: bytes) -> bytes:
        return packed.join(self.parts)


def _template(family: int, index: int, kind: int, flags: int) -> _Template:
    """RTM_NEWADDR or RTM_DELADDR as R1.5 and R5.1 want it: /32 scope link; /128 nodad, never a source."""
    size, example = (4, "203.0.113.77") if family == socket.AF_INET else (16, "2001:db8:ca11:ab1e::77")
    message = ifaddrmsg()  # type: ignore[no-untyped-call]
    message["family"] = family
    message["prefixlen"] = size * 8
    message["index"] = index
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
    """Ready-made requests of one NIC and family."""

    __slots__ = ("add", "remove", "renew")

    def __init__(self, family: int, index: int) -> None:
        self.add = _template(family, index, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL)
        self.renew = _template(family, index, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)
        self.remove = _template(family, index, RTM_DELADDR, 0)


class KernelAddresses:
    """``ports.Addresses`` on rtnetlink. Needs NET_ADMIN; writes nothing to /proc/sys."""

    def __init__(self, news_buffer_bytes: int = 4 << 20) -> None:
        self._news_buffer_bytes = news_buffer_bytes
        self._netlink = netlink.Requests()
        self._requests: dict[tuple[int, int], _Requests] = {}
        self._prepared: dict[int, frozenset[str]] = {}
        self._ours: set[tuple[int, str]] = set()
        self._done_since_look: list[tuple[int, str, bool]] = []
        self._marks_known = False  # this kernel has them
        self._marked_anew: dict[tuple[int, str], float] = {}
        self._links: dict[int, KernelLink] = {}
        self._surroundings: dict[int, Surroundings] = {}
        self._look_around_soon = asyncio.Event()
        self._news: _News | None = None

    def close(self) -> None:
        self._netlink.close()

    # --- the three verbs --------------------------------------------------------------------------

    def prepare(self, index: int, addresses: frozenset[str], macs: Mapping[str, str] = {}) -> None:
        if index not in self._prepared:
            self._look_around_soon.set()
        self._prepared[index] = addresses
        for family in {_family(address) for address in addresses}:
            self._of(index, family)

    def bind(self, index: int, addresses: Sequence[str]) -> dict[str, str]:
        """Bound anew, or refreshed where it is ours already. A stranger's own /32 is not taken over."""
        errors = self._send(
            index,
            addresses,
            lambda requests, address: requests.renew if (index, address) in self._ours else requests.add,
        )
        taken = [address for address, code in errors.items() if code == errno.EEXIST]
        if taken:
            ours = set(self._marked_now(index))
            errors |= self._send(index, [a for a in taken if a in ours], lambda requests, _: requests.renew)
        fresh = [a for a in addresses if errors[a] == 0 and (index, a) not in self._ours]
        for address in addresses:
            if errors[address] == 0:
                self._note(index, address, bound=True)
        sixes = [socket.inet_pton(socket.AF_INET6, a) for a in fresh if ":" in a]
        if sixes and not netlink.await_local(index, sixes):
            log.warning("the kernel is slow to receive for %d new IPv6 addresses", len(sixes))
        if fresh:
            self._look_around_soon.set()  # whom the last copies' questions go to must not be 10 s old
            if self._news is not None:
                self._news.soon()
        return {address: netlink.why_not(code) for address, code in errors.items() if code}

    def release(self, index: int, addresses: Sequence[str]) -> dict[str, str]:
        mine = [address for address in addresses if (index, address) in self._ours]
        errors = self._send(index, mine, lambda requests, _: requests.remove)
        failed: dict[str, str] = {}
        for address, code in errors.items():
            if code in (0, errno.EADDRNOTAVAIL, errno.ENODEV):
                self._note(index, address, bound=False)
            else:
                failed[address] = netlink.why_not(code)
        return failed

    def refresh(self, index: int, addresses: Sequence[str]) -> None:
        """Only what is ours; what was lost meanwhile is told by the watch."""
        mine = [address for address in addresses if (index, address) in self._ours]
        errors = self._send(index, mine, lambda requests, _: requests.renew)
        refused = {netlink.why_not(code) for code in errors.values() if code not in (0, errno.ENODEV)}
        if refused:
            log.warning("refreshing %d addresses: %s", len(mine), ", ".join(sorted(refused)))

    async def release_everything(self) -> int:
        try:
            bodies = await netlink.dump(netlink.RTM_GETADDR, bytes(8))
        except OSError as error:
            log.error("cannot ask the kernel for addresses left behind: %s", error)
            left = set(self._ours)
        else:
            left = {(a.index, a.address) for a in _read(snapshot.read_address, bodies) if self._is_ours(a)}
        self._ours |= left
        for index in {index for index, _ in left}:
            for address, why in self.release(index, [a for i, a in left if i == index]).items():
                log.error("cannot release %s: %s", address, why)
        return len(left)

    def marked(self) -> frozenset[tuple[int, str]]:
        """What an earlier life left bound; asked once, at start, so it may block."""
        try:
            bodies = netlink.dump_now(netlink.RTM_GETADDR, bytes(8))
        except OSError as error:
            log.error("cannot ask the kernel for addresses left behind: %s", error)
            return frozenset()
        return frozenset((a.index, a.address) for a in _read(snapshot.read_address, bodies) if a.mark == MARK)

    def surroundings(self, index: int) -> Surroundings:
        known = self._surroundings.get(index)
        if known is None:
            link = self._links.get(index)
            return Surroundings(forwarding=link is not None and link.forwarding)
        return known

    def _of(self, index: int, family: int) -> _Requests:
        requests = self._requests.get((index, family))
        if requests is None:
            requests = self._requests[index, family] = _Requests(family, index)
        return requests

    def _send(
        self, index: int, addresses: Sequence[str], form: Callable[[_Requests, str], _Template]
    ) -> dict[str, int]:
        errors = dict.fromkeys(addresses, errno.EINVAL)
        messages: dict[str, bytes] = {}
        for address in errors:
            family = _family(address)
            try:
                packed = socket.inet_pton(family, address)
            except OSError:
                continue
            messages[address] = form(self._of(index, family), address).with_address(packed)
        errors.update(zip(messages, self._netlink.send(tuple(messages.values())), strict=True))
        return errors

    def _note(self, index: int, address: str, *, bound: bool) -> None:
        (self._ours.add if bound else self._ours.discard)((index, address))
        self._done_since_look.append((index, address, bound))

    def _is_ours(self, address: KernelAddress) -> bool:
        full = 128 if ":" in address.address else 32
        return address.mark == MARK or (
            address.mark == 0 and address.prefix == full and (address.index, address.address) in self._ours
        )

    def _marked_now(self, index: int) -> Iterable[str]:
        """Our addresses on one NIC, asked now: a rare question, so it may block (about 1 ms)."""
        try:
            bodies = netlink.dump_now(netlink.RTM_GETADDR, struct.pack("=BBBBi", 0, 0, 0, 0, index))
        except OSError:
            return []
        found = _read(snapshot.read_address, bodies)
        return [a.address for a in found if a.index == index and a.mark == MARK]

    # --- the watch --------------------------------------------------------------------------------

    async def watch(self) -> AsyncIterator[LinksSeen | AddressesSeen]:
        loop = asyncio.get_running_loop()
        with closing(netlink.Monitor(MARK, self._news_buffer_bytes)) as monitor:
            news = self._news = _News(monitor, known=self._links.__contains__)
            loop.add_reader(monitor.fileno(), news.read)
            around = asyncio.create_task(self._look_around_often())
            try:
                told: LinksSeen | None = None
                while True:
                    try:
                        links, bound = await self._look()
                    except OSError as error:
                        log.warning("cannot read the host's addresses: %s", error)
                        await asyncio.sleep(_TROUBLE_S)
                        continue
                    if links != told:
                        told = links
                        yield links
                    yield AddressesSeen(self._as_of_now(bound))
                    await news.wait(_LOOK_AGAIN_S)
            finally:
                self._news = None
                loop.remove_reader(monitor.fileno())
                around.cancel()

    async def _look(self) -> tuple[LinksSeen, set[tuple[int, str]]]:
        self._done_since_look.clear()
        link_bodies = await netlink.dump(netlink.RTM_GETLINK, bytes(16) + _SKIP_STATISTICS)
        address_bodies = await netlink.dump(netlink.RTM_GETADDR, bytes(8))
        kernel_links = _read(snapshot.read_link, link_bodies)
        addresses = _read(snapshot.read_address, address_bodies)
        bound = {(a.index, a.address) for a in addresses if self._is_ours(a)}
        links = snapshot.links_seen(kernel_links, [a for a in addresses if not self._is_ours(a)])
        chosen = {link.index for link in links}
        self._links.clear()
        self._links.update((link.index, link) for link in kernel_links if link.index in chosen)
        self._mark_anew(addresses)
        present = {link.index for link in kernel_links}
        for index in set(self._prepared) - present:
            self._prepared.pop(index)
        for key in [key for key in self._requests if key[0] not in present]:
            self._requests.pop(key)
        return LinksSeen(links), bound

    def _mark_anew(self, addresses: Iterable[KernelAddress]) -> None:
        """Another program's "ip address replace" took our mark, and often the lifetime, off addresses.

        Should we die like that they would stay for ever. Each at most once a second: it may do so again.
        """
        self._marks_known = self._marks_known or any(a.mark == MARK for a in addresses)
        if not self._marks_known:
            return
        now = asyncio.get_running_loop().time()
        recent = {key: at for key, at in self._marked_anew.items() if now - at < _TROUBLE_S}
        bare = [a for a in addresses if a.mark != MARK and self._is_ours(a)]
        bare = [a for a in bare if (a.index, a.address) not in recent][:_MARKED_AT_ONCE]
        self._marked_anew = recent | {(a.index, a.address): now for a in bare}
        for a in bare:
            log.warning("another program replaced %s, held here: marked anew", a.address)
            self.refresh(a.index, (a.address,))

    def _as_of_now(self, bound: set[tuple[int, str]]) -> frozenset[tuple[int, str]]:
        """The dump, corrected by what we bound and released while it was read."""
        for index, address, there in self._done_since_look:
            (bound.add if there else bound.discard)((index, address))
        self._done_since_look.clear()
        self._ours = set(bound)
        return frozenset(bound)

    async def _look_around_often(self) -> None:
        """Gateways and neighbours, every 10 s and soon after a NIC was prepared. Never holds up the watch."""
        while True:
            self._look_around_soon.clear()
            await self._look_around()
            await _within(self._look_around_soon, _LOOK_AGAIN_S)
            await asyncio.sleep(_CALM_S)

    async def _look_around(self) -> None:
        wanted = [index for index, addresses in self._prepared.items() if addresses]
        if not wanted:
            return
        try:
            gateways: dict[int, list[str]] = {}
            for body in await netlink.dump(netlink.RTM_GETROUTE, bytes(12)):
                for index, gateway in snapshot.read_gateways(body):
                    gateways.setdefault(index, []).append(gateway)
            for index in wanted:
                only = netlink.attribute(8, struct.pack("=i", index))  # NDA_IFINDEX
                bodies = await netlink.dump(netlink.RTM_GETNEIGH, bytes(12) + only)
                known = [n for n in _read(snapshot.read_neighbour, bodies) if n.index == index]
                link = self._links.get(index)
                self._surroundings[index] = snapshot.surroundings(
                    forwarding=link is not None and link.forwarding,
                    gateways=gateways.get(index, ()),
                    known=known,
                    ours=self._prepared.get(index, frozenset()),
                )
        except OSError as error:
            log.warning("cannot read the host's gateways and neighbours: %s", error)
        for index in set(self._surroundings) - set(wanted):
            self._surroundings.pop(index)


class _News:
    """When to look again: at once for NICs we know, more calmly for others, after a while anyway."""

    def __init__(self, monitor: netlink.Monitor, known: Callable[[int], bool]) -> None:
        self._monitor = monitor
        self._known = known
        self._near = asyncio.Event()
        self._far = asyncio.Event()
        self._looked_at = 0.0
        self._own: asyncio.TimerHandle | None = None

    def read(self) -> None:
        indexes, lost = self._monitor.drain()
        if lost or any(map(self._known, indexes)):
            self._near.set()
            self._far.set()
        elif indexes:
            self._far.set()

    def soon(self) -> None:
        """We changed something ourselves, which the monitor does not tell: see it once from outside."""
        if self._own is None:
            self._own = asyncio.get_running_loop().call_later(_CALM_S, self._see_own)

    def _see_own(self) -> None:
        self._own = None
        self._far.set()

    async def wait(self, at_most_s: float) -> None:
        loop = asyncio.get_running_loop()
        await _within(self._far, at_most_s)
        if self._far.is_set():
            await _within(self._near, self._looked_at + _CALM_S - loop.time())
            await asyncio.sleep(max(0.0, self._looked_at + _QUIET_S - loop.time()))
        self._near.clear()
        self._far.clear()
        self._looked_at = loop.time()


async def _within(event: asyncio.Event, seconds: float) -> None:
    if seconds > 0:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for of Python 3.11 may swallow a cancellation
                await event.wait()


def _read(reader: Callable[[bytes], _T | None], bodies: Iterable[bytes]) -> list[_T]:
    """What the reader makes of them; a message it cannot read, from a future kernel, is left out."""
    found: list[_T] = []
    for body in bodies:
        with suppress(struct.error, IndexError):
            value = reader(body)
            if value is not None:
                found.append(value)
    return found


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
