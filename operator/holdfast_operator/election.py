# SPDX-License-Identifier: Apache-2.0
"""The leader election carried out: one Lease, one loop, every request bounded in time.

``leading`` answers from the clock alone. Whatever a request does, a frozen API or a process that was
stopped and woken finds itself no leader once ``hold_s`` has passed since the last renewal began.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from holdfast_api.kube import ApiError, ApiTrouble, Kube, lease_path
from holdfast_operator.lease import LeaseSpec, Observed, Terms, Wait, decide, observe, written

log = logging.getLogger(__name__)

REFUSALS_TOLD = 5
CLOCK = time.CLOCK_BOOTTIME  # goes on while the machine sleeps


def boottime_s() -> float:
    return time.clock_gettime(CLOCK)


class NotLeadingError(Exception):
    """Somebody else may lead by now: nothing was sent."""


class Election:
    """``on_change`` is called whenever ``leading`` became another."""

    def __init__(
        self,
        kube: Kube,
        *,
        namespace: str,
        name: str,
        me: str,
        floor: Callable[[], int],
        on_change: Callable[[bool], None],
        terms: Terms | None = None,
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._me = me
        self._floor = floor
        self._on_change = on_change
        self._terms = terms or Terms()
        self._seen: Observed | None = None
        self._until_s = 0.0
        self._told = False
        self._refusals = 0
        self.epoch = 0

    @property
    def leading(self) -> bool:
        return boottime_s() < self._until_s

    def remaining_s(self) -> float:
        """Seconds for which we certainly lead. NotLeadingError when that is nothing to work with."""
        left = self._until_s - boottime_s()
        if left < 0.2:
            raise NotLeadingError
        return left - 0.1

    async def run(self) -> None:
        """For ever: look, decide, write, sleep."""
        while True:
            began_s = boottime_s()
            try:
                await self._turn()
                self._refusals = 0
            except ApiTrouble as error:
                self._explain(error)
            self._tell()
            await self._pause(began_s)

    async def _pause(self, began_s: float) -> None:
        """Until the next turn, or until we stop leading, so that this is told in time."""
        wake_s = began_s + (self._terms.renew_s if self.leading else self._terms.renew_s / 2)
        while (left := wake_s - boottime_s()) > 0:
            if self._told:
                left = min(left, max(self._until_s - boottime_s(), 0.01))
            await asyncio.sleep(min(left, 0.5))
            self._tell()

    def _tell(self) -> None:
        if self.leading != self._told:
            self._told = self.leading
            self._on_change(self._told)

    def _explain(self, error: ApiTrouble) -> None:
        if isinstance(error, ApiError) and error.status in (403, 404):
            self._refusals += 1
        if self._refusals == REFUSALS_TOLD:  # an API server that has just started refuses at first
            log.error(
                "no election without the Lease %s/%s: %s. Create the namespace %s, and give the operator "
                "get, create and update on its leases",
                self._namespace,
                self._name,
                error,
                self._namespace,
            )
        else:
            log.info("election: %s", error)

    async def _turn(self) -> None:
        bound_s = self._terms.renew_s
        path = lease_path(self._namespace, self._name)
        began_s = boottime_s()
        found = await self._read(path, bound_s)
        decision = decide(self._seen, self._me, boottime_s(), floor=self._floor(), terms=self._terms)
        if isinstance(decision, Wait):
            self._until_s = 0.0
            return
        spec = written(decision, self._me, _now(), self._terms, self._seen.spec if self._seen else None)
        began_s = boottime_s()  # before the request: when it counts for the others, it has counted for us
        try:
            if found is None:
                body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec}
                body["metadata"] = {"name": self._name}
                answer = await self._kube.create(lease_path(self._namespace), body, timeout_s=bound_s)
            else:
                answer = await self._kube.replace(
                    path, {**found, "spec": {**found["spec"], **spec}}, timeout_s=bound_s
                )
        except ApiError as error:
            if error.status != 409:
                raise
            self._until_s = 0.0  # somebody else wrote it first
            return
        self._remember(answer)
        self.epoch = decision.transitions
        self._until_s = began_s + self._terms.hold_s

    async def _read(self, path: str, bound_s: float) -> dict[str, Any] | None:
        try:
            found = await self._kube.get(path, timeout_s=bound_s)
        except ApiError as error:
            if error.status != 404:
                raise
            self._seen = None
            return None
        found.setdefault("spec", {})
        self._remember(found)
        return found

    def _remember(self, lease: dict[str, Any]) -> None:
        spec = msgspec.convert(lease.get("spec") or {}, type=LeaseSpec, strict=False)
        self._seen = observe(self._seen, lease["metadata"]["resourceVersion"], spec, boottime_s())

    async def release(self) -> None:
        """Lets another one lead at once. After it we do not lead, whether the API heard it or not."""
        led = self.leading
        self._until_s = 0.0
        self._tell()
        if not led:
            return
        path = lease_path(self._namespace, self._name)
        try:
            found = await self._kube.get(path, timeout_s=1)
            if found["spec"].get("holderIdentity") == self._me:
                spec = {**found["spec"], "holderIdentity": ""}
                await self._kube.replace(path, {**found, "spec": spec}, timeout_s=1)
        except ApiTrouble as error:
            log.info("the Lease was not released, it will lapse: %s", error)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
