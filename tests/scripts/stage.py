# SPDX-License-Identifier: Apache-2.0
"""A brain on a stage: words in, what it does as lines out. The language of tests/scripts/*.txt.

node a                                    a speaker starts now (``plain``: its kernel has no virtual MACs)
link eth0 10.0.0.1/24 fe80::1/64          its NIC (``down``: no carrier; ``nolink``: none at all)
plan vr-51 10.0.0.100 claimed 10.0.0.101 candidates=a:250,b:248 interval=100 failback=Never
                                          an object of the API (words after an address are about it;
                                          handover=ID,FROM,TO is an order; 10.0.0.100=02:aa:00:00:00:64
                                          is an address with its virtual MAC)
list | change vr-51 | delete vr-51 | confirm | restore | reject vr-51 WHY
advert from=10.0.0.2 vrid=51 priority=248 lists=10.0.0.100
asks from=10.0.0.3 vrid=51                another candidate wants to know whether we hear the Active
                                          (``hearing``: it does hear somebody)
hears from=10.0.0.3 vrid=51 | hearsnot from=10.0.0.3 vrid=51     its answer to us
claim 10.0.0.100 02:00:00:00:00:99        an ARP or ND frame that says so, to all
answer 10.0.0.254 02:00:00:00:00:fe       the same to us alone (a third word: to this MAC)
macs 02:aa:00:00:00:64                    the kernel heard frames whose sender has this MAC
question 10.0.0.30 02:00:00:00:00:30 10.0.0.100       who has the last one? an IPv4 host wants to know
waits advert from=10.0.0.2 ...            comes in, but is read only while the fence is being opened
frame HEX                                 any frame at all
seen 10.0.0.100                           the kernel's list of addresses with our mark
bind fails WHY | bind works | bind takes 500ms | fence fails | fence works | fence takes 150ms
lost 51                                   the kernel's fence held back an advert
run 400ms                                 time passes, deadlines are served
wait 1h                                   the same, telling only of what is bound, released, reported
sleep 2s                                  time passes, and the process does not run
stop
"""

import re
from ipaddress import ip_address

import msgspec

from holdfast_api.types import (
    Candidate,
    Failback,
    Handover,
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
from holdfast_speaker.vrrp import inquiry
from holdfast_speaker.vrrp.advert import Advert, build, listing, parse
from tests.scripts import telling
from tests.sim import wire

INDEX = 2
START_US = 1_000_000
WALL_OFFSET_US = 1_700_000_000_000_000
FAILBACK: dict[str, Failback] = {"Never": "Never", "Immediate": "Immediate", "Delayed": "Delayed"}
_SETTING = re.compile("[a-z]+=")
_ABOUT_ADDRESSES: dict[str, dict[str, object]] = {
    "claimed": {"claimed": True},
    "releasing": {"state": "Releasing"},
}
NODES = {name: number for number, name in enumerate("abcdef", start=1)}


def duration_us(word: str) -> int:
    for suffix, unit in (("ms", 1_000), ("s", 1_000_000), ("h", 3_600_000_000)):
        if word.endswith(suffix):
            return int(float(word.removesuffix(suffix)) * unit)
    raise ValueError(word)


def mac(name: str) -> str:
    return f"02:00:00:00:00:{NODES[name]:02x}"


def mac_of(source: bytes) -> bytes:
    """A candidate's, where its number says so."""
    return bytes((2, 0, 0, 0, 0, source[-1] if source[-1] in NODES.values() else 0x99))


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
        self.fence_works = True
        self.fence_takes_us = 0
        self.waiting: list[on.Event] = []
        self.dressed = False  # some address has a virtual MAC: where they are is told
        self._again: list[bytes] = []
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
            elif isinstance(effect, do.Take):
                self.now_us += self.fence_takes_us
                answers += self.waiting
                self.waiting.clear()
                answers.append(on.Taken(effect.id, self.fence_works and self.now_us <= effect.until_us))
        for answer in answers:
            self.handle(answer)

    def _tell(self, effect: do.Effect) -> None:
        if isinstance(effect, do.Send) and effect.frame in self._shown:
            self._again.append(effect.frame)
            return
        line = telling.effect(effect, dressed=self.dressed)
        if line is None:
            return
        if isinstance(effect, do.Send) and not telling.is_resignation(effect.frame):
            self._shown.add(effect.frame)
        self._count_frames()
        self.lines.append(f"{(self.now_us - START_US) / 1e6:.3f} {line}")

    def _count_frames(self) -> None:
        if self._again:
            only = all(isinstance(parse(frame), Advert) for frame in self._again)
            kind = "adverts" if only else "frames"
            self.lines.append(f"      ... {len(self._again)} more {kind} like before")
        self._again.clear()

    def close(self) -> list[str]:
        """The lines since the last time."""
        self._count_frames()
        self._shown.clear()
        lines, self.lines = self.lines, []
        return lines

    # --- commands -------------------------------------------------------------------------------

    def _node(self, words: list[str]) -> None:
        self.name = words[0]
        self.node = Node(
            self.name, "test", wall_offset_us=WALL_OFFSET_US, virtual_macs="plain" not in words[1:]
        )

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
        settings = dict(word.split("=", 1) for word in rest if _SETTING.match(word))
        addresses: list[RouterAddress] = []
        for word in rest:
            address, _, virtual_mac = word.partition("=")
            if word in _ABOUT_ADDRESSES:
                last = addresses.pop()
                addresses.append(msgspec.structs.replace(last, **_ABOUT_ADDRESSES[word]))
            elif address not in settings:
                owner = Owner("default", f"vip-{address}", "u")
                addresses.append(RouterAddress(address, owner, mac_address=virtual_mac or None))
        dressed = any(each.mac_address for each in addresses)
        self.dressed = self.dressed or dressed
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
                handover=Handover(*settings["handover"].split(",")) if "handover" in settings else None,
                planned_from=PlannedFrom(settings.get("active"), int(settings.get("term", "0"))),
                mode="VirtualMAC" if dressed else "NodeMAC",
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
        self.handle(self._heard_advert(words))

    def _waits(self, words: list[str]) -> None:
        assert words[0] == "advert"
        self.waiting.append(self._heard_advert(words[1:]))

    @staticmethod
    def _heard_advert(words: list[str]) -> on.FrameReceived:
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
        return on.FrameReceived(INDEX, build(advert, mac_of(source.packed)))

    def _asks(self, words: list[str]) -> None:
        self._inquire([word for word in words if "=" in word], inquiry.QUESTION, hears="hearing" in words)

    def _hears(self, words: list[str]) -> None:
        self._inquire(words, inquiry.ANSWER, hears=True)

    def _hearsnot(self, words: list[str]) -> None:
        self._inquire(words, inquiry.ANSWER)

    def _inquire(self, words: list[str], kind: int, *, hears: bool = False) -> None:
        settings = dict(word.split("=", 1) for word in words)
        source = ip_address(settings["from"])
        number = NODES[self.name]
        target = ip_address(f"10.0.0.{number}" if source.version == 4 else f"fe80::{number}")
        said = inquiry.Inquiry(
            kind,
            4 if source.version == 4 else 6,
            source.packed,
            target.packed,
            int(settings["vrid"]),
            hears=hears,
        )
        own = bytes.fromhex(mac(self.name).replace(":", ""))
        frame = inquiry.build(said, mac=mac_of(source.packed), to_mac=own)
        self.handle(on.FrameReceived(INDEX, frame))

    def _claim(self, words: list[str]) -> None:
        address, sender = words
        self.handle(on.FrameReceived(INDEX, wire.claim(address, bytes.fromhex(sender.replace(":", "")))))

    def _answer(self, words: list[str]) -> None:
        address, sender = words[:2]
        own = bytes.fromhex((words[2] if len(words) > 2 else mac(self.name)).replace(":", ""))
        frame = bytearray(own + wire.claim(address, bytes.fromhex(sender.replace(":", "")))[6:])
        if frame[12:14] == b"\x08\x06":
            frame[20:22] = b"\0\2"  # a reply
        self.handle(on.FrameReceived(INDEX, bytes(frame)))

    def _macs(self, words: list[str]) -> None:
        self.handle(on.MacsHeard(frozenset(words)))

    def _question(self, words: list[str]) -> None:
        address, sender, asked = words
        frame = bytearray(wire.claim(address, bytes.fromhex(sender.replace(":", ""))))
        frame[38:42] = wire.packed(asked)
        self.handle(on.FrameReceived(INDEX, bytes(frame)))

    def _frame(self, words: list[str]) -> None:
        self.handle(on.FrameReceived(INDEX, bytes.fromhex("".join(words))))

    def _seen(self, words: list[str]) -> None:
        self.handle(on.AddressesSeen(frozenset((INDEX, address) for address in words)))

    def _bind(self, words: list[str]) -> None:
        self.bind_fails = " ".join(words[1:]) if words[0] == "fails" else ""
        self.bind_takes_us = duration_us(words[1]) if words[0] == "takes" else 0

    def _fence(self, words: list[str]) -> None:
        self.fence_works = words[0] != "fails"
        self.fence_takes_us = duration_us(words[1]) if words[0] == "takes" else 0

    def _lost(self, words: list[str]) -> None:
        self.handle(on.LeaseLost(int(words[0])))

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
