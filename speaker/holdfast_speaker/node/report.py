# SPDX-License-Identifier: Apache-2.0
"""What the Speaker object says: folded from all routers, NICs and strangers of this node."""

from collections.abc import Mapping

from holdfast_api.conditions import Reason
from holdfast_api.types import Condition, HeardVirtualRouterID, RouterReport, SpeakerStatus
from holdfast_speaker.node.book import Book
from holdfast_speaker.node.host import Host
from holdfast_speaker.node.instance import Instance

MAX_STRANGERS = 255
MAX_REJECTED = 32
MAX_MESSAGE = 256


def status(
    version: str,
    host: Host,
    instances: Mapping[str, Instance],
    book: Book,
    preflight: tuple[Condition, ...],
    now_us: int,
) -> SpeakerStatus:
    """The same for the same facts, so that comparing two tells whether there is anything to write."""
    names = {index: nic.link.interface.name for index, nic in host.nics.items()}
    strangers = tuple(
        HeardVirtualRouterID(names[index], virtual_router_id, source)
        for index, virtual_router_id, source in host.hearing.strangers()
        if index in names
    )
    interfaces = sorted((nic.report(now_us) for nic in host.nics.values()), key=lambda each: each.name)
    routers = [instance.report() for instance in instances.values()]
    unread = [name for name in sorted(book.rejected) if name not in instances and name not in book.routers]
    routers += [_unread(name, host) for name in unread[:MAX_REJECTED]]
    return SpeakerStatus(
        version=version,
        interfaces=tuple(interfaces),
        routers=tuple(sorted(routers, key=lambda each: each.name)),
        heard_virtual_router_ids=strangers[:MAX_STRANGERS],
        preflight=preflight,
    )


def _unread(name: str, host: Host) -> RouterReport:
    """A VirtualRouter of which no version could ever be read here."""
    return RouterReport(
        name=name,
        uid="",
        observed_generation=0,
        state="Initialize",
        term=0,
        since=host.wall(0),
        reason=Reason.INVALID_PLAN.value,
    )
