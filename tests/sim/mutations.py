# SPDX-License-Identifier: Apache-2.0
"""Bugs planted on purpose, each of a kind that somebody could write: the checkers must catch every one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from holdfast_api.types import VirtualRouterSpec
from holdfast_speaker.arp.announce import Announcer
from holdfast_speaker.node.address import Holding, Phase
from holdfast_speaker.node.gate import Gate
from holdfast_speaker.node.holding import Holdings
from holdfast_speaker.node.instance import Instance
from holdfast_speaker.node.tenure import Tenure
from holdfast_speaker.units import SECOND_US
from holdfast_speaker.vrrp.router import Act, Acts, Router, State

Change = tuple[type, str, Any]


@contextmanager
def replaced(*changes: Change) -> Iterator[None]:
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _never_steps_down(original: Callable[..., Acts]) -> Callable[..., Acts]:
    def hear(self: Router, now_us: int, **advert: Any) -> Acts:
        acts = original(self, now_us, **advert)
        return tuple(act for act in acts if act not in (Act.YIELD, Act.CEDE))

    return hear


def _takes_without_asking(self: Holdings, index: int, now_us: int) -> list[Holding]:
    del index
    return [
        holding
        for holding in self.by_address.values()
        if holding.wanted and holding.phase is Phase.WAITING and holding.retry_us <= now_us
    ]


def _keeps_what_the_plan_dropped(original: Callable[..., None]) -> Callable[..., None]:
    def want(self: Holdings, spec: VirtualRouterSpec) -> None:
        known = {each.address for each in spec.addresses}
        original(self, spec)
        for holding in self.by_address.values():
            holding.wanted = holding.wanted or (holding.address not in known and holding.phase is Phase.BOUND)

    return want


def _nothing(*_: object, **__: object) -> None:
    return None


def _deaf(self: Instance, advert: object, mac: object, now_us: int) -> None:
    del self, advert, mac, now_us


def _opens_by_itself(original: Callable[..., None]) -> Callable[..., None]:
    """Adverts that the fence held back are no reason to stop; the fence is opened again."""

    def lease_lost(self: Instance, now_us: int, *, removed: bool = False) -> None:
        del removed
        if self.router.state is State.ACTIVE:
            self.gate.retake(now_us, self.router.lease_us)

    del original
    return lease_lost


def _takes_at_once(self: Instance, now_us: int) -> None:
    """What came in between the decision and the lease is not heard."""
    self.gate.retake(now_us, SECOND_US)
    if self.nic is not None:
        ready = self.holdings.ready(self.nic.link.index, now_us)
        self._take(now_us)
        self._bind(ready, self.nic, now_us)


def _stays_quiet(self: Tenure, now_us: int) -> None:
    """Nobody took it: all is announced again, but the kernel's silence is not ended."""
    self._muted = False
    self._speak_for([holding.address for holding in self.holdings.in_phase(Phase.BOUND)], now_us)


MUTATIONS: dict[str, tuple[Change, ...]] = {
    "an Active that hears a better one keeps its addresses": (
        (Router, "hear", _never_steps_down(Router.hear)),
    ),
    "a first claim is made without a probe": ((Holdings, "ready", _takes_without_asking),),
    "an answer to a probe is ignored": ((Holdings, "answered", _nothing),),
    "what the plan no longer gives is kept": (
        (Holdings, "want", _keeps_what_the_plan_dropped(Holdings.want)),
    ),
    "adverts are not heard": ((Instance, "hear", _deaf),),
    # Either of these alone is made good by the other.
    "neither lateness nor a lost lease is a reason to elect again": (
        (Router, "_late", lambda *_: False),
        (Instance, "lease_lost", _opens_by_itself(Instance.lease_lost)),
    ),
    "the fence is never opened": ((Gate, "ask", _nothing),),
    "what is guarded is forgotten": ((Gate, "guard", _nothing),),
    "nothing is announced": ((Announcer, "start", _nothing),),
    "addresses that another program removed are not put back": ((Holdings, "missing", lambda *_: 0),),
}

# Of virtual MACs: each with the first seed of a life that shows it, or the first of such lives.
DRESSED_MUTATIONS: dict[str, tuple[int, tuple[Change, ...]]] = {
    "the virtual MAC is not quiet before priority 0": (1006, ((Tenure, "_mute", _nothing),)),
    "nobody took it, and it stays quiet": (1017, ((Tenure, "_unmute", _stays_quiet),)),
    "an address whose MAC has changed stays where it is": (
        1026,
        ((Holding, "placed_mac", property(lambda self: self.mac, _nothing)),),
    ),
    "a virtual MAC is bound and says nothing": (1000, ((Tenure, "_speak_for", _nothing),)),
}
