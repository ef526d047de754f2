# SPDX-License-Identifier: Apache-2.0
"""Whether the segment carries frames of a virtual MAC: asked after a takeover, and while it does not.

A hypervisor that allows no forged transmits, a switch with port security or Wi-Fi drop them silently, while
all looks well on this host. So the same neighbours are asked twice, by the virtual MAC and by the NIC's own:
when answers come to the second alone, the virtual MAC is blocked. With no answer at all, nothing is known.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from holdfast_speaker.arp import greeting
from holdfast_speaker.effects import Log, Send
from holdfast_speaker.node.address import Holding
from holdfast_speaker.node.host import Host
from holdfast_speaker.node.nic import Nic
from holdfast_speaker.units import NEVER_US, SECOND_US

ASKED_US: Final = (100_000, 600_000, 1_600_000, 2_600_000)  # the first copies of the announcement went before
VERDICT_US: Final = 3_600_000
AGAIN_US: Final = 60 * SECOND_US
MOST_TARGETS: Final = 3  # asked for each virtual MAC in one round; each of them in two rounds
MOST_QUESTIONS: Final = 256  # by virtual MACs in one round: with many of them, each asks fewer
_MOST_NAMED: Final = 10

Target = tuple[bytes, bytes]  # MAC, address


@dataclass(slots=True)
class _Trial:
    """One virtual MAC, and an address that speaks by it. ``asked``: MACs of neighbours."""

    address: bytes
    reached: bool = False
    asked: set[bytes] = field(default_factory=set)


class Reach:
    """Of one router. ``blocked``: virtual MACs that nobody answers. ``deadline_us``: when ``wake`` is due."""

    def __init__(self, host: Host, router: str) -> None:
        self._host = host
        self._router = router
        self._trials: dict[bytes, _Trial] = {}
        self._begun_us = 0
        self._step = 0
        self.blocked: frozenset[bytes] = frozenset()
        self.deadline_us = NEVER_US

    def begin(self, bound: Iterable[Holding], now_us: int) -> None:
        """All that is bound: what has a virtual MAC is tried, unless it was before."""
        known = self._trials
        self._trials = {h.mac: known.get(h.mac) or _Trial(h.packed) for h in bound if h.mac}
        self._forget(self.blocked - self._trials.keys())
        if self._trials.keys() - known.keys():
            self._restart(now_us)
        elif all(each.reached for each in self._trials.values()):
            self.deadline_us = NEVER_US

    def _restart(self, now_us: int) -> None:
        self._begun_us, self._step = now_us, 0
        self.deadline_us = now_us + ASKED_US[0]
        for trial in self._trials.values():
            trial.asked.clear()

    def heard(self, mac: bytes) -> None:
        """An answer came to this virtual MAC."""
        trial = self._trials.get(mac)
        if trial is None or trial.reached:
            return
        trial.reached = True
        self._judge(self.blocked - {mac})
        if all(each.reached for each in self._trials.values()):
            self.deadline_us = NEVER_US

    def wake(self, nic: Nic, bound: Iterable[Holding], targets: Sequence[Target], now_us: int) -> None:
        self.begin(bound, now_us)
        if now_us < self.deadline_us:
            return
        if self._step < len(ASKED_US):
            self._ask(nic, targets)
            self._step += 1
            steps = (*ASKED_US, VERDICT_US)
            self.deadline_us = max(self._begun_us + steps[self._step], now_us + ASKED_US[0])
            return
        silent = {mac: trial for mac, trial in self._trials.items() if not trial.reached}
        # Those who were asked are there, and answer the NIC's own.
        self._judge(
            self.blocked
            | {
                mac
                for mac, trial in silent.items()
                if any(nic.has_answered(each, self._begun_us) for each in trial.asked)
            }
        )
        self._restart(now_us + AGAIN_US)

    def _ask(self, nic: Nic, targets: Sequence[Target]) -> None:
        """Each neighbour in two rounds, the next ones after that: the first may be dead."""
        silent = {mac: trial for mac, trial in self._trials.items() if not trial.reached}
        each = max(1, min(MOST_TARGETS, MOST_QUESTIONS // max(1, len(silent))))
        asked: dict[Target, None] = {}
        for mac, trial in silent.items():
            fit = [target for target in targets if len(target[1]) == len(trial.address)]
            first = self._step // 2 * each if len(fit) > each else 0
            for number in range(min(each, len(fit))):
                target = fit[(first + number) % len(fit)]
                asked[target] = None
                trial.asked.add(target[0])
                self._send(nic, target, trial.address, mac)
        for target in asked:
            own = nic.source(4 if len(target[1]) == 4 else 6)
            if own is not None:
                self._send(nic, target, own, nic.mac)

    def _send(self, nic: Nic, target: Target, own: bytes, own_mac: bytes) -> None:
        frame = greeting.build(address=target[1], mac=target[0], own=own, own_mac=own_mac)
        if frame is not None:
            self._host.out.append(Send(nic.link.index, frame))

    def _judge(self, blocked: frozenset[bytes]) -> None:
        if blocked == self.blocked:
            return
        facts = (("router", self._router),)
        if blocked - self.blocked:
            text = "The network does not carry frames of virtual MACs: neighbours answer the NIC's own only"
            named = ", ".join(sorted(mac.hex(":") for mac in blocked)[:_MOST_NAMED])
            self._host.out.append(Log("warning", text, (*facts, ("macs", named))))
        elif not blocked:
            self._host.out.append(Log("info", "The network carries frames of virtual MACs again", facts))
        self.blocked, self._host.dirty = blocked, True

    def _forget(self, macs: frozenset[bytes]) -> None:
        if macs:
            self.blocked, self._host.dirty = self.blocked - macs, True

    def clear(self) -> None:
        """Nothing is held any more, or nothing is said by virtual MACs for now."""
        self._trials.clear()
        self._forget(self.blocked)
        self.deadline_us = NEVER_US
