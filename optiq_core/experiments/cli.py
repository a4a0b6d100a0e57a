"""``optiq experiment``: run a grid of configurations and seeds, and report it. Nothing heavy is imported before use."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from optiq_core.errors import OptiqError
from optiq_core.experiments import report_experiment, run_experiment, search_experiment

if TYPE_CHECKING:
    from optiq_core.experiments.grid import GridProgress
    from optiq_core.experiments.report import Report
    from optiq_core.experiments.search import SearchProgress
    from optiq_core.experiments.spec import Experiment

_EXTRA = "`optiq experiment` needs the extra: pip install 'optiq[experiments]'"


@click.group(
    epilog="\b\nExamples:\n  optiq experiment run --preset logic -o ./logic\n  optiq experiment report ./logic\n"
    "  optiq experiment run ./my-grid.toml -o ./my-grid"
)
def experiment() -> None:
    """Compare rank and precision schemes on checkable tasks."""


@experiment.command(
    epilog="\b\nExamples:\n  optiq experiment run --preset smoke -o ./smoke\n"
    "  optiq experiment run ./my-grid.toml -o ./my-grid --json\n"
    "Stopped with Ctrl-C it keeps what is finished; the same command goes on from there."
)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--preset", help="One that comes with the package: logic, joint, schemes, methods, smoke.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory of the runs.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def run(file: Path | None, preset: str | None, output: Path, as_json: bool) -> None:
    """Run the grid in FILE (TOML), or a preset; finished runs are kept."""
    chosen = _chosen(file, preset)
    try:
        _print(run_experiment(chosen, output, on_progress=_Narrator().show, say=_say), as_json)
    except OptiqError as error:
        raise click.ClickException(str(error)) from error


@experiment.command(
    epilog="\b\nExamples:\n  optiq experiment search --preset logic -o ./joint-search\n"
    "  optiq experiment search ./my-grid.toml --budget-mb 80 --short-trials 24 -o ./search --json\n"
    "Stopped with Ctrl-C, the same command goes on from there. More settings: [search] in the file."
)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--preset", help="Take items and training from this preset: logic, joint, schemes, methods, smoke.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory of the search.")
@click.option("--budget-mb", type=float, help="Base and adapter, in MB; if absent what 5 bits per weight take.")
@click.option("--proxy-trials", type=int, help="Choices to rate by what was measured once (default 600).")
@click.option("--short-trials", type=int, help="Choices to train for a few steps (default 24).")
@click.option("--short-steps", type=int, help="Steps of these trainings (default 12).")
@click.option("--finalists", type=int, help="Choices to train and score in full (default 1).")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def search(*, file: Path | None, preset: str | None, output: Path, as_json: bool, **settings: float | None) -> None:
    """Search bits and rank of every layer within a budget of bytes, and compare with the one-shot solution.

    The search gives groups of layers more or less weight in sharing out the bits, and base ranks: 4 parts of the
    blocks, attention and feed-forward apart, and the embeddings with the head. All weights at 1 are the one-shot
    solution: 4 or 8 bits by sensitivity, ranks by bits.
    """
    chosen = _chosen(file, preset)
    try:
        given = {name: value for name, value in settings.items() if value is not None}
        found = search_experiment(chosen, output, on_progress=_Narrator().show_search, say=_say, **given)
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise click.ClickException(_EXTRA) from error
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.as_markdown(), nl=as_json)


@experiment.command(
    epilog="\b\nExamples:\n  optiq experiment report ./logic\n  optiq experiment report ./logic --plots ./figures\n"
    "  optiq experiment report ./logic --against constant-16 --chart"
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--plots", type=click.Path(path_type=Path), help="Write the figures (PNG and SVG) to this folder.")
@click.option("--against", default="", metavar="NAME", help="Compare with this configuration, not with the first.")
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.05,
    show_default=True,
    help="Accuracy that may be lost and still count as not worse.",
)
@click.option("--chart", is_flag=True, help="Also draw the accuracies here, after the tables.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object, with all pairs compared.")
def report(*, folder: Path, plots: Path | None, against: str, margin: float, chart: bool, as_json: bool) -> None:
    """Print the tables of the runs in FOLDER that are finished, as Markdown."""
    if chart and as_json:
        raise click.UsageError("--chart and --json: give one of them")
    try:
        found = report_experiment(folder, against=against, margin=margin)
    except (OptiqError, ValueError) as error:
        raise click.ClickException(f"{folder}: {error}") from error
    _print(found, as_json)
    if chart:
        try:
            from optiq_core.experiments.charts import draw
        except ModuleNotFoundError as error:
            raise click.ClickException(_EXTRA) from error
        click.echo(draw(found, width=min(shutil.get_terminal_size().columns, 120)))
    if plots is not None:
        try:
            from optiq_core.experiments.plots import write_plots
        except ModuleNotFoundError as error:
            raise click.ClickException(_EXTRA) from error
        for path in write_plots(found, plots):
            click.echo(path, err=True)


def _chosen(file: Path | None, preset: str | None) -> Experiment:
    """The experiment of a file or a preset."""
    if (file is None) == (preset is None):
        raise click.UsageError("give a TOML file or --preset, not both")
    from optiq_core.experiments.spec import load_experiment

    try:
        return load_experiment(preset if preset is not None else file or "")
    except OptiqError as error:
        raise click.ClickException(str(error)) from error


def _say(text: str) -> None:
    click.echo(text, err=True)


def _print(found: Report, as_json: bool) -> None:
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.as_markdown(), nl=as_json)


class _Narrator:
    """Progress on stderr: one line that changes on a terminal, else a line for each run."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = ""

    def show(self, progress: GridProgress) -> None:
        left = _left(progress.seconds_left)
        where = f"{progress.configuration} seed {progress.seed} · " if progress.configuration else ""
        line = f"{progress.done}/{progress.total} runs · {where}{progress.phase}{left}"
        self._write(line, where, last=progress.phase == "finished")

    def show_search(self, progress: SearchProgress) -> None:
        """The same for a search."""
        unit = "%" if progress.stage == "measuring" else f"/{progress.total}"
        at = f"{progress.stage} {progress.done}{unit}"
        where = progress.stage if progress.stage in ("measuring", "proxy") else at
        self._write(
            f"{at} · {progress.detail}{_left(progress.seconds_left)}",
            where,
            last=progress.stage == "full" and progress.detail == "finished",
        )

    def _write(self, line: str, where: str, *, last: bool) -> None:
        if self._terminal:
            click.echo(f"\r{line:<100}", err=True, nl=last)
        elif where != self._last:
            click.echo(line, err=True)
        self._last = where


def _left(seconds: float | None) -> str:
    return f" · {seconds / 60:.0f} min left" if seconds else ""
