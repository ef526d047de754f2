# SPDX-License-Identifier: Apache-2.0
"""What a speaker's token may do, and what not: real tokens bound to Nodes, real RBAC, the real policy."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from holdfast_api import names
from holdfast_api.kube import ApiError, Config, Kube, lease_path, node_path, path
from tests.rig.controlplane import ControlPlane

pytestmark = pytest.mark.cluster

Object = dict[str, Any]
Request = Callable[[Kube], Awaitable[Any]]
OURS, THEIRS = "rights-a", "rights-b"


def speaker(node: str) -> Object:
    return {"apiVersion": names.API_VERSION, "kind": "Speaker", "metadata": {"name": node}}


def status(node: str) -> Object:
    return speaker(node) | {"status": {"version": "1"}}


def lease(node: str, namespace: str = names.SPEAKER_LEASE_NAMESPACE) -> Object:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": node, "namespace": namespace},
        "spec": {"holderIdentity": node, "leaseDurationSeconds": names.SPEAKER_LEASE_SECONDS},
    }


def router() -> Object:
    return {
        "apiVersion": names.API_VERSION,
        "kind": "VirtualRouter",
        "metadata": {"name": "vr-9"},
        "spec": {"virtualRouterID": 9, "addresses": []},
    }


def speaker_path(node: str, subresource: str | None = None) -> str:
    return path(names.SPEAKERS, node, subresource=subresource)


def namespace_path(name: str | None = None) -> str:
    return path("namespaces", name, group="", version="v1")


def our_lease(node: str) -> str:
    return lease_path(names.SPEAKER_LEASE_NAMESPACE, node)


@pytest.fixture(scope="module")
def standing(control_plane: ControlPlane) -> ControlPlane:
    """Two Nodes, what the other speaker has, a VirtualRouter, the operator's Lease; the policy works."""
    api = control_plane.api
    for node in (OURS, THEIRS):
        control_plane.add_node(node)
    api.apply_object(speaker(THEIRS))
    api.apply_object(lease(THEIRS))
    api.apply_object(router())
    api.apply_object(lease(names.OPERATOR_LEASE, names.OPERATOR_NAMESPACE))
    unbound = Config.load({"KUBECONFIG": str(unbound_kubeconfig(control_plane))})
    deadline = time.monotonic() + 20
    while not refused(unbound, lambda kube: kube.apply(speaker_path(OURS), speaker(OURS), manager="rights")):
        assert time.monotonic() < deadline, "the admission policy did not come into force"
        time.sleep(0.2)
    return control_plane


def unbound_kubeconfig(control_plane: ControlPlane) -> Path:
    """The speaker's service account without a node: what a stolen TokenRequest right would give."""
    token = control_plane.kubectl("create", "token", "holdfast-speaker", "-n", names.OPERATOR_NAMESPACE)
    content = yaml.safe_load(control_plane.kubeconfig.read_text())
    content["users"][0]["user"] = {"token": token.strip()}
    target: Path = control_plane.folder / "unbound.kubeconfig"
    target.write_text(yaml.safe_dump(content))
    return target


@pytest.fixture(scope="module")
def ours(standing: ControlPlane) -> Config:
    return Config.load({"KUBECONFIG": str(standing.token_for(OURS))})


def answer(config: Config, request: Request) -> Any:
    async def asked() -> Any:
        async with Kube(config, "holdfast-tests", request_timeout_s=30) as kube:
            return await request(kube)

    return asyncio.run(asked())


def refused(config: Config, request: Request) -> str | None:
    """The server's words when it says 403; None when it allows. Anything else is an error of the test."""
    try:
        answer(config, request)
    except ApiError as error:
        if error.status != 403:
            raise
        return error.message
    return None


ALLOWED: dict[str, Request] = {
    "apply its Speaker": lambda kube: kube.apply(speaker_path(OURS), speaker(OURS), manager="s"),
    "read its Speaker": lambda kube: kube.get(speaker_path(OURS)),
    "report in its Speaker's status": lambda kube: kube.apply(
        speaker_path(OURS, "status"), status(OURS), manager="s"
    ),
    "merge into its Speaker's status": lambda kube: kube.merge(
        speaker_path(OURS, "status"), {"status": {"version": "2"}}
    ),
    "create or apply its Lease": lambda kube: kube.apply(our_lease(OURS), lease(OURS), manager="s"),
    "renew its Lease": lambda kube: kube.merge(our_lease(OURS), {"spec": {"leaseDurationSeconds": 26}}),
    "read its Lease": lambda kube: kube.get(our_lease(OURS)),
    "list VirtualRouters": lambda kube: kube.get(path(names.VIRTUAL_ROUTERS)),
    "read a VirtualRouter": lambda kube: kube.get(path(names.VIRTUAL_ROUTERS, "vr-9")),
}

REFUSED: dict[str, Request] = {
    "apply another's Speaker": lambda kube: kube.apply(speaker_path(THEIRS), speaker(THEIRS), manager="s"),
    "make a Speaker of no node": lambda kube: kube.create(path(names.SPEAKERS), speaker("rights-c")),
    "make a Speaker of any name": lambda kube: kube.create(
        path(names.SPEAKERS), speaker("x") | {"metadata": {"generateName": f"{OURS}-"}}
    ),
    "report in another's status": lambda kube: kube.apply(
        speaker_path(THEIRS, "status"), status(THEIRS), manager="s"
    ),
    "merge into another's status": lambda kube: kube.merge(
        speaker_path(THEIRS, "status"), {"status": {"version": "9"}}
    ),
    "delete another's Speaker": lambda kube: kube.delete(speaker_path(THEIRS)),
    "delete its own Speaker": lambda kube: kube.delete(speaker_path(OURS)),
    "delete all Speakers": lambda kube: kube.delete(path(names.SPEAKERS)),
    "list Speakers": lambda kube: kube.get(path(names.SPEAKERS)),
    "renew another's Lease": lambda kube: kube.apply(our_lease(THEIRS), lease(THEIRS), manager="s"),
    "merge into another's Lease": lambda kube: kube.merge(
        our_lease(THEIRS), {"spec": {"leaseDurationSeconds": 1}}
    ),
    "make a Lease of another name": lambda kube: kube.create(
        lease_path(names.SPEAKER_LEASE_NAMESPACE), lease("rights-c")
    ),
    "delete another's Lease": lambda kube: kube.delete(our_lease(THEIRS)),
    "delete all Leases": lambda kube: kube.delete(lease_path(names.SPEAKER_LEASE_NAMESPACE)),
    "renew the operator's Lease": lambda kube: kube.merge(
        lease_path(names.OPERATOR_NAMESPACE, names.OPERATOR_LEASE), {"spec": {"holderIdentity": "me"}}
    ),
    "make a Lease of its name beside the operator's": lambda kube: kube.create(
        lease_path(names.OPERATOR_NAMESPACE), lease(OURS, names.OPERATOR_NAMESPACE)
    ),
    "change a VirtualRouter": lambda kube: kube.merge(
        path(names.VIRTUAL_ROUTERS, "vr-9"), {"spec": {"failback": "Immediate"}}
    ),
    "make a VirtualRouter": lambda kube: kube.create(path(names.VIRTUAL_ROUTERS), router()),
    "delete a VirtualRouter": lambda kube: kube.delete(path(names.VIRTUAL_ROUTERS, "vr-9")),
    "list VirtualIPs": lambda kube: kube.get(path(names.VIRTUAL_IPS)),
    "read Nodes": lambda kube: kube.get(node_path(OURS)),
    "read Secrets": lambda kube: kube.get(
        path("secrets", namespace=names.OPERATOR_NAMESPACE, group="", version="v1")
    ),
}


def test_a_speaker_may_do_its_work(ours: Config) -> None:
    denied = {what: words for what, request in ALLOWED.items() if (words := refused(ours, request))}

    assert denied == {}


@pytest.mark.parametrize("what", REFUSED)
def test_a_speaker_may_not(ours: Config, what: str) -> None:
    assert refused(ours, REFUSED[what]) is not None


def test_the_refusal_names_both_nodes(ours: Config) -> None:
    words = refused(ours, REFUSED["report in another's status"])

    assert words is not None
    assert f"the speaker of node {OURS} may only write what is named {OURS}, not {THEIRS}" in words


def test_a_token_without_a_node_writes_nothing(standing: ControlPlane) -> None:
    unbound = Config.load({"KUBECONFIG": str(unbound_kubeconfig(standing))})

    for request in (
        ALLOWED["apply its Speaker"],
        ALLOWED["report in its Speaker's status"],
        ALLOWED["create or apply its Lease"],
    ):
        words = refused(unbound, request)
        assert words is not None
        assert "bound to no node" in words


def test_wider_rights_do_not_open_another_nodes_objects(standing: ControlPlane, ours: Config) -> None:
    """The policy stands on its own: a role that grants too much (here: everything) changes nothing."""
    too_much: Object = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "rights-too-much"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [
            {"kind": "ServiceAccount", "name": "holdfast-speaker", "namespace": names.OPERATOR_NAMESPACE}
        ],
    }
    bindings = path("clusterrolebindings", group="rbac.authorization.k8s.io", version="v1")
    standing.api.request("POST", bindings, too_much)
    try:
        deadline = time.monotonic() + 10
        while refused(ours, REFUSED["read Secrets"]):  # until the authorizer knows
            assert time.monotonic() < deadline
            time.sleep(0.05)
        stand = [
            "merge into another's status",
            "delete another's Speaker",
            "delete all Speakers",
            "merge into another's Lease",
            "delete all Leases",
            "renew the operator's Lease",
            "make a Lease of its name beside the operator's",
        ]
        assert [what for what in stand if refused(ours, REFUSED[what]) is None] == []
    finally:
        standing.api.request("DELETE", f"{bindings}/rights-too-much")


# --- the operator -----------------------------------------------------------------------------------


def test_the_operator_may_do_its_work_and_no_more(standing: ControlPlane) -> None:
    operator = Config.load({"KUBECONFIG": str(standing.operator_kubeconfig())})
    vips = path(names.VIRTUAL_IPS, namespace="default")
    own_lease = lease_path(names.OPERATOR_NAMESPACE, names.OPERATOR_LEASE)
    allowed: dict[str, Request] = {
        "read VirtualIPs": lambda kube: kube.get(path(names.VIRTUAL_IPS)),
        "read Speakers": lambda kube: kube.get(path(names.SPEAKERS)),
        "read speakers' Leases": lambda kube: kube.get(lease_path(names.SPEAKER_LEASE_NAMESPACE)),
        "read Nodes": lambda kube: kube.get(node_path()),
        "read the cluster's UID": lambda kube: kube.get(namespace_path("kube-system")),
        "write VirtualRouters": lambda kube: kube.merge(
            path(names.VIRTUAL_ROUTERS, "vr-9"), {"spec": {"plannerEpoch": 1}}
        ),
        "renew its Lease": lambda kube: kube.merge(own_lease, {"spec": {"holderIdentity": "a"}}),
    }
    forbidden: dict[str, Request] = {
        "change a VirtualIP": lambda kube: kube.create(vips, {"kind": "VirtualIP"}),
        "report for a speaker": lambda kube: kube.merge(speaker_path(THEIRS, "status"), {"status": {}}),
        "renew a speaker's Lease": lambda kube: kube.merge(our_lease(THEIRS), {"spec": {}}),
        "renew somebody's Lease": lambda kube: kube.merge(
            lease_path("kube-system", "kube-scheduler"), {"spec": {}}
        ),
        "change Nodes": lambda kube: kube.merge(node_path(OURS), {"metadata": {"labels": {"a": "b"}}}),
        "read Secrets": REFUSED["read Secrets"],
        "read another namespace": lambda kube: kube.get(namespace_path("default")),
        "list namespaces": lambda kube: kube.get(namespace_path()),
        "change the one namespace it reads": lambda kube: kube.merge(
            namespace_path("kube-system"), {"metadata": {"labels": {"a": "b"}}}
        ),
    }

    assert {what for what, request in allowed.items() if refused(operator, request)} == set()
    assert {what for what, request in forbidden.items() if not refused(operator, request)} == set()


def test_virtualips_are_for_admins_to_write_and_for_viewers_to_read(standing: ControlPlane) -> None:
    """Aggregation: what the built-in roles grant in a namespace, as kubectl itself asks."""
    api = standing.api
    granted = {}
    deadline = time.monotonic() + 20
    for role in ("admin", "edit", "view"):
        where = path("clusterroles", role, group="rbac.authorization.k8s.io", version="v1")
        while True:
            rules = api.request("GET", where)["rules"]
            ours = [rule for rule in rules if "virtualips" in rule["resources"]]
            if ours or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        granted[role] = {verb for rule in ours for verb in rule["verbs"]}

    assert {"create", "delete", "patch", "update", "get", "watch"} <= granted["admin"]
    assert granted["edit"] == granted["view"] == {"get", "list", "watch"}
