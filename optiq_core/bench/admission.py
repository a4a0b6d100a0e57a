"""Admission: random jobs under a ceiling, each admitted or refused by its plan, then run to see who was right."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from optiq_core.bench.harness import describe_run, emit, narrate
from optiq_core.bench.planner import measure_case
from optiq_core.bench.planner_cases import random_cases
from optiq_core.planner.calibration import Observation, learn

_CEILING = 160_000_000


def run(*, jobs: int = 40, seed: int = 1, ceiling: int = _CEILING) -> dict[str, Any]:
    """Plan, admit or refuse, and run.

    An admitted job runs in a process that can allocate no more than the ceiling for its arrays; it exceeds it if its
    peak does or if it dies. Every finished job teaches the calibration, as in the daemon.

    Returns:
        `admitted`, `exceeded`, `refused`, `refused_would_fit`, `refused_would_fit_share`, the calibration at the
        end, and `rows`.
    """
    seen: list[Observation] = []
    rows = []
    for case in random_cases(jobs, seed):
        narrate(case.name)
        calibration = msgspec.to_builtins(learn(seen))
        try:
            found = measure_case(case, free_bytes=ceiling, calibration=calibration)
        except click.ClickException as error:
            # Only an admitted job has a limit to die of.
            rows.append({"case": case.name, "admitted": True, "died": str(error)[-300:]})
            continue
        predicted, measured = found["plan"]["peak_bytes"], max(found["peaks"])
        seen.append(Observation(predicted, measured))
        row = {"case": case.name, "admitted": found["admitted"], "predicted": predicted, "measured": measured}
        rows.append({**row, "fits": measured <= ceiling})
    admitted = [row for row in rows if row["admitted"]]
    refused = [row for row in rows if not row["admitted"]]
    would_fit = sum(1 for row in refused if row["fits"])
    return {
        "jobs": len(rows),
        "ceiling_bytes": ceiling,
        "admitted": len(admitted),
        "exceeded": sum(1 for row in admitted if not row.get("fits")),
        "refused": len(refused),
        "refused_would_fit": would_fit,
        "refused_would_fit_share": would_fit / max(1, len(refused)),
        "calibration": msgspec.to_builtins(learn(seen)),
        "run": describe_run(),
        "rows": rows,
    }


@click.command(epilog="\b\nExamples:\n  optiq bench admission --json\n  optiq bench admission --quick")
@click.option("--jobs", default=40, show_default=True, help="Random jobs.")
@click.option("--seed", default=1, show_default=True)
@click.option("--quick", is_flag=True, help="Four jobs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def admission(jobs: int, seed: int, quick: bool, as_json: bool) -> None:
    """Check that no admitted job exceeds its ceiling, and how many refused ones would have fit."""
    emit(run(jobs=4 if quick else jobs, seed=seed), as_json=as_json)
