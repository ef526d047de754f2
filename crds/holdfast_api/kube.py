# SPDX-License-Identifier: Apache-2.0
"""A small client for the Kubernetes API, on aiohttp alone: both programs use it.

``Kube`` does single requests and paged lists here; its endless ``watch`` is told in ``watch.py``. Every
request is bounded in time and in size; what goes wrong is an ``ApiError`` (the server said no) or an
``ApiUnreachable`` (it said nothing, or nothing sensible).
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from holdfast_api.answers import UNREADABLE, ApiError, ApiTrouble, ApiUnreachable, api_error, read
from holdfast_api.kubeconfig import Config, ConfigError
from holdfast_api.names import GROUP, VERSION
from holdfast_api.watch import Changed, Confirmed, Deleted, Event, Listed, Outage, watch

__all__ = [
    "ApiError",
    "ApiTrouble",
    "ApiUnreachable",
    "Changed",
    "Config",
    "ConfigError",
    "Confirmed",
    "Deleted",
    "Event",
    "Kube",
    "Listed",
    "Outage",
    "Pages",
    "event_path",
    "lease_path",
    "node_path",
    "path",
]

CONNECTIONS: Final = 32

Json = dict[str, Any]
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


# --- paths --------------------------------------------------------------------------------------


def path(
    plural: str,
    name: str | None = None,
    *,
    namespace: str | None = None,
    subresource: str | None = None,
    group: str = GROUP,
    version: str = VERSION,
) -> str:
    """The path of a collection or an object; the core group is ``""``. ValueError on an impossible name."""
    parts = ["api", version] if group == "" else ["apis", group, version]
    if namespace is not None:
        parts += ["namespaces", namespace]
    parts.append(plural)
    parts += [part for part in (name, subresource) if part is not None]
    for part in parts:
        if part in ("", ".", "..") or "/" in part or "%" in part:
            raise ValueError(f"{part!r} is no name of an API object")
    return "/" + "/".join(quote(part, safe="") for part in parts)


def node_path(name: str | None = None) -> str:
    return path("nodes", name, group="", version="v1")


def lease_path(namespace: str, name: str | None = None) -> str:
    return path("leases", name, namespace=namespace, group="coordination.k8s.io", version="v1")


def event_path(namespace: str, name: str | None = None) -> str:
    return path("events", name, namespace=namespace, group="events.k8s.io", version="v1")


# --- client -------------------------------------------------------------------------------------


class _PageMetadata(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct):
    metadata: _PageMetadata = _PageMetadata()
    items: list[msgspec.Raw] = []


class Kube:
    """One API server, one identity. Make it anywhere; its connections belong to the first loop that asks."""

    def __init__(self, config: Config, user_agent: str, request_timeout_s: float = 10) -> None:
        self._config = config
        self._user_agent = user_agent
        self._request_timeout_s = request_timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @property
    def request_timeout_s(self) -> float:
        return self._request_timeout_s

    async def get(
        self, path: str, *, query: Mapping[str, str] | None = None, timeout_s: float | None = None
    ) -> Json:
        return await self._json("GET", path, query=query, timeout_s=timeout_s)

    async def create(self, path: str, body: Mapping[str, Any], *, timeout_s: float | None = None) -> Json:
        """POST to a collection; 409 AlreadyExists when the name is taken."""
        return await self._json("POST", path, body, timeout_s=timeout_s)

    async def replace(self, path: str, body: Mapping[str, Any], *, timeout_s: float | None = None) -> Json:
        """PUT; with metadata.resourceVersion in the body, 409 Conflict when somebody wrote meanwhile."""
        return await self._json("PUT", path, body, timeout_s=timeout_s)

    async def apply(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        manager: str,
        force: bool = True,
        timeout_s: float | None = None,
    ) -> Json:
        """Server-side apply as ``manager``; with metadata.uid in the body it never creates another object."""
        return await self._json(
            "PATCH",
            path,
            body,
            query={"fieldManager": manager, "force": "true" if force else "false"},
            content_type="application/apply-patch+yaml",
            timeout_s=timeout_s,
        )

    async def merge(self, path: str, body: Mapping[str, Any], *, timeout_s: float | None = None) -> Json:
        """JSON merge patch (RFC 7396): null removes."""
        return await self._json(
            "PATCH", path, body, content_type="application/merge-patch+json", timeout_s=timeout_s
        )

    async def delete(self, path: str, *, uid: str | None = None, timeout_s: float | None = None) -> Json:
        """With ``uid`` only that very object: 409 Conflict when another has its name by now."""
        options: Json = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        return await self._json("DELETE", path, options, timeout_s=timeout_s)

    def pages(
        self,
        path: str,
        *,
        limit: int = 50,
        timeout_s: float | None = None,
        query: Mapping[str, str] | None = None,
    ) -> "Pages":
        """A consistent list, ``limit`` objects a request, ``timeout_s`` for each of them."""
        return Pages(self, path, limit=limit, timeout_s=timeout_s, query=query or {})

    def watch(self, path: str, *, query: Mapping[str, str] | None = None) -> AsyncGenerator[Event, None]:
        """What is there and what happens to it, for ever (see ``watch.py``). Close it with ``aclose``."""
        return watch(self, path, query or {})

    async def _json(
        self,
        method: Method,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout_s: float | None = None,
    ) -> Json:
        answer = await self.raw(
            method, path, body, query=query, content_type=content_type, timeout_s=timeout_s
        )
        try:
            return msgspec.json.decode(answer, type=dict[str, Any])
        except UNREADABLE as error:
            raise ApiUnreachable(f"{method} {path}: the answer is no JSON object: {error}") from error

    async def raw(
        self,
        method: Method,
        path: str,
        body: Mapping[str, Any] | list[Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout_s: float | None = None,
    ) -> bytes:
        """One bounded request; the body of a 2xx answer. ApiError or ApiUnreachable otherwise."""
        bound = self._request_timeout_s if timeout_s is None else timeout_s
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with asyncio.timeout(bound):
                for retry in (False, True):
                    token = self._config.token.current()
                    async with self.open(method, path, query, data, content_type, token) as response:
                        if response.status == 401 and not retry and self._config.token.refused(token):
                            continue  # the token file has a fresh one
                        answer = await read(response)
                        if response.status >= 300:
                            raise api_error(response.status, answer)
                        return answer
                raise AssertionError("the second turn returns or raises")
        except TimeoutError as error:
            raise ApiUnreachable(f"{method} {path}: no answer within {bound:g} s") from error
        except (aiohttp.ClientError, OSError, ssl.SSLError, EOFError) as error:
            raise ApiUnreachable(f"{method} {path}: {error or type(error).__name__}") from error

    def open(
        self,
        method: Method,
        path: str,
        query: Mapping[str, str] | None,
        data: bytes | None = None,
        content_type: str = "application/json",
        token: str | None = None,
    ) -> aiohttp.client._RequestContextManager:
        """The request itself, unbounded in time: for ``raw`` and ``watch``, who bound it."""
        headers = {
            "User-Agent": self._user_agent,
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if data is not None:
            headers["Content-Type"] = content_type
        url = URL(self._config.server + path, encoded=True)
        return self._connected().request(
            method,
            url.update_query(query) if query else url,
            data=data,
            headers=headers,
            allow_redirects=False,
            server_hostname=self._config.tls_server_name,
        )

    def token(self) -> str | None:
        return self._config.token.current()

    def token_refused(self, token: str | None) -> bool:
        return self._config.token.refused(token)

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            tls: ssl.SSLContext | bool = True if self._config.tls is None else self._config.tls
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=tls),
                timeout=aiohttp.ClientTimeout(total=None),  # asyncio.timeout bounds each request
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


class Pages:
    """An async iterator over the raw objects of a list; afterwards ``resource_version`` is the list's."""

    def __init__(
        self, kube: Kube, path: str, *, limit: int, timeout_s: float | None, query: Mapping[str, str]
    ) -> None:
        self._kube = kube
        self._path = path
        self._query = {**query, "limit": str(limit)}
        self._timeout_s = timeout_s
        self.resource_version = ""

    async def __aiter__(self) -> AsyncIterator[msgspec.Raw]:
        query = self._query
        while True:
            answer = await self._kube.raw("GET", self._path, query=query, timeout_s=self._timeout_s)
            try:
                page = msgspec.json.decode(answer, type=_Page)
            except UNREADABLE as error:
                raise ApiUnreachable(f"GET {self._path}: the answer is no list: {error}") from error
            self.resource_version = page.metadata.resource_version
            for item in page.items:
                yield item
            if not page.metadata.continue_:
                return
            query = {**self._query, "continue": page.metadata.continue_}
            await asyncio.sleep(0)
