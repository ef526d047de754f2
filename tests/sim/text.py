# SPDX-License-Identifier: Apache-2.0
"""Events and effects as one line each: the trace of the simulator and of the scripts, and its digest.

Sets are sorted, so that the text does not depend on Python's hash seed.
"""

from collections.abc import Iterable
from ipaddress import ip_address

from holdfast_speaker import effects as do
from holdfast_speaker.vrrp.advert import Advert, parse
from holdfast_speaker.vrrp.inquiry import QUESTION
from holdfast_speaker.vrrp.inquiry import parse as parse_inquiry


def advert(value: Advert) -> str:
    kind = "resign" if value.priority == 0 else "advert"
    skip = 1 if value.family == 6 else 0
    listed = ",".join(str(ip_address(each)) for each in value.addresses()[skip:])
    source = str(ip_address(value.source))
    where = f"vrid={value.virtual_router_id} priority={value.priority} interval={value.interval_us // 1000}ms"
    return f"{kind} from={source} {where} lists={listed}"


def frame(data: bytes) -> str:
    inquiry = parse_inquiry(data)
    if inquiry is not None:
        target = ip_address(inquiry.target)
        said = "asks" if inquiry.kind == QUESTION else "hears" if inquiry.hears else "hears not"
        return f"{ip_address(inquiry.source)} {said} to={target} vrid={inquiry.virtual_router_id}"
    parsed = parse(data)
    return advert(parsed) if isinstance(parsed, Advert) else f"frame {len(data)} bytes: {parsed}"


def dressed(addresses: Iterable[str], macs: Iterable[tuple[str, str]]) -> list[str]:
    """Each address with its virtual MAC, where it has one."""
    known = dict(macs)
    return [f"{address}={known[address]}" if address in known else address for address in addresses]


def effect(value: do.Effect) -> str | None:
    """None: too dull to tell."""
    match value:
        case do.Cover():
            return f"cover {sorted(value.indexes)}"
        case do.Guard():
            listed = ",".join(dressed(value.addresses, value.macs))
            return f"guard vrid={value.virtual_router_id} lease={value.lease_us // 1000}ms {listed}"
        case do.Unguard():
            return f"unguard vrid={value.virtual_router_id}"
        case do.Take():
            return f"take vrid={value.virtual_router_id}"
        case do.Fence():
            return f"fence {value.verb} vrid={value.virtual_router_id}"
        case do.Hear():
            return f"hear {sorted(value.indexes)}"
        case do.Prepare():
            return f"prepare {value.index} {' '.join(dressed(sorted(value.addresses), value.macs))}"
        case do.Send():
            return f"send {value.index} {frame(value.frame)}"
        case do.Announce():
            return f"announce {value.index} {value.form} {' '.join(value.addresses)}"
        case do.Bind() | do.Release() | do.Refresh():
            return f"{type(value).__name__.lower()} {value.index} {' '.join(value.addresses)}"
        case do.Report():
            return f"report {report(value)}"
        case do.SavePlan():
            terms = " ".join(f"{name}={term}" for name, term in value.terms)
            return f"save {' '.join(router.metadata.name for router in value.routers)} terms: {terms}"
        case do.Log():
            facts = " ".join(f"{key}={fact}" for key, fact in value.facts)
            return f"log {value.level}: {value.message} {facts}".rstrip()
        case do.Count():
            if value.metric in ("adverts_sent", "adverts_received"):
                return None
            return f"count {value.metric} {value.label} {value.amount}"


def report(value: do.Report) -> str:
    routers = []
    for router in value.status.routers:
        parts = [router.name, router.state, f"term={router.term}", f"generation={router.observed_generation}"]
        if router.held:
            parts.append(f"held={','.join(router.held)}")
        if router.reason:
            parts.append(f"reason={router.reason}")
        if router.hears:
            parts.append(f"hears={router.hears}")
        parts.extend(f"failed={each.address}:{each.reason}" for each in router.failed)
        last = router.last_transition
        if last is not None:
            parts.append(
                f"last={last.reason} from={last.from_} detection={last.detection_milliseconds}ms "
                f"takeover={last.takeover_milliseconds}ms announced={last.announcements_sent}"
            )
        routers.append(" ".join(parts))
    strangers = [
        f"stranger {each.interface} vrid={each.virtual_router_id} {each.source}"
        for each in value.status.heard_virtual_router_ids
    ]
    return "; ".join([*routers, *strangers]) or "nothing"
