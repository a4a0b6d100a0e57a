"""``optiq bench``: every figure that we claim, measured against its baseline in one run."""

from __future__ import annotations

import click

from optiq_daemon.cli.entry_points import EntryPointGroup

GROUP = "optiq.benches"

# A test compares these with the benches.
SUMMARIES: dict[str, str] = {
    "quant": "Compare mixed precision with uniform 4 bits at the same size: KL, perplexity, accuracy, bytes.",
    "planner": "Compare the planner's predictions with real training steps.",
    "gateway": "Compare gRPC and HTTP with the engine alone.",
    "fairness": "Measure a tenant's first-token time under another's flood, and the shares of two that saturate.",
    "drop": "Time from the end of a copy to routable, for 1, 10 and 100 folders.",
    "evict": "Use more adapters in turn than fit the engine.",
}


@click.group(
    cls=EntryPointGroup,
    entry_points=GROUP,
    summaries=SUMMARIES,
    epilog="\b\nEach prints one JSON object with --json. Example:\n"
    "  optiq bench mixed --adapters 16 --concurrency 16 --rank 8 --targets all --json",
)
def bench() -> None:
    """Measure against a named baseline in one run.

    Runs are paired and interleaved, figures are medians, and the output names model, device profile and versions.
    Compare ratios, not absolute times: those are the machine's.
    """
