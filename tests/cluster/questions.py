# SPDX-License-Identifier: Apache-2.0
"""What the operator's tests ask of the API server."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from tests.rig.api import Object, condition
from tests.rig.controlplane import ControlPlane
from tests.rig.process import Process

T = TypeVar("T")
NODES = ("n1", "n2", "n3")
Operator = Callable[..., Process]  # its name, then flags


def wait(what: str, ask: Callable[[], T], timeout_s: float = 15.0) -> T:
    """Polls until the answer is true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.01)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


def vip(name: str, address: str, **spec: Any) -> Object:
    return {
        "apiVersion": "holdfast.dev/v1alpha1",
        "kind": "VirtualIP",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"address": address, **spec},
    }


def status_of(plane: ControlPlane, name: str) -> Object:
    found = plane.api.get("VirtualIP", name) or {}
    status: Object = found.get("status") or {}
    return status


def ready(plane: ControlPlane, name: str) -> Object:
    """Its status when it is Ready, else nothing."""
    found = plane.api.get("VirtualIP", name)
    status: Object = (found or {}).get("status") or {}
    return status if condition(found, "Ready").get("status") == "True" else {}


def our_writes(plane: ControlPlane, since: int) -> list[str]:
    """What the operator wrote since then, but for its Lease."""
    return [
        f"{w.verb} {w.resource}/{w.subresource} {w.name} {w.code}"
        for w in plane.writes(since)
        if w.user.endswith(":holdfast-operator") and w.resource != "leases"
    ]


def holder(plane: ControlPlane) -> str:
    lease = plane.api.get("Lease", "holdfast-operator", "holdfast-system") or {}
    return str((lease.get("spec") or {}).get("holderIdentity") or "")


def at_rest(plane: ControlPlane, *, quiet_s: float = 2.0, timeout_s: float = 20.0) -> int:
    """Waits until the operator has written nothing for a while; a mark of that moment."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        mark: int = plane.mark()
        time.sleep(quiet_s)
        if not our_writes(plane, mark):
            return mark
    raise AssertionError(f"the operator keeps writing: {our_writes(plane, mark)[-5:]}")


at_rest_briefly = partial(at_rest, quiet_s=1.2)


def router_of(plane: ControlPlane) -> Object:
    (router,) = plane.api.items("VirtualRouter")
    return router


def served(plane: ControlPlane, kind: str) -> bool:
    code: int = plane.api.raw("GET", plane.api.path(kind))[0]
    return code == 200


def condition_of(plane: ControlPlane, name: str, kind: str) -> Object:
    return condition(plane.api.get("VirtualIP", name), kind)


def accepted_reason(plane: ControlPlane, name: str) -> str:
    return str(condition_of(plane, name, "Accepted").get("reason", ""))


def events_of(plane: ControlPlane, name: str, reason: str) -> list[Object]:
    """The Events about this very VirtualIP; those of an earlier test's stay in the API."""
    uid = (plane.api.get("VirtualIP", name) or {"metadata": {"uid": ""}})["metadata"]["uid"]
    found = plane.api.items("Event", "default")
    return [e for e in found if e["reason"] == reason and e["regarding"].get("uid") == uid]
