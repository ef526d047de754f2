# SPDX-License-Identifier: Apache-2.0
"""Plan against what is stored -> the writes that are missing. Pure; nothing to do is an empty list.

Routers first come, routers first served: they are what the speakers wait for. Who planned it and from
what (``plannerEpoch``, ``plannedFrom``) is written along with a change and is never a reason for one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from holdfast_api.types import Metadata, PlannedFrom, VirtualIPStatus, VirtualRouter, VirtualRouterSpec
from holdfast_operator.plan import Plan
from holdfast_operator.world import VipKey, World


@dataclass(frozen=True, slots=True)
class CreateRouter:
    name: str
    spec: VirtualRouterSpec


@dataclass(frozen=True, slots=True)
class ApplyRouter:
    """Only this very object, and only as it was seen: uid and resourceVersion guard it."""

    stored: Metadata
    spec: VirtualRouterSpec


@dataclass(frozen=True, slots=True)
class DeleteRouter:
    stored: Metadata


@dataclass(frozen=True, slots=True)
class ApplyStatus:
    """``before`` is the status that it replaces: what the user is told follows from both."""

    stored: Metadata
    before: VirtualIPStatus
    status: VirtualIPStatus


RouterChange = CreateRouter | ApplyRouter | DeleteRouter
Change = RouterChange | ApplyStatus


def router_changes(plan: Plan) -> tuple[RouterChange, ...]:
    """Withdrawals first, so that an address leaves one router before it enters another."""
    creations: list[RouterChange] = []
    applications: list[RouterChange] = []
    for name, planned in plan.routers.items():
        if planned.stored is None:
            creations.append(CreateRouter(name, planned.spec))
        elif not same(planned.spec, planned.stored):
            applications.append(ApplyRouter(planned.stored.metadata, planned.spec))
    deletions = (DeleteRouter(router.metadata) for router in plan.deletions)
    return (*deletions, *applications, *creations)


def same(spec: VirtualRouterSpec, stored: VirtualRouter) -> bool:
    """Whether the stored router says the same to the speakers. The order of a list is the API's affair."""
    return _essence(spec) == _essence(stored.spec)


def _essence(spec: VirtualRouterSpec) -> VirtualRouterSpec:
    return msgspec.structs.replace(
        spec,
        addresses=tuple(sorted(spec.addresses, key=lambda entry: entry.address)),
        candidates=tuple(sorted(spec.candidates, key=lambda candidate: candidate.node)),
        planned_from=PlannedFrom(),
        planner_epoch=0,
    )


def status_changes(world: World, statuses: Mapping[VipKey, VirtualIPStatus]) -> tuple[ApplyStatus, ...]:
    """The statuses that differ from the stored ones, oldest VirtualIP first."""
    changed = (vip for vip in world.vips if statuses[vip.key] != vip.status)
    return tuple(
        ApplyStatus(vip.metadata, vip.status, statuses[vip.key])
        for vip in sorted(changed, key=lambda vip: vip.age_key)
    )
