# SPDX-License-Identifier: Apache-2.0
"""The endless watch: a complete list, what happens to it, and when nothing can be known.

A list comes as a watch-list (one object a line, Kubernetes 1.34), or, where the server refuses that, as
a paged LIST followed by a watch. What a list does not name is gone; every break of a stream is followed
by a new list, so nothing deleted meanwhile lives on as a ghost. Only a stream that its server ended in good
order goes on from where it was.

An outage is never a deletion. 401, 403 and 404 are outages too: a revoked right or a removed CRD says
nothing about the objects. Every reconnection waits (``backoff.py``), whatever ended the last stream.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec

from holdfast_api.answers import (
    UNREADABLE,
    ApiError,
    ApiTrouble,
    ApiUnreachable,
    Status,
    api_error,
    hang_up,
    read,
)
from holdfast_api.backoff import delay_s, failures_after
from holdfast_api.lines import Lines, LineTooLongError

if TYPE_CHECKING:
    from holdfast_api.kube import Kube

SILENCE_S: Final = 90.0  # bookmarks come about every 60 s; longer silence is a dead stream
LIST_SILENCE_S: Final = 30.0  # within a list that has begun
YIELD_EVERY: Final = 20  # lines between two turns for the rest of the loop
LARGEST_LIST: Final = 512 * 1024 * 1024  # bytes held while a list is incomplete
LIST_END: Final = "k8s.io/initial-events-end"


@dataclass(frozen=True, slots=True)
class Listed:
    """Every object there is, complete. What is not among them does not exist."""

    objects: tuple[msgspec.Raw, ...]
    resource_version: str


@dataclass(frozen=True, slots=True)
class Changed:
    """An object as it is now: new or changed."""

    object: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Deleted:
    """An object as it was last."""

    object: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Nothing new, and the server is there: what is known is current."""


@dataclass(frozen=True, slots=True)
class Outage:
    """The server says nothing useful just now. Keep what is known; a Listed follows when it is back."""

    why: str


Event = Listed | Changed | Deleted | Confirmed | Outage


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    annotations: dict[str, str] = {}


class _Object(msgspec.Struct):
    metadata: _Metadata = _Metadata()


class _Line(msgspec.Struct):
    type: str
    object: msgspec.Raw


_LINE: Final = msgspec.json.Decoder(_Line)
_OBJECT: Final = msgspec.json.Decoder(_Object)
_STATUS: Final = msgspec.json.Decoder(Status)


@dataclass(slots=True)
class _Place:
    """Where a watch stands: after which version to go on, or "" to list anew."""

    resource_version: str = ""
    watch_list: bool = True  # False once the server refused it
    opened_at: float | None = None  # loop time when the server agreed to the latest stream


class _ExpiredError(Exception):
    """410: the version to go on from is gone from the server's memory. No outage, but a new list."""


async def watch(
    kube: "Kube",
    path: str,
    query: Mapping[str, str],
    chance: Callable[[], float] = random.random,
    silence_s: float = SILENCE_S,
) -> AsyncGenerator[Event, None]:
    """Events of a collection for ever; it ends only when it is closed or cancelled."""
    place = _Place()
    failures = 0
    now = asyncio.get_running_loop().time
    while True:
        place.opened_at = None
        try:
            async with aclosing(_connection(kube, path, query, place, silence_s)) as events:
                async for event in events:
                    yield event
        except _ExpiredError:
            place.resource_version = ""
        except (ApiTrouble, aiohttp.ClientError, OSError, LineTooLongError, *UNREADABLE) as error:
            place.resource_version = ""
            yield Outage(_sentence(path, error))
        lived_s = 0.0 if place.opened_at is None else now() - place.opened_at
        failures = failures_after(failures, lived_s)
        await asyncio.sleep(delay_s(max(0, failures - 1), chance()))


def _sentence(path: str, error: Exception) -> str:
    said = str(error) or type(error).__name__
    return said if path in said else f"watching {path}: {said}"


async def _connection(
    kube: "Kube", path: str, query: Mapping[str, str], place: _Place, silence_s: float
) -> AsyncGenerator[Event, None]:
    """One list (unless the place is known) and one stream, until that ends."""
    if place.resource_version or place.watch_list:
        try:
            async with aclosing(_stream(kube, path, query, place, silence_s)) as events:
                async for event in events:
                    yield event
            return
        except _NoWatchListError:
            place.watch_list = False
    yield await _paged(kube, path, query, place)
    async with aclosing(_stream(kube, path, query, place, silence_s)) as events:
        async for event in events:
            yield event


class _NoWatchListError(Exception):
    """This server cannot stream a list."""


async def _paged(kube: "Kube", path: str, query: Mapping[str, str], place: _Place) -> Listed:
    pages = kube.pages(path, query=query)
    size = 0
    objects: list[msgspec.Raw] = []
    try:
        async for item in pages:
            size += len(bytes(item))
            if size > LARGEST_LIST:
                raise ApiUnreachable(f"the list is longer than {LARGEST_LIST} bytes")
            objects.append(item.copy())  # of its own: not a view that keeps the whole page
            if len(objects) % YIELD_EVERY == 0:
                await asyncio.sleep(0)
    except ApiError as error:
        if error.status == 410:  # the list took longer than the server remembers
            raise _ExpiredError from error
        raise
    place.resource_version = pages.resource_version
    return Listed(tuple(objects), pages.resource_version)


def _parameters(query: Mapping[str, str], place: _Place) -> dict[str, str]:
    parameters = {**query, "watch": "1", "allowWatchBookmarks": "true"}
    if place.resource_version:
        parameters["resourceVersion"] = place.resource_version
    else:
        parameters |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
    return parameters


async def _stream(
    kube: "Kube", path: str, query: Mapping[str, str], place: _Place, silence_s: float
) -> AsyncGenerator[Event, None]:
    """One HTTP stream. Returns when the server ended it in good order after its list was complete."""
    reading = _Reading(place, listing=not place.resource_version)
    async with _answered(kube, path, _parameters(query, place), reading.listing) as response:
        place.opened_at = asyncio.get_running_loop().time()
        lines = Lines()
        count = 0
        while True:
            bound = min(LIST_SILENCE_S, silence_s) if reading.listing else silence_s
            try:
                async with asyncio.timeout(bound):
                    chunk = await response.content.readany()
            except TimeoutError as error:
                if reading.listing and reading.objects:
                    raise _NoWatchListError from error  # a server before 1.27 lists, and then never says so
                raise ApiUnreachable(f"nothing heard for {bound:g} s") from error
            if not chunk:
                break
            for line in lines.feed(chunk):
                event = reading.read(line)
                if event is not None:
                    yield event
                count += 1
                if count % YIELD_EVERY == 0:
                    await asyncio.sleep(0)
        if reading.listing or lines.unfinished:
            raise ApiUnreachable("the stream ended in the middle")


@asynccontextmanager
async def _answered(
    kube: "Kube", path: str, parameters: Mapping[str, str], listing: bool
) -> AsyncGenerator[aiohttp.ClientResponse, None]:
    """The response of a stream that the server agreed to; its headers come in time or not at all."""
    for retry in (False, True):
        token = kube.token()
        try:
            async with asyncio.timeout(kube.request_timeout_s):
                response = await kube.open("GET", path, parameters, token=token)
        except TimeoutError as error:
            raise ApiUnreachable(f"no answer within {kube.request_timeout_s:g} s") from error
        async with response:
            if response.status == 200:
                try:
                    yield response
                finally:
                    hang_up(response)
                return
            try:
                async with asyncio.timeout(kube.request_timeout_s):
                    refusal = await read(response)
            except TimeoutError as error:
                raise ApiUnreachable(f"no answer within {kube.request_timeout_s:g} s") from error
        if response.status == 401 and not retry and kube.token_refused(token):
            continue
        if response.status in (400, 422) and listing:
            raise _NoWatchListError
        if response.status == 410:
            raise _ExpiredError
        raise api_error(response.status, refusal)
    raise AssertionError("the second turn returns or raises")


@dataclass(slots=True)
class _Reading:
    """Line by line: gathers a list until its end mark, then passes on what happens."""

    place: _Place
    listing: bool
    objects: list[msgspec.Raw] = field(default_factory=list)
    size: int = 0

    def read(self, line: bytes) -> Event | None:
        parsed = _LINE.decode(line)
        match parsed.type:
            case "ADDED" | "MODIFIED":
                return self._object(parsed.object, Changed(parsed.object))
            case "DELETED":
                if self.listing:
                    raise _NoWatchListError  # a streamed list has none before its end mark
                return self._object(parsed.object, Deleted(parsed.object))
            case "BOOKMARK":
                return self._bookmark(_OBJECT.decode(parsed.object).metadata)
            case "ERROR":
                status = _STATUS.decode(parsed.object)
                if status.code == 410:
                    raise _ExpiredError
                raise ApiError(status.code, status.reason or "Unknown", status.message or "no message")
            case _:
                return None  # a kind of event from the future; objects come in the kinds above

    def _object(self, raw: msgspec.Raw, event: Event) -> Event | None:
        if not self.listing:
            self.place.resource_version = _OBJECT.decode(raw).metadata.resource_version
            return event
        self.size += len(bytes(raw))
        if self.size > LARGEST_LIST:
            raise ApiUnreachable(f"the list is longer than {LARGEST_LIST} bytes")
        self.objects.append(raw)
        return None

    def _bookmark(self, metadata: _Metadata) -> Event:
        if not self.listing:
            self.place.resource_version = metadata.resource_version or self.place.resource_version
            return Confirmed()
        if metadata.annotations.get(LIST_END) != "true":
            raise _NoWatchListError  # a server that knows bookmarks but no streamed list
        self.listing = False
        self.place.resource_version = metadata.resource_version
        listed = Listed(tuple(self.objects), metadata.resource_version)
        self.objects.clear()
        return listed
