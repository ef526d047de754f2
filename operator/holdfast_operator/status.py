# SPDX-License-Identifier: Apache-2.0
"""Plan and reports -> the VirtualIPs' status. Pure: the time of a transition is an argument.

What is planned comes from the plan, who holds the address from the candidates' own reports, the highest
term first. An unchanged status compares equal to the stored one, and nobody writes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from holdfast_api.conditions import ConditionType, Reason
from holdfast_api.types import (
    Condition,
    ConditionStatus,
    FailedAddress,
    Holder,
    ReportedConflict,
    RouterReport,
    Transition,
    VirtualIPStatus,
)
from holdfast_operator.candidates import home_order
from holdfast_operator.eligibility import Refusal
from holdfast_operator.plan import Plan, PlannedRouter, Verdict
from holdfast_operator.world import Sighting, Vip, VipKey, World

_CONFLICTS = frozenset({Reason.ADDRESS_ANSWERED.value, Reason.LISTED_ELSEWHERE.value})
_BADNESS = {Reason.MAC_DOUBLED.value: 1, Reason.ADDRESS_CLAIMED_BY_PEER.value: 2}  # a stranger is the worst
_CLAIMING = frozenset({Reason.CLAIMING.value, ""})


@dataclass(frozen=True, slots=True)
class _Scene:
    """One router as its members see it: the plan's order, and what the candidates say."""

    router: PlannedRouter
    order: tuple[str, ...]
    actives: tuple[Sighting, ...]
    held: Mapping[str, frozenset[str]]  # node -> addresses
    failed: Mapping[str, tuple[tuple[str, FailedAddress], ...]]  # address -> (node, why)


@dataclass(frozen=True, slots=True)
class _Said:
    """A condition before it is compared with what stood there."""

    status: ConditionStatus
    reason: Reason | str
    message: str


def fold(world: World, plan: Plan, now: str) -> dict[VipKey, VirtualIPStatus]:
    """Every VirtualIP's status as it shall be. ``now``: RFC 3339, for conditions whose status changed."""
    scenes = {name: _scene(world, router) for name, router in plan.routers.items()}
    found = {}
    for vip in world.vips:
        verdict = plan.verdicts[vip.key]
        found[vip.key] = _status(world, vip, verdict, scenes.get(verdict.router or ""), now)
    return found


def _scene(world: World, router: PlannedRouter) -> _Scene:
    order = tuple(candidate.node for candidate in router.spec.candidates)
    if router.stored is None:
        return _Scene(router, order, (), {}, {})
    actives = world.actives(router.stored)
    candidates = set(home_order(router.stored)) | set(order)
    failed: dict[str, list[tuple[str, FailedAddress]]] = {}
    for sighting in world.of(router.stored):
        for why in sighting.report.failed if sighting.node in candidates else ():
            failed.setdefault(why.address, []).append((sighting.node, why))
    return _Scene(
        router=router,
        order=order,
        actives=actives,
        held={s.node: frozenset(s.report.held) for s in actives},
        failed={address: tuple(whys) for address, whys in failed.items()},
    )


def _status(world: World, vip: Vip, verdict: Verdict, scene: _Scene | None, now: str) -> VirtualIPStatus:
    address = verdict.address or ""
    holding = tuple(s for s in scene.actives if address in scene.held[s.node]) if scene else ()
    order = scene.order if scene else ()
    said = {
        ConditionType.ACCEPTED: _accepted(verdict),
        ConditionType.SCHEDULED: _scheduled(verdict, order),
        ConditionType.READY: _ready(world, vip, verdict, scene, holding),
        ConditionType.CONFLICT: _conflict(scene, address),
    }
    return VirtualIPStatus(
        address=address if verdict.router is not None else None,
        mac_address=verdict.mac,
        mac_fallback_generation=vip.metadata.generation if verdict.fallen_back else None,
        virtual_router=verdict.router,
        leader=order[0] if order else None,
        standbys=order[1:],
        active=tuple(Holder(s.node, s.report.interface, s.report.since) for s in holding),
        last_failover=_last_failover(vip, verdict.router, holding),
        move=verdict.move,
        conditions=tuple(_condition(vip, kind, said[kind], now) for kind in ConditionType),
    )


def _condition(vip: Vip, kind: ConditionType, said: _Said, now: str) -> Condition:
    old = next((c for c in vip.status.conditions if c.type == kind), None)
    kept = old is not None and old.status == said.status
    return Condition(
        type=kind.value,
        status=said.status,
        reason=str(said.reason),
        message=said.message,
        observed_generation=vip.metadata.generation,
        last_transition_time=old.last_transition_time if old is not None and kept else now,
    )


# --- the four conditions ------------------------------------------------------------------------


def _accepted(verdict: Verdict) -> _Said:
    if verdict.accepted is None:
        return _Said("True", Reason.ACCEPTED, f"it may have {verdict.address}")
    kept = f"; it goes on as before in {verdict.router}" if verdict.router is not None else ""
    return _Said("False", verdict.accepted.reason, verdict.accepted.message + kept)


def _scheduled(verdict: Verdict, order: tuple[str, ...]) -> _Said:
    refused: Refusal | None = verdict.scheduled
    if refused is not None:
        return _Said("False", refused.reason, refused.message)
    standbys = f", then {', '.join(order[1:4])}" if len(order) > 1 else ", without a standby"
    return _Said("True", Reason.SCHEDULED, f"{verdict.router} is led by {order[0]}{standbys}")


def _ready(
    world: World, vip: Vip, verdict: Verdict, scene: _Scene | None, holding: tuple[Sighting, ...]
) -> _Said:
    if scene is None:
        return _Said("False", Reason.NOT_SCHEDULED, "it has no virtual router: see Scheduled")
    if len(holding) > 1:
        nodes = " and ".join(s.node for s in holding)
        words = f"{nodes} hold it at once: the segment between them is split"
        return _Said("True", Reason.SEVERAL_ACTIVE, words)
    if holding:
        only = holding[0]
        stored = scene.router.stored
        if only.live or (stored is not None and world.heard(stored, only.node)):
            words = f"{only.node} holds it on {only.report.interface}"
            return _carried(vip, verdict, scene, only, words)
        words = f"{only.node} held it when its speaker was last heard of, and nobody reports to have it since"
        return _Said("Unknown", Reason.SPEAKER_SILENT, words)
    return _unheld(verdict, scene)


def _carried(vip: Vip, verdict: Verdict, scene: _Scene, only: Sighting, words: str) -> _Said:
    """It is held; whether the network carries its virtual MAC, and what is done if not."""
    fault = f"the network does not carry frames of {verdict.mac or 'its virtual MAC'}"
    if _is_blocked(vip, verdict, scene, only.report):
        remedy = (
            "from now on the node's own MAC is used, as spec.macFallback says"
            if verdict.fallen_back
            else "VMware: allow forged transmits and MAC changes; a switch with port security: raise its "
            "limit; Wi-Fi, clouds and wherever it can't be: set spec.macFallback: NodeMAC"
        )
        return _Said("False", Reason.VIRTUAL_MAC_BLOCKED, f"{words}, but {fault}; {remedy}")
    if verdict.fallen_back:
        words += (
            f" with the node's own MAC, as spec.macFallback says: {fault}; change the spec to try it again"
        )
        return _Said("True", Reason.VIRTUAL_MAC_BLOCKED, words)
    return _Said("True", Reason.HELD, words)


def _is_blocked(vip: Vip, verdict: Verdict, scene: _Scene, report: RouterReport) -> bool:
    """As of this plan; a report that is behind is believed only to go on as it was."""
    stored = scene.router.stored
    if verdict.address not in report.blocked or stored is None:
        return False
    known = any(
        c.reason == Reason.VIRTUAL_MAC_BLOCKED and c.observed_generation == vip.metadata.generation
        for c in vip.status.conditions
    )
    return known or report.observed_generation >= stored.metadata.generation


def _unheld(verdict: Verdict, scene: _Scene) -> _Said:
    active = scene.actives[0] if scene.actives else None
    for node, why in scene.failed.get(verdict.address or "", ()):
        if active is not None and node == active.node and why.reason not in _CLAIMING:
            return _Said("False", _known(why.reason), f"{node}: {why.message or why.reason}")
    if active is None:
        return _Said("False", Reason.NOT_HELD, f"no candidate of {scene.router.name} is Active")
    if not active.live:
        words = f"the speaker of {active.node}, the last Active, is silent"
        return _Said("Unknown", Reason.SPEAKER_SILENT, words)
    if _claiming(scene, verdict, active.report):
        return _Said("False", Reason.CLAIMING, f"{active.node} asks the segment whether anybody has it")
    return _Said("False", Reason.NOT_HELD, f"{active.node} is Active but does not report that it holds it")


def _claiming(scene: _Scene, verdict: Verdict, report: RouterReport) -> bool:
    """The Active has yet to read of it, or probes for it."""
    stored = scene.router.stored
    if stored is None or report.observed_generation < stored.metadata.generation:
        return True
    if any(node and why.reason in _CLAIMING for node, why in scene.failed.get(verdict.address or "", ())):
        return True
    return any(e.address == verdict.address and not e.claimed for e in stored.spec.addresses)


def _conflict(scene: _Scene | None, address: str) -> _Said:
    """Who claims it beside us: what keeps it from being held first, then who claims what is held."""
    if scene is None:
        return _Said("False", Reason.NO_CONFLICT, "nobody else claims it")
    for node, why in scene.failed.get(address, ()):
        if why.reason in _CONFLICTS:
            return _Said("True", _known(why.reason), f"{node}: {why.message or why.reason}")
    claims = [(s.node, c) for s in scene.actives for c in s.report.conflicts if c.address == address]
    if claims:
        node, worst = min(claims, key=lambda claim: _BADNESS.get(claim[1].reason, 0))
        return _claimed(node, worst)
    if scene.router.stranger is not None:
        node, source = scene.router.stranger
        vrid = scene.router.spec.virtual_router_id
        words = (
            f"{source or 'somebody'} sends adverts with VRID {vrid} of {scene.router.name}, as {node} hears"
        )
        return _Said("True", Reason.FOREIGN_ROUTER, words)
    return _Said("False", Reason.NO_CONFLICT, "nobody else claims it")


def _claimed(node: str, claim: ReportedConflict) -> _Said:
    if claim.reason == Reason.MAC_DOUBLED:
        words = f"another host on the segment sends with its virtual MAC {claim.mac} since {claim.since}"
        return _Said("True", Reason.MAC_DOUBLED, f"{words}; {node} holds it")
    peer = claim.reason == Reason.ADDRESS_CLAIMED_BY_PEER
    reason = Reason.ADDRESS_CLAIMED_BY_PEER if peer else Reason.ADDRESS_CLAIMED
    who = f"{claim.mac}, a NIC of another candidate," if peer else claim.mac
    return _Said("True", reason, f"{who} answers for it since {claim.since}; {node} holds and defends it")


def _known(reason: str) -> Reason:
    """The Reason, and BindFailed for a word that only a newer speaker knows."""
    try:
        return Reason(reason)
    except ValueError:
        return Reason.BIND_FAILED


def _last_failover(vip: Vip, router: str | None, holding: tuple[Sighting, ...]) -> Transition | None:
    """The new Active's own story, unless it is another's, or from before the VirtualIP was in this router.

    A report that says Active may still carry the story of an earlier takeover: its state began later.
    """
    known = vip.status.last_failover
    told = holding[0].report.last_transition if holding else None
    if told is None or told.to != holding[0].node or told.time < holding[0].report.since:
        return known
    if known is not None and known.time == told.time:
        return told
    scheduled = next((c for c in vip.status.conditions if c.type == ConditionType.SCHEDULED), None)
    here_since = vip.metadata.creation_timestamp
    if scheduled is not None and vip.status.virtual_router == router:
        here_since = max(here_since, scheduled.last_transition_time)
    elif vip.status.virtual_router is not None:
        return known  # it has just come here from another router
    return told if told.time[:19] >= here_since[:19] else known
