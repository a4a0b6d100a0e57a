"""The planner against the real step: many configurations, each predicted and then run in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

import click

from optiq_core.bench.harness import describe_run, emit, narrate
from optiq_core.bench.planner_cases import Case, chosen, planner_cases
from optiq_core.planner.calibration import Observation, learn


def run(*, quick: bool = False) -> dict[str, Any]:
    """Predict and run every case.

    Returns:
        `n`; medians and worst of the relative error of peak bytes, `err_*` with a calibration learned on the
        other configurations only and `raw_err_*` without one; `buffers_exact` of `buffers_counted`;
        `plan_s_embedded`, the slowest plan of the embedded model in seconds, building the lazy model included; `rows`.
    """
    rows = []
    for case in chosen(planner_cases(), quick):
        narrate(case.name)
        rows.append(_row(case))
    for at, row in enumerate(rows):
        others = [Observation(o["predicted"], o["measured"]) for i, o in enumerate(rows) if i != at]
        row["calibrated"] = learn(others).expected(row["predicted"])
        row["raw_error"] = row["predicted"] / row["measured"] - 1
        row["error"] = row["calibrated"] / row["measured"] - 1
    narrate("live buffers")
    buffers = _buffers()
    embedded = [row["plan_s"] for row in rows if row["case"].startswith("embedded")]
    calibrated, raw = [abs(row["error"]) for row in rows], [abs(row["raw_error"]) for row in rows]
    return {
        "n": len(rows),
        "err_median": statistics.median(calibrated),
        "err_worst": max(calibrated),
        "raw_err_median": statistics.median(raw),
        "raw_err_worst": max(raw),
        "buffers_exact": sum(row["predicted"] == row["counted"] for row in buffers),
        "buffers_counted": len(buffers),
        "plan_s_embedded": max(embedded, default=0.0),
        "run": describe_run(),
        "buffer_rows": buffers,
        "rows": rows,
    }


def measure_case(case: Case, **ceiling: Any) -> dict[str, Any]:
    """Predict and run one case in a process of its own; what that process says.

    Raises:
        ClickException: the process failed, of memory for example.
    """
    command = [sys.executable, "-m", "optiq_core.bench.planner_case", json.dumps({"case": case.as_dict(), **ceiling})]
    return dict(_child(command, case.name))


def _row(case: Case) -> dict[str, Any]:
    found = measure_case(case)
    plan = found["plan"]
    return {
        "case": case.name,
        "predicted": plan["peak_bytes"],
        "measured": max(found["peaks"]),
        "live_buffers": plan["live_buffers"],
        "where": plan["where"],
        "plan_s": found["plan_s"],
        "step_s": min(found["seconds"]),
    }


def _buffers() -> list[dict[str, Any]]:
    program = "from optiq_core.base.device import setup_device; setup_device(1); import json; "
    program += "from optiq_core.bench.planner_buffers import count_buffers; print(json.dumps(count_buffers()))"
    return list(_child([sys.executable, "-c", program], "live buffers"))


def _child(command: list[str], name: str) -> Any:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise click.ClickException(f"{name}: the process that ran it failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@click.command(epilog="\b\nExamples:\n  optiq bench planner --json\n  optiq bench planner --quick")
@click.option("--quick", is_flag=True, help="Four small configurations.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def planner(quick: bool, as_json: bool) -> None:
    """Compare the planner's predictions with real training steps."""
    emit(run(quick=quick), as_json=as_json)
