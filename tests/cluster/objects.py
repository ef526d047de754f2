# SPDX-License-Identifier: Apache-2.0
"""The table of ``objects.yaml``: what is taken and what is refused, with the field and the words."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from holdfast_api import names
from holdfast_api.kinds import kinds
from holdfast_api.schema import SEVERAL_RULES_UNCHECKED, FieldError

Object = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """``before`` is the object that stands, for a change. ``wrong`` are (field, part of the message)."""

    name: str
    kind: str
    object: Object
    wrong: tuple[tuple[str, str], ...] = ()
    unknown: tuple[str, ...] = ()
    before: Object | None = None

    @property
    def plural(self) -> str:
        return kinds()[self.kind].plural

    @property
    def namespace(self) -> str | None:
        return "default" if kinds()[self.kind].namespaced else None


def _object(case: Object, spec: Any) -> Object:
    identity = (case.get("from") or spec or {}) if case["kind"] == "VirtualRouter" else {}
    name = case.get("named") or names.router_name(identity["virtualRouterID"] if identity else 0)
    if case["kind"] != "VirtualRouter" and "named" not in case:
        name = "table"
    made: Object = {"apiVersion": names.API_VERSION, "kind": case["kind"], "metadata": {"name": name}}
    return made if spec is None else made | {"spec": spec}


@cache
def table(part: str) -> tuple[Case, ...]:
    """The cases of ``good``, ``bad`` or ``changes``."""
    found = yaml.safe_load((Path(__file__).parent / "objects.yaml").read_text())[part]
    return tuple(
        Case(
            name=case["name"],
            kind=case["kind"],
            object=_object(case, case.get("to") if part == "changes" else case.get("spec")),
            wrong=tuple((wrong["field"], wrong["says"]) for wrong in case.get("wrong", ())),
            unknown=tuple(case.get("unknown", ())),
            before=_object(case, case["from"]) if part == "changes" else None,
        )
        for case in found
    )


def meets(errors: list[FieldError], case: Case) -> bool:
    """Whether exactly the expected errors are there, each once; the note that rules are unchecked aside."""
    left = [error for error in errors if SEVERAL_RULES_UNCHECKED not in error.message]
    for field, says in case.wrong:
        match = next((e for e in left if e.field == field and says in e.message), None)
        if match is None:
            return False
        left.remove(match)
    return not left
