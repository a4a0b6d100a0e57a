"""The comparison harness: tasks with checkable answers, grids of configurations and seeds, reports, a joint search.

For notebooks, without the command line::

    from optiq_core.experiments import run_experiment

    report = run_experiment("smoke", "./smoke")
    print(report.as_markdown())

Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optiq_core.experiments.grid import GridProgress
    from optiq_core.experiments.report import Report
    from optiq_core.experiments.search import SearchProgress
    from optiq_core.experiments.search_report import SearchResult
    from optiq_core.experiments.spec import Experiment

__all__ = ["report_experiment", "run_experiment", "search_experiment"]


def run_experiment(
    source: Experiment | Path | str,
    folder: Path | str,
    *,
    on_progress: Callable[[GridProgress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Do every run of an experiment that is not done yet, and report it.

    Args:
        source: an experiment, a TOML file, or the name of a preset.
        folder: of the runs; what it holds of the same content is kept.
        on_progress: told about every step forward.
        say: told what takes long while bases are found or made.

    Raises:
        OptiqError: the experiment cannot be run as written, or a run failed; finished runs are kept.
    """
    from optiq_core.experiments.bases import Bases
    from optiq_core.experiments.grid import run_grid
    from optiq_core.experiments.report import make_report

    experiment = _experiment(source)
    bases = Bases(experiment, progress=say)
    return make_report(
        experiment, run_grid(experiment, Path(folder), locate_base=bases.locate, on_progress=on_progress)
    )


def report_experiment(folder: Path | str, *, against: str = "", margin: float = 0.05) -> Report:
    """The report of the runs in a directory that are finished.

    Args:
        folder: of the runs.
        against: configuration to compare all others with; empty is the first.
        margin: accuracy that may be lost and still count as not worse.

    Raises:
        OptiqError: there is no experiment, or no run of ``against``.
        ValueError: no run has finished.
    """
    from optiq_core.experiments.grid import read_grid
    from optiq_core.experiments.report import make_report

    return make_report(*read_grid(Path(folder)), against=against, margin=margin)


def search_experiment(
    source: Experiment | Path | str,
    folder: Path | str,
    *,
    on_progress: Callable[[SearchProgress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda text: None,
    **settings: Any,
) -> SearchResult:
    """Search bits and ranks within a budget of bytes; see :mod:`optiq_core.experiments.search`.

    Args:
        source: an experiment, a TOML file, or the name of a preset.
        folder: of the search; goes on if it holds the same one.
        on_progress: told about every step forward.
        say: told what takes long while the base is found or made.
        settings: fields of :class:`optiq_core.experiments.spec.SearchSettings`, for example ``budget_mb=80``.

    Raises:
        OptiqError: a setting is out of range, the budget is too small, or training failed.
    """
    from optiq_core.experiments.bases import Bases
    from optiq_core.experiments.search import search

    experiment = _experiment(source).with_search(**settings)
    return search(experiment, Path(folder), locate_base=Bases(experiment, progress=say).locate, on_progress=on_progress)


def _experiment(source: Experiment | Path | str) -> Experiment:
    from optiq_core.experiments.spec import Experiment, load_experiment

    return source if isinstance(source, Experiment) else load_experiment(source)
