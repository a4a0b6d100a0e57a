"""The tables of an experiment: accuracy with intervals, significance, categories, Pareto fronts; Markdown and JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optiq_core.experiments.run import RunResult
from optiq_core.experiments.spec import Experiment
from optiq_core.experiments.stats import Comparison, Interval, compare, pareto_front, proportion


@dataclass(frozen=True)
class Row:
    """One configuration over all of its finished seeds; sizes in bytes, loss in nats per token.

    Attributes:
        accuracy: pooled over items and seeds.
        valid_loss, perplexity, merged_cosine: means over seeds; None where they were not measured.
        spread: standard deviation of the accuracy between seeds, 0 for one seed.
        against: comparison with the experiment's first configuration on the same items; None for that one.
    """

    name: str
    seeds: int
    parameters: int
    adapter_bytes: int
    base_bytes: int
    valid_loss: float | None
    accuracy: Interval
    spread: float
    tokens_per_second: float
    peak_memory_bytes: int
    skipped_steps: int
    perplexity: float | None
    merged_cosine: float | None
    by_category: dict[str, tuple[int, int]]
    against: Comparison | None

    @property
    def bytes(self) -> int:
        """Base and adapter on disk."""
        return self.adapter_bytes + self.base_bytes


@dataclass(frozen=True)
class Report:
    """An experiment's rows, and which of them are on the fronts."""

    experiment: Experiment
    rows: list[Row]

    @property
    def parameter_front(self) -> list[str]:
        """Rows that no other beats in accuracy and trainable parameters."""
        return self._front(lambda row: row.parameters)

    @property
    def byte_front(self) -> list[str]:
        """Rows that no other beats in accuracy and bytes of base and adapter."""
        return self._front(lambda row: row.bytes)

    def _front(self, cost: Callable[[Row], float]) -> list[str]:
        return [self.rows[i].name for i in pareto_front([(cost(r), r.accuracy.value) for r in self.rows])]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "experiment": self.experiment.name,
            "seeds": self.experiment.seeds,
            "rows": [asdict(row) for row in self.rows],
            "parameter_front": self.parameter_front,
            "byte_front": self.byte_front,
        }

    def as_markdown(self) -> str:
        """Two tables and the fronts."""
        reference = self.rows[0].name
        lines = [
            f"| configuration | parameters | adapter | base | valid loss | accuracy (95 %) | vs {reference} | p "
            "| tokens/s | peak |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_markdown(row) for row in self.rows]
        names = list(self.rows[0].by_category)
        lines += [
            "",
            f"| category | {' | '.join(row.name for row in self.rows)} |",
            "|---" * (len(self.rows) + 1) + "|",
        ]
        for name in names:
            cells = [f"{right}/{of}" for right, of in (row.by_category[name] for row in self.rows)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += [
            "",
            f"Not beaten in accuracy and trainable parameters: {', '.join(self.parameter_front)}.",
            f"Not beaten in accuracy and bytes of base and adapter: {', '.join(self.byte_front)}.",
        ]
        return "\n".join(lines) + "\n"


def make_report(experiment: Experiment, results: Sequence[RunResult]) -> Report:
    """Summarise results; configurations without a finished run are left out.

    Raises:
        ValueError: there are no results.
    """
    by_name: dict[str, dict[int, RunResult]] = {}
    for result in results:
        by_name.setdefault(result.configuration, {})[result.seed] = result
    order = [c.name for c in experiment.configurations if c.name in by_name]
    if not order:
        raise ValueError("no run has finished")
    reference = by_name[order[0]]
    return Report(experiment, [_row(name, by_name[name], None if name == order[0] else reference) for name in order])


def _row(name: str, runs: dict[int, RunResult], reference: dict[int, RunResult] | None) -> Row:
    results = list(runs.values())
    right = [answered for run in results for answered in run.right]
    labels = [category for run in results for category in run.categories]
    by_category = {
        category: (sum(r for r, c in zip(right, labels, strict=True) if c == category), labels.count(category))
        for category in dict.fromkeys(sorted(labels))
    }
    shared = sorted(set(runs) & set(reference or {}))
    accuracies = [sum(run.right) / len(run.right) for run in results]
    return Row(
        name=name,
        seeds=len(results),
        parameters=results[0].parameters,
        adapter_bytes=results[0].adapter_bytes,
        base_bytes=results[0].base_bytes,
        valid_loss=_mean([run.valid_loss for run in results]),
        accuracy=proportion(sum(right), len(right)),
        spread=statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        tokens_per_second=statistics.median(run.tokens_per_second for run in results),
        peak_memory_bytes=max(run.peak_memory_bytes for run in results),
        skipped_steps=sum(run.skipped_steps for run in results),
        perplexity=_mean([run.perplexity for run in results]),
        merged_cosine=_mean([run.merged_cosine for run in results]),
        by_category=by_category,
        against=compare([reference[s].right for s in shared], [runs[s].right for s in shared])
        if reference is not None and shared
        else None,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _markdown(row: Row) -> str:
    accuracy = row.accuracy
    against = row.against
    cells = [
        row.name,
        f"{row.parameters:,}",
        f"{row.adapter_bytes / 1e6:.2f} MB",
        f"{row.base_bytes / 1e6:.1f} MB",
        f"{row.valid_loss:.3f}" if row.valid_loss is not None else "-",
        f"{accuracy.value:.1%} ({accuracy.low:.1%} to {accuracy.high:.1%})",
        f"{against.difference:+.1%} ({against.low:+.1%} to {against.high:+.1%})" if against else "-",
        f"{against.p_value:.2g}" if against else "-",
        f"{row.tokens_per_second:.0f}" if row.parameters else "-",
        f"{row.peak_memory_bytes / 1e9:.2f} GB" if row.parameters else "-",
    ]
    return f"| {' | '.join(cells)} |"
