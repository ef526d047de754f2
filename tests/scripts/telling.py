# SPDX-License-Identifier: Apache-2.0
"""What a script tells of an effect: the simulator's line, and what a story wants to know besides."""

from ipaddress import ip_address

from holdfast_speaker import effects as do
from holdfast_speaker.vrrp.advert import Advert, parse
from tests.sim import text, wire

_DULL = (do.SavePlan, do.Hear, do.Cover)
_OF_MACS = (do.Prepare, do.Guard, do.Unguard)


def effect(value: do.Effect, *, dressed: bool = False) -> str | None:
    """None: too dull for a story. ``dressed``: virtual MACs play a part."""
    if isinstance(value, _DULL) or (isinstance(value, _OF_MACS) and not dressed):
        return None
    if isinstance(value, do.Send) and wire.is_question(value.frame):
        frame = value.frame
        asked = frame[38:42] if frame[12:14] == b"\x08\x06" else frame[62:78]
        asks = f"send {value.index} question: is {ip_address(asked)} at {frame[:6].hex(':')}"
        return f"{asks}, says {frame[6:12].hex(':')}" if dressed else asks
    line = text.effect(value)
    if line is not None and isinstance(value, do.Report):
        line += "".join(
            f"; {router.name} conflict {each.address} {each.reason} {each.mac}"
            for router in value.status.routers
            for each in router.conflicts
        )
        line += "".join(
            f"; {router.name} blocked={','.join(router.blocked)}"
            for router in value.status.routers
            if router.blocked
        )
        line += "".join(
            f"; {router.name} order={router.handover}" for router in value.status.routers if router.handover
        )
    return line


def is_resignation(frame: bytes) -> bool:
    advert = parse(frame)
    return isinstance(advert, Advert) and advert.priority == 0
