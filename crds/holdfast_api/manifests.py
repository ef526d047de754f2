# SPDX-License-Identifier: Apache-2.0
"""Manifests in files: YAML read the way kubectl reads it, and every error with its place."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from holdfast_api.decode import DecodeError, FieldError, decode_file
from holdfast_api.names import GROUP
from holdfast_api.schema import NOWHERE

LARGEST_FILE: Final = 64 * 1024 * 1024  # bytes


class _Loader(yaml.SafeLoader):
    """YAML as kubectl sees it: dates and base-60 numbers (an unquoted MAC address!) are text."""


_BY_YAML_1_1: Final = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _BY_YAML_1_1]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9]*|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping whose keys come once each: of two the second would silently win."""
    loader.flatten_mapping(node)
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise yaml.constructor.ConstructorError(None, None, f'key "{twice}" is given twice', node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def errors_in(path: Path) -> Iterator[tuple[str, FieldError]]:
    """(object, error) for all that is wrong in a file of one or several YAML documents.

    Objects of other groups are none of our business: a file may hold a Namespace beside its VirtualIPs.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise OSError(f"longer than {LARGEST_FILE} bytes")
        documents = list(yaml.load_all(path.read_text(), Loader=_Loader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        yield "", FieldError(NOWHERE, " ".join(str(error).split()))
        return
    for index, document in enumerate(_items(documents), 1):
        if not isinstance(document, Mapping):
            yield f"document {index}", FieldError(NOWHERE, "is no Kubernetes object: it is no mapping")
            continue
        if str(document.get("apiVersion", "")).partition("/")[0] != GROUP:
            continue
        try:
            decode_file(document)
        except DecodeError as error:
            for each in error.errors:
                yield _named(document, index), each


def _items(documents: list[Any]) -> Iterator[Any]:
    """The objects, those within a ``kind: List`` too; empty documents are none."""
    for document in documents:
        if isinstance(document, Mapping) and document.get("kind") == "List":
            yield from document.get("items") or ()
        elif document is not None:
            yield document


def _named(document: Mapping[str, Any], index: int) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return f"{document.get('kind', 'object')} {name or f'in document {index}'}"
