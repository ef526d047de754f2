# SPDX-License-Identifier: Apache-2.0
"""The benchmark: each part of its page is written without touching the other, and the figures are right."""

from dataclasses import replace
from pathlib import Path

from tests.rig.bench import put
from tests.rig.figures import Move, Moves, moves_table

SECOND = "## Virtual MACs\n"
MOVE = Move(
    gap_ms=250.0,
    lost=250,
    deaf_gap_ms=260.0,
    static_gap_ms=240.0,
    wrong=0,
    flooded=0,
    old_owner=0,
    ended_wrong=0,
    ever_wrong=0,
    late_ms=1.0,
)


def test_each_part_of_the_page_is_written_without_touching_the_other(tmp_path: Path) -> None:
    page = tmp_path / "benchmark.md"
    put(tmp_path, "# Benchmark\n\nfirst\n", None)
    assert page.read_text() == "# Benchmark\n\nfirst\n"
    put(tmp_path, None, f"{SECOND}\nsecond\n")
    assert page.read_text() == f"# Benchmark\n\nfirst\n\n{SECOND}\nsecond\n"
    put(tmp_path, "# Benchmark\n\nother\n", None)
    put(tmp_path, None, f"{SECOND}\nnewer\n")
    assert page.read_text() == f"# Benchmark\n\nother\n\n{SECOND}\nnewer\n"


def test_the_table_of_moves_gives_medians_and_the_worst() -> None:
    worse = replace(MOVE, gap_ms=350.0, lost=351, wrong=4000, flooded=12, ended_wrong=1, ever_wrong=2)
    moves = {"silent crash": [MOVE, MOVE, worse]}
    few = {"silent crash": [replace(move, static_gap_ms=None) for move in moves["silent crash"]]}
    table = moves_table([Moves("theirs", moves, virtual=True), Moves("ours", few, virtual=False)])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    gaps, lost = ["250 / 350", "260 / 260"], "250 / 351"
    static = "240 / 240"
    assert rows[2] == [
        "theirs",
        "silent crash",
        *gaps,
        static,
        lost,
        "0 / 4,000",
        "0 / 0",
        "0 / 12",
        "1, 2 of 6",
    ]
    assert rows[3] == ["ours", "silent crash", *gaps, "-", lost, "-", "-", "0 / 12", "1 of 6"]
