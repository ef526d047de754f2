# SPDX-License-Identifier: Apache-2.0
"""The plan survives a restart; nothing else that may stand in its place is believed."""

import asyncio
import logging
from pathlib import Path

import msgspec
import pytest

from holdfast_api.types import Candidate, Metadata, Owner, RouterAddress, VirtualRouter, VirtualRouterSpec
from holdfast_speaker.events import PlanRestored
from holdfast_speaker.plan_file import PlanFile

ROUTER = VirtualRouter(
    metadata=Metadata(name="vr-7", uid="u7", generation=3),
    spec=VirtualRouterSpec(
        virtual_router_id=7,
        addresses=(RouterAddress(address="192.0.2.10", owner=Owner("default", "web", "u1"), claimed=True),),
        candidates=(Candidate(node="h1", priority=250, sources=("192.0.2.1",)),),
    ),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "holdfast"


def test_what_is_saved_is_restored(folder: Path) -> None:
    PlanFile(folder, "h1").save((ROUTER,), (("vr-7", 12),))
    assert PlanFile(folder, "h1").restore() == PlanRestored((ROUTER,), {"vr-7": 12})
    assert [path.name for path in folder.iterdir()] == ["plan.json"]


def test_without_a_file_nothing_is_restored_and_nothing_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert PlanFile(folder, "h1").restore() is None
    assert caplog.messages == []


def test_a_directory_that_cannot_be_written_is_said_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    PlanFile(tmp_path / "file" / "run", "h1").save((ROUTER,), ())
    assert "cannot be kept" in caplog.text


def spoiled(content: bytes, **changes: object) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(content, type=dict[str, object]) | changes)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("garbage", "JSON"),
        ("empty", "truncated"),
        ("half", "truncated"),
        ("layout", "layout"),
        ("node", "plan of node h1"),
        ("terms", "out of range"),
        ("router", "virtualRouterID"),
        ("field", "unknown field"),
        ("writable", "somebody else"),
    ],
)
def test_a_file_not_to_be_believed_is_ignored_with_its_reason(
    folder: Path, caplog: pytest.LogCaptureFixture, what: str, why: str
) -> None:
    PlanFile(folder, "h1").save((ROUTER,), ())
    path = folder / "plan.json"
    content = path.read_bytes()
    router = msgspec.to_builtins(ROUTER)
    router["spec"]["virtualRouterID"] = 256
    path.write_bytes(
        {
            "garbage": b"\0\1\2 garbage",
            "empty": b"",
            "half": content[: len(content) // 2],
            "layout": spoiled(content, layout=2),
            "terms": spoiled(content, terms={"vr-7": -1}),
            "router": spoiled(content, routers=[router]),
            "field": spoiled(content, surprise=1),
        }.get(what, content)
    )
    if what == "writable":
        path.chmod(0o666)
    with caplog.at_level(logging.WARNING):
        assert PlanFile(folder, "h2" if what == "node" else "h1").restore() is None
    assert "is ignored" in caplog.text
    assert why in caplog.text


def test_of_several_plans_to_keep_the_latest_is_saved(folder: Path) -> None:
    async def story() -> None:
        plan = PlanFile(folder, "h1")
        writing = asyncio.create_task(plan.run())
        for term in range(50):
            plan.keep((ROUTER,), (("vr-7", term),))
        for _ in range(300):
            await asyncio.sleep(0.01)
            if (folder / "plan.json").exists():
                break
        writing.cancel()
        plan.keep((ROUTER,), (("vr-7", 99),))
        assert plan.restore() == PlanRestored((ROUTER,), {"vr-7": 49})
        plan.flush()
        assert plan.restore() == PlanRestored((ROUTER,), {"vr-7": 99})

    asyncio.run(story())
