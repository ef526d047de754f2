# SPDX-License-Identifier: Apache-2.0
"""A router's doubts put into practice: questions to the other candidates, answers to theirs.

The rules are in ``doubt``; here is what is asked, of whom, and what the answers mean.
"""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

from holdfast_api.conditions import Reason
from holdfast_api.types import Candidate
from holdfast_speaker.arp import greeting
from holdfast_speaker.effects import Send
from holdfast_speaker.node.doubt import Doubt
from holdfast_speaker.node.host import Host
from holdfast_speaker.node.nic import Nic
from holdfast_speaker.units import MILLISECOND_US, NEVER_US
from holdfast_speaker.vrrp.advert import Family
from holdfast_speaker.vrrp.inquiry import ANSWER, QUESTION, Inquiry, build

MOST_ASKED: Final = 16
_UNHEEDED_ASKS: Final = 3
UNHEEDED_CEDES: Final = 6
_ASK_PACE_US: Final = 10 * MILLISECOND_US
_ANSWER_PACE_US: Final = 2 * MILLISECOND_US


class Suspicion:
    """``reason``: why a takeover that is due waits; None: it does not."""

    def __init__(self, host: Host, virtual_router_id: int) -> None:
        self._host = host
        self._virtual_router_id = virtual_router_id
        self._doubt = Doubt()
        self._others: dict[bytes, tuple[Family, bytes]] = {}  # source -> family, MAC
        self._answered_us = self._asked_us = -NEVER_US
        self._asked_at = 0  # the lesser one's adverts, when we asked last because of them
        self._missed = False  # whoever asked last misses us, the Active, alone: others he hears
        self._spoke: dict[bytes, int] = {}  # candidates' sources -> their last advert, while we are Backup
        self._recent_us = 0  # who spoke within this time is Active
        self._unheeded = (b"", -NEVER_US)  # the Active for whom we ask another one, and since when
        self.reason: Reason | None = None

    @property
    def deadline_us(self) -> int:
        return self._doubt.deadline_us

    def learn(self, candidates: Iterable[Candidate]) -> None:
        """Whom to ask: the first address of each family of every other candidate's NIC."""
        self._others.clear()
        self._spoke.clear()
        for each in candidates:
            if each.node == self._host.name or not each.macs:
                continue
            try:
                mac = bytes.fromhex(each.macs[0].replace(":", ""))
                sources = [ip_address(source).packed for source in each.sources]
            except ValueError:
                continue
            for source in sources:
                if len(self._others) < MOST_ASKED and len(mac) == 6:
                    self._others[source] = (4 if len(source) == 4 else 6, mac)

    def heard(self, now_us: int, interval_us: int, source: bytes = b"") -> None:
        """The Active spoke."""
        if source in self._others:
            self._spoke[source], self._recent_us = now_us, interval_us * 3 // 2
        self._doubt.heard(now_us, interval_us)
        self._say(None)

    def clear(self) -> None:
        self._doubt.clear()
        self._spoke.clear()
        self._missed = False
        self._say(None)

    def _say(self, reason: Reason | None) -> None:
        if reason is not self.reason:
            self.reason, self._host.dirty = reason, True

    def wake(self, nic: Nic, now_us: int) -> None:
        if self._doubt.wake(now_us):
            self._asked_us = now_us
            self._ask(nic, now_us)

    def holds(self, nic: Nic, active_mac: bytes, now_us: int) -> bool:
        """Whether a takeover that is due has to wait; asked again at the latest at ``deadline_us``."""
        reason: Reason | None = None
        if self._doubt.is_heard_elsewhere(now_us):
            reason = Reason.ACTIVE_HEARD_BY_OTHERS
        elif self._doubt.is_isolated(
            now_us, anybody_us=nic.anybody_us, company=self._has_company(nic, active_mac, now_us)
        ):
            reason = Reason.ISOLATED
        self._say(reason)
        return reason is not None

    def _has_company(self, nic: Nic, active_mac: bytes, now_us: int) -> bool:
        """Whether a gateway or a client used to be heard. Candidates alone may have died all, or be on the
        other side of a cut that leaves us with clients who never spoke to us: nothing to wait for.
        """
        candidates = {mac for _, mac in self._others.values()}
        return any(mac not in candidates for mac, _ in nic.company(active_mac, now_us))

    def targets(self, nic: Nic, now_us: int) -> list[tuple[bytes, bytes]]:
        """MAC and address of whoever may answer us: the other candidates first."""
        others = [(mac, source) for source, (_, mac) in self._others.items()]
        return others + [each for each in nic.company(b"", now_us) if each not in others]

    def unheeded(self, count: int, nic: Nic, now_us: int) -> bool:
        """We are Active, and a lesser one goes on in spite of it: whether it is us whom nobody hears.

        Who hears us answers: a candidate our question, a neighbour our ARP. The lesser one is deaf then, and
        would answer nobody; unless it has told, while it asked, that it hears others, or a third candidate
        has found out.
        """
        if count == _UNHEEDED_ASKS and now_us - self._asked_us > _ASK_PACE_US:
            self._asked_us, self._asked_at = now_us, count
            self._ask(nic, now_us)
        elif count % UNHEEDED_CEDES == _UNHEEDED_ASKS != count != self._asked_at:
            self._asked_at = count  # a third candidate may be back, or hear both by now
            self._ask(nic, now_us)
        if count < UNHEEDED_CEDES or self._asked_us < 0:
            return False
        return self._missed or nic.answered_us < self._asked_us

    # --- the conversation -----------------------------------------------------------------------

    def _ask(self, nic: Nic, now_us: int) -> None:
        hears = self._doubt.hears_others(nic.anybody_us)
        for target, (family, mac) in self._others.items():
            source = nic.source(family)
            if source is not None:
                question = Inquiry(QUESTION, family, source, target, self._virtual_router_id, hears)
                self._say_to(mac, question, nic)
        for mac, address in nic.company(b"", now_us):
            own = nic.source(4 if len(address) == 4 else 6)
            if own is not None:
                frame = greeting.build(address=address, mac=mac, own=own, own_mac=nic.mac)
                if frame is not None:
                    self._host.out.append(Send(nic.link.index, frame))

    def inquired(self, inquiry: Inquiry, mac: bytes, nic: Nic, now_us: int, *, hears: bool) -> None:
        """A candidate asks, or answers. ``hears``: we have heard the Active, or are it."""
        if inquiry.source not in self._others or inquiry.target not in nic.sources:
            return
        if inquiry.kind == ANSWER:
            if inquiry.hears:
                self._doubt.answered(now_us)
                self._found_out(inquiry, nic, now_us)
            return
        self._missed = inquiry.hears
        self._find_out(inquiry, nic, now_us)
        if now_us - self._answered_us >= _ANSWER_PACE_US:
            self._answered_us = now_us
            answer = Inquiry(
                ANSWER, inquiry.family, inquiry.target, inquiry.source, inquiry.virtual_router_id, hears
            )
            self._say_to(mac, answer, nic)

    def _say_to(self, mac: bytes, inquiry: Inquiry, nic: Nic) -> None:
        self._host.out.append(Send(nic.link.index, build(inquiry, mac=nic.mac, to_mac=mac)))

    # --- between two that are Active ------------------------------------------------------------

    def _find_out(self, asked: Inquiry, nic: Nic, now_us: int) -> None:
        """An Active asks only when a lesser one does not heed it. Whether that one is deaf, or misses it
        alone, it can't know: the lesser one has no reason to ask. We hear both, and ask him.
        """
        if not self._is_active(asked.source, now_us) or now_us - self._unheeded[1] < _ASK_PACE_US:
            return
        mac = self._others[asked.source][1]
        for rival, (family, rival_mac) in self._others.items():
            if family == asked.family and rival_mac != mac and self._is_active(rival, now_us):
                self._unheeded = (asked.source, now_us)
                question = Inquiry(QUESTION, family, asked.target, rival, self._virtual_router_id)
                self._say_to(rival_mac, question, nic)

    def _found_out(self, answer: Inquiry, nic: Nic, now_us: int) -> None:
        """The other one hears us: said by a question as his own would be, had he asked."""
        source, since_us = self._unheeded
        family, mac = self._others.get(source, (answer.family, b""))
        there = self._is_active(source, now_us) and self._is_active(answer.source, now_us)
        if there and mac != self._others[answer.source][1] and now_us - since_us <= self._recent_us:
            self._unheeded = (b"", since_us)
            told = Inquiry(QUESTION, family, answer.target, source, self._virtual_router_id, hears=True)
            self._say_to(mac, told, nic)

    def _is_active(self, source: bytes, now_us: int) -> bool:
        return now_us - self._spoke.get(source, -NEVER_US) < self._recent_us
