"""An experiment's figures, through Matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

from optiq_core.experiments.report import Report, Row

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

FORMATS = ("png", "svg")


def write_plots(report: Report, folder: Path) -> list[Path]:
    """Write accuracy against parameters and against bytes, and accuracy by category; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "accuracy-parameters": _scatter(report, "trainable parameters", lambda r: r.parameters, report.parameter_front),
        "accuracy-bytes": _scatter(report, "base and adapter, MB", lambda r: r.bytes / 1e6, report.byte_front),
        "accuracy-category": _bars(report),
    }
    files = []
    for name, figure in figures.items():
        for suffix in FORMATS:
            files.append(folder / f"{name}.{suffix}")
            figure.savefig(files[-1], dpi=150, bbox_inches="tight")
        plt.close(figure)
    return files


def _scatter(report: Report, label: str, cost: Callable[[Row], float], front: list[str]) -> Figure:
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for row in report.rows:
        a = row.accuracy
        error = [[100 * (a.value - a.low)], [100 * (a.high - a.value)]]
        style = "o" if row.name in front else "x"
        axes.errorbar(cost(row), 100 * a.value, yerr=error, fmt=style, capsize=3, label=row.name)
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy, % (95 % interval)")
    axes.set_title(f"{report.experiment.name}: circles are not beaten in both")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _bars(report: Report) -> Figure:
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    names = list(report.rows[0].by_category)
    width = 0.8 / len(report.rows)
    for index, row in enumerate(report.rows):
        heights = [100 * right / of for right, of in row.by_category.values()]
        axes.bar([i + index * width for i in range(len(names))], heights, width, label=row.name)
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(names))], names)
    axes.set_ylabel("accuracy, %")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    return figure
