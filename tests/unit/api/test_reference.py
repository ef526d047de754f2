# SPDX-License-Identifier: Apache-2.0
"""docs/reference.md has every field and refusal, as ``crds/*.yaml`` say them (REWRITE=1 writes it anew)."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast_api.kinds import kinds

PAGE = Path(__file__).parents[3] / "docs/reference.md"
Schema = dict[str, Any]


def fields(schema: Schema, where: str = "") -> Iterator[tuple[str, Schema, bool]]:
    """(path, schema, required) of every field below a schema, in its order."""
    for name, part in schema.get("properties", {}).items():
        if not where and name in ("apiVersion", "kind", "metadata"):
            continue
        path = f"{where}.{name}" if where else name
        yield path, part, name in schema.get("required", ())
        inner = part["items"] if part["type"] == "array" else part
        yield from fields(inner, f"{path}[]" if part["type"] == "array" else path)


def kind_of_value(schema: Schema) -> str:
    match schema["type"]:
        case "array":
            return f"list of {kind_of_value(schema['items'])}s"
        case "object" if "additionalProperties" in schema:
            return "map of text"
        case "string" if schema.get("format") == "date-time":
            return "time"
        case "string":
            return " \\| ".join(f"`{value}`" for value in schema.get("enum", ())) or "text"
        case other:
            return str(other)


def bounds(schema: Schema) -> str:
    words = []
    if "minimum" in schema and "maximum" in schema:
        words.append(f"{schema['minimum']} to {schema['maximum']}")
    if "maxItems" in schema:
        words.append(f"at most {schema['maxItems']}")
    return ", ".join(words)


def default(schema: Schema, required: bool) -> str:
    if required:
        return "required"
    value = schema.get("default")
    return "" if value in (None, "", {}) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def field_table(kind: str) -> str:
    rows = ["| field | value | default | what it is |", "|---|---|---|---|"]
    for path, schema, required in fields(dict(kinds()[kind].schema)):
        value = ", ".join(part for part in (kind_of_value(schema), bounds(schema)) if part)
        rows.append(f"| `{path}` | {value} | {default(schema, required)} | {schema['description']} |")
    return "\n".join(rows)


def rules(schema: Schema, where: str) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield (where + rule.get("fieldPath", "")).removeprefix("."), rule["message"]
    for name, part in schema.get("properties", {}).items():
        yield from rules(part, f"{where}.{name}" if where else name)
    if "items" in schema:
        yield from rules(schema["items"], f"{where}[]")


def rule_table() -> str:
    rows = ["| kind | field | message |", "|---|---|---|"]
    for kind in ("VirtualIP", "VirtualIPPool", "VirtualRouter"):
        for where, message in rules(dict(kinds()[kind].schema), ""):
            rows.append(f"| {kind} | `{where}` | {message} |")
    return "\n".join(rows)


def page() -> str:
    text = PAGE.read_text()
    parts = {"rules": rule_table()} | {f"fields: {kind}": field_table(kind) for kind in kinds()}
    for mark, table in parts.items():
        opening, closing = f"<!-- {mark} -->\n", "<!-- end -->"
        before, found, rest = text.partition(opening)
        assert found, mark
        text = f"{before}{opening}{table}\n{closing}{rest.partition(closing)[2]}"
    return text


def test_the_reference_is_what_the_crds_say() -> None:
    wanted = page()
    if os.environ.get("REWRITE"):
        PAGE.write_text(wanted)

    assert PAGE.read_text() == wanted
