# SPDX-License-Identifier: Apache-2.0
"""What the operator counts. No label grows with the number of VirtualIPs."""

from collections import Counter as Tally
from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

from holdfast_api.conditions import ConditionType
from holdfast_api.types import VirtualIPStatus
from holdfast_operator.plan import Plan
from holdfast_operator.world import VipKey

LEADING = Gauge("holdfast_operator_leading", "1 while this process plans and writes")
PLANS = Histogram(
    "holdfast_operator_plan_seconds",
    "Time to plan the whole world and fold all statuses",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)
WRITES = Counter("holdfast_operator_writes_total", "Writes to the API that it took", ["kind", "verb"])
FAILURES = Counter("holdfast_operator_write_failures_total", "Writes that it did not take", ["kind", "why"])
EVENTS_DROPPED = Counter("holdfast_operator_events_dropped_total", "Kubernetes Events beyond the rate limit")
ROUTERS = Gauge("holdfast_virtual_routers", "VirtualRouters planned")
VIPS = Gauge("holdfast_virtual_ips", "VirtualIPs by condition", ["condition", "status"])
REFUSED = Gauge("holdfast_virtual_ips_not_true", "VirtualIPs without a condition, by its reason", ["reason"])


def planned(made: Plan, statuses: Mapping[VipKey, VirtualIPStatus]) -> None:
    """The gauges as this plan leaves the world."""
    ROUTERS.set(len(made.routers))
    by_status: Tally[tuple[str, str]] = Tally()
    reasons: Tally[str] = Tally()
    for status in statuses.values():
        for condition in status.conditions:
            by_status[condition.type, condition.status] += 1
            wanted = "False" if condition.type == ConditionType.CONFLICT else "True"
            if condition.status != wanted:
                reasons[condition.reason] += 1
    for kind in ConditionType:
        for value in ("True", "False", "Unknown"):
            VIPS.labels(kind.value, value).set(by_status[kind.value, value])
    REFUSED.clear()
    for reason, count in reasons.items():
        REFUSED.labels(reason).set(count)
