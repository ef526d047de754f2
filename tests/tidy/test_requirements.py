# SPDX-License-Identifier: Apache-2.0
"""docs/requirements.md names tests that are there, and leaves out no section of RFC 9568 from 5 to 8.

Tests are looked up by reading the files, not by collecting them: that takes milliseconds.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/requirements.md"
MET = {"yes", "partly", "no", "void"}
# Sections that have others below them and say nothing of their own (5.1, 8.2, ...) are left out.
SECTIONS = (
    *(f"5.1.{family}.{field}" for family in (1, 2) for field in (1, 2, 3, 4)),
    *(f"5.2.{field}" for field in range(1, 10)),
    *("6.1", "6.2", "6.3", "6.4.1", "6.4.2", "6.4.3", "7.1", "7.2", "7.3", "7.4"),
    *("8.1.1", "8.1.2", "8.1.3", "8.2.1", "8.2.2", "8.2.3", "8.2.4", "8.3.1", "8.3.2"),
    *("8.4.1", "8.4.2", "8.4.2.1.1", "8.4.2.1.2"),
)
ERRATA = ("7947", "7949", "8298", "8299", "8300", "8301")


@dataclass(frozen=True, slots=True)
class Row:
    document: str  # the heading it stands under
    clause: str
    level: str
    asks: str
    met: str
    how: str
    tests: tuple[str, ...]


def rows(page: str) -> list[Row]:
    found: list[Row] = []
    document = ""
    for line in page.splitlines():
        if line.startswith("## "):
            document = line[3:]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if document and line.startswith("| ") and cells[0] != "clause":
            assert len(cells) == 6, line
            clause, level, asks, met, how, tests = cells
            found.append(Row(document, clause, level, asks, met, how, tuple(re.findall(r"`([^`]+)`", tests))))
    return found


ROWS = rows(PAGE.read_text())


@cache
def names_in(path: Path) -> frozenset[str]:
    """``test_x``, and ``TestY::test_x`` of classes."""
    if not path.is_file():
        return frozenset()
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            inner = (n.name for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
            names.update(f"{node.name}::{name}" for name in inner)
    return frozenset(names)


def missing(node_id: str) -> bool:
    """Whether there is no such test; its parameter is a file of the scripts, or stands in the module."""
    path, _, rest = node_id.partition("::")
    name, _, parameter = rest.partition("[")
    parameter = parameter.removesuffix("]")
    module = ROOT / path
    if not name.rpartition("::")[2].startswith("test_") or name not in names_in(module):
        return True
    if module.parent.name == "scripts" and parameter:
        return not (module.parent / f"{parameter}.txt").is_file()
    return f'"{parameter}"' not in module.read_text() if parameter else False


def test_every_test_that_is_named_exists() -> None:
    named = {node_id for row in ROWS for node_id in row.tests}

    assert len(named) > 100
    assert sorted(node_id for node_id in named if missing(node_id)) == []


@pytest.mark.parametrize(
    "node_id",
    [
        "tests/unit/speaker/test_router.py::test_nothing_of_that_name",
        "tests/unit/speaker/test_nothing.py::test_the_intervals_are_the_rfcs",
        "tests/scripts/test_scripts.py::test_the_brain_does_what_the_script_says[no_story]",
        "tests/unit/speaker/test_advert.py::test_each_refusal_has_its_own_name[TTL 253]",
        "tests/unit/speaker/test_router.py::hear",
    ],
)
def test_one_that_does_not_is_noticed(node_id: str) -> None:
    assert missing(node_id)


def test_every_section_of_rfc_9568_from_5_to_8_appears() -> None:
    clauses = [row.clause for row in ROWS if row.document.startswith("RFC 9568")]
    sections = {section for clause in clauses for section in re.findall(r"\d+(?:\.\d+)+", clause)}

    assert sorted(set(SECTIONS) - sections) == []


def test_every_erratum_appears() -> None:
    text = " ".join(f"{row.clause} {row.asks}" for row in ROWS if row.document.startswith("RFC 9568"))

    assert [erratum for erratum in ERRATA if erratum not in text] == []


def test_what_is_met_has_a_test_and_what_is_not_has_a_reason() -> None:
    unproved = [row.clause for row in ROWS if row.met in {"yes", "partly"} and not row.tests]
    unexplained = [row.clause for row in ROWS if row.met != "yes" and len(row.how) < 10]
    unknown = [row.clause for row in ROWS if row.met not in MET]

    assert (unproved, unexplained, unknown) == ([], [], [])
