# SPDX-License-Identifier: Apache-2.0
"""The API client against a server that misbehaves; tests/cluster/test_watch.py asks a real one."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from holdfast_api import watch as watching
from holdfast_api.kube import (
    ApiError,
    ApiUnreachable,
    Changed,
    Config,
    Confirmed,
    Deleted,
    Event,
    Kube,
    Listed,
    Outage,
    event_path,
    lease_path,
    node_path,
    path,
)
from holdfast_api.kubeconfig import Token

ROUTERS = path("virtualrouters")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def test_paths() -> None:
    assert ROUTERS == "/apis/holdfast.dev/v1alpha1/virtualrouters"
    assert path("virtualips", "a", namespace="b", subresource="status") == (
        "/apis/holdfast.dev/v1alpha1/namespaces/b/virtualips/a/status"
    )
    assert node_path("n") == "/api/v1/nodes/n"
    assert lease_path("ns", "l") == "/apis/coordination.k8s.io/v1/namespaces/ns/leases/l"
    assert event_path("ns") == "/apis/events.k8s.io/v1/namespaces/ns/events"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "%2e"])
def test_a_name_cannot_lead_elsewhere(name: str) -> None:
    with pytest.raises(ValueError, match="no name of an API object"):
        path("speakers", name)


# --- a server that does what the test says ----------------------------------------------------------


@asynccontextmanager
async def serving(handler: Handler, timeout_s: float = 5) -> AsyncIterator[Kube]:
    async def entry(request: web.Request) -> web.StreamResponse:
        return await handler(request)

    application = web.Application()
    application.router.add_route("*", "/{rest:.*}", entry)
    async with TestServer(application) as server:
        config = Config(server=str(server.make_url("/")).rstrip("/"), token=Token("secret"))
        async with Kube(config, "holdfast-tests", request_timeout_s=timeout_s) as kube:
            yield kube


def an_object(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


def line(kind: str, content: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": content}).encode() + b"\n"


def bookmark(version: int, *, end: bool = False) -> bytes:
    annotations = {"k8s.io/initial-events-end": "true"} if end else {}
    return line("BOOKMARK", {"metadata": {"resourceVersion": str(version), "annotations": annotations}})


async def stream(request: web.Request, *chunks: bytes, hang: bool = False) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for chunk in chunks:
        await response.write(chunk)
    if hang:
        await asyncio.sleep(60)
    return response


def status(code: int, reason: str = "Sorry") -> web.Response:
    body = {"kind": "Status", "code": code, "reason": reason, "message": "no"}
    return web.json_response(body, status=code)


def shown(event: Event) -> tuple[Any, ...]:
    """An event with its objects' names, easy to compare."""
    match event:
        case Listed(objects, version):
            return ("Listed", [name_of(raw) for raw in objects], version)
        case Changed(raw) | Deleted(raw):
            return (type(event).__name__, name_of(raw))
        case Confirmed():
            return ("Confirmed",)
        case Outage(why):
            return ("Outage", why)


def name_of(raw: msgspec.Raw) -> str:
    name: str = json.loads(bytes(raw))["metadata"]["name"]
    return name


def watched(handler: Handler, count: int, *, silence_s: float = 5, timeout_s: float = 5) -> list[Any]:
    """The first events of a watch, told by ``handler``; the waits between connections are short."""

    async def run() -> list[Any]:
        events: list[Any] = []
        async with (
            serving(handler, timeout_s) as kube,
            asyncio.timeout(30),
            aclosing(
                watching.watch(kube, ROUTERS, {}, chance=lambda: 0.0, silence_s=silence_s)
            ) as stream_of_events,
        ):
            async for event in stream_of_events:
                events.append(shown(event))
                if len(events) == count:
                    break
        return events

    return asyncio.run(run())


class Script:
    """One handler for each connection, in order; the last one stays. Remembers what was asked."""

    def __init__(self, *handlers: Handler) -> None:
        self.handlers = list(handlers)
        self.asked: list[dict[str, str]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(dict(request.query))
        handler = self.handlers.pop(0) if len(self.handlers) > 1 else self.handlers[0]
        return await handler(request)


def streams(*chunks: bytes, hang: bool = False) -> Handler:
    return lambda request: stream(request, *chunks, hang=hang)


def answers(code: int, reason: str = "Sorry") -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return status(code, reason)

    return handler


LIST = (line("ADDED", an_object("a", 1)), line("ADDED", an_object("b", 2)), bookmark(5, end=True))


def test_a_streamed_list_comes_as_one_and_then_what_happens() -> None:
    happens = (line("MODIFIED", an_object("a", 6)), bookmark(7), line("DELETED", an_object("b", 8)))
    script = Script(streams(*LIST, *happens, hang=True))

    assert watched(script, 4) == [
        ("Listed", ["a", "b"], "5"),
        ("Changed", "a"),
        ("Confirmed",),
        ("Deleted", "b"),
    ]
    assert script.asked[0]["sendInitialEvents"] == "true"
    assert script.asked[0]["resourceVersionMatch"] == "NotOlderThan"
    assert script.asked[0]["allowWatchBookmarks"] == "true"


def test_a_stream_that_ends_well_goes_on_where_it_was() -> None:
    script = Script(streams(*LIST, line("ADDED", an_object("c", 9))), streams(bookmark(12), hang=True))

    assert watched(script, 3)[1:] == [("Changed", "c"), ("Confirmed",)]
    assert script.asked[1]["resourceVersion"] == "9"
    assert "sendInitialEvents" not in script.asked[1]


def test_after_410_the_list_is_made_anew_and_no_outage_is_said() -> None:
    gone = line("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})
    rest = (line("ADDED", an_object("b", 2)), bookmark(20, end=True))
    script = Script(streams(*LIST, gone), streams(*rest, hang=True))

    assert watched(script, 2) == [("Listed", ["a", "b"], "5"), ("Listed", ["b"], "20")]


def test_410_in_place_of_an_answer_is_the_same() -> None:
    script = Script(streams(*LIST), answers(410), streams(bookmark(20, end=True), hang=True))

    assert watched(script, 2) == [("Listed", ["a", "b"], "5"), ("Listed", [], "20")]


@pytest.mark.parametrize("code", [401, 403, 404, 429, 500, 503])
def test_a_refusal_is_an_outage_and_never_a_deletion(code: int) -> None:
    script = Script(streams(*LIST), answers(code), streams(*LIST, hang=True))
    events = watched(script, 3)

    assert [event[0] for event in events] == ["Listed", "Outage", "Listed"]
    assert str(code) in events[1][1]
    assert "sendInitialEvents" in script.asked[2]


def test_an_error_in_the_stream_is_an_outage() -> None:
    error = line(
        "ERROR", {"kind": "Status", "code": 500, "reason": "InternalError", "message": "etcd timeout"}
    )
    script = Script(streams(*LIST, error), streams(*LIST, hang=True))

    assert [event[0] for event in watched(script, 3)] == ["Listed", "Outage", "Listed"]


def test_a_stream_that_breaks_within_its_list_lists_nothing() -> None:
    script = Script(streams(LIST[0]), streams(*LIST, hang=True))
    events = watched(script, 2)

    assert [event[0] for event in events] == ["Outage", "Listed"]
    assert "ended in the middle" in events[0][1]


def test_a_stream_that_ends_within_a_line_is_an_outage() -> None:
    script = Script(streams(*LIST, b'{"type":"DELE'), streams(*LIST, hang=True))

    assert [event[0] for event in watched(script, 2)] == ["Listed", "Outage"]


def test_a_connection_cut_off_is_an_outage() -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = await stream(request, *LIST)
        assert request.transport is not None
        request.transport.abort()
        return response

    assert [event[0] for event in watched(Script(cut, streams(*LIST, hang=True)), 3)] == [
        "Listed",
        "Outage",
        "Listed",
    ]


def test_a_silent_stream_is_an_outage() -> None:
    events = watched(Script(streams(*LIST, hang=True)), 2, silence_s=0.2)

    assert events[1][0] == "Outage"
    assert "nothing heard for 0.2 s" in events[1][1]


def test_a_server_that_never_answers_is_an_outage() -> None:
    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    events = watched(Script(hang), 1, timeout_s=0.2)

    assert events == [("Outage", f"watching {ROUTERS}: no answer within 0.2 s")]


@pytest.mark.parametrize("garbage", [b"<html>\n", b'{"type":1}\n', b"[]\n", b"\xff\n"])
def test_garbage_in_the_stream_is_an_outage(garbage: bytes) -> None:
    script = Script(streams(*LIST, garbage), streams(*LIST, hang=True))

    assert [event[0] for event in watched(script, 3)] == ["Listed", "Outage", "Listed"]


def test_a_kind_of_event_from_the_future_is_passed_over() -> None:
    script = Script(streams(*LIST, line("RENAMED", {}), bookmark(6), hang=True))

    assert watched(script, 2)[1] == ("Confirmed",)


def test_long_lines_arrive_whole() -> None:
    """aiohttp's own line reader gives up at 128 KiB."""
    large = an_object("large", 6) | {"data": "x" * 3_000_000}
    text = line("MODIFIED", large)
    pieces = [text[start : start + 100_000] for start in range(0, len(text), 100_000)]

    assert watched(Script(streams(*LIST, *pieces, hang=True)), 2)[1] == ("Changed", "large")


# --- servers without streamed lists ------------------------------------------------------------------


def pages(*names: str) -> Handler:
    """A LIST of two objects a page, then a watch that hangs."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            return await stream(request, bookmark(31), hang=True)
        start = int(request.query.get("continue", "0"))
        following = str(start + 2) if start + 2 < len(names) else ""
        items = [an_object(name, 1) for name in names[start : start + 2]]
        metadata = {"resourceVersion": "30", "continue": following}
        return web.json_response({"metadata": metadata, "items": items})

    return handler


@pytest.mark.parametrize(
    "refusal",
    [
        answers(422, "Invalid"),
        answers(400, "BadRequest"),
        streams(line("ADDED", an_object("x", 1)), bookmark(3), hang=True),
    ],
    ids=["422", "400", "a bookmark without its mark"],
)
def test_where_a_list_cannot_be_streamed_it_comes_in_pages(refusal: Handler) -> None:
    script = Script(refusal, pages("a", "b", "c"))

    assert watched(script, 2) == [("Listed", ["a", "b", "c"], "30"), ("Confirmed",)]
    assert "sendInitialEvents" in script.asked[0]
    assert script.asked[1]["limit"] == "50"
    assert script.asked[3]["resourceVersion"] == "30"


# --- single requests ----------------------------------------------------------------------------------


def asked(handler: Handler, request: Callable[[Kube], Awaitable[Any]], timeout_s: float = 5) -> Any:
    async def run() -> Any:
        async with serving(handler, timeout_s) as kube:
            return await request(kube)

    return asyncio.run(run())


def test_every_verb_says_what_the_api_expects() -> None:
    seen: list[tuple[str, str, dict[str, str], str | None, Any]] = []

    async def echo(request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.body_exists else None
        seen.append(
            (request.method, request.path, dict(request.query), request.headers.get("Content-Type"), body)
        )
        assert request.headers["Authorization"] == "Bearer secret"
        assert request.headers["User-Agent"] == "holdfast-tests"
        return web.json_response({})

    async def all_verbs(kube: Kube) -> None:
        await kube.get("/a")
        await kube.create("/a", {"x": 1})
        await kube.replace("/a/b", {"x": 2})
        await kube.apply("/a/b", {"x": 3}, manager="me")
        await kube.merge("/a/b", {"x": None})
        await kube.delete("/a/b", uid="u")

    asked(echo, all_verbs)

    assert [(method, path, query, kind) for method, path, query, kind, _ in seen] == [
        ("GET", "/a", {}, None),
        ("POST", "/a", {}, "application/json"),
        ("PUT", "/a/b", {}, "application/json"),
        ("PATCH", "/a/b", {"fieldManager": "me", "force": "true"}, "application/apply-patch+yaml"),
        ("PATCH", "/a/b", {}, "application/merge-patch+json"),
        ("DELETE", "/a/b", {}, "application/json"),
    ]
    assert seen[-1][-1]["preconditions"] == {"uid": "u"}


def test_a_refusal_has_its_status_reason_message_and_causes() -> None:
    async def invalid(_: web.Request) -> web.StreamResponse:
        causes = [{"field": "spec.address", "message": "bad", "reason": "FieldValueInvalid"}]
        body = {"code": 422, "reason": "Invalid", "message": "is invalid", "details": {"causes": causes}}
        return web.json_response(body, status=422)

    with pytest.raises(ApiError) as refused:
        asked(invalid, lambda kube: kube.get("/a"))

    error = refused.value
    assert (error.status, error.reason, error.message) == (422, "Invalid", "is invalid")
    assert error.causes == (("spec.address", "bad"),)


def test_a_refusal_without_a_status_is_one_all_the_same() -> None:
    async def proxy(_: web.Request) -> web.StreamResponse:
        return web.Response(status=502, text="<h1>Bad gateway</h1>")

    with pytest.raises(ApiError, match="502 Unknown: <h1>Bad gateway"):
        asked(proxy, lambda kube: kube.get("/a"))


def test_a_redirect_is_not_followed_with_our_token() -> None:
    async def redirect(_: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "http://192.0.2.1/"})

    with pytest.raises(ApiError, match="302"):
        asked(redirect, lambda kube: kube.get("/a"))


def test_a_request_never_hangs() -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(100):
            await response.write(b" ")
            await asyncio.sleep(0.05)
        return response

    with pytest.raises(ApiUnreachable, match=r"no answer within 0\.2 s"):
        asked(drip, lambda kube: kube.get("/a", timeout_s=0.2))


def test_nobody_there_is_unreachable() -> None:
    async def request() -> None:
        async with Kube(Config(server="http://127.0.0.1:1"), "t") as kube:
            await kube.get("/a")

    with pytest.raises(ApiUnreachable, match="GET /a"):
        asyncio.run(request())


def test_an_answer_that_is_no_object_is_unreachable() -> None:
    async def text(_: web.Request) -> web.StreamResponse:
        return web.Response(text="ok")

    with pytest.raises(ApiUnreachable, match="no JSON object"):
        asked(text, lambda kube: kube.get("/a"))


def test_a_rotated_token_is_read_again_after_401(tmp_path: Any) -> None:
    file = tmp_path / "token"
    file.write_text("old\n")
    seen: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers["Authorization"])
        if seen[-1] == "Bearer old":
            file.write_text("new\n")  # the kubelet rotates it
            return status(401, "Unauthorized")
        return web.json_response({})

    async def run() -> None:
        application = web.Application()
        application.router.add_get("/a", handler)
        async with TestServer(application) as server:
            config = Config(server=str(server.make_url("/")).rstrip("/"), token=Token(file=file))
            async with Kube(config, "t") as kube:
                await kube.get("/a")

    asyncio.run(run())

    assert seen == ["Bearer old", "Bearer new"]
