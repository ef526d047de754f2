# SPDX-License-Identifier: Apache-2.0
"""Checks an object against ``crds/*.yaml`` as the API server would, and says it in the API server's words.

A small walker over the structural schemas that Holdfast's own CRDs use, not a JSON Schema library: defaults
and nulls first, then types, bounds and enums, then list keys, then the rules (``rules.py``). A test runs it
and a real API server on the same bad objects and compares field and message.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from holdfast_api.kinds import Kind, Schema, kinds
from holdfast_api.names import API_VERSION
from holdfast_api.rules import TWINS

Object = dict[str, Any]

SEVERAL_RULES_UNCHECKED: Final = (
    "some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation"
)
NOWHERE: Final = "<nil>"  # the API server's own name for "the object as a whole"
_INTEGERS: Final = {"int32": 2**31, "int64": 2**63}
# Fields of ObjectMeta that a manifest may hold; the server fills in some and ignores others.
_METADATA: Final = {
    *("name", "generateName", "namespace", "selfLink", "uid", "resourceVersion", "generation"),
    *("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "labels", "annotations"),
    *("ownerReferences", "finalizers", "managedFields"),
}
_NAME: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_DATE_TIME: Final = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


@dataclass(frozen=True, slots=True, order=True)
class FieldError:
    """One thing that is wrong: where, and in the API server's words what and why.

    ``blocks``: the API server checks no CEL rule while such an error stands.
    """

    field: str
    message: str
    blocks: bool = False


def check(given: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> tuple[Object, list[FieldError]]:
    """The object as the API server would store it, and everything it would refuse it for.

    With ``old``, the stored object it would replace, the rules on changes are checked too. A status is left
    out where the kind has a status subresource: a user cannot write it along.
    """
    kind = kinds().get(given.get("kind", "")) if isinstance(given.get("kind"), str) else None
    if kind is None or given.get("apiVersion") != API_VERSION:
        return dict(given), [_not_ours(given)]
    wanted = _stored(given, kind)
    errors = [*_metadata(wanted), *_structure(kind.schema, wanted, ""), *_list_keys(kind.schema, wanted, "")]
    if any(error.blocks for error in errors):
        errors.append(_invalid(NOWHERE, None, SEVERAL_RULES_UNCHECKED))
    else:
        errors += _rules(kind.schema, wanted, None if old is None else _stored(old, kind), "")
    return wanted, in_order(errors)


def in_order(errors: list[FieldError]) -> list[FieldError]:
    """By field; what is said of the object as a whole comes last."""
    return sorted(errors, key=lambda error: (error.field == NOWHERE, error))


def unknown_fields(given: Mapping[str, Any]) -> list[FieldError]:
    """The fields that the kind does not have: misspelled ones, above all."""
    kind = kinds().get(given.get("kind", "")) if isinstance(given.get("kind"), str) else None
    if kind is None:
        return []
    names = [*_unknown(kind.schema, given, "")]
    metadata = given.get("metadata")
    if isinstance(metadata, Mapping):
        names += [f"metadata.{key}" for key in metadata if key not in _METADATA]
    return [FieldError(name, f'unknown field "{name}"') for name in names]


def _not_ours(given: Mapping[str, Any]) -> FieldError:
    if given.get("apiVersion") != API_VERSION:
        return _invalid("apiVersion", given.get("apiVersion", ""), f"must be {API_VERSION}")
    return _invalid("kind", given.get("kind", ""), f"must be one of {', '.join(sorted(kinds()))}")


# --- words --------------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _invalid(field: str, value: Any, why: str) -> FieldError:
    return FieldError(field, f"Invalid value: {_shown(value)}: {why}")


def _wrong_type(path: str, wanted: str, found: str) -> FieldError:
    why = f"{path} in body must be of type {wanted}: {_shown(found)}"
    return FieldError(path or NOWHERE, f"Invalid value: {_shown(found)}: {why}", blocks=True)


def _child(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# --- defaults and nulls -------------------------------------------------------------------------


def _stored(given: Mapping[str, Any], kind: Kind) -> Object:
    wanted: Object = _defaulted(kind.schema, given)
    if kind.has_status:
        wanted.pop("status", None)
    return wanted


def _property(schema: Schema, name: str) -> Schema | None:
    found: Schema | None = schema.get("properties", {}).get(name)
    return schema.get("additionalProperties") if found is None else found


def _defaulted(schema: Schema | None, value: Any) -> Any:
    """A copy with nulls dropped, defaults put in and 100.0 read as 100, as the server does on the way in."""
    if isinstance(value, Mapping):
        own = schema or {}
        filled = {key: item for key, item in value.items() if item is not None or _property(own, key) is None}
        for key, part in own.get("properties", {}).items():
            if "default" in part:
                filled.setdefault(key, part["default"])
        return {key: _defaulted(_property(own, key), item) for key, item in filled.items()}
    if isinstance(value, list):
        return [_defaulted((schema or {}).get("items"), item) for item in value]
    if isinstance(value, float) and value.is_integer() and (schema or {}).get("type") == "integer":
        return int(value)
    return value


def _unknown(schema: Schema, value: Any, path: str) -> list[str]:
    if isinstance(value, Mapping) and "properties" in schema:
        names = [_child(path, key) for key in value if key not in schema["properties"]]
        for key, part in schema["properties"].items():
            names += _unknown(part, value.get(key), _child(path, key))
        return names
    if isinstance(value, list):
        parts = [
            _unknown(schema.get("items", {}), item, f"{path}[{index}]") for index, item in enumerate(value)
        ]
        return [name for part in parts for name in part]
    return []


# --- metadata -----------------------------------------------------------------------------------


def _metadata(wanted: Object) -> list[FieldError]:
    metadata = wanted.get("metadata")
    if not isinstance(metadata, Mapping):
        metadata = {}
    name = metadata.get("name") or ""
    if not name and metadata.get("generateName"):
        return []
    if not isinstance(name, str) or not name:
        return [FieldError("metadata.name", "Required value: name or generateName is required", blocks=True)]
    if re.fullmatch(_NAME, name) is None:
        why = (
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
            "and must start and end with an alphanumeric character (e.g. 'example.com', "
            f"regex used for validation is '{_NAME}')"
        )
        return [_invalid("metadata.name", name, why)]
    if len(name) > 253:
        return [_invalid("metadata.name", name, "must be no more than 253 bytes")]
    return []


# --- types, bounds and enums ---------------------------------------------------------------------


def _structure(schema: Schema, value: Any, path: str) -> list[FieldError]:
    """Everything but keys of lists and rules, for this value and all within."""
    errors = _type(schema, value, path)
    if "enum" in schema and value not in schema["enum"]:
        supported = ", ".join(_shown(allowed) for allowed in schema["enum"])
        message = f"Unsupported value: {_shown(value)}: supported values: {supported}"
        errors.append(FieldError(path, message, blocks=True))
    if isinstance(value, bool) or value is None:
        return errors
    match value:
        case str():
            errors += _text(schema, value, path)
        case int() | float():
            errors += _number(schema, value, path)
        case list():
            errors += _list(schema, value, path)
        case Mapping():
            errors += _fields(schema, value, path)
    return errors


def _type(schema: Schema, value: Any, path: str) -> list[FieldError]:
    if path in ("metadata", ""):
        return []
    wanted = schema.get("type", "object")
    found, found_format = _type_of(value)
    if found == wanted:
        return []
    if "format" in schema and found not in ("string", "array", "null"):
        return [_wrong_type(path, schema["format"], found_format)]
    return [_wrong_type(path, wanted, found)]


def _type_of(value: Any) -> tuple[str, str]:
    """The JSON type and the format that the server's validator infers from a value."""
    match value:
        case None:
            return "null", ""
        case bool():
            return "boolean", ""
        case int():
            return "integer", "int64"
        case float():
            return "number", "float64"
        case str():
            return "string", ""
        case list():
            return "array", ""
        case _:
            return "object", ""


def _text(schema: Schema, value: str, path: str) -> list[FieldError]:
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        message = f"Too long: may not be more than {schema['maxLength']} bytes"
        return [FieldError(path, message, blocks=True)]
    if schema.get("format") == "date-time" and not _is_date_time(value):
        return [_wrong_type(path, "date-time", value)]
    return []


def _is_date_time(value: str) -> bool:
    if _DATE_TIME.fullmatch(value) is None:
        return False
    try:
        datetime.fromisoformat(value.upper().replace("Z", "+00:00"))
    except ValueError:
        return False
    return True


def _number(schema: Schema, value: float, path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    limit = _INTEGERS.get(schema.get("format", ""))
    if limit is not None and not (value == int(value) and -limit <= value < limit):
        why = f"Checked value must be of type integer with format {schema['format']} in {path}"
        errors.append(_invalid(NOWHERE, "", why))
    if "multipleOf" in schema and value % schema["multipleOf"]:
        errors.append(_invalid(path, value, f"{path} in body should be a multiple of {schema['multipleOf']}"))
    if "minimum" in schema and value < schema["minimum"]:
        why = f"{path} in body should be greater than or equal to {schema['minimum']}"
        errors.append(_invalid(path, value, why))
    if "maximum" in schema and value > schema["maximum"]:
        why = f"{path} in body should be less than or equal to {schema['maximum']}"
        errors.append(_invalid(path, value, why))
    return errors


def _too_many(path: str, count: int, most: int) -> FieldError:
    return FieldError(path, f"Too many: {count}: must have at most {most} items", blocks=True)


def _list(schema: Schema, value: Sequence[Any], path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    if schema.get("type") == "array":
        for index, item in enumerate(value):
            errors += _structure(schema["items"], item, f"{path}[{index}]")
    if len(value) < schema.get("minItems", 0):
        why = f"{path} in body should have at least {schema['minItems']} items"
        errors.append(_invalid(path, len(value), why))
    if len(value) > schema.get("maxItems", len(value)):
        errors.append(_too_many(path, len(value), schema["maxItems"]))
    return errors


def _fields(schema: Schema, value: Mapping[str, Any], path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    if len(value) > schema.get("maxProperties", len(value)):
        errors.append(_too_many(path, len(value), schema["maxProperties"]))
    for key, item in value.items():
        part = _property(schema, key)
        if part is not None:
            errors += _structure(part, item, _child(path, key))
    for key in schema.get("required", ()):
        if key not in value:
            errors.append(FieldError(_child(path, key), "Required value", blocks=True))
    return errors


# --- keys of lists, and rules ---------------------------------------------------------------------


def _within(
    schema: Schema, value: Any, path: str, *, keyed: bool = False
) -> list[tuple[Schema, Any, str, str | None]]:
    """The values right inside: (schema, value, path, key); ``keyed`` writes a map's paths as m[key]."""
    if isinstance(value, Mapping):
        inside: list[tuple[Schema, Any, str, str | None]] = []
        for key, item in value.items():
            part = _property(schema, key)
            if part is not None:
                named = key in schema.get("properties", {}) or not keyed
                inside.append((part, item, _child(path, key) if named else f"{path}[{key}]", key))
        return inside
    if isinstance(value, list) and "items" in schema:
        return [(schema["items"], item, f"{path}[{index}]", None) for index, item in enumerate(value)]
    return []


def _list_keys(schema: Schema, value: Any, path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    how = schema.get("x-kubernetes-list-type")
    if isinstance(value, list) and how == "set":
        errors += _twice(value, path, lambda item: item)
    if isinstance(value, list) and how == "map" and all(isinstance(item, Mapping) for item in value):
        keys = schema["x-kubernetes-list-map-keys"]
        errors += _twice(value, path, lambda item: {key: item.get(key) for key in keys})
    for part, item, where, _key in _within(schema, value, path, keyed=True):
        errors += _list_keys(part, item, where)
    return errors


def _twice(items: Sequence[Any], path: str, key: Callable[[Any], Any]) -> list[FieldError]:
    """The second of each value that comes more than once; the server names only that one."""
    times: dict[str, int] = {}
    errors: list[FieldError] = []
    for index, item in enumerate(items):
        shown = _shown(key(item))
        times[shown] = times.get(shown, 0) + 1
        if times[shown] == 2:
            errors.append(FieldError(f"{path}[{index}]", f"Duplicate value: {shown}"))
    return errors


def _rules(schema: Schema, value: Any, old: Any, path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    for rule in schema.get("x-kubernetes-validations", ()):
        if old is None and "oldSelf" in rule["rule"]:
            continue
        if not TWINS[rule["message"]](value, old):
            errors.append(_broken(rule, value, path))
    for part, item, where, key in _within(schema, value, path, keyed=True):
        before = old.get(key) if key is not None and isinstance(old, Mapping) else None
        errors += _rules(part, item, before, where)
    return errors


def _broken(rule: Mapping[str, str], value: Any, path: str) -> FieldError:
    field = path + rule.get("fieldPath", "") if path else rule.get("fieldPath", "").removeprefix(".")
    match rule.get("reason"):
        case "FieldValueForbidden":
            return FieldError(field or NOWHERE, f"Forbidden: {rule['message']}")
        case "FieldValueRequired":
            return FieldError(field or NOWHERE, f"Required value: {rule['message']}")
    if isinstance(value, Mapping | list):
        return FieldError(field or NOWHERE, f"Invalid value: {rule['message']}")
    return _invalid(field, value, rule["message"])
