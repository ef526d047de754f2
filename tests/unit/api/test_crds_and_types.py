# SPDX-License-Identifier: Apache-2.0
"""``crds/*.yaml`` and ``types.py`` say the same, and every CEL rule has its twin in ``rules.py``."""

import types
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import yaml

from holdfast_api import rules
from holdfast_api.kinds import folder, kinds
from holdfast_api.types import Metadata, Speaker, VirtualIP, VirtualIPPool, VirtualRouter

STRUCTS: dict[str, type[msgspec.Struct]] = {
    "VirtualIP": VirtualIP,
    "VirtualIPPool": VirtualIPPool,
    "VirtualRouter": VirtualRouter,
    "Speaker": Speaker,
}
SCALARS = {str: "string", int: "integer", bool: "boolean"}


def without_none(annotation: Any) -> Any:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        (left,) = (part for part in typing.get_args(annotation) if part is not types.NoneType)
        return left
    return annotation


def plain(value: Any) -> Any:
    """A struct's default as JSON has it, with what its own fields default to."""
    return msgspec.to_builtins(value)


def differences(annotation: Any, schema: dict[str, Any], where: str) -> Iterator[str]:
    """Everything in which a Python type and a structural schema disagree, both ways."""
    annotation = without_none(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    found = schema["type"]
    if annotation in SCALARS:
        if found != SCALARS[annotation]:
            yield f"{where}: {annotation} is {found}"
        if "enum" in schema:
            yield f"{where}: the enum {schema['enum']} is plain text in Python"
    elif origin is typing.Literal:
        if list(arguments) != schema.get("enum"):
            yield f"{where}: {arguments} is {schema.get('enum')}"
    elif origin is tuple:
        if found != "array":
            yield f"{where}: a tuple is {found}"
        else:
            yield from differences(arguments[0], schema["items"], f"{where}[]")
    elif origin is dict:
        yield from differences(arguments[1], schema["additionalProperties"], f"{where}{{}}")
    elif annotation is not Metadata:
        yield from struct_differences(annotation, schema, where)


def struct_differences(struct: type[msgspec.Struct], schema: dict[str, Any], where: str) -> Iterator[str]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    hints = typing.get_type_hints(struct)
    properties = dict(schema.get("properties", {}))
    for name in ("apiVersion", "kind", "metadata") if where in STRUCTS else ():
        properties.pop(name)
        fields.pop(name, None)
    if where == "Speaker":
        properties.pop("spec")  # there for people who expect one; empty
    if missing := properties.keys() ^ fields.keys():
        yield f"{where}: {sorted(missing)} only on one side"
    for name in properties.keys() & fields.keys():
        field, part = fields[name], properties[name]
        required = field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT
        if required != (name in schema.get("required", ())):
            yield f"{where}.{name}: required on one side only"
        if "default" in part and plain(field.default) != (part["default"] or plain(field.default)):
            yield f"{where}.{name}: {field.default!r} and {part['default']!r} are different defaults"
        if (
            "default" not in part
            and field.default not in (msgspec.NODEFAULT, None, (), "")
            and part["type"] not in ("object", "array")
        ):
            yield f"{where}.{name}: {field.default!r} is a default in Python only"
        yield from differences(hints[field.name], part, f"{where}.{name}")


@pytest.mark.parametrize("kind", STRUCTS)
def test_the_schema_and_the_struct_have_the_same_fields(kind: str) -> None:
    schema = dict(kinds()[kind].schema)

    assert list(differences(STRUCTS[kind], schema, kind)) == []


def test_every_kind_has_its_struct() -> None:
    assert kinds().keys() == STRUCTS.keys()


# --- the CRDs themselves ---------------------------------------------------------------------------


def nodes(schema: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property of a schema, with where it is."""
    for name, part in schema.get("properties", {}).items():
        yield f"{where}.{name}", part
        yield from nodes(part, f"{where}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{where}[]")


def every_node() -> list[tuple[str, dict[str, Any]]]:
    return [
        node
        for kind in kinds().values()
        for node in [(kind.kind, dict(kind.schema)), *nodes(dict(kind.schema), kind.kind)]
    ]


def rules_within(schema: Any) -> Iterator[dict[str, str]]:
    if isinstance(schema, dict):
        yield from schema.get("x-kubernetes-validations", ())
        for part in schema.values():
            yield from rules_within(part)


def every_rule() -> list[dict[str, str]]:
    return [rule for kind in kinds().values() for rule in rules_within(dict(kind.schema))]


def test_every_field_is_described_in_a_sentence() -> None:
    poor = [
        where
        for where, part in every_node()
        if not where.endswith(".metadata") and not part.get("description", "").endswith(".")
    ]

    assert poor == []


def test_every_rule_has_its_twin_and_every_twin_its_rule() -> None:
    assert {rule["message"] for rule in every_rule()} == set(rules.TWINS)


def test_one_message_always_stands_for_one_rule() -> None:
    """The twins are keyed by message, so two rules must not share one."""
    said: dict[str, set[str]] = {}
    for rule in every_rule():
        said.setdefault(rule["message"], set()).add(rule["rule"])

    assert {message: found for message, found in said.items() if len(found) > 1} == {}


def test_lists_say_how_they_are_merged() -> None:
    silent = [
        where
        for where, part in every_node()
        if part.get("type") == "array" and "x-kubernetes-list-type" not in part
    ]

    assert silent == []


def test_the_names_are_those_of_the_design() -> None:
    named = {}
    for path in sorted(folder().glob("*.yaml")):
        spec = yaml.safe_load(path.read_text())["spec"]
        names = spec["names"]
        named[names["kind"]] = (
            path.stem,
            names["plural"],
            names["shortNames"],
            names["categories"],
            spec["scope"],
        )

    assert named == {
        "VirtualIP": ("virtualips", "virtualips", ["vip"], ["holdfast"], "Namespaced"),
        "VirtualIPPool": ("virtualippools", "virtualippools", ["vippool"], ["holdfast"], "Cluster"),
        "VirtualRouter": ("virtualrouters", "virtualrouters", ["vrouter"], ["holdfast"], "Cluster"),
        "Speaker": ("speakers", "speakers", ["hfspeaker"], ["holdfast"], "Cluster"),
    }
