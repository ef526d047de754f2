# SPDX-License-Identifier: Apache-2.0
"""The door to the API: complete lists in, changes out. Nobody else in this house writes objects.

Each write asks right before whether we still lead, and ends before the Lease does. A VirtualRouter is
made by POST, which alone can't take what exists, and empty: what stands in it is then said by server-side
apply, so that every entry of its lists is ours to take out again. An apply carries the uid (it never
makes an object) and the resourceVersion (it never meets one that we have not seen).
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, assert_never

import msgspec

from holdfast_api.kube import ApiError, ApiTrouble, Kube, event_path, lease_path, node_path, path
from holdfast_api.names import (
    API_VERSION,
    OPERATOR_MANAGER,
    SPEAKERS,
    VIRTUAL_IPS,
    VIRTUAL_ROUTERS,
)
from holdfast_api.types import VirtualIPStatus, VirtualRouterSpec
from holdfast_operator import metrics
from holdfast_operator.cache import KINDS, Cache, Kind
from holdfast_operator.changes import (
    ApplyRouter,
    ApplyStatus,
    CreateRouter,
    DeleteRouter,
    RouterChange,
)
from holdfast_operator.election import Election, NotLeadingError, boottime_s

log = logging.getLogger(__name__)

AT_ONCE = 16  # writes
PAGE = 250  # objects of a list
LIST_TIMEOUT_S = 15.0
Object = dict[str, Any]


class MissingKindError(Exception):
    """A CRD is not installed; the message says which and what to do."""


_PATHS: dict[Kind, str] = {
    "nodes": node_path(),
    "speakers": path(SPEAKERS),
    "virtualips": path(VIRTUAL_IPS),
    "virtualrouters": path(VIRTUAL_ROUTERS),
}


class Cluster:
    def __init__(self, kube: Kube, cache: Cache, election: Election, *, speaker_namespace: str) -> None:
        self._kube = kube
        self._cache = cache
        self._election = election
        self._speaker_namespace = speaker_namespace
        self._slots = asyncio.Semaphore(AT_ONCE)

    # --- reading --------------------------------------------------------------------------------

    async def list_all(self) -> bool:
        """Every kind, complete, into the cache. Whether it changed what a plan may depend on."""
        changed = await self._read_uid()
        for kind in KINDS:
            changed |= await self._list(kind)
        await self.list_pulses()
        return changed

    async def _read_uid(self) -> bool:
        """The cluster's UID, or none where that is forbidden: only new virtual MACs wait for it."""
        try:
            system = await self._kube.get(path("namespaces", "kube-system", group="", version="v1"))
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            log.warning("Namespace kube-system can't be read, so no virtual MAC is allocated: %s", error)
            return False
        uid = system["metadata"]["uid"]
        changed = bool(uid != self._cache.cluster_uid)
        self._cache.cluster_uid = uid
        return changed

    async def _list(self, kind: Kind) -> bool:
        try:
            objects, version = await self._objects(_PATHS[kind])
        except ApiError as error:
            if error.status == 404 and kind != "nodes":
                raise MissingKindError(
                    f"the API server knows no {kind}.holdfast.dev: install the CRDs first, "
                    "with kubectl apply -f crds/"
                ) from error
            raise
        return self._cache.replaced(kind, objects, version, boottime_s())

    async def list_pulses(self) -> None:
        """The speakers' Leases into the cache."""
        leases, _ = await self._objects(lease_path(self._speaker_namespace))
        self._cache.pulses(leases, boottime_s())

    async def _objects(self, where: str) -> tuple[list[Object], int]:
        pages = self._kube.pages(where, limit=PAGE, timeout_s=LIST_TIMEOUT_S)
        found: list[Object] = []
        async for raw in pages:
            found.append(msgspec.json.decode(raw))
            if len(found) % 50 == 0:
                await asyncio.sleep(0)
        return found, int(pages.resource_version)

    # --- routers --------------------------------------------------------------------------------

    async def change_routers(self, changes: Iterable[RouterChange]) -> bool:
        """All of them, some at once. False when one did not get through: look again."""
        done = await asyncio.gather(*(self._guarded("virtualrouters", self._router, c) for c in changes))
        return all(done)

    async def _router(self, change: RouterChange) -> None:
        match change:
            case CreateRouter(name, spec):
                created = await self._create_router(name, spec)
                meta = created["metadata"]
                await self._apply_router(name, meta["uid"], meta["resourceVersion"], spec)
            case ApplyRouter(stored, spec):
                await self._apply_router(stored.name, stored.uid, stored.resource_version, spec)
            case DeleteRouter(stored):
                where = path(VIRTUAL_ROUTERS, stored.name)
                await self._kube.delete(where, uid=stored.uid, timeout_s=self._election.remaining_s())
                self._cache.missing("virtualrouters", "", stored.name)
                self._wrote("virtualrouters", "delete", f"VirtualRouter {stored.name} removed: it is empty")
            case _:
                assert_never(change)

    async def _create_router(self, name: str, spec: VirtualRouterSpec) -> Object:
        empty = {
            "virtualRouterID": spec.virtual_router_id,
            "addresses": [],
            "plannerEpoch": spec.planner_epoch,
        }
        body = {**_head("VirtualRouter", name), "spec": empty}
        where = path(VIRTUAL_ROUTERS)
        created = await self._kube.create(where, body, timeout_s=self._election.remaining_s())
        metrics.WRITES.labels("virtualrouters", "create").inc()
        return created

    async def _apply_router(self, name: str, uid: str, version: str, spec: VirtualRouterSpec) -> None:
        body = _head("VirtualRouter", name, uid=uid, version=version)
        body["spec"] = _plain(spec)
        answer = await self._kube.apply(
            path(VIRTUAL_ROUTERS, name),
            body,
            manager=OPERATOR_MANAGER,
            timeout_s=self._election.remaining_s(),
        )
        self._cache.seen("virtualrouters", answer, boottime_s(), listed=True)
        leader = spec.candidates[0].node if spec.candidates else "nobody"
        self._wrote(
            "virtualrouters",
            "apply",
            f"VirtualRouter {name} planned: {len(spec.addresses)} addresses, led by {leader}",
        )

    # --- statuses and events --------------------------------------------------------------------

    async def change_status(self, change: ApplyStatus) -> bool:
        """Whether the API took it (or the VirtualIP is gone)."""
        return await self._guarded("virtualips", self._status, change)

    async def _status(self, change: ApplyStatus) -> None:
        stored = change.stored
        body = _head("VirtualIP", stored.name, uid=stored.uid, version=stored.resource_version)
        body["metadata"]["namespace"] = stored.namespace
        body["status"] = _plain(change.status)
        answer = await self._kube.apply(
            path(VIRTUAL_IPS, stored.name, namespace=stored.namespace, subresource="status"),
            body,
            manager=OPERATOR_MANAGER,
            timeout_s=self._election.remaining_s(),
        )
        self._cache.seen("virtualips", answer, boottime_s(), listed=True)
        self._wrote("virtualips/status", "apply", None)

    async def tell(self, namespace: str, body: Mapping[str, Any]) -> None:
        """A Kubernetes Event, as far as the API wants it: the same news again (409) is no news."""
        try:
            async with self._slots:
                timeout_s = min(self._election.remaining_s(), 2.0)
                await self._kube.create(event_path(namespace), body, timeout_s=timeout_s)
            metrics.WRITES.labels("events", "create").inc()
        except NotLeadingError:
            return
        except ApiTrouble as error:
            if not (isinstance(error, ApiError) and error.status == 409):
                metrics.FAILURES.labels("events", _why(error)).inc()
                log.debug("an Event was not taken: %s", error)

    # --- every write ----------------------------------------------------------------------------

    async def _guarded(self, kind: Kind, write: Callable[[Any], Any], change: Any) -> bool:
        async with self._slots:
            try:
                await write(change)
            except NotLeadingError:
                return False
            except ApiTrouble as error:
                metrics.FAILURES.labels(kind, _why(error)).inc()
                return await self._refused(kind, change, error)
        return True

    async def _refused(self, kind: Kind, change: Any, error: ApiTrouble) -> bool:
        """What to make of a write that failed: read what is there now, so that the next plan knows."""
        meta = getattr(change, "stored", None)
        namespace, name = (meta.namespace, meta.name) if meta is not None else ("", change.name)
        conflict = isinstance(error, ApiError) and error.status in (404, 409)
        log.log(logging.INFO if conflict else logging.WARNING, "%s %s: %s", kind, name, error)
        if not conflict:
            return False
        where = path(kind, name, namespace=namespace or None)
        try:
            found = await self._kube.get(where, timeout_s=self._election.remaining_s())
        except NotLeadingError:
            return False
        except ApiError as missing:
            if missing.status == 404:
                self._cache.missing(kind, namespace, name)
                return kind == "virtualips"
            return False
        except ApiTrouble:
            return False
        self._cache.seen(kind, found, boottime_s(), listed=True)
        return False

    def _wrote(self, kind: str, verb: str, story: str | None) -> None:
        metrics.WRITES.labels(kind, verb).inc()
        if story is not None:
            log.info(story)


def _why(error: ApiTrouble) -> str:
    return error.reason if isinstance(error, ApiError) else "Unreachable"


def _head(kind: str, name: str, *, uid: str = "", version: str = "") -> Object:
    metadata = {"name": name}
    if uid:
        metadata |= {"uid": uid, "resourceVersion": version}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata}


def _plain(part: VirtualRouterSpec | VirtualIPStatus) -> Any:
    """As JSON has it; what is None is left out, since the schema knows no null."""
    return _without_none(msgspec.to_builtins(part))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_without_none(each) for each in value]
    return value
