# SPDX-License-Identifier: Apache-2.0
"""Speakers without a network: they read VirtualRouters and write the reports that real ones would write.

So the operator's tests need no hosts: the first living candidate of each router is Active, a dead one
falls silent (no report, no Lease), and the next takes over with a higher term. Orders to hand over are
obeyed at once, but by the stubborn.
"""

import threading
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

from tests.rig.api import Api, ApiError, Object
from tests.rig.controlplane import ControlPlane

LEASES: Final = "holdfast-speakers"
POLL_S: Final = 0.03
RENEW_S: Final = 2.0
SINCE: Final = "2026-11-22T10:00:00.000000Z"
UNFENCED: Final = {
    "type": "Fence",
    "status": "False",
    "reason": "FenceUnavailable",
    "message": "no nftables egress hook",
    "observedGeneration": 0,
    "lastTransitionTime": SINCE,
}


def timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Puppets:
    """``with Puppets(control_plane, ("n1", "n2")) as puppets:`` Nodes, Speakers and Leases are there."""

    def __init__(self, control_plane: ControlPlane, names: tuple[str, ...], api: Api) -> None:
        self._control_plane = control_plane
        self._api = api  # of its own: one connection for one thread
        self.names = names
        self.dead: set[str] = set()
        self.deaf: set[str] = set()  # they live, but see no new plan
        self.stubborn: set[str] = set()  # they hand nothing over
        self.claimed: dict[str, tuple[str, str]] = {}  # address -> MAC and reason of somebody else's claim
        self.strangers: dict[str, set[int]] = {}  # node -> VRIDs that it hears
        self.blocked: set[str] = set()  # addresses whose virtual MAC the network does not carry
        self.unfenced: set[str] = set()  # nodes whose kernel has no fence
        self._obeyed: dict[tuple[str, str], str] = {}  # (node, router) -> the order
        self._reports: dict[str, dict[str, Object]] = {name: {} for name in names}
        self._terms: dict[str, int] = {}
        self._stories: dict[str, Object] = {}
        self._active: dict[str, str] = {}
        self._sent: dict[str, Object] = {}
        self._renewed_at: dict[str, float] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        for number, name in enumerate(self.names, 1):
            self._control_plane.add_node(name, f"192.0.2.{200 + number}")
            self._api.apply_object(
                {"apiVersion": "holdfast.dev/v1alpha1", "kind": "Speaker", "metadata": {"name": name}}
            )
            self._renew(name)
        self._turn()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(10)
        self._api.close()
        if self._failure is not None and kind is None:
            raise self._failure

    def _play(self) -> None:
        while not self._ending.wait(POLL_S):
            try:
                self._turn()
            except (OSError, ApiError):
                continue  # the API is away, or was changed meanwhile: again
            except BaseException as error:
                self._failure = error
                raise

    def _turn(self) -> None:
        routers = {r["metadata"]["name"]: r for r in self._api.items("VirtualRouter")}
        for name in self.names:
            if name in self.dead:
                continue
            if name not in self.deaf:
                self._run(name, routers)
            self._send(name)
            if time.monotonic() - self._renewed_at.get(name, 0.0) > RENEW_S:
                self._renew(name)

    def _run(self, node: str, routers: dict[str, Object]) -> None:
        mine = self._reports[node]
        for gone in mine.keys() - routers.keys():
            del mine[gone]
        for name, router in routers.items():
            self._speak(node, mine, name, router)

    def _speak(self, node: str, mine: dict[str, Object], name: str, router: Object) -> None:
        meta, spec = router["metadata"], router["spec"]
        order = sorted(spec.get("candidates", []), key=lambda c: -c["priority"])
        living = [c["node"] for c in order if c["node"] not in self.dead]
        if node not in [c["node"] for c in order]:
            mine.pop(name, None)
            return
        known = mine.get(name, {})
        same = known.get("uid") == meta["uid"]
        active = self._active.get(f"{name}/{meta['uid']}")
        if active not in living:
            before, active = active, living[0]
            self._active[f"{name}/{meta['uid']}"] = active
            self._terms[name] = self._terms.get(name, 0) + 1
            self._story(name, before, active)
        self._obey(node, name, router)
        active = self._active[f"{name}/{meta['uid']}"]
        state = "Active" if active == node else "Backup"
        held = [a["address"] for a in spec["addresses"] if a["state"] == "Held"] if state == "Active" else []
        changed = not same or known.get("state") != state
        since = self._stories[name]["time"] if state == "Active" else timestamp()
        report: dict[str, Any] = {
            "name": name,
            "uid": meta["uid"],
            "observedGeneration": meta["generation"],
            "state": state,
            "term": self._terms[name],
            "since": since if changed else known["since"],
            "interface": "eth0",
            "held": held,
            "handover": self._obeyed.get((node, name), ""),
        }
        if state == "Active":
            report["lastTransition"] = self._stories[name]
            report["conflicts"] = self._conflicts(held)
            virtual = {a["address"] for a in spec["addresses"] if "macAddress" in a}
            report["blocked"] = sorted(self.blocked & virtual & set(held))
        else:
            report["hears"] = active
        mine[name] = report

    def _obey(self, node: str, name: str, router: Object) -> None:
        """Once for each order, and only by the Active whom it names."""
        order, key = router["spec"].get("handover"), f"{name}/{router['metadata']['uid']}"
        if order is None or order["from"] != node or self._active[key] != node or node in self.stubborn:
            return
        if self._obeyed.get((node, name)) != order["id"]:
            self._obeyed[node, name] = order["id"]
            if order["to"] not in self.dead:
                self._active[key] = order["to"]
                self._terms[name] += 1
                self._story(name, node, order["to"], planned=True)

    def _conflicts(self, held: list[str]) -> list[Object]:
        return [
            {"address": a, "mac": self.claimed[a][0], "reason": self.claimed[a][1], "since": SINCE}
            for a in held
            if a in self.claimed
        ]

    def _story(self, router: str, before: str | None, now: str, *, planned: bool = False) -> None:
        reason = "HandedOver" if planned else "ActiveSilent" if before else "FirstActive"
        told: Object = {"to": now, "reason": reason, "time": timestamp()}
        if planned:
            told |= {"from": before, "detectionMilliseconds": 0, "takeoverMilliseconds": 2}
        elif before:
            told |= {"from": before, "detectionMilliseconds": 302, "takeoverMilliseconds": 4}
        self._stories[router] = told

    def _send(self, node: str) -> None:
        number = self.names.index(node) + 1
        nic = {
            "name": "eth0",
            "mac": f"02:00:00:00:00:{number:02x}",
            "addresses": [f"192.0.2.{200 + number}/22", f"2001:db8::f:{number:x}/64"],
            "carrier": True,
            "listened": True,
        }
        reports = [self._reports[node][name] for name in sorted(self._reports[node])]
        heard = [
            {"interface": "eth0", "virtualRouterID": vrid, "source": "192.0.2.99"}
            for vrid in sorted(self.strangers.get(node, ()))
        ]
        status = {
            "version": "puppet",
            "interfaces": [nic],
            "routers": reports,
            "heardVirtualRouterIDs": heard,
            "preflight": [UNFENCED] if node in self.unfenced else [],
        }
        if self._sent.get(node) != status:
            self._api.merge("Speaker", node, {"status": status}, part="/status")
            self._sent[node] = status

    def _renew(self, node: str) -> None:
        self._renewed_at[node] = time.monotonic()
        self._api.apply_object(
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": node, "namespace": LEASES},
                "spec": {"holderIdentity": node, "leaseDurationSeconds": 25, "renewTime": timestamp()},
            }
        )
