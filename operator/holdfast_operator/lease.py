# SPDX-License-Identifier: Apache-2.0
"""Leader election: what to do about our Lease, decided purely. Carried out by ``election``.

Nobody's clock is compared with anybody else's: another's Lease has expired when we have watched it
unchanged for its whole duration. Ours counts from before the request that renewed it, and we stop well
before the others may begin.
"""

from dataclasses import dataclass
from typing import Any

import msgspec


class LeaseSpec(msgspec.Struct, frozen=True, rename="camel"):
    """coordination.k8s.io/v1 Lease, as far as an election reads it."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds. ``duration_s`` others wait, ``hold_s`` we trust a renewal, ``renew_s`` we renew."""

    duration_s: int = 6
    hold_s: float = 4.0
    renew_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.renew_s < self.hold_s < self.duration_s:
            raise ValueError("a Lease needs renew < hold < duration, or two may lead at once")


@dataclass(frozen=True, slots=True)
class Observed:
    """The Lease as it was read, and since when (monotonic) it has been unchanged before our eyes."""

    resource_version: str
    spec: LeaseSpec
    unchanged_since_s: float


@dataclass(frozen=True, slots=True)
class Create:
    transitions: int


@dataclass(frozen=True, slots=True)
class Take:
    transitions: int


@dataclass(frozen=True, slots=True)
class Renew:
    transitions: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody else leads, or may still."""

    holder: str


Decision = Create | Take | Renew | Wait


def observe(before: Observed | None, resource_version: str, spec: LeaseSpec, now_s: float) -> Observed:
    """The clock of another's Lease starts anew whenever the object changed."""
    if before is not None and before.resource_version == resource_version:
        return before
    return Observed(resource_version, spec, now_s)


def decide(seen: Observed | None, me: str, now_s: float, *, floor: int, terms: Terms) -> Decision:
    """``floor``: the highest epoch any router was planned with; a new reign is always above it.

    A Lease that somebody deleted would start at 0 again, and every write be refused.
    """
    if seen is None:
        return Create(floor + 1)
    transitions = seen.spec.lease_transitions or 0
    holder = seen.spec.holder_identity or ""
    if holder == me:
        return Renew(transitions)
    if holder:
        duration_s = seen.spec.lease_duration_seconds or terms.duration_s
        if now_s < seen.unchanged_since_s + duration_s:
            return Wait(holder)
    return Take(max(transitions, floor) + 1)


def written(
    decision: Create | Take | Renew, me: str, now: str, terms: Terms, old: LeaseSpec | None
) -> dict[str, Any]:
    """The Lease's new spec. ``now``: RFC 3339 with microseconds, for people; no decision reads it."""
    acquired = old.acquire_time if isinstance(decision, Renew) and old is not None else None
    return {
        "holderIdentity": me,
        "leaseDurationSeconds": terms.duration_s,
        "acquireTime": acquired or now,
        "renewTime": now,
        "leaseTransitions": decision.transitions,
    }
