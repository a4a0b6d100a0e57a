"""Runs an experiment's grid, a process for each run, and goes on where it was stopped. No MLX here.

Layout: ``DIR/experiment.json``, ``DIR/runs/<configuration>/seed-<n>/`` (see :mod:`optiq_core.experiments.run`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from optiq_core.errors import OptiqError
from optiq_core.experiments.puzzles import PUZZLES, Splits, draw_splits
from optiq_core.experiments.run import RESULT_FILE, RUN_FILE, RunResult, RunSpec
from optiq_core.experiments.spec import Configuration, Experiment, Items, SpecError
from optiq_core.experiments.tasks import Item, Task
from optiq_core.files import write_atomically

EXPERIMENT_FILE = "experiment.json"


class RunFailedError(OptiqError):
    """A run ended with an error; the others are kept and the grid can be started again."""


@dataclass(frozen=True)
class GridProgress:
    """Where a grid is; ``seconds_left`` is None until a run has finished."""

    done: int
    total: int
    configuration: str
    seed: int
    phase: str
    seconds_left: float | None


def run_grid(
    experiment: Experiment,
    folder: Path,
    *,
    locate_base: Callable[[str], Path],
    on_progress: Callable[[GridProgress], None] = lambda progress: None,
) -> list[RunResult]:
    """Do every run that is not done yet, seed by seed, so that all configurations grow together.

    Args:
        experiment: from :func:`optiq_core.experiments.spec.load_experiment`.
        folder: made if missing; runs of the same content that it holds are kept.
        locate_base: name of a base of the experiment to its folder.
        on_progress: told about every step forward.

    Raises:
        RunFailedError: a run failed.
        SpecError: the items cannot be drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / EXPERIMENT_FILE, msgspec.json.format(msgspec.json.encode(experiment), indent=1))
    grid = [(seed, configuration) for seed in experiment.seeds for configuration in experiment.configurations]
    found: list[RunResult] = []
    spent: list[float] = []
    for done, (seed, configuration) in enumerate(grid):
        run_folder = folder / "runs" / configuration.name / f"seed-{seed}"
        result = read_result(run_folder, experiment.digest(configuration))
        if result is None:
            left = sum(spent) / len(spent) * (len(grid) - done) if spent else None

            def tell(
                phase: str, at: int = done, name: str = configuration.name, n: int = seed, s: float | None = left
            ) -> None:
                on_progress(GridProgress(at, len(grid), name, n, phase, s))

            began = time.monotonic()
            tell("starting")
            _prepare(run_folder, experiment, configuration, seed, locate_base(configuration.base))
            _spawn(run_folder, tell)
            spent.append(time.monotonic() - began)
            result = read_result(run_folder, experiment.digest(configuration))
            assert result is not None
        found.append(result)
    on_progress(GridProgress(len(grid), len(grid), "", 0, "finished", 0.0))
    return found


def read_grid(folder: Path) -> tuple[Experiment, list[RunResult]]:
    """The experiment of a directory and the results that it has so far.

    Raises:
        SpecError: it holds no experiment.
    """
    try:
        experiment = msgspec.json.decode((folder / EXPERIMENT_FILE).read_bytes(), type=Experiment)
    except (OSError, msgspec.MsgspecError) as error:
        raise SpecError(f"{folder / EXPERIMENT_FILE}: {error}; `optiq experiment run` makes it") from error
    results = [
        read_result(folder / "runs" / configuration.name / f"seed-{seed}", experiment.digest(configuration))
        for configuration in experiment.configurations
        for seed in experiment.seeds
    ]
    return experiment, [result for result in results if result is not None]


def read_result(run_folder: Path, digest: str) -> RunResult | None:
    """A finished run's result, None if it is not finished or computed something else."""
    try:
        result = msgspec.json.decode((run_folder / RESULT_FILE).read_bytes(), type=RunResult)
    except (OSError, msgspec.MsgspecError):
        return None
    return result if result.digest == digest else None


def draw(items: Items, seed: int) -> Splits:
    """The items of one seed.

    Raises:
        SpecError: the source cannot be read or has too few items.
    """
    if items.source == "puzzles":
        tasks = {name: PUZZLES[name] for name in items.categories or PUZZLES}
    else:
        tasks = {task.name: task for task in _read_tasks(Path(items.source))}
    try:
        return draw_splits(tasks, train=items.train, valid=items.valid, test=items.test, seed=seed)
    except ValueError as error:
        raise SpecError(f"items: {error}") from error


def _read_tasks(path: Path) -> Iterator[Task]:
    """A task for each category of a JSONL file of ``prompt``, ``answer`` and optionally ``category``."""
    by_category: dict[str, list[Item]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SpecError(f"items.source: {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            entry = msgspec.json.decode(line, type=_Line)
        except msgspec.MsgspecError as error:
            raise SpecError(f"items.source: {path} line {number}: {error}") from error
        by_category.setdefault(entry.category, []).append(Item(entry.system, entry.prompt, entry.answer))
    for category, items in by_category.items():
        yield Task(category, lambda items=items: list(items))  # type: ignore[misc]


class _Line(msgspec.Struct, frozen=True):
    prompt: str
    answer: str
    category: str = "all"
    system: str = "Answer."


def _prepare(run_folder: Path, experiment: Experiment, configuration: Configuration, seed: int, base: Path) -> None:
    splits = draw(experiment.items, seed)
    train = experiment.train_config(configuration, "data", seed) if configuration.kind != "bare" else None
    spec = RunSpec(
        configuration=configuration.name,
        seed=seed,
        digest=experiment.digest(configuration),
        base=str(base),
        train=train,
        train_items=list(splits.train),
        valid_items=list(splits.valid),
        test_items=list(splits.test),
        max_tokens=experiment.max_tokens,
        load_in=experiment.bases[configuration.base].load_in,
        merge=True if configuration.kind == "merged" else msgspec.UNSET,
        text=experiment.text or msgspec.UNSET,
    )
    content = msgspec.json.encode(spec)
    path = run_folder / RUN_FILE
    # A checkpoint of other settings would be refused; of the same ones it is what the run goes on from.
    if not (path.exists() and path.read_bytes() == content):
        shutil.rmtree(run_folder, ignore_errors=True)
        run_folder.mkdir(parents=True)
        write_atomically(path, content)


def _spawn(run_folder: Path, tell: Callable[[str], None]) -> None:
    command = [sys.executable, "-m", "optiq_core.experiments.run", str(run_folder)]
    with (
        (run_folder / "log.txt").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as run,
    ):
        assert run.stdout is not None
        try:
            for line in run.stdout:
                entry = json.loads(line)
                tell(f"step {entry['step']}/{entry['steps']}" if entry["phase"] == "training" else entry["phase"])
        except BaseException:
            run.terminate()
            raise
    if run.returncode != 0:
        reason = (run_folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RunFailedError(f"{run_folder}: exit code {run.returncode}: {reason[-1] if reason else 'no message'}")
    shutil.rmtree(run_folder / "checkpoint", ignore_errors=True)
