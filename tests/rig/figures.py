# SPDX-License-Identifier: Apache-2.0
"""Figures of a benchmark: percentiles, a table that is Markdown and reads well in a terminal, a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True, slots=True)
class Figure:
    """One contestant: a gap (ms) and a number of lost probes for each crash, memory and CPU of a node."""

    label: str
    gaps_ms: tuple[float, ...]
    lost: tuple[int, ...]
    rss_mib: float
    cpu_percent: float


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: with 20 values the 99th percentile is the worst one."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def table(figures: Sequence[Figure], *, late_ms: float) -> str:
    """The table, and what the probe itself could not see."""
    heads = ("", "crashes", "median", "p99", "worst gap", "lost probes", "memory", "CPU")
    rows = [heads, *(_row(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    note = (
        "Lost probes: median (worst) of a crash. Memory (RSS of all its processes) and CPU (of one core,\n"
        f"10 s at rest): the busiest node. The probe itself was late by at most {late_ms:.1f} ms.\n"
    )
    return "\n".join(lines) + "\n\n" + note


def _row(figure: Figure) -> tuple[str, ...]:
    return (
        figure.label,
        str(len(figure.gaps_ms)),
        f"{median(figure.gaps_ms):.1f} ms",
        f"{percentile(figure.gaps_ms, 99):.1f} ms",
        f"{max(figure.gaps_ms):.1f} ms",
        f"{median(figure.lost):.0f} ({max(figure.lost)})",
        f"{figure.rss_mib:.0f} MiB",
        f"{figure.cpu_percent:.1f} %",
    )


def draw(figures: Sequence[Figure], path: Path) -> None:
    """Every gap as a dot on a logarithmic axis, the medians as bars (SVG)."""
    import matplotlib as mpl  # only the benchmark needs it, and its import takes a second

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "holdfast"
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(figsize=(9, 0.6 + 0.6 * len(figures)))
    for row, figure in enumerate(figures):
        colour = "#0b6e4f" if figure.label.startswith("Holdfast") else "#7a7a7a"
        spread = [row + ((i % 5) - 2) * 0.07 for i in range(len(figure.gaps_ms))]
        axes.scatter(figure.gaps_ms, spread, s=14, color=colour, alpha=0.6, linewidths=0)
        axes.vlines(median(figure.gaps_ms), row - 0.3, row + 0.3, color=colour, linewidth=2)
    axes.set_xscale("log")
    axes.set_yticks(range(len(figures)), [figure.label for figure in figures])
    axes.invert_yaxis()
    axes.set_xlabel("gap a client sees when the Active's host loses power, ms (bar: median)")
    axes.grid(axis="x", which="both", alpha=0.2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    drawing.tight_layout()
    drawing.savefig(path, metadata={"Date": None})
