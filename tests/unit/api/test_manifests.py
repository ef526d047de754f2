# SPDX-License-Identifier: Apache-2.0
"""``python -m holdfast_api check``: files, read as kubectl reads them."""

from pathlib import Path

import pytest

from holdfast_api.__main__ import main

HEAD = "apiVersion: holdfast.dev/v1alpha1\nkind: VirtualIP\nmetadata: {name: web}\n"


def checked(path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    path.write_text(text)
    code = main(["check", str(path)])
    return code, [line.removeprefix(f"{path}: ") for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vip.yaml"


def test_a_good_file_says_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = "apiVersion: v1\nkind: Namespace\nmetadata: {name: 1}\n"
    text = f"{HEAD}spec: {{address: 192.0.2.10}}\n---\n{foreign}---\n"

    assert checked(file, text, capsys) == (0, [])


def test_every_error_has_its_object_and_its_field(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = checked(file, f"{HEAD}spec: {{address: 127.0.0.1, grop: a}}\n", capsys)

    assert code == 1
    assert lines[0].startswith('VirtualIP web: spec.address: Invalid value: "127.0.0.1": must not be')
    assert lines[1] == 'VirtualIP web: spec.grop: unknown field "spec.grop"'


def test_a_mac_address_without_quotes_stays_one(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """YAML 1.1 reads 12:11:22:33:44:55 as a number in base 60; kubectl does not."""
    text = f"{HEAD}spec: {{address: 192.0.2.10, mode: VirtualMAC, macAddress: 12:11:22:33:44:55}}\n"

    assert checked(file, text, capsys) == (0, [])


def test_the_objects_of_a_list_are_checked(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "apiVersion: v1\nkind: List\nitems:\n"
        "- {apiVersion: holdfast.dev/v1alpha1, kind: VirtualIP, metadata: {name: a}, spec: {address: x}}\n"
    )

    assert checked(file, text, capsys)[0] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "while parsing"),
        (f"{HEAD}spec: {{}}\nspec: {{}}\n", 'key "spec" is given twice'),
        ("- 1\n", "no mapping"),
        ("apiVersion: holdfast.dev/v1\nkind: VirtualIP\n", "must be holdfast.dev/v1alpha1"),
        ("apiVersion: holdfast.dev/v1alpha1\nkind: VIP\n", "must be one of Speaker, VirtualIP"),
        ("apiVersion: holdfast.dev/v1alpha1\nkind: VirtualIP\nspec: {address: 192.0.2.1}\n", "metadata.name"),
    ],
)
def test_what_cannot_be_read_is_said(
    file: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    code, lines = checked(file, text, capsys)

    assert code == 1
    assert words in lines[0]


def test_a_file_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none.yaml")]) == 1
    assert "No such file" in capsys.readouterr().out
