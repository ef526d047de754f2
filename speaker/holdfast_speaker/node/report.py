# SPDX-License-Identifier: Apache-2.0
"""What the Speaker object says: folded from all routers, NICs and strangers of this node."""

from collections.abc import Mapping

from holdfast_api.conditions import Reason
from holdfast_api.types import Condition, HeardVirtualRouterID, RouterReport, SpeakerStatus
from holdfast_speaker.node.book import Book
from holdfast_speaker.node.host import Host
from holdfast_speaker.node.instance import Instance
from holdfast_speaker.vrrp.router import State

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
    routers = [_router(instance, host) for instance in instances.values()]
    unread = [name for name in sorted(book.rejected) if name not in instances and name not in book.routers]
    routers += [_unread(name, host) for name in unread[:MAX_REJECTED]]
    return SpeakerStatus(
        version=version,
        interfaces=tuple(interfaces),
        routers=tuple(sorted(routers, key=lambda each: each.name)),
        heard_virtual_router_ids=strangers[:MAX_STRANGERS],
        preflight=preflight,
    )


def _router(instance: Instance, host: Host) -> RouterReport:
    metadata, state = instance.virtual_router.metadata, instance.router.state
    reason = instance.reason if state is State.INITIALIZE else instance.suspicion.reason
    return RouterReport(
        name=instance.name,
        uid=metadata.uid,
        observed_generation=metadata.generation,
        state=state.value,
        term=instance.term,
        since=host.wall(instance.since_us),
        interface=instance.nic.link.interface.name if instance.nic else "",
        held=instance.holdings.held(),
        failed=instance.holdings.failed(),
        reason=Reason.INVALID_PLAN.value if instance.invalid else reason.value if reason else "",
        hears=instance.following.hears,
        last_transition=instance.transition,
        conflicts=instance.conflicts.report(),
        blocked=instance.holdings.held_by(instance.reach.blocked),
        handover=instance.departure.order,
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
