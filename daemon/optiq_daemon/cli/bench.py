"""``optiq bench``: every figure that we claim, measured against its baseline in one run."""

from __future__ import annotations

import click

from optiq_daemon.cli.entry_points import EntryPointGroup

GROUP = "optiq.benches"

# A test compares these with the benches.
SUMMARIES: dict[str, str] = {
    "mixed": "Compare a batch on different adapters with the bare base, one adapter, and one adapter after another.",
    "residency": "Mount many adapters and decode on eight of them: the others must cost nothing but their bytes.",
    "ttft": "Time the first token of mounted and of new adapters, and how long mounts and a long prompt stall streams.",
    "train": "Compare training with stock mlx-lm: speed, loss, memory, each technique's effect, what a merge keeps.",
    "quant": "Compare mixed precision with uniform 4 bits at the same size: KL, perplexity, accuracy, bytes.",
    "kv": "Compare KV caches: what they lose, what a token takes, how long a decode step takes.",
    "planner": "Compare the planner's predictions with real training steps.",
    "admission": "Check that no admitted job exceeds its ceiling, and how many refused ones would have fit.",
    "policies": "Measure serving and training beside each other under each policy, against either alone.",
    "gateway": "Compare gRPC and HTTP with the engine alone.",
    "tui": "Measure the dashboard's input latency under load.",
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
