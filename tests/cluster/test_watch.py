# SPDX-License-Identifier: Apache-2.0
"""The watch against a real API server: a streamed list, what happens, the server away and back."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from holdfast_api import names
from holdfast_api.kube import ApiError, Changed, Config, Deleted, Event, Kube, Listed, Outage, path
from tests.rig.controlplane import ControlPlane

pytestmark = pytest.mark.cluster

ROUTERS = path(names.VIRTUAL_ROUTERS)
Next = Callable[[], Awaitable[Event]]


def router(vrid: int, epoch: int = 0) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": "VirtualRouter",
        "metadata": {"name": names.router_name(vrid)},
        "spec": {"virtualRouterID": vrid, "addresses": [], "plannerEpoch": epoch},
    }


def name(raw: Any) -> str:
    found: str = json.loads(bytes(raw))["metadata"]["name"]
    return found


@asynccontextmanager
async def watched(kube: Kube) -> AsyncIterator[Next]:
    """The next event that is no bookmark, within 30 s."""
    async with aclosing(kube.watch(ROUTERS)) as events:

        async def following() -> Event:
            async with asyncio.timeout(30):
                while True:
                    event = await anext(events)
                    if isinstance(event, Listed | Changed | Deleted | Outage):
                        return event

        yield following


@pytest.fixture
def config(clean_cluster: ControlPlane) -> Config:
    return Config.load({"KUBECONFIG": str(clean_cluster.kubeconfig)})


def test_a_list_and_then_what_happens(config: Config) -> None:
    async def story() -> None:
        async with Kube(config, "holdfast-tests") as kube:
            for vrid in (1, 2, 3):
                await kube.create(ROUTERS, router(vrid))
            async with watched(kube) as following:
                listed = await following()
                assert isinstance(listed, Listed)
                assert sorted(map(name, listed.objects)) == ["vr-1", "vr-2", "vr-3"]

                await kube.apply(f"{ROUTERS}/vr-2", router(2, epoch=1), manager="t")
                changed = await following()
                assert isinstance(changed, Changed)
                assert name(changed.object) == "vr-2"

                await kube.delete(f"{ROUTERS}/vr-1")
                deleted = await following()
                assert isinstance(deleted, Deleted)
                assert name(deleted.object) == "vr-1"

    asyncio.run(story())


def test_pages_name_each_object_once(config: Config) -> None:
    async def story() -> list[str]:
        async with Kube(config, "holdfast-tests") as kube:
            for vrid in range(1, 8):
                await kube.create(ROUTERS, router(vrid))
            pages = kube.pages(ROUTERS, limit=3)
            found = [name(raw) async for raw in pages]
            assert int(pages.resource_version) > 0
            return found

    assert sorted(asyncio.run(story())) == [f"vr-{vrid}" for vrid in range(1, 8)]


def test_the_server_away_is_an_outage_and_its_return_a_list(
    config: Config, clean_cluster: ControlPlane
) -> None:
    """What was deleted unseen is missing from the new list; nothing is said to be deleted meanwhile."""

    async def story() -> None:
        async with Kube(config, "holdfast-tests") as kube, Kube(config, "holdfast-tests") as other:
            for vrid in (1, 2):
                await other.create(ROUTERS, router(vrid))
            async with watched(kube) as following:
                assert isinstance(await following(), Listed)
                clean_cluster.stop()
                assert isinstance(await following(), Outage)
                clean_cluster.start()  # here, not in a thread: the server would end with the thread
                await other.delete(f"{ROUTERS}/vr-1")
                event = await following()
                while isinstance(event, Outage):
                    event = await following()
                assert isinstance(event, Listed)
                assert [name(raw) for raw in event.objects] == ["vr-2"]

    try:
        asyncio.run(story())
    finally:
        clean_cluster.start()


def test_a_right_taken_away_is_an_outage(clean_cluster: ControlPlane) -> None:
    """A speaker whose token is revoked hears of it as an outage, never as an empty list."""
    clean_cluster.add_node("watch-a")
    speaker = Config.load({"KUBECONFIG": str(clean_cluster.token_for("watch-a"))})

    async def story() -> list[Event]:
        async with Kube(speaker, "holdfast-tests") as kube, watched(kube) as following:
            assert isinstance(await following(), Listed)
            clean_cluster.revoke_speaker_tokens()
            async with asyncio.timeout(30):  # the server remembers a good token for some seconds
                while await status(kube) == 200:  # noqa: ASYNC110 - nothing tells us; we ask
                    await asyncio.sleep(0.2)
        async with Kube(speaker, "holdfast-tests") as kube, watched(kube) as following:
            return [await following(), await following()]

    events = asyncio.run(story())

    assert all(isinstance(event, Outage) for event in events), events


async def status(kube: Kube) -> int:
    try:
        await kube.get(f"{ROUTERS}?limit=1")
    except ApiError as error:
        return error.status
    return 200


def test_a_watch_that_is_given_up_leaves_no_connection(config: Config) -> None:
    """A polite end of TLS would wait for the server, who is in the middle of a word."""

    async def story() -> None:
        async with Kube(config, "holdfast-tests") as kube, watched(kube) as following:
            assert isinstance(await following(), Listed)
        await asyncio.sleep(0)
        gc.collect()
        open_ones = [
            each for each in gc.get_objects() if isinstance(each, asyncio.Transport) and is_open(each)
        ]
        assert open_ones == []

    asyncio.run(story())


def is_open(transport: asyncio.Transport) -> bool:
    sock = transport.get_extra_info("socket")
    return sock is not None and sock.fileno() >= 0


def test_a_delete_by_uid_spares_a_namesake(config: Config) -> None:
    async def story() -> None:
        async with Kube(config, "holdfast-tests") as kube:
            first = await kube.create(ROUTERS, router(1))
            await kube.delete(f"{ROUTERS}/vr-1", uid=first["metadata"]["uid"])
            await kube.create(ROUTERS, router(1))
            with pytest.raises(ApiError) as refused:
                await kube.delete(f"{ROUTERS}/vr-1", uid=first["metadata"]["uid"])
            assert (refused.value.status, refused.value.reason) == (409, "Conflict")

    asyncio.run(story())


def test_an_apply_with_a_uid_does_not_bring_back_what_was_deleted(config: Config) -> None:
    async def story() -> None:
        async with Kube(config, "holdfast-tests") as kube:
            made = await kube.create(ROUTERS, router(1))
            await kube.delete(f"{ROUTERS}/vr-1")
            late = router(1, epoch=1)
            late["metadata"]["uid"] = made["metadata"]["uid"]
            with pytest.raises(ApiError) as refused:
                await kube.apply(f"{ROUTERS}/vr-1", late, manager="t")
            assert refused.value.status == 409
            assert [raw async for raw in kube.pages(ROUTERS)] == []

    asyncio.run(story())
