# SPDX-License-Identifier: Apache-2.0
"""Figures of a benchmark: percentiles, a table that is Markdown and reads well in a terminal, a picture."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

_OURS, _THEIRS, _DOUBLE = "#0b6e4f", "#7a7a7a", "#c1121f"
_AXIS_MS: Final = (0.8, 12_000)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one fault did. ``late_ms``: how late probe and witness were, hence what they can't have seen."""

    gap_ms: float  # the longest time without an answer to the client
    lost: int  # its probes
    double_ms: float  # how long two hosts answered for the address
    adverts_when_woken: int  # by the stalled host
    late_ms: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One contestant: its outcomes by the fault's title, and what it uses on a node at rest."""

    label: str
    outcomes: Mapping[str, Sequence[Outcome]]
    rss_mib: float
    cpu_percent: float

    @property
    def ours(self) -> bool:
        return self.label.startswith("Holdfast")

    def gaps_ms(self, title: str) -> list[float]:
        return [outcome.gap_ms for outcome in self.outcomes.get(title, ())]

    def longest_double_ms(self, title: str | None = None) -> float:
        """Of one fault, or of all."""
        titles = self.outcomes if title is None else (title,)
        return max((o.double_ms for t in titles for o in self.outcomes.get(t, ())), default=0.0)


@dataclass(frozen=True, slots=True)
class Move:
    """What one fault did to an address with a MAC of its own. Frames are counted from the takeover on.

    ``wrong``: in the address's name, from another MAC or naming one. ``old_owner``: with the virtual MAC,
    from the old owner's port. ``flooded``: unicast, to a port that nobody spoke from, since the fault.
    ``ended_wrong``, ``ever_wrong``: of two clients' caches, at the end, and at any time.
    """

    gap_ms: float
    lost: int
    deaf_gap_ms: float  # of the client that heeds no announcement
    static_gap_ms: float | None  # of the one that has the virtual MAC as a static entry
    wrong: int
    flooded: int
    old_owner: int
    ended_wrong: int
    ever_wrong: int
    late_ms: float

    def told(self) -> str:
        return (
            f"gap {self.gap_ms:.0f} ms, deaf {self.deaf_gap_ms:.0f} ms,"
            f" static {self.static_gap_ms or 0.0:.0f} ms, {self.lost} lost, {self.wrong} wrong frames,"
            f" {self.flooded} flooded, wrong caches {self.ended_wrong} (ever {self.ever_wrong})"
        )


@dataclass(frozen=True, slots=True)
class Moves:
    """One contestant: its moves by the fault's title. ``virtual``: the address has a MAC of its own."""

    label: str
    moves: Mapping[str, Sequence[Move]]
    virtual: bool


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: with 20 values the 99th percentile is the worst one."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def table(figures: Sequence[Figure], *, stalls: Sequence[str] = (), stops: Sequence[str] = ()) -> str:
    """A group of columns for each fault; of those in ``stalls`` also adverts, in ``stops`` lost probes."""
    titles = list(dict.fromkeys(title for figure in figures for title in figure.outcomes))
    heads, names = [""], ["**ms**"]
    for title in titles:
        group = ["gap"]
        group += ["lost"] if title in stops else []
        group += ["adverts"] if title in stalls else []
        group += ["two answer"]
        heads += [title, *[""] * (len(group) - 1)]
        names += [f"**{name}**" for name in group]
    heads += ["memory", "CPU"]
    names += ["", ""]
    rows = [heads, names]
    for figure in figures:
        row = [figure.label]
        for title in titles:
            row += _cells(figure, title, lost=title in stops, adverts=title in stalls)
        rows.append([*row, f"{figure.rss_mib:.0f} MiB", f"{figure.cpu_percent:.1f} %"])
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def notes(figures: Sequence[Figure]) -> str:
    """How to read the table, and how far to trust it."""
    outcomes = [o for figure in figures for some in figure.outcomes.values() for o in some]
    late_ms = max((outcome.late_ms for outcome in outcomes), default=0.0)
    return (
        "Gap: the longest time without an answer, median / 99th percentile (of fewer than 100: the worst).\n"
        "Lost: probes, median / worst. Two answer: how long two hosts answered for the address, the longest\n"
        "time. Adverts: of the stalled host within 2 s of waking, the most. Memory (RSS of all processes)\n"
        "and CPU (of one core, 10 s at rest): the busiest node. Probe and witness were late by at most\n"
        f"{late_ms:.1f} ms.\n"
    )


def compare(figures: Sequence[Figure], crash: str) -> str:
    """Ours beside theirs: the gap at 10 ms, and in how many faults two hosts answered."""
    by_label = {figure.label: figure for figure in figures}
    ours, theirs = by_label.get("Holdfast, 10 ms"), by_label.get("keepalived, 10 ms")
    text = ""
    if ours and theirs and ours.gaps_ms(crash) and theirs.gaps_ms(crash):
        ratio = percentile(ours.gaps_ms(crash), 99) / percentile(theirs.gaps_ms(crash), 99)
        text += f"At 10 ms adverts Holdfast's p99 gap after a {crash} is {ratio:.2f} times keepalived's.\n"
    for who, some in (
        ("Holdfast", [figure for figure in figures if figure.ours]),
        ("the others", [figure for figure in figures if not figure.ours]),
    ):
        outcomes = [o for figure in some for each in figure.outcomes.values() for o in each]
        if outcomes:
            double = sum(outcome.double_ms > 0 for outcome in outcomes)
            longest_ms = max(figure.longest_double_ms() for figure in some)
            text += f"Two hosts answered with {who} in {double} of {len(outcomes)} faults, "
            text += f"{_ms(longest_ms)} ms at most.\n"
    return text


def _cells(figure: Figure, title: str, *, lost: bool, adverts: bool) -> list[str]:
    outcomes = figure.outcomes.get(title, ())
    if not outcomes:
        return ["-"] * (2 + lost + adverts)
    gaps = figure.gaps_ms(title)
    cells = [f"{_ms(median(gaps))} / {_ms(percentile(gaps, 99))}"]
    if lost:
        counts = [outcome.lost for outcome in outcomes]
        cells.append(f"{median(counts):.0f} / {max(counts)}")
    if adverts:
        cells.append(str(max(outcome.adverts_when_woken for outcome in outcomes)))
    return [*cells, _ms(figure.longest_double_ms(title))]


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.1f}"


def moves_table(figures: Sequence[Moves]) -> str:
    """A row for each fault of each contestant."""
    rows = [
        [
            "",
            "",
            "gap, ms",
            "deaf, ms",
            "static, ms",
            "lost",
            "wrong MAC",
            "old owner",
            "flooded",
            "wrong caches",
        ]
    ]
    for figure in figures:
        for title, moves in figure.moves.items():
            row = [figure.label, title]
            row += [_spread([move.gap_ms for move in moves]), _spread([move.deaf_gap_ms for move in moves])]
            row += [_spread([move.static_gap_ms for move in moves if move.static_gap_ms is not None])]
            row += [_counts([move.lost for move in moves])]
            if figure.virtual:
                row += [_counts([move.wrong for move in moves]), _counts([move.old_owner for move in moves])]
            else:
                row += ["-", "-"]
            row += [_counts([move.flooded for move in moves])]
            ended, ever = sum(m.ended_wrong for m in moves), sum(m.ever_wrong for m in moves)
            text = f"{ended}, {ever}" if figure.virtual else str(ended)
            rows.append([*row, f"{text} of {2 * len(moves)}"])
    return _aligned(rows)


def moves_notes(figures: Sequence[Moves]) -> str:
    """How to read the table."""
    late_ms = max((m.late_ms for f in figures for some in f.moves.values() for m in some), default=0.0)
    return paragraph(
        "Gap, deaf, static: each client's longest time without an answer, median / worst; 5 ms is the pace of"
        " 200 questions a second, hence nothing. Lost: the ordinary client's probes. The others are frames,"
        " median / worst. Wrong MAC: since the takeover, the address is the sender (IPv4 source, ARP sender),"
        " but the Ethernet source, or the MAC that ARP names, is not the virtual one. Old owner: since the"
        " takeover, with the virtual MAC from the old owner's port. Flooded: since the fault, unicast frames"
        " on a port from which nobody ever spoke, those of the deaf client to a MAC that is gone among them."
        " Wrong caches: of the two clients' that learn, in all rounds, how many had another MAC than the"
        " virtual one at the end, and how many at any time (NodeMAC: another than the new owner's, at the"
        f" end). The clients were late by at most {late_ms:.1f} ms."
    )


def paragraph(text: str) -> str:
    """In lines as long as the page's others."""
    return textwrap.fill(text, 100, break_on_hyphens=False, break_long_words=False) + "\n"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{_ms(median(values))} / {_ms(max(values))}"


def _counts(values: Sequence[int]) -> str:
    return f"{median(values):,.0f} / {max(values):,}"


def draw(figures: Sequence[Figure], path: Path) -> None:
    """A panel for each fault: every gap a dot on a logarithmic axis, the median a bar, two answers in red."""
    import matplotlib as mpl  # only the benchmark needs it, and its import takes a second

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "holdfast"
    from matplotlib import pyplot

    titles = list(dict.fromkeys(title for figure in figures for title in figure.outcomes))
    columns = min(2, len(titles))
    lines = math.ceil(len(titles) / columns)
    size = (2.2 + 4 * columns, lines * (0.8 + 0.42 * len(figures)) + 0.5)
    drawing, grid = pyplot.subplots(lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for title, axes in zip(titles, grid.flat, strict=False):
        _panel(axes, title, figures)
    for axes in list(grid.flat)[len(titles) :]:
        axes.set_visible(False)
    grid[0][0].set_yticks(range(len(figures)), [figure.label for figure in figures])
    grid[0][0].invert_yaxis()
    legend = "gap a client sees, ms (dot: one fault, bar: median)"
    legend += "   red: the longest time in which two hosts answered"
    drawing.supxlabel(legend, fontsize=9)
    drawing.tight_layout()
    drawing.savefig(path, metadata={"Date": None})


def _panel(axes: Any, title: str, figures: Sequence[Figure]) -> None:
    for row, figure in enumerate(figures):
        gaps = figure.gaps_ms(title)
        if not gaps:
            continue
        colour = _OURS if figure.ours else _THEIRS
        spread = [row + ((i % 5) - 2) * 0.07 for i in range(len(gaps))]
        axes.scatter(gaps, spread, s=14, color=colour, alpha=0.6, linewidths=0)
        axes.vlines(median(gaps), row - 0.3, row + 0.3, color=colour, linewidth=2)
        double_ms = figure.longest_double_ms(title)
        if double_ms:
            axes.hlines(row + 0.36, _AXIS_MS[0], double_ms, color=_DOUBLE, linewidth=3)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xscale("log")
    axes.set_xlim(*_AXIS_MS)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(labelbottom=True)
    axes.grid(axis="x", which="major", alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
