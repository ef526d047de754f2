# SPDX-License-Identifier: Apache-2.0
"""The API, seen from one node: VirtualRouters in, this node's Speaker and Lease out. Nothing else is asked.

Trouble here never stops anything else: it is logged once per change, counted, and tried again.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from holdfast_api import kube, names
from holdfast_api.answers import UNREADABLE
from holdfast_api.backoff import delay_s
from holdfast_api.decode import DecodeError, decode_router
from holdfast_api.types import Metadata, Part, SpeakerStatus, VirtualRouter
from holdfast_speaker.events import (
    ApiConfirmed,
    Event,
    RouterChanged,
    RouterDeleted,
    RouterRejected,
    RoutersListed,
)

log = logging.getLogger(__name__)

_ROUTERS: Final = kube.path(names.VIRTUAL_ROUTERS)
_SPACING_S: Final = 0.02
_DECODED_PER_TURN: Final = 20
_LEASE_TIMEOUT_S: Final = 4.0
_LEASE_RETRY_S: Final = 2.0
_LOOK_AT_OWN_S: Final = 300.0


class _Named(Part, frozen=True):
    metadata: Metadata


_NAMED: Final = msgspec.json.Decoder(_Named)


class Trouble:
    """One sentence when something starts to fail, or fails differently; one when it works again."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._why: str | None = None

    def says(self, why: str) -> None:
        if why != self._why:
            self._why = why
            log.warning("%s: %s", self._what, why)

    def over(self) -> None:
        if self._why is not None:
            self._why = None
            log.info("%s: works again", self._what)


def read_router(raw: msgspec.Raw) -> VirtualRouter | RouterRejected:
    """One VirtualRouter as the API has it, or its name and what cannot be read in it."""
    try:
        return decode_router(raw)
    except DecodeError as error:
        return RouterRejected(name_of(raw), str(error))


def name_of(raw: msgspec.Raw) -> str:
    try:
        return _NAMED.decode(raw).metadata.name
    except UNREADABLE:
        return ""


class ApiCluster:
    """``ports.Cluster`` on a ``kube.Kube``. ``api_up`` hears True and False as the API comes and goes."""

    def __init__(self, api: kube.Kube, node: str, api_up: Callable[[bool], None]) -> None:
        self._api = api
        self._node = node
        self._api_up = api_up
        self._status: SpeakerStatus | None = None
        self._written: SpeakerStatus | None = None
        self._uid: str | None = None
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._answers = asyncio.Event()

    # --- in -----------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[Event]:
        trouble = Trouble("the API is away, the last plan stays in force")
        async with aclosing(self._api.watch(_ROUTERS)) as watched:
            async for event in watched:
                match event:
                    case kube.Outage(why):
                        trouble.says(why)
                        self._api_up(False)
                        continue
                    case kube.Listed(objects):
                        yield await self._listed(objects)
                        self._look_again()
                    case kube.Changed(raw):
                        read = read_router(raw)
                        yield read if isinstance(read, RouterRejected) else RouterChanged(read)
                    case kube.Deleted(raw):
                        yield RouterDeleted(name_of(raw))
                    case kube.Confirmed():
                        pass
                trouble.over()
                self._api_up(True)
                self._answers.set()
                yield ApiConfirmed()

    async def _listed(self, objects: tuple[msgspec.Raw, ...]) -> RoutersListed:
        routers: list[VirtualRouter] = []
        rejected: list[tuple[str, str]] = []
        for count, raw in enumerate(objects, 1):
            read = read_router(raw)
            if isinstance(read, RouterRejected):
                rejected.append((read.name, read.why))
            else:
                routers.append(read)
            if count % _DECODED_PER_TURN == 0:
                await asyncio.sleep(0)
        return RoutersListed(tuple(routers), tuple(rejected))

    # --- out: the report ----------------------------------------------------------------------------

    def report(self, status: SpeakerStatus) -> None:
        self._status = status
        if status != self._written:
            self._idle.clear()
            self._wanted.set()

    async def flush(self, at_most_s: float) -> None:
        try:
            await asyncio.wait_for(self._idle.wait(), at_most_s)
        except TimeoutError:
            log.warning("the last report could not be written to the API in time")

    def _look_again(self) -> None:
        """The API may know less than we wrote (a restored backup, a deleted object): write once more."""
        if self._written is not None:
            self._written = None
            self._idle.clear()
            self._wanted.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_report())
            tasks.create_task(self._keep_lease())
            tasks.create_task(self._watch_own())

    async def _keep_report(self) -> None:
        trouble = Trouble("the report cannot be written")
        failures = 0
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._answers.clear()
            status = self._status
            if status is not None and status != self._written:
                try:
                    await self._write(status)
                except kube.ApiTrouble as error:
                    trouble.says(str(error))
                    self._uid = None  # perhaps it is another object by now
                    self._wanted.set()
                    await self._pause(delay_s(failures, random.random()))  # noqa: S311 - only spreads load
                    failures += 1
                    continue
                trouble.over()
                failures = 0
                self._written = status
            if self._status == self._written:
                self._idle.set()
            await asyncio.sleep(_SPACING_S)

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until the watch hears the API again."""
        try:
            await asyncio.wait_for(self._answers.wait(), seconds)
        except TimeoutError:
            return
        await asyncio.sleep(_SPACING_S)

    async def _write(self, status: SpeakerStatus) -> None:
        if self._uid is None:
            self._uid = await self._own_uid()
        body = self._object({"uid": self._uid}) | {"status": msgspec.to_builtins(status)}
        await self._api.apply(
            kube.path(names.SPEAKERS, self._node, subresource="status"), body, manager=names.SPEAKER_MANAGER
        )

    async def _own_uid(self) -> str:
        try:
            found = await self._api.get(kube.path(names.SPEAKERS, self._node))
        except kube.ApiError as error:
            if error.status != 404:
                raise
            found = await self._api.create(kube.path(names.SPEAKERS), self._object({}) | {"spec": {}})
        return str(found["metadata"]["uid"])

    def _object(self, metadata: dict[str, str]) -> dict[str, Any]:
        return {
            "apiVersion": names.API_VERSION,
            "kind": "Speaker",
            "metadata": {"name": self._node, **metadata},
        }

    async def _watch_own(self) -> None:
        """Somebody may delete our Speaker while nothing changes: one read every five minutes."""
        while True:
            await asyncio.sleep(_LOOK_AT_OWN_S * random.uniform(0.9, 1.1))  # noqa: S311 - only spreads load
            if self._uid is None:
                continue
            try:
                found = await self._api.get(kube.path(names.SPEAKERS, self._node))
                gone = found["metadata"]["uid"] != self._uid
            except kube.ApiError as error:
                gone = error.status == 404
            except kube.ApiUnreachable:
                gone = False
            if gone:
                self._uid = None
                self._look_again()

    # --- out: the Lease -----------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        """Alive, says a renewal every 10 s; that is all the API hears while nothing happens."""
        trouble = Trouble("the Lease cannot be renewed")
        lease: dict[str, Any] | None = None
        while True:
            wait_s = names.SPEAKER_LEASE_RENEW_SECONDS * random.uniform(0.95, 1.0)  # noqa: S311
            try:
                lease = await self._renew(lease)
            except kube.ApiTrouble as error:
                lease = None
                if not (isinstance(error, kube.ApiError) and error.status == 409):
                    trouble.says(str(error))
                wait_s = _LEASE_RETRY_S * random.uniform(0.5, 1.0)  # noqa: S311
            else:
                trouble.over()
            await asyncio.sleep(wait_s)

    async def _renew(self, known: dict[str, Any] | None) -> dict[str, Any]:
        namespace = names.SPEAKER_LEASE_NAMESPACE
        path = kube.lease_path(namespace, self._node)
        if known is None:
            try:
                known = await self._api.get(path, timeout_s=_LEASE_TIMEOUT_S)
            except kube.ApiError as error:
                if error.status != 404:
                    raise
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = {
            "holderIdentity": self._node,
            "leaseDurationSeconds": names.SPEAKER_LEASE_SECONDS,
            "renewTime": now,
        }
        if known is None:
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._node, "namespace": namespace},
                "spec": spec,
            }
            return await self._api.create(kube.lease_path(namespace), body, timeout_s=_LEASE_TIMEOUT_S)
        body = {key: value for key, value in known.items() if key != "spec"} | {"spec": spec}
        return await self._api.replace(path, body, timeout_s=_LEASE_TIMEOUT_S)
