# SPDX-License-Identifier: Apache-2.0
"""What a user would want to be told: old status, new status -> Kubernetes Events. Pure.

The name of an Event follows from what it says, so that the same news twice is one object.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from holdfast_api.conditions import ConditionType, Reason
from holdfast_api.names import API_VERSION, OPERATOR_MANAGER
from holdfast_api.types import Condition, Metadata, RouterAddress, Transition, VirtualIPStatus

LONGEST_NOTE = 1000  # bytes; the API takes 1,024


@dataclass(frozen=True, slots=True)
class Notice:
    """``reason`` is what happened (Assigned, FailedOver, ...), ``note`` says it with its Reason."""

    kind: Literal["Normal", "Warning"]
    reason: str
    note: str


def notices(old: VirtualIPStatus, new: VirtualIPStatus) -> tuple[Notice, ...]:
    """The news between two statuses of one VirtualIP, in the order it happened."""
    found = [
        _refused(old, new),
        _assigned(old, new),
        _failed_over(old, new),
        _moved(old, new),
        _blocked(old, new),
        _conflict(old, new),
    ]
    return tuple(notice for notice in found if notice is not None)


def _of(status: VirtualIPStatus, kind: ConditionType) -> Condition | None:
    return next((c for c in status.conditions if c.type == kind), None)


def _refused(old: VirtualIPStatus, new: VirtualIPStatus) -> Notice | None:
    for kind, word in ((ConditionType.ACCEPTED, "Refused"), (ConditionType.SCHEDULED, "NotScheduled")):
        before, after = _of(old, kind), _of(new, kind)
        if after is None or after.status != "False" or after.reason == Reason.NOT_ACCEPTED:
            continue
        if before is None or (before.status, before.reason) != (after.status, after.reason):
            passing = after.reason in (Reason.MOVING, Reason.LISTENING)
            return Notice("Normal" if passing else "Warning", word, f"{after.reason}: {after.message}")
    return None


def _assigned(old: VirtualIPStatus, new: VirtualIPStatus) -> Notice | None:
    if new.virtual_router is None:
        if old.virtual_router is None:
            return None
        return Notice("Normal", "Released", f"{old.address} leaves {old.virtual_router}")
    if old.virtual_router == new.virtual_router:
        return None
    standbys = ", ".join(new.standbys[:5]) or "none"
    return Notice(
        "Normal",
        "Assigned",
        f"{new.address} is in {new.virtual_router}: leader {new.leader}, standbys {standbys}",
    )


def _failed_over(old: VirtualIPStatus, new: VirtualIPStatus) -> Notice | None:
    told = new.last_failover
    if told is None or told.from_ is None or told == old.last_failover or not new.active:
        return None  # the first Active of all took over from nobody
    if old.last_failover is not None and old.last_failover.time == told.time:
        return None  # the same takeover, told in more detail
    return Notice("Normal", "FailedOver", _story(told))


def _story(told: Transition) -> str:
    times = [
        f"{words} {milliseconds} ms"
        for words, milliseconds in (
            ("detected in", told.detection_milliseconds),
            ("taken over in", told.takeover_milliseconds),
        )
        if milliseconds is not None
    ]
    return ", ".join([f"{told.reason}: from {told.from_} to {told.to} at {told.time}", *times])


def _moved(old: VirtualIPStatus, new: VirtualIPStatus) -> Notice | None:
    """The answer to ``holdfast.dev/move-to``."""
    if new.move is None or new.move == old.move:
        return None
    done = new.move.reason == Reason.HANDED_OVER
    note = f"{new.move.reason}: asked to move to {new.move.to}: {new.move.message}"
    return Notice("Normal" if done else "Warning", "Moved" if done else "NotMoved", note)


def _blocked(old: VirtualIPStatus, new: VirtualIPStatus) -> Notice | None:
    """The network does not carry the virtual MAC: told each time it begins, or once it is done without."""
    before, after = _of(old, ConditionType.READY), _of(new, ConditionType.READY)
    if after is None:
        return None
    if new.mac_fallback_generation is not None:
        if new.mac_fallback_generation == old.mac_fallback_generation:
            return None
        words = f"the network does not carry frames of {new.mac_address or 'its virtual MAC'}"
        done = f"the node's own MAC is used until the spec changes, at {after.last_transition_time}"
        return Notice("Warning", "FellBack", f"{Reason.VIRTUAL_MAC_BLOCKED}: {words}: {done}")
    if after.reason != Reason.VIRTUAL_MAC_BLOCKED or (before is not None and before.reason == after.reason):
        return None
    note = f"{after.reason}: {after.message}, at {after.last_transition_time}"
    return Notice("Warning", "Blocked", note)


def _conflict(old: VirtualIPStatus, new: VirtualIPStatus) -> Notice | None:
    before, after = _of(old, ConditionType.CONFLICT), _of(new, ConditionType.CONFLICT)
    if after is None or (before is not None and before.reason == after.reason):
        return None
    if after.status == "True":
        note = f"{after.reason}: {after.message}, at {after.last_transition_time}"
        return Notice("Warning", "Conflict", note)
    if before is not None and before.status == "True":
        since = f"which began at {before.last_transition_time}"  # another end is another Event
        return Notice("Normal", "ConflictOver", f"{before.reason}, {since}, is over")
    return None


def released(entry: RouterAddress) -> tuple[Metadata, Notice]:
    """The last news of a VirtualIP that is gone: its address is free."""
    owner = entry.owner
    note = f"{entry.address} is released: no node holds it any more"
    return Metadata(owner.name, owner.namespace, owner.uid), Notice("Normal", "Released", note)


def event_body(notice: Notice, vip: Metadata, now: str, reporter: str) -> Mapping[str, Any]:
    """The events.k8s.io/v1 object. ``now``: RFC 3339 with microseconds; ``reporter``: this process."""
    note = notice.note.encode()[:LONGEST_NOTE].decode(errors="ignore")
    digest = blake2b(f"{vip.uid}/{notice.reason}/{note}".encode(), digest_size=8).hexdigest()
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{vip.name[:200]}.{digest}", "namespace": vip.namespace},
        "eventTime": now,
        "reportingController": f"holdfast.dev/{OPERATOR_MANAGER}",
        "reportingInstance": reporter[:128],
        "type": notice.kind,
        "reason": notice.reason,
        "action": notice.reason,
        "note": note,
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": "VirtualIP",
            "namespace": vip.namespace,
            "name": vip.name,
            "uid": vip.uid,
        },
    }
