# SPDX-License-Identifier: Apache-2.0
"""Whether the segment carries frames of a virtual MAC: asked after a takeover, and while it does not.

A hypervisor that allows no forged transmits, a switch with port security or Wi-Fi drop them silently, while
all looks well on this host. So neighbours are asked twice, by the virtual MAC and by the NIC's own: when
answers come to the second alone, the virtual MAC is blocked. With no answer at all, nothing is known.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
MOST_TARGETS: Final = 3  # asked for each virtual MAC

Target = tuple[bytes, bytes]  # MAC, address


@dataclass(slots=True)
class _Trial:
    """One virtual MAC, and an address that speaks by it."""

    address: bytes
    reached: bool = False


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

    def begin(self, holdings: Iterable[Holding], now_us: int) -> None:
        """These are announced: those that have a virtual MAC are tried, unless they were before."""
        fresh = {holding.mac: _Trial(holding.packed) for holding in holdings if holding.mac}
        fresh = {mac: trial for mac, trial in fresh.items() if mac not in self._trials}
        if fresh:
            self._trials |= fresh
            self._restart(now_us)

    def _restart(self, now_us: int) -> None:
        self._begun_us, self._step = now_us, 0
        self.deadline_us = now_us + ASKED_US[0]

    def heard(self, mac: bytes) -> None:
        """An answer came to this virtual MAC."""
        trial = self._trials.get(mac)
        if trial is None or trial.reached:
            return
        trial.reached = True
        if mac in self.blocked:
            self._judge(self.blocked - {mac})
        if all(each.reached for each in self._trials.values()):
            self.deadline_us = NEVER_US

    def wake(self, nic: Nic | None, targets: Sequence[Target], now_us: int) -> None:
        if now_us < self.deadline_us or nic is None:
            return
        if self._step < len(ASKED_US):
            self._step += 1
            self._ask(nic, targets)
            steps = (*ASKED_US, VERDICT_US)
            self.deadline_us = max(self._begun_us + steps[self._step], now_us + ASKED_US[0])
            return
        silent = frozenset(mac for mac, trial in self._trials.items() if not trial.reached)
        if nic.answered_us >= self._begun_us:  # those who were asked are there
            self._judge(silent)
        self._restart(now_us + AGAIN_US)
        if not silent:
            self.deadline_us = NEVER_US

    def _ask(self, nic: Nic, targets: Sequence[Target]) -> None:
        frames: list[bytes | None] = []
        for mac, trial in self._trials.items():
            if trial.reached:
                continue
            fit = [target for target in targets if len(target[1]) == len(trial.address)]
            for to_mac, address in fit[:MOST_TARGETS]:
                frames.append(greeting.build(address=address, mac=to_mac, own=trial.address, own_mac=mac))
        if not frames:
            return
        for to_mac, address in targets[:MOST_TARGETS]:
            own = nic.source(4 if len(address) == 4 else 6)
            if own is not None:
                frames.append(greeting.build(address=address, mac=to_mac, own=own, own_mac=nic.mac))
        self._host.out.extend(Send(nic.link.index, frame) for frame in frames if frame is not None)

    def _judge(self, blocked: frozenset[bytes]) -> None:
        if blocked == self.blocked:
            return
        facts = (("router", self._router), ("macs", ", ".join(sorted(mac.hex(":") for mac in blocked))))
        if blocked:
            text = "The network does not carry frames of virtual MACs: neighbours answer the NIC's own only"
            self._host.out.append(Log("warning", text, facts))
        else:
            self._host.out.append(Log("info", "The network carries frames of virtual MACs again", facts[:1]))
        self.blocked, self._host.dirty = blocked, True

    def clear(self) -> None:
        """Nothing is held any more."""
        self._trials.clear()
        self._judge(frozenset())
        self.deadline_us = NEVER_US
