# SPDX-License-Identifier: Apache-2.0
"""The repository keeps its own rules."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from holdfast_api.conditions import Reason

ROOT = Path(__file__).parents[2]
HOUSES = ("crds/holdfast_api", "operator/holdfast_operator", "speaker/holdfast_speaker")
BANNED_NAMES = re.compile(
    r"(^|_)(manager|helper|helpers|util|utils|common|master|slave)(_|$)|^(process|do)_", re.I
)
# Words of the field that only look like banned ones: the API's own term for who wrote a field.
ALLOWED_NAMES = {"manager", "field_manager", "OPERATOR_MANAGER", "SPEAKER_MANAGER", "process_time"}


@cache
def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def modules() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


def test_the_source_roots_are_no_packages() -> None:
    """``operator/__init__.py`` would shadow the standard library's operator module."""
    present = [root for root in ("operator", "speaker", "crds") if (ROOT / root / "__init__.py").exists()]

    assert present == []


def test_every_source_file_names_its_licence() -> None:
    missing = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.suffix in {".py", ".go"}
        and "SPDX-License-Identifier: Apache-2.0" not in path.read_text()[:200]
    ]

    assert missing == []


def test_every_reason_is_documented_once() -> None:
    rows = re.findall(r"^\| `([A-Za-z]+)` \|", (ROOT / "docs/reasons.md").read_text(), re.M)

    assert sorted(rows) == sorted(reason.value for reason in Reason)


def test_every_reason_is_given_by_some_code() -> None:
    """A word that nothing says any more is deleted, not kept."""
    source = "\n".join(
        path.read_text() for path in modules() if str(path.relative_to(ROOT)).startswith(HOUSES)
    )
    unused = [reason.name for reason in Reason if f"Reason.{reason.name}" not in source]

    assert unused == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_short_enough_to_read_in_one_go(path: Path) -> None:
    house = str(path.relative_to(ROOT)).startswith(HOUSES)
    limit = 400 if house else 700

    assert len(path.read_text().splitlines()) <= limit


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
        for path in modules()
        if str(path.relative_to(ROOT)).startswith(HOUSES)
        for function in functions(path)
        if function.end_lineno is not None and function.end_lineno - function.lineno > 75
    ]

    assert long == []


def test_names_are_the_fields_own_terms() -> None:
    banned = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules()
        if str(path.relative_to(ROOT)).startswith(HOUSES)
        for name in {path.stem}
        | {
            node.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        if BANNED_NAMES.search(name) and name not in ALLOWED_NAMES
    ]

    assert banned == []


def test_the_links_between_the_pages_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in tracked()
        if page.suffix == ".md"
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists()
    ]

    assert broken == []
