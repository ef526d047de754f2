# SPDX-License-Identifier: Apache-2.0
"""A brain on a stage: words in, what it does as lines out. The language of tests/scripts/*.txt.

node a                                    a speaker that starts now
link eth0 10.0.0.1/24 fe80::1/64          its NIC (``down``: no carrier; ``nolink``: none at all)
plan vr-51 10.0.0.100 claimed 10.0.0.101 candidates=a:250,b:248 interval=100 failback=Never
                                          an object of the API (words after an address are about it)
list | change vr-51 | delete vr-51 | confirm | restore | reject vr-51 WHY
advert from=10.0.0.2 vrid=51 priority=248 lists=10.0.0.100
claim 10.0.0.100 02:00:00:00:00:99        an ARP or ND frame that says so
frame HEX                                 any frame at all
seen 10.0.0.100                           the kernel's list of addresses with our mark
bind fails WHY | bind works | bind takes 500ms
run 400ms                                 time passes, deadlines are served
wait 1h                                   the same, telling only of what is bound, released, reported
sleep 2s                                  time passes, and the process does not run
stop
"""

from ipaddress import ip_address

from holdfast_api.types import (
    Candidate,
    Failback,
    Interface,
    Metadata,
    Owner,
    PlannedFrom,
    RouterAddress,
    VirtualRouter,
    VirtualRouterSpec,
)
from holdfast_speaker import effects as do
from holdfast_speaker import events as on
from holdfast_speaker.node import Node
from holdfast_speaker.vrrp.advert import Advert, build, listing
from tests.sim import text, wire

INDEX = 2
START_US = 1_000_000
WALL_OFFSET_US = 1_700_000_000_000_000
FAILBACK: dict[str, Failback] = {"Never": "Never", "Immediate": "Immediate", "Delayed": "Delayed"}
NODES = {name: number for number, name in enumerate("abcdef", start=1)}


def duration_us(word: str) -> int:
    for suffix, unit in (("ms", 1_000), ("s", 1_000_000), ("h", 3_600_000_000)):
        if word.endswith(suffix):
            return int(float(word.removesuffix(suffix)) * unit)
    raise ValueError(word)


def mac(name: str) -> str:
    return f"02:00:00:00:00:{NODES[name]:02x}"


class Stage:
    """``lines`` is what the brain did; ``effects`` the same as values."""

    def __init__(self) -> None:
        self.now_us = START_US
        self.node: Node
        self.name = "a"
        self.plans: dict[str, VirtualRouter] = {}
        self.lines: list[str] = []
        self.effects: list[do.Effect] = []
        self.bind_fails = ""
        self.bind_takes_us = 0
        self._adverts: dict[bytes, int] = {}
        self._shown: set[bytes] = set()

    def perform(self, command: str) -> None:
        verb, *words = command.split()
        getattr(self, f"_{verb}")(words)

    # --- what happens ---------------------------------------------------------------------------

    def handle(self, event: on.Event) -> None:
        answers: list[on.Event] = []
        for effect in self.node.handle(event, self.now_us):
            self.effects.append(effect)
            self._tell(effect)
            if isinstance(effect, do.Bind):
                self.now_us += self.bind_takes_us
                failed = (
                    tuple((each, self.bind_fails) for each in effect.addresses) if self.bind_fails else ()
                )
                answers.append(on.Bound(effect.id, () if failed else effect.addresses, failed))
            elif isinstance(effect, do.Release):
                answers.append(on.Released(effect.id))
        for answer in answers:
            self.handle(answer)

    def _tell(self, effect: do.Effect) -> None:
        if isinstance(effect, do.Send) and effect.frame in self._shown:
            self._adverts[effect.frame] = self._adverts.get(effect.frame, 0) + 1
            return
        line = text.effect(effect)
        if line is None or isinstance(effect, do.SavePlan | do.Hear | do.Prepare):
            return
        if isinstance(effect, do.Send):
            self._shown.add(effect.frame)
        self._count_adverts()
        self.lines.append(f"{(self.now_us - START_US) / 1e6:.3f} {line}")

    def _count_adverts(self) -> None:
        total = sum(self._adverts.values())
        if total:
            self.lines.append(f"      ... {total} more adverts like before")
        self._adverts.clear()

    def close(self) -> list[str]:
        """The lines since the last time."""
        self._count_adverts()
        self._shown.clear()
        lines, self.lines = self.lines, []
        return lines

    # --- commands -------------------------------------------------------------------------------

    def _node(self, words: list[str]) -> None:
        self.name = words[0]
        self.node = Node(self.name, "test", wall_offset_us=WALL_OFFSET_US)

    def _link(self, words: list[str]) -> None:
        name, *rest = words
        carrier = "down" not in rest
        cidrs = tuple(word for word in rest if word != "down")
        self.handle(on.LinksSeen((on.Link(INDEX, Interface(name, mac(self.name), cidrs, carrier)),)))

    def _nolink(self, words: list[str]) -> None:
        assert not words
        self.handle(on.LinksSeen(()))

    def _plan(self, words: list[str]) -> None:
        name, *rest = words
        settings = dict(word.split("=", 1) for word in rest if "=" in word)
        addresses: list[RouterAddress] = []
        for word in (word for word in rest if "=" not in word):
            if word in ("claimed", "releasing"):
                last = addresses.pop()
                state = "Releasing" if word == "releasing" else last.state
                claimed = last.claimed or word == "claimed"
                addresses.append(RouterAddress(last.address, last.owner, state, claimed))
            else:
                addresses.append(RouterAddress(word, Owner("default", f"vip-{word}", "u")))
        candidates = [each.split(":") for each in settings.get("candidates", "").split(",") if each]
        known = self.plans.get(name)
        self.plans[name] = VirtualRouter(
            Metadata(
                name, uid=settings.get("uid", "uid"), generation=known.metadata.generation + 1 if known else 1
            ),
            VirtualRouterSpec(
                int(settings.get("vrid", name.removeprefix("vr-"))),
                tuple(addresses),
                tuple(self._candidate(node, int(priority)) for node, priority in candidates),
                int(settings.get("interval", "100")),
                FAILBACK[settings.get("failback", "Never")],
                int(settings.get("delay", "300")),
                planned_from=PlannedFrom(settings.get("active"), int(settings.get("term", "0"))),
            ),
        )

    @staticmethod
    def _candidate(node: str, priority: int) -> Candidate:
        number = NODES[node]
        return Candidate(node, priority, (f"10.0.0.{number}", f"fe80::{number}"), (mac(node),))

    def _list(self, words: list[str]) -> None:
        assert not words
        self.handle(on.RoutersListed(tuple(self.plans.values())))

    def _change(self, words: list[str]) -> None:
        self.handle(on.RouterChanged(self.plans[words[0]]))

    def _delete(self, words: list[str]) -> None:
        self.plans.pop(words[0], None)
        self.handle(on.RouterDeleted(words[0]))

    def _reject(self, words: list[str]) -> None:
        self.handle(on.RouterRejected(words[0], " ".join(words[1:])))

    def _confirm(self, words: list[str]) -> None:
        assert not words
        self.handle(on.ApiConfirmed())

    def _restore(self, words: list[str]) -> None:
        terms = dict(word.split("=") for word in words)
        self.handle(
            on.PlanRestored(tuple(self.plans.values()), {name: int(term) for name, term in terms.items()})
        )

    def _advert(self, words: list[str]) -> None:
        settings = dict(word.split("=", 1) for word in words)
        source = ip_address(settings["from"])
        family = source.version
        assert family in (4, 6)
        vrid = int(settings["vrid"])
        listed = [ip_address(each).packed for each in settings.get("lists", "10.0.0.100").split(",")]
        advert = Advert(
            family,
            source.packed,
            vrid,
            int(settings["priority"]),
            int(settings.get("interval", "100")) * 1000,
            listing(family, vrid, listed, 1500),
            settings.get("checksum") == "rfc",
        )
        self.handle(on.FrameReceived(INDEX, build(advert, bytes.fromhex("020000000099"))))

    def _claim(self, words: list[str]) -> None:
        address, sender = words
        self.handle(on.FrameReceived(INDEX, wire.claim(address, bytes.fromhex(sender.replace(":", "")))))

    def _frame(self, words: list[str]) -> None:
        self.handle(on.FrameReceived(INDEX, bytes.fromhex("".join(words))))

    def _seen(self, words: list[str]) -> None:
        self.handle(on.AddressesSeen(frozenset((INDEX, address) for address in words)))

    def _bind(self, words: list[str]) -> None:
        self.bind_fails = " ".join(words[1:]) if words[0] == "fails" else ""
        self.bind_takes_us = duration_us(words[1]) if words[0] == "takes" else 0

    def _run(self, words: list[str]) -> None:
        until_us = self.now_us + duration_us(words[0])
        while (deadline := self.node.deadline) is not None and deadline <= until_us:
            self.now_us = max(self.now_us, deadline)
            self.handle(on.TimerFired())
        self.now_us = max(self.now_us, until_us)

    def _wait(self, words: list[str]) -> None:
        before = self.close()
        self._run(words)
        self.lines = before + [
            line for line in self.close() if line.split()[1] in ("bind", "release", "report")
        ]

    def _sleep(self, words: list[str]) -> None:
        self.now_us += duration_us(words[0])

    def _stop(self, words: list[str]) -> None:
        assert not words
        self.handle(on.StopRequested())
        self.lines.append(f"      stopped: {self.node.stopped}")
