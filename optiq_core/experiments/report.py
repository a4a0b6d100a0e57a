"""The tables of an experiment: accuracy with intervals, significance, categories, Pareto fronts; Markdown and JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from optiq_core.experiments.run import RunResult
from optiq_core.experiments.spec import Experiment, SpecError
from optiq_core.experiments.stats import Comparison, Interval, compare, pareto_front, proportion, with_holm

# Accuracy that one may lose and still count as not worse: what a person would not notice.
MARGIN = 0.05
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Row:
    """One configuration over all of its finished seeds; sizes in bytes, loss in nats per token.

    Attributes:
        accuracy: pooled over items and seeds.
        valid_loss, perplexity, merged_cosine: means over seeds; None where they were not measured.
        spread: standard deviation of the accuracy between seeds, 0 for one seed.
        worst_seed, best_seed: accuracies of single seeds.
        against: comparison with the report's reference on the same items; None for that one.
    """

    name: str
    seeds: int
    parameters: int
    adapter_bytes: int
    base_bytes: int
    valid_loss: float | None
    accuracy: Interval
    spread: float
    worst_seed: float
    best_seed: float
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
    """An experiment's rows, and which of them are on the fronts.

    Attributes:
        reference: the configuration that the table compares with.
        margin: see :data:`MARGIN`.
        pairs: (first, second) to what the second gains, for all pairs that share items; p-values as measured.
    """

    experiment: Experiment
    rows: list[Row]
    reference: str
    margin: float = MARGIN
    pairs: dict[tuple[str, str], Comparison] = field(default_factory=dict)

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
            "reference": self.reference,
            "margin": self.margin,
            "findings": findings(self),
            "pairs": [
                {"first": a, "second": b, **asdict(comparison)} for (a, b), comparison in sorted(self.pairs.items())
            ],
        }

    def as_markdown(self) -> str:
        """Three tables, what may be said, and the fronts."""
        optional = [c for c in _OPTIONAL if any(getattr(row, c[0]) is not None for row in self.rows)]
        heads = ["configuration", "parameters", "adapter", "base", "valid loss", *(head for _, head, _ in optional)]
        heads += ["accuracy (95 %)", f"vs {self.reference}", "p", "p (Holm)", "tokens/s", "peak"]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [_markdown(row, optional) for row in self.rows]
        columns = ["stability", "seeds", "accuracy, worst to best seed", "between seeds", "skipped steps"]
        lines += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [
            f"| {row.name} | {row.seeds} | {row.worst_seed:.1%} to {row.best_seed:.1%} | ± {row.spread:.1%} "
            f"| {row.skipped_steps} |"
            for row in self.rows
        ]
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
            *(f"- {finding}" for finding in findings(self)),
            "",
            f"Not beaten in accuracy and trainable parameters: {', '.join(self.parameter_front)}.",
            f"Not beaten in accuracy and bytes of base and adapter: {', '.join(self.byte_front)}.",
        ]
        return "\n".join(lines) + "\n"


def make_report(
    experiment: Experiment, results: Sequence[RunResult], *, against: str = "", margin: float = MARGIN
) -> Report:
    """Summarise results; configurations without a finished run are left out.

    Args:
        experiment: whose results they are.
        results: finished runs.
        against: configuration to compare all others with; empty is the experiment's first one.
        margin: accuracy that counts as lost.

    Raises:
        ValueError: there are no results.
        SpecError: there are none of ``against``.
    """
    by_name: dict[str, dict[int, RunResult]] = {}
    for result in results:
        by_name.setdefault(result.configuration, {})[result.seed] = result
    order = [c.name for c in experiment.configurations if c.name in by_name]
    if not order:
        raise ValueError("no run has finished")
    reference = against or order[0]
    if reference not in order:
        raise SpecError(f"--against {reference}: no finished run of it; there are {', '.join(order)}")
    pairs: dict[tuple[str, str], Comparison] = {}
    for a, b in combinations(order, 2):
        found = _compared(by_name[a], by_name[b])
        if found is not None:
            pairs[a, b], pairs[b, a] = found, found.reversed
    others = [name for name in order if (reference, name) in pairs]
    shown = dict(zip(others, with_holm([pairs[reference, name] for name in others]), strict=True))
    rows = [_row(name, by_name[name], shown.get(name)) for name in order]
    return Report(experiment, rows, reference, margin, pairs)


def _compared(first: dict[int, RunResult], second: dict[int, RunResult]) -> Comparison | None:
    """What the second gains over the first, on the seeds that both have finished."""
    shared = sorted(set(first) & set(second))
    return compare([first[s].right for s in shared], [second[s].right for s in shared]) if shared else None


def findings(report: Report) -> list[str]:
    """A sentence for each comparison with the reference, no stronger than its interval."""
    rows = {row.name: row for row in report.rows}
    reference = rows[report.reference]
    return [_finding(row, reference, row.against, report.margin) for row in report.rows if row.against is not None]


def _finding(row: Row, reference: Row, found: Comparison, margin: float) -> str:
    change = f"{found.difference:+.1%} (95 %: {found.low:+.1%} to {found.high:+.1%})"
    if found.low > 0 or found.high < 0:
        verdict = "is better" if found.low > 0 else "is worse"
        if found.holm is not None and found.holm > _SIGNIFICANT:
            verdict += " taken alone, not among all comparisons of this table"
    elif found.equivalent(margin):
        verdict = f"is as good, to within {margin:.0%}"
    elif found.not_worse(margin):
        verdict = f"is not worse by {margin:.0%} or more"
    else:
        verdict = f"cannot be told apart: a loss of {margin:.0%} is not excluded"
    ratio = ""
    if row.parameters and reference.parameters:
        share = row.parameters / reference.parameters - 1
        ratio = f", with {abs(share):.0%} {'fewer' if share < 0 else 'more'} parameters" if round(share, 2) else ""
        ratio = ratio or ", with as many parameters"
    return f"{row.name} against {reference.name} {verdict}: {change}{ratio}."


def _row(name: str, runs: dict[int, RunResult], against: Comparison | None) -> Row:
    results = list(runs.values())
    right = [answered for run in results for answered in run.right]
    labels = [category for run in results for category in run.categories]
    by_category = {
        category: (sum(r for r, c in zip(right, labels, strict=True) if c == category), labels.count(category))
        for category in dict.fromkeys(sorted(labels))
    }
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
        worst_seed=min(accuracies),
        best_seed=max(accuracies),
        tokens_per_second=statistics.median(run.tokens_per_second for run in results),
        peak_memory_bytes=max(run.peak_memory_bytes for run in results),
        skipped_steps=sum(run.skipped_steps for run in results),
        perplexity=_mean([run.perplexity for run in results]),
        merged_cosine=_mean([run.merged_cosine for run in results]),
        by_category=by_category,
        against=against,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


# Field of a row, its column and how its value is written: shown where a configuration has it.
_OPTIONAL = (("perplexity", "perplexity", ".2f"), ("merged_cosine", "kept by the merge", ".2f"))


def _markdown(row: Row, optional: Sequence[tuple[str, str, str]]) -> str:
    accuracy = row.accuracy
    against = row.against
    cells = [
        row.name,
        f"{row.parameters:,}",
        f"{row.adapter_bytes / 1e6:.2f} MB",
        f"{row.base_bytes / 1e6:.1f} MB",
        f"{row.valid_loss:.3f}" if row.valid_loss is not None else "-",
        *("-" if (value := getattr(row, name)) is None else format(value, style) for name, _, style in optional),
        f"{accuracy.value:.1%} ({accuracy.low:.1%} to {accuracy.high:.1%})",
        f"{against.difference:+.1%} ({against.low:+.1%} to {against.high:+.1%})" if against else "-",
        f"{against.p_value:.2g}" if against else "-",
        f"{against.holm:.2g}" if against and against.holm is not None else "-",
        f"{row.tokens_per_second:.0f}" if row.parameters else "-",
        f"{row.peak_memory_bytes / 1e9:.2f} GB" if row.parameters else "-",
    ]
    return f"| {' | '.join(cells)} |"
