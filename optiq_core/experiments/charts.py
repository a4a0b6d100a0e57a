"""An experiment's figures in a terminal, through plotext; plain text, no colours."""

from __future__ import annotations

import string

import plotext

from optiq_core.experiments.report import Report

_HEIGHT = 16
_FRAME = 4


def draw(report: Report, *, width: int = 100) -> str:
    """Accuracies with their intervals, a line each, and accuracy against trainable parameters.

    Args:
        report: with at least one row.
        width: columns.
    """
    return f"{_intervals(report, width)}\n\n{_against_parameters(report, width)}"


def _intervals(report: Report, width: int) -> str:
    rows = report.rows
    lines = list(range(len(rows), 0, -1))
    values = [100 * row.accuracy.value for row in rows]
    # plotext draws one length to both sides; the middle of the interval is not quite the value.
    middles = [50 * (row.accuracy.low + row.accuracy.high) for row in rows]
    halves = [100 * (row.accuracy.high - row.accuracy.low) for row in rows]
    _begin(width, len(rows) + _FRAME)
    plotext.error(middles, lines, xerr=halves)
    plotext.scatter(values, lines, marker="o")
    plotext.yticks(lines, [row.name for row in rows])
    plotext.ylim(0.5, len(rows) + 0.5)
    plotext.xlim(0, max(100 * row.accuracy.high for row in rows) + 1)
    plotext.xlabel("accuracy, % (o) with its 95 % interval")
    return _done()


def _against_parameters(report: Report, width: int) -> str:
    _begin(width, _HEIGHT)
    letters = dict(zip([row.name for row in report.rows], string.ascii_letters, strict=False))
    for row in report.rows:
        if row.name in letters:
            plotext.scatter([row.parameters], [100 * row.accuracy.value], marker=letters[row.name])
    plotext.xlabel("accuracy, %, against trainable parameters")
    named = [f"{letter} {name}{' *' if name in report.parameter_front else ''}" for name, letter in letters.items()]
    return f"{_done()}\n{', '.join(named)}; * is not beaten in both"


def _begin(width: int, height: int) -> None:
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)


def _done() -> str:
    return str(plotext.uncolorize(plotext.build())).rstrip()
