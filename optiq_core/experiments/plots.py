"""An experiment's figures, through Matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

from optiq_core.experiments.report import Report, Row

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

FORMATS = ("png", "svg")


def write_plots(report: Report, folder: Path) -> list[Path]:
    """Write accuracies, accuracy against parameters and against bytes, and accuracy by category; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "accuracy": _intervals(report),
        "accuracy-parameters": _scatter(report, "trainable parameters", lambda r: r.parameters, report.parameter_front),
        "accuracy-bytes": _scatter(report, "base and adapter, MB", lambda r: r.bytes / 1e6, report.byte_front),
        "accuracy-category": _categories(report),
    }
    files = []
    for name, figure in figures.items():
        for suffix in FORMATS:
            files.append(folder / f"{name}.{suffix}")
            figure.savefig(files[-1], dpi=150, bbox_inches="tight")
        plt.close(figure)
    return files


def _intervals(report: Report) -> Figure:
    """A line for each configuration: legible for any number of them."""
    figure, axes = plt.subplots(figsize=(6.4, 1.2 + 0.32 * len(report.rows)))
    rows = report.rows[::-1]
    for line, row in enumerate(rows):
        a = row.accuracy
        error = [[100 * (a.value - a.low)], [100 * (a.high - a.value)]]
        axes.errorbar(100 * a.value, line, xerr=error, fmt="o", capsize=3, color="C0")
        if row.seeds > 1:
            axes.plot([100 * row.worst_seed, 100 * row.best_seed], [line, line], "|", color="C1", markersize=9)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("accuracy, % (bar: 95 % interval; ticks: worst and best seed)")
    axes.set_title(report.experiment.name)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _scatter(report: Report, label: str, cost: Callable[[Row], float], front: list[str]) -> Figure:
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for index, row in enumerate(report.rows):
        a = row.accuracy
        error = [[100 * (a.value - a.low)], [100 * (a.high - a.value)]]
        style = "o" if row.name in front else "x"
        colour = colours[(2 * index) % 20 + (2 * index) // 20 % 2]
        axes.errorbar(cost(row), 100 * a.value, yerr=error, fmt=style, capsize=3, color=colour, label=row.name)
    best = sorted((cost(row), 100 * row.accuracy.value) for row in report.rows if row.name in front)
    axes.plot(*zip(*best, strict=True), color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_ylabel("accuracy, % (95 % interval)")
    axes.set_title(f"{report.experiment.name}: circles are not beaten in both")
    axes.grid(alpha=0.3)
    _legend(axes)
    return figure


def _categories(report: Report) -> Figure:
    """A cell for each configuration and category, with its number."""
    names = list(report.rows[0].by_category)
    shares = [[100 * right / of for right, of in (row.by_category[n] for n in names)] for row in report.rows]
    figure, axes = plt.subplots(figsize=(1.6 + 1.0 * len(names), 1.0 + 0.36 * len(report.rows)))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for line, row in enumerate(shares):
        for column, share in enumerate(row):
            axes.text(column, line, f"{share:.0f}", ha="center", va="center", color="white" if share > 55 else "black")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(report.rows)), [row.name for row in report.rows])
    axes.set_title(f"{report.experiment.name}: accuracy by category, %")
    return figure


def _legend(axes: Axes) -> None:
    """Beside the axes, where no number of names covers a point."""
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
