# SPDX-License-Identifier: Apache-2.0
"""Settings, and the writer and the election against an HTTP server that answers what a story needs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from holdfast_api.kube import ApiError, Config, Kube
from holdfast_api.types import Metadata, VirtualIPStatus, VirtualRouterSpec
from holdfast_operator.cache import Cache
from holdfast_operator.changes import ApplyRouter, ApplyStatus, CreateRouter, DeleteRouter, RouterChange
from holdfast_operator.cluster import Cluster, MissingKindError
from holdfast_operator.election import Election, boottime_s
from holdfast_operator.lease import Terms
from holdfast_operator.main import main, parse

Object = dict[str, Any]
Answer = Callable[[web.Request], Awaitable[web.Response]]
SHORT = Terms(duration_s=2, hold_s=0.8, renew_s=0.3)


class Server:
    """Answers requests from a table of (method, path) -> function, and remembers them."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, Any]] = []
        self.answers: dict[tuple[str, str], Answer] = {}
        self.lease: Object | None = None
        self.thawed = asyncio.Event()
        self.thawed.set()

    async def __aenter__(self) -> "Server":
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.kube = Kube(Config(f"http://{host}:{port}"), "test", 1.0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kube.close()
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        self.seen.append((request.method, request.path, body))
        await self.thawed.wait()
        if "leases" in request.path:
            return self._lease(request.method, body)
        answer = self.answers.get((request.method, request.path))
        return await answer(request) if answer is not None else refusal(404, "NotFound")

    def _lease(self, method: str, body: Object | None) -> web.Response:
        if method == "GET":
            return web.json_response(self.lease) if self.lease is not None else refusal(404, "NotFound")
        assert body is not None
        version = body["metadata"].get("resourceVersion")
        now = self.lease["metadata"]["resourceVersion"] if self.lease is not None else None
        if version != now:
            return refusal(409, "Conflict")
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(int(now or 0) + 1)}}
        return web.json_response(self.lease)

    def writes(self) -> list[str]:
        return [
            f"{method} {path}" for method, path, _ in self.seen if method != "GET" and "leases" not in path
        ]


def refusal(code: int, reason: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "reason": reason, "message": "no"}, status=code)


def election(server: Server, me: str = "me", told: list[bool] | None = None) -> Election:
    return Election(
        server.kube,
        namespace="ns",
        name="op",
        me=me,
        floor=lambda: 0,
        on_change=(told if told is not None else []).append,
        terms=SHORT,
    )


def leaders(*each: Election) -> list[bool]:
    return [one.leading for one in each]


async def until(what: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not what():  # noqa: ASYNC110  nobody could set an event
            await asyncio.sleep(0.01)


def story(tell: Callable[[Server], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Server() as server:
            await tell(server)

    asyncio.run(run())


# --- election -----------------------------------------------------------------------------------


def test_of_two_one_leads_and_the_other_follows_when_it_is_gone() -> None:
    async def tell(server: Server) -> None:
        first, second = election(server, "first"), election(server, "second")
        run1 = asyncio.create_task(first.run())
        await until(lambda: first.leading)
        run2 = asyncio.create_task(second.run())
        await asyncio.sleep(1.0)
        assert leaders(first, second) == [True, False]
        run1.cancel()
        began = boottime_s()
        await until(lambda: second.leading)
        assert leaders(first, second) == [False, True]
        assert 0.5 < boottime_s() - began < 3.5
        assert (first.epoch, second.epoch) == (1, 2)
        run2.cancel()

    story(tell)


def test_a_frozen_api_ends_a_reign_before_anybody_else_could_begin() -> None:
    async def tell(server: Server) -> None:
        told: list[bool] = []
        mine = election(server, told=told)
        run = asyncio.create_task(mine.run())
        await until(lambda: mine.leading)
        server.thawed.clear()
        began = boottime_s()
        await until(lambda: told == [True, False])
        assert boottime_s() - began < SHORT.duration_s
        server.thawed.set()
        await until(lambda: mine.leading)
        run.cancel()

    story(tell)


def test_release_lets_the_other_lead_at_once() -> None:
    async def tell(server: Server) -> None:
        first, second = election(server, "first"), election(server, "second")
        run1 = asyncio.create_task(first.run())
        await until(lambda: first.leading)
        run2 = asyncio.create_task(second.run())
        run1.cancel()
        await first.release()
        began = boottime_s()
        await until(lambda: second.leading)
        assert not first.leading
        assert boottime_s() - began < 2
        run2.cancel()

    story(tell)


# --- writer -------------------------------------------------------------------------------------


def cluster(server: Server, chosen: Election) -> tuple[Cache, Cluster]:
    cache = Cache(virtual_router_ids=range(1, 256), now_s=boottime_s())
    return cache, Cluster(server.kube, cache, chosen, speaker_namespace="speakers")


ROUTERS = "/apis/holdfast.dev/v1alpha1/virtualrouters"
SPEC = VirtualRouterSpec(virtual_router_id=9, addresses=())
STORED = Metadata("vr-9", uid="u", resource_version="4", generation=1)


def test_who_does_not_lead_writes_nothing() -> None:
    async def tell(server: Server) -> None:
        _, door = cluster(server, election(server))
        changes: list[RouterChange] = [
            CreateRouter("vr-9", SPEC),
            ApplyRouter(STORED, SPEC),
            DeleteRouter(STORED),
        ]
        status = ApplyStatus(Metadata("a", namespace="ns"), VirtualIPStatus(), VirtualIPStatus())

        assert not await door.change_routers(changes)
        assert not await door.change_status(status)
        await door.tell("ns", {})
        assert server.writes() == []

    story(tell)


def test_a_router_is_made_empty_and_then_applied_with_its_uid_and_version() -> None:
    async def tell(server: Server) -> None:
        chosen = election(server)
        run = asyncio.create_task(chosen.run())
        await until(lambda: chosen.leading)
        made = {"metadata": {"name": "vr-9", "uid": "u9", "resourceVersion": "7", "generation": 1}}
        spec = {"virtualRouterID": 9, "addresses": []}
        server.answers["POST", ROUTERS] = reply({**made, "spec": spec}, 201)
        server.answers["PATCH", f"{ROUTERS}/vr-9"] = reply({**made, "spec": spec})
        _, door = cluster(server, chosen)

        assert await door.change_routers([CreateRouter("vr-9", SPEC)])
        created, applied = (body for method, path, body in server.seen if "virtualrouters" in path)
        assert created["spec"]["addresses"] == []
        assert "uid" not in created["metadata"]
        assert (applied["metadata"]["uid"], applied["metadata"]["resourceVersion"]) == ("u9", "7")
        assert "handover" not in applied["spec"], "the schema knows no null"
        run.cancel()

    story(tell)


def test_after_a_conflict_the_cache_knows_what_is_there_now() -> None:
    async def tell(server: Server) -> None:
        chosen = election(server)
        run = asyncio.create_task(chosen.run())
        await until(lambda: chosen.leading)
        now = {
            "metadata": {"name": "vr-9", "uid": "u", "resourceVersion": "8", "generation": 2},
            "spec": {"virtualRouterID": 9, "addresses": [], "plannerEpoch": 12},
        }
        server.answers["PATCH", f"{ROUTERS}/vr-9"] = no(409, "Conflict")
        server.answers["GET", f"{ROUTERS}/vr-9"] = reply(now)
        cache, door = cluster(server, chosen)

        assert not await door.change_routers([ApplyRouter(STORED, SPEC)])
        assert cache.highest_epoch() == 12
        run.cancel()

    story(tell)


def test_a_missing_crd_is_named_with_its_remedy() -> None:
    async def tell(server: Server) -> None:
        system = {"metadata": {"uid": "u", "name": "kube-system"}}
        server.answers["GET", "/api/v1/namespaces/kube-system"] = reply(system)
        server.answers["GET", "/api/v1/nodes"] = reply({"metadata": {"resourceVersion": "1"}, "items": []})
        _, door = cluster(server, election(server))
        with pytest.raises(MissingKindError, match=r"speakers\.holdfast\.dev.*kubectl apply -f crds/"):
            await door.list_all()

    story(tell)


def test_without_the_right_to_read_the_clusters_uid_the_lists_are_complete_all_the_same() -> None:
    async def tell(server: Server) -> None:
        empty = {"metadata": {"resourceVersion": "1"}, "items": []}
        for kind in ("speakers", "virtualips", "virtualrouters"):
            server.answers["GET", f"/apis/holdfast.dev/v1alpha1/{kind}"] = reply(empty)
        server.answers["GET", "/api/v1/nodes"] = reply(empty)
        server.lease = empty  # the list of the speakers' Leases
        system = {"metadata": {"uid": "u", "name": "kube-system"}}
        where = ("GET", "/api/v1/namespaces/kube-system")
        cache, door = cluster(server, election(server))

        server.answers[where] = no(500, "InternalError")
        with pytest.raises(ApiError):
            await door.list_all()
        server.answers[where] = no(403, "Forbidden")
        await door.list_all()
        assert (cache.complete, cache.cluster_uid) == (True, "")
        server.answers[where] = reply(system)
        assert await door.list_all(), "who waits for it is planned at once"
        assert cache.cluster_uid == "u"
        server.answers[where] = no(403, "Forbidden")
        assert not await door.list_all()
        assert cache.cluster_uid == "u", "what was known stays known"

    story(tell)


def reply(body: Object, code: int = 200) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(body, status=code)

    return answer


def no(code: int, reason: str) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return refusal(code, reason)

    return answer


# --- settings -----------------------------------------------------------------------------------


def test_flags_win_over_the_environment_and_that_over_the_defaults() -> None:
    environ = {"HOLDFAST_VRID_RANGE": "51-100", "HOLDFAST_NAMESPACE": "there", "KUBECONFIG": "/k"}

    assert parse([], {}).virtual_router_ids == range(1, 256)
    assert parse([], environ).virtual_router_ids == range(51, 101)
    assert parse(["--vrid-range", "7"], environ).virtual_router_ids == range(7, 8)
    assert parse([], environ).namespace == "there"
    assert parse([], environ).kubeconfig == "/k"
    assert parse(["--metrics-address", ":9180"], {}).metrics_address == "0.0.0.0:9180"


@pytest.mark.parametrize("wrong", ["0-5", "9-3", "1-256", "a-b", "5-"[:1] + "x"])
def test_a_range_of_vrids_that_is_none_is_refused_with_the_way_to_write_it(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--vrid-range", wrong], {})
    said = capsys.readouterr().err

    assert ended.value.code == 2
    assert "--vrid-range" in said
    assert "VRIDs" in said


def test_without_a_way_to_the_api_it_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "HOLDFAST_KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)

    assert main([]) == 2
    assert "set KUBECONFIG" in capsys.readouterr().err
