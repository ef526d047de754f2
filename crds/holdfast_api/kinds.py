# SPDX-License-Identifier: Apache-2.0
"""The kinds of the group, as ``crds/*.yaml`` define them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind as its CRD defines it."""

    kind: str
    plural: str
    namespaced: bool
    has_status: bool
    schema: Schema


def folder() -> Path:
    """The CRDs: inside the installed package, or beside it in a checkout."""
    packaged = Path(__file__).parent / "crds"
    return packaged if packaged.is_dir() else Path(__file__).parents[1]


@cache
def kinds() -> Mapping[str, Kind]:
    """Every kind of the group by its name; reads the CRDs once."""
    found: dict[str, Kind] = {}
    for path in sorted(folder().glob("*.yaml")):
        spec = yaml.safe_load(path.read_text())["spec"]
        version = spec["versions"][0]
        names = spec["names"]
        found[names["kind"]] = Kind(
            kind=names["kind"],
            plural=names["plural"],
            namespaced=spec["scope"] == "Namespaced",
            has_status="status" in version.get("subresources", {}),
            schema=version["schema"]["openAPIV3Schema"],
        )
    return found
