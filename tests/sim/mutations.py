# SPDX-License-Identifier: Apache-2.0
"""Bugs planted on purpose, each of a kind that somebody could write: the checkers must catch every one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from holdfast_speaker.arp.announce import Announcer
from holdfast_speaker.node.address import Holding, Phase
from holdfast_speaker.node.holding import Holdings
from holdfast_speaker.node.instance import Instance
from holdfast_speaker.vrrp.router import Act, Acts, Router


@contextmanager
def replaced(owner: type, name: str, value: Callable[..., Any]) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _never_steps_down(original: Callable[..., Acts]) -> Callable[..., Acts]:
    def hear(self: Router, now_us: int, **advert: Any) -> Acts:
        return tuple(act for act in original(self, now_us, **advert) if act is not Act.YIELD)

    return hear


def _takes_without_asking(self: Holdings, index: int, now_us: int) -> list[Holding]:
    del index
    return [
        holding
        for holding in self.by_address.values()
        if holding.wanted and holding.phase is Phase.WAITING and holding.retry_us <= now_us
    ]


def _keeps_what_the_plan_dropped(original: Callable[..., None]) -> Callable[..., None]:
    def want(self: Holdings, addresses: Any) -> None:
        known = {each.address for each in addresses}
        original(self, addresses)
        for holding in self.by_address.values():
            holding.wanted = holding.wanted or (holding.address not in known and holding.phase is Phase.BOUND)

    return want


def _nothing(*_: object, **__: object) -> None:
    return None


def _deaf(self: Instance, advert: object, now_us: int) -> None:
    del self, advert, now_us


MUTATIONS: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "an Active that hears a better one keeps its addresses": (Router, "hear", _never_steps_down(Router.hear)),
    "a first claim is made without a probe": (Holdings, "ready", _takes_without_asking),
    "an answer to a probe is ignored": (Holdings, "answered", _nothing),
    "what the plan no longer gives is kept": (Holdings, "want", _keeps_what_the_plan_dropped(Holdings.want)),
    "adverts are not heard": (Instance, "hear", _deaf),
    "nothing is announced": (Announcer, "start", _nothing),
    "addresses that another program removed are not put back": (Holdings, "missing", lambda *_: 0),
}
