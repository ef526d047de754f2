# SPDX-License-Identifier: Apache-2.0
"""kopf, and nothing else imports it: delivers events, answers the liveness probe, runs the process.

An event means "look again". No index, no daemon, no finalizer, no annotation, no peering: kopf never
writes. Everything of ours lives between its start-up and its clean-up.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import kopf
from aiohttp.client_middlewares import ClientHandlerType

from holdfast_api.kube import Config
from holdfast_api.names import GROUP, VERSION
from holdfast_operator.cache import Kind

log = logging.getLogger(__name__)

STUCK_S = 60.0  # without a heartbeat of the planner the process is of no use
LOGIN_PAUSE_S = 2.0  # between two logins: kopf asks at once when a token is refused

EventHandler = Callable[..., Awaitable[None]]


class Operator(Protocol):
    """What is run inside kopf's process. ``stop`` may be called again."""

    async def run(self) -> None: ...
    async def stop(self) -> None: ...
    def seen(self, kind: Kind, raw: Mapping[str, Any], *, listed: bool, deleted: bool) -> None: ...
    def watch_renewed(self) -> None:
        """kopf lists a kind anew: what was deleted meanwhile it will never tell."""
        ...

    def idle_s(self) -> float:
        """Seconds since the planner last gave a sign of life."""
        ...


@dataclass(slots=True)
class _Frame:
    """One life of kopf: what runs in it, and what ended it."""

    operator: Operator
    config: Config
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    error: BaseException | None = None
    logins: int = 0

    async def begin(self) -> None:
        self.task = asyncio.create_task(self.operator.run(), name="holdfast")
        self.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.error = task.exception() or RuntimeError("the operator ended by itself")
            self.stop.set()

    async def end(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.operator.stop()


async def serve(operator: Operator, config: Config, *, liveness: str | None) -> None:
    """Runs until SIGTERM or SIGINT. Raises what ended it otherwise: whoever called starts anew."""
    frame = _Frame(operator, config)
    await kopf.operator(
        registry=_registry(frame),
        settings=_settings(),
        clusterwide=True,
        standalone=True,
        liveness_endpoint=liveness,
        stop_flag=frame.stop,
    )
    if frame.error is not None:
        raise frame.error


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.watching.inactivity_timeout = 90
    settings.watching.server_timeout = 290
    settings.watching.chunk_size = 250
    settings.networking.request_timeout = 15
    settings.networking.error_backoffs = (0.2, 0.5, 1, 2, 3, *([3] * 1000))  # an outage may last
    return settings


def _registry(frame: _Frame) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    async def begin(**_: Any) -> None:
        await frame.begin()

    async def end(**_: Any) -> None:
        await frame.end()

    async def login(**_: Any) -> kopf.AiohttpSession:
        frame.logins += 1
        if frame.logins > 1:
            frame.config.token.refused(frame.config.token.current())  # the file may have a newer one
            await asyncio.sleep(LOGIN_PAUSE_S)
        session = _session(frame.config, frame.operator.watch_renewed)
        return kopf.AiohttpSession(server=frame.config.server, aiohttp_session=session)

    async def probe(**_: Any) -> float:
        idle_s = frame.operator.idle_s()
        if idle_s > STUCK_S:
            raise kopf.PermanentError(f"the planner has been stuck for {idle_s:.0f} s")
        return round(idle_s, 1)

    fatal = kopf.ErrorsMode.PERMANENT
    kopf.on.startup(registry=registry, id="begin", errors=fatal)(begin)
    kopf.on.cleanup(registry=registry, id="end", errors=fatal)(end)
    kopf.on.login(registry=registry, id="login", errors=fatal)(login)
    kopf.on.probe(registry=registry, id="idleSeconds", errors=fatal)(probe)
    for kind in ("virtualips", "virtualrouters", "speakers"):
        kopf.on.event(GROUP, VERSION, kind, registry=registry, id=kind)(_event(frame, kind))
    kopf.on.event("", "v1", "nodes", registry=registry, id="nodes")(_event(frame, "nodes"))
    return registry


def _event(frame: _Frame, kind: Kind) -> EventHandler:
    async def handle(event: kopf.RawEvent, **_: Any) -> None:
        change = event["type"]
        frame.operator.seen(kind, event["object"], listed=change is None, deleted=change == "DELETED")

    return handle


def _session(config: Config, on_list: Callable[[], None]) -> aiohttp.ClientSession:
    """kopf's connections, with our credentials: the token as it is now, not as it was at login.

    ``on_list`` is called when the first page of a list has been answered.
    """

    async def authorize(request: aiohttp.ClientRequest, handler: ClientHandlerType) -> aiohttp.ClientResponse:
        token = config.token.current()
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        if config.tls_server_name is not None:
            request.server_hostname = config.tls_server_name
        response = await handler(request)
        query = request.url.query
        if response.status == 200 and "limit" in query and "continue" not in query:
            on_list()
        return response

    tls = True if config.tls is None else config.tls
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=tls),
        headers={"User-Agent": "holdfast-operator"},
        middlewares=(authorize,),
    )
