# SPDX-License-Identifier: Apache-2.0
"""The real API server and the decoder give the same answers: field for field, word for word."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from holdfast_api import schema
from holdfast_api.kinds import kinds
from holdfast_api.kube import ApiError, Config, Kube, path
from tests.cluster.objects import Case, Object, meets, table
from tests.rig.controlplane import ControlPlane

pytestmark = pytest.mark.cluster

Causes = list[tuple[str, str]]
Write = Callable[[Kube, str, Case], Awaitable[Any]]


@pytest.fixture(scope="module")
def config(control_plane: ControlPlane) -> Config:
    return Config.load({"KUBECONFIG": str(control_plane.kubeconfig)})


def kube(config: Config) -> Kube:
    return Kube(config, "holdfast-tests", request_timeout_s=30)


def collection(case: Case) -> str:
    return path(case.plural, namespace=case.namespace)


def causes(error: ApiError) -> Causes:
    assert error.status == 422, error
    return sorted(error.causes)


def decoder(case: Case) -> Causes:
    _, errors = schema.check(case.object, case.before)
    return sorted((error.field, error.message) for error in errors)


async def created(config: Config, case: Case, *, strict: bool = False) -> Object:
    """The object as the server would store it; a dry run, so nothing stays."""
    query = {"dryRun": "All"} | ({"fieldValidation": "Strict"} if strict else {})
    async with kube(config) as api:
        await api.raw("POST", collection(case), case.object, query=query)
    return case.object


@pytest.mark.parametrize("case", table("good"), ids=lambda case: case.name)
def test_the_server_takes_a_good_object(config: Config, case: Case) -> None:
    assert asyncio.run(created(config, case, strict=True))


@pytest.mark.parametrize("case", [c for c in table("bad") if c.wrong], ids=lambda case: case.name)
def test_server_and_decoder_refuse_the_same_in_the_same_words(config: Config, case: Case) -> None:
    with pytest.raises(ApiError) as refused:
        asyncio.run(created(config, case))

    assert causes(refused.value) == decoder(case)
    assert meets([schema.FieldError(*cause) for cause in refused.value.causes], case)


@pytest.mark.parametrize("case", [c for c in table("bad") if c.unknown], ids=lambda case: case.name)
def test_server_and_decoder_name_the_same_unknown_fields(config: Config, case: Case) -> None:
    with pytest.raises(ApiError) as refused:
        asyncio.run(created(config, case, strict=True))

    assert all(error.message in refused.value.message for error in schema.unknown_fields(case.object))
    assert refused.value.message.count("unknown field") == len(case.unknown)


# --- changes --------------------------------------------------------------------------------------


async def replaced(api: Kube, where: str, case: Case) -> Object:
    stored = await api.get(where)
    metadata = case.object["metadata"] | {"resourceVersion": stored["metadata"]["resourceVersion"]}
    return await api.replace(where, case.object | {"metadata": metadata})


def merge_patch(before: Any, after: Any) -> Any:
    """RFC 7396: what turns one into the other; null removes."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return after
    gone = {key: None for key in before if key not in after}
    return gone | {
        key: merge_patch(before.get(key), value) for key, value in after.items() if before.get(key) != value
    }


async def merged(api: Kube, where: str, case: Case) -> Object:
    return await api.merge(where, merge_patch(case.before, case.object))


async def json_patched(api: Kube, where: str, case: Case) -> bytes:
    """RFC 6902, one operation for each field of the spec that differs."""
    assert case.before is not None
    if "spec" not in case.object:
        operations = [{"op": "remove", "path": "/spec"}]
    else:
        before, after = case.before["spec"], case.object["spec"]
        operations = [{"op": "remove", "path": f"/spec/{key}"} for key in before if key not in after]
        for key, value in after.items():
            if before.get(key) != value:
                operations.append({"op": "add", "path": f"/spec/{key}", "value": value})
    return await api.raw("PATCH", where, operations, content_type="application/json-patch+json")


async def applied(api: Kube, where: str, case: Case) -> Object:
    return await api.apply(where, case.object, manager="author")


async def changed(config: Config, case: Case, write: Write) -> None:
    """The object as it stands is applied by its author, then changed; it is gone afterwards."""
    assert case.before is not None
    name = case.before["metadata"]["name"]
    where = path(case.plural, name, namespace=case.namespace)
    async with kube(config) as api:
        await api.apply(where, case.before, manager="author")
        try:
            await write(api, where, case)
        finally:
            await api.delete(where)


@pytest.mark.parametrize("write", [replaced, merged, json_patched, applied])
@pytest.mark.parametrize("case", [c for c in table("changes") if c.wrong], ids=lambda case: case.name)
def test_a_change_is_refused_however_it_is_made(config: Config, case: Case, write: Write) -> None:
    with pytest.raises(ApiError) as refused:
        asyncio.run(changed(config, case, write))

    assert causes(refused.value) == decoder(case)


@pytest.mark.parametrize("write", [replaced, merged, json_patched, applied])
@pytest.mark.parametrize("case", [c for c in table("changes") if not c.wrong], ids=lambda case: case.name)
def test_what_may_change_changes(config: Config, case: Case, write: Write) -> None:
    asyncio.run(changed(config, case, write))

    assert decoder(case) == []


# --- what kubectl shows ----------------------------------------------------------------------------


def test_every_field_is_explained(control_plane: ControlPlane) -> None:
    """No field without a description, in any kind, as kubectl itself sees it."""
    for kind in kinds().values():
        explained = control_plane.kubectl(
            "explain", kind.plural, "--recursive", "--output=plaintext-openapiv2", check=False
        )
        assert "<no description>" not in explained


def test_the_columns_say_who_holds_the_address(control_plane: ControlPlane) -> None:
    vip: Object = {
        "apiVersion": "holdfast.dev/v1alpha1",
        "kind": "VirtualIP",
        "metadata": {"name": "columns", "namespace": "default"},
        "spec": {"address": "192.0.2.77"},
    }
    condition = {
        "type": "Ready",
        "status": "True",
        "reason": "Held",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-11-22T10:00:00Z",
    }
    status = {
        "address": "192.0.2.77",
        "leader": "node-a",
        "standbys": ["node-b", "node-c"],
        "active": [{"node": "node-a", "interface": "eth1", "since": "2026-11-22T10:00:00.123456Z"}],
        "conditions": [condition],
    }
    control_plane.api.apply_object(vip)
    try:
        control_plane.api.merge("VirtualIP", "columns", {"status": status}, part="/status")
        short = control_plane.kubectl("get", "vip", "columns").splitlines()
        wide = control_plane.kubectl("get", "vip", "columns", "-o", "wide").splitlines()
    finally:
        control_plane.api.delete("VirtualIP", "columns")

    assert short[0].split() == ["NAME", "ADDRESS", "ACTIVE", "READY", "AGE"]
    assert short[1].split()[:4] == ["columns", "192.0.2.77", "node-a", "True"]
    assert wide[0].split()[5:] == ["LEADER", "STANDBYS", "INTERFACE", "MAC", "REASON"]
    assert wide[1].split()[5:] == ["node-a", '["node-b","node-c"]', "eth1", "Held"]
