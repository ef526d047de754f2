# SPDX-License-Identifier: Apache-2.0
"""The objects that stories apply."""

import json


def vip(
    name: str,
    address: str,
    *,
    group: str | None = None,
    node: str | None = None,
    nodes: tuple[str, ...] = (),
    interval_ms: int | None = None,
    mode: str | None = None,
) -> str:
    """A VirtualIP as one YAML document; ``node`` or ``nodes`` select by hostname label."""
    spec: dict[str, object] = {"address": address}
    if group is not None:
        spec["group"] = group
    chosen = [node] if node else list(nodes)
    if chosen:
        expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": chosen}
        spec["nodes"] = {"selector": {"matchExpressions": [expression]}}
    if interval_ms is not None:
        spec["failover"] = {"advertIntervalMilliseconds": interval_ms}
    if mode is not None:
        spec["mode"] = mode
    document = {
        "apiVersion": "holdfast.dev/v1alpha1",
        "kind": "VirtualIP",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }
    return f"---\n{json.dumps(document)}\n"
