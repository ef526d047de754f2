# SPDX-License-Identifier: Apache-2.0
"""The API door against an HTTP server of this test's own: what is asked, how often, and what trouble does."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from holdfast_api.kube import Config, Kube
from holdfast_api.types import SpeakerStatus
from holdfast_speaker.cluster import ApiCluster
from holdfast_speaker.events import (
    ApiConfirmed,
    Event,
    RouterChanged,
    RouterDeleted,
    RouterRejected,
    RoutersListed,
)

SPEAKERS = "/apis/holdfast.dev/v1alpha1/speakers"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/holdfast-speakers/leases"


def router(name: str, number: int = 7) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": f"u-{name}", "resourceVersion": "5", "generation": 1},
        "spec": {"virtualRouterID": number, "addresses": []},
    }


class FakeApi:
    """Speakers, Leases and a watch on VirtualRouters whose lines a test feeds."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, str, float]] = []
        self.refuse: tuple[int, str] | None = None
        self.lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.version = 10

    def writes(self, path: str = "") -> list[str]:
        return [f"{verb} {at}" for verb, at, _ in self.calls if verb != "GET" and at.startswith(path)]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.calls.append((request.method, request.path, time.monotonic()))
        if self.refuse is not None:
            return self._status(*self.refuse)
        if request.query.get("watch"):
            return await self._watch(request)
        path = request.path.removesuffix("/status")
        if request.method == "GET":
            found = self.objects.get(path)
            return web.json_response(found) if found else self._status(404, "NotFound")
        body = json.loads(await request.text())
        if request.method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.objects:
                return self._status(409, "AlreadyExists")
        elif path not in self.objects:
            return self._status(404, "NotFound")
        stored = self.objects.get(path, {})
        uid = stored.get("metadata", {}).get("uid")
        if uid is not None and body["metadata"].get("uid", uid) != uid:
            return self._status(409, "Conflict")
        said, has = body["metadata"].get("resourceVersion"), stored.get("metadata", {}).get("resourceVersion")
        if said is not None and said != has:
            return self._status(409, "Conflict")
        self.version += 1
        metadata = {
            **body["metadata"],
            "uid": uid or f"uid-{self.version}",
            "resourceVersion": str(self.version),
        }
        self.objects[path] = {**stored, **body, "metadata": metadata}
        return web.json_response(self.objects[path])

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while (line := await self.lines.get()) is not None:
            await response.write(json.dumps(line).encode() + b"\n")
        return response

    @staticmethod
    def _status(code: int, reason: str) -> web.Response:
        body = {"kind": "Status", "code": code, "reason": reason, "message": f"it is {reason}"}
        return web.json_response(body, status=code)

    def say(self, kind: str, thing: dict[str, Any]) -> None:
        self.lines.put_nowait({"type": kind, "object": thing})

    def listed(self, *routers: dict[str, Any]) -> None:
        for one in routers:
            self.say("ADDED", one)
        mark = {"k8s.io/initial-events-end": "true"}
        self.say("BOOKMARK", {"metadata": {"resourceVersion": "9", "annotations": mark}})


@asynccontextmanager
async def served() -> AsyncIterator[tuple[FakeApi, ApiCluster, list[bool]]]:
    fake = FakeApi()
    up: list[bool] = []
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with Kube(Config(server), "test") as api:
            yield fake, ApiCluster(api, "h1", up.append), up
    finally:
        fake.lines.put_nowait(None)
        await runner.cleanup()


@asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(look: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.005)


def status(version: str) -> SpeakerStatus:
    return SpeakerStatus(version=version)


# --- in ---------------------------------------------------------------------------------------------


def test_routers_come_as_a_list_then_one_by_one_each_with_a_confirmation() -> None:
    async def story() -> list[Event]:
        async with served() as (fake, cluster, up):
            heard: list[Event] = []

            async def listen() -> None:
                async for event in cluster.events():
                    heard.append(event)

            async with in_background(listen()):
                fake.listed(router("vr-7"), {"metadata": {"name": "vr-8"}, "spec": {"virtualRouterID": "x"}})
                fake.say("MODIFIED", router("vr-9", 9))
                fake.say("MODIFIED", router("vr-9", 999))
                fake.say("DELETED", router("vr-7"))
                fake.say("BOOKMARK", {"metadata": {"resourceVersion": "12"}})
                await until(lambda: len(heard) == 9)
            assert up == [True] * 5
            return heard

    heard = asyncio.run(story())
    listed, changed, rejected, deleted = heard[0], heard[2], heard[4], heard[6]
    assert isinstance(listed, RoutersListed)
    assert [r.metadata.name for r in listed.routers] == ["vr-7"]
    assert listed.rejected[0][0] == "vr-8"
    assert "virtualRouterID" in listed.rejected[0][1]
    assert isinstance(changed, RouterChanged)
    assert isinstance(rejected, RouterRejected)
    assert "999" in rejected.why
    assert deleted == RouterDeleted("vr-7")
    assert heard[1::2] == [ApiConfirmed()] * 4
    assert heard[8] == ApiConfirmed()


def test_an_outage_withdraws_nothing_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> tuple[list[Event], list[bool]]:
        async with served() as (fake, cluster, up):
            fake.refuse = (403, "Forbidden")
            heard: list[Event] = []

            async def listen() -> None:
                async for event in cluster.events():
                    heard.append(event)

            async with in_background(listen()):
                await until(lambda: len(fake.calls) >= 3, 10)
                before = list(heard)
                fake.refuse = None
                fake.listed(router("vr-7"))
                await until(lambda: heard, 10)
            return before, up

    with caplog.at_level(logging.INFO):
        before, up = asyncio.run(story())
    assert before == []
    assert up[0] is False
    assert up[-1] is True
    said = [message for message in caplog.messages if "last plan stays in force" in message]
    assert len(said) == 2
    assert "403 Forbidden" in said[0]
    assert "works again" in said[1]


# --- out --------------------------------------------------------------------------------------------


def test_the_speaker_is_created_then_its_status_is_applied_with_its_uid() -> None:
    async def story() -> FakeApi:
        async with served() as (fake, cluster, _):
            cluster.report(status("1"))
            async with in_background(cluster.run()):
                await cluster.flush(5)
            return fake

    fake = asyncio.run(story())
    assert fake.writes(SPEAKERS) == [f"POST {SPEAKERS}", f"PATCH {SPEAKERS}/h1/status"]
    stored = fake.objects[f"{SPEAKERS}/h1"]
    assert stored["status"]["version"] == "1"
    assert stored["metadata"]["uid"]


def test_only_changes_are_written_and_many_at_once_are_two_writes() -> None:
    async def story() -> list[str]:
        async with served() as (fake, cluster, _):
            async with in_background(cluster.run()):
                cluster.report(status("0"))
                await cluster.flush(5)
                fake.calls.clear()
                for number in range(1, 100):
                    cluster.report(status(str(number)))
                    await asyncio.sleep(0)
                await cluster.flush(5)
                cluster.report(status("99"))
                await asyncio.sleep(0.1)
                assert fake.objects[f"{SPEAKERS}/h1"]["status"]["version"] == "99"
            return fake.writes(SPEAKERS)

    assert 1 <= len(asyncio.run(story())) <= 3


def test_the_first_of_several_reports_does_not_wait() -> None:
    async def story() -> float:
        async with served() as (fake, cluster, _), in_background(cluster.run()):
            cluster.report(status("0"))
            await cluster.flush(5)
            await asyncio.sleep(0.1)
            started = time.monotonic()
            cluster.report(status("1"))
            await until(lambda: fake.objects[f"{SPEAKERS}/h1"]["status"]["version"] == "1")
            return time.monotonic() - started

    assert asyncio.run(story()) < 1


def test_a_report_is_tried_until_it_is_written_and_the_trouble_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        async with served() as (fake, cluster, _), in_background(cluster.run()):
            fake.refuse = (401, "Unauthorized")
            cluster.report(status("1"))
            await until(lambda: len([c for c in fake.calls if c[1] == f"{SPEAKERS}/h1"]) >= 3)
            cluster.report(status("2"))
            fake.refuse = None
            await cluster.flush(10)
            assert fake.objects[f"{SPEAKERS}/h1"]["status"]["version"] == "2"

    with caplog.at_level(logging.INFO):
        asyncio.run(story())
    assert len([m for m in caplog.messages if "report cannot be written" in m and "401" in m]) == 1
    assert "the report cannot be written: works again" in caplog.messages


def test_a_speaker_deleted_and_made_anew_by_hand_is_written_again() -> None:
    async def story() -> FakeApi:
        async with served() as (fake, cluster, _), in_background(cluster.run()):
            cluster.report(status("1"))
            await cluster.flush(5)
            del fake.objects[f"{SPEAKERS}/h1"]
            cluster.report(status("2"))
            await cluster.flush(5)
            assert fake.objects[f"{SPEAKERS}/h1"]["status"]["version"] == "2"
            fake.objects[f"{SPEAKERS}/h1"]["metadata"]["uid"] = "another"
            cluster.report(status("3"))
            await cluster.flush(5)
            return fake

    fake = asyncio.run(story())
    assert fake.objects[f"{SPEAKERS}/h1"]["status"]["version"] == "3"
    assert fake.objects[f"{SPEAKERS}/h1"]["metadata"]["uid"] == "another"


def test_when_the_api_is_back_it_is_told_again_what_it_may_have_forgotten() -> None:
    async def story() -> None:
        async with served() as (fake, cluster, _), in_background(cluster.run()):

            async def listen() -> None:
                async for _ in cluster.events():
                    pass

            async with in_background(listen()):
                fake.listed()
                cluster.report(status("1"))
                await cluster.flush(5)
                fake.objects[f"{SPEAKERS}/h1"]["status"] = {"version": "from a backup"}
                fake.say("ERROR", {"code": 410, "reason": "Expired"})
                fake.lines.put_nowait(None)
                fake.listed()
                await until(lambda: fake.objects[f"{SPEAKERS}/h1"]["status"]["version"] == "1")

    asyncio.run(story())


def test_the_lease_is_made_and_renewed_without_reading_it_again() -> None:
    async def story(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
        monkeypatch.setattr("holdfast_api.names.SPEAKER_LEASE_RENEW_SECONDS", 0.05)
        async with served() as (fake, cluster, _), in_background(cluster.run()):
            await until(lambda: len(fake.writes(LEASES)) >= 4)
            return fake

    with pytest.MonkeyPatch.context() as monkeypatch:
        fake = asyncio.run(story(monkeypatch))
    calls = [f"{verb} {path}" for verb, path, _ in fake.calls if path.startswith(LEASES)]
    assert calls[:4] == [f"GET {LEASES}/h1", f"POST {LEASES}", f"PUT {LEASES}/h1", f"PUT {LEASES}/h1"]
    spec = fake.objects[f"{LEASES}/h1"]["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"]) == ("h1", 25)
    assert spec["renewTime"].endswith("Z")


def test_a_lease_that_somebody_wrote_meanwhile_is_read_and_renewed() -> None:
    async def story() -> None:
        async with served() as (fake, cluster, _), in_background(cluster.run()):
            await until(lambda: f"{LEASES}/h1" in fake.objects)
            fake.objects[f"{LEASES}/h1"]["metadata"]["resourceVersion"] = "999"
            fake.calls.clear()
            await until(lambda: len(fake.writes(LEASES)) >= 2, 15)
            assert [f"{verb}" for verb, path, _ in fake.calls if path.startswith(LEASES)] == [
                "PUT",
                "GET",
                "PUT",
            ]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("holdfast_api.names.SPEAKER_LEASE_RENEW_SECONDS", 0.2)
        monkeypatch.setattr("holdfast_speaker.cluster._LEASE_RETRY_S", 0.05)
        asyncio.run(story())


def test_a_quiet_speaker_asks_nothing_but_its_lease() -> None:
    async def story() -> list[tuple[str, str]]:
        async with served() as (fake, cluster, _), in_background(cluster.run()):
            cluster.report(status("1"))
            await cluster.flush(5)
            await until(lambda: f"{LEASES}/h1" in fake.objects)
            fake.calls.clear()
            await asyncio.sleep(1.5)
            return [(verb, path) for verb, path, _ in fake.calls]

    assert asyncio.run(story()) == []
