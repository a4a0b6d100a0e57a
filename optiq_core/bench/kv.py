"""Bench ``kv``: KV caches against the float cache, in what they lose, what they take and how long a step takes.

All rows run the same weights on the same text. What is measured of each:

- ``attention_error`` and ``attention_kl``: relative error of the attention's output, and KL of its weights, on the
  queries, keys and values of the text, averaged over layers.
- ``kl``, ``ppl_rel``: KL of the next token, and perplexity over the float cache's, over one long context; with
  ``ppl_rel_se``, the standard error that so many tokens leave it.
- ``needle``: share of planted keys that their query still finds first, in key statistics of the real layers, at
  several depths and lengths; ``needle_close``: the same among keys that match the query almost as well, by how much
  worse; ``needle_text``: share of pass keys hidden in a text that the model repeats.
- ``bytes_per_token``; at several contexts ``row_bytes`` of one row, with what a window of recent tokens adds, and
  ``ms`` of its decode step.

``METHOD:BITS:WINDOW`` keeps so many recent tokens as they came; without WINDOW the method's default.
"""

from __future__ import annotations

import time
from typing import Any

import click

from optiq_core.bench.harness import describe_run, emit, narrate
from optiq_core.errors import OptiqError

CONTEXTS = (512, 2048, 8192)
ROWS = (
    "float", "affine:8", "affine:4", "affine:4:64", "mixed", "turboquant:4", "turboquant:4:0", "turboquant:3.5",
    "turboquant:3", "turboquant:2.5", "rotated:4",
)  # fmt: skip
MIXED_TARGET = 4.5
# Largest perplexity over the float cache's that counts as the same.
_SAME_PERPLEXITY = 1.005


def run(model: str = "embedded", *, quick: bool = False) -> dict[str, Any]:
    """Measure every row on one model.

    Args:
        model: as :func:`optiq_core.base.resolve_base` takes it.
        quick: short texts and contexts, to see that it works.

    Returns:
        ``rows`` of ``{cache, bits, attention_error, attention_kl, kl, ppl_rel, needle, needle_text, bytes_per_token,
        ms}``, what the goals say about them, and the run's description.

    Raises:
        OptiqError: the model cannot be loaded, or its caches cannot be compressed.
    """
    from optiq_core.base import load_base, resolve_base, setup_device

    profile = setup_device()
    from optiq_core.bench.kv_probes import Probes
    from optiq_core.bench.kv_timing import step_times
    from optiq_core.kv.centers import key_centers
    from optiq_core.kv.config import parse_uniform
    from optiq_core.kv.factory import CachePlan, plan_caches

    began = time.monotonic()
    base = load_base(resolve_base(model, progress=narrate), profile=profile)
    narrate("sensitivity of each layer, for the mixed row")
    centers = key_centers(base.model, base.tokenizer)
    plans: dict[str, CachePlan] = {
        name: _mixed(base, quick=quick) if name == "mixed" else plan_caches(base.model, parse_uniform(name), centers)
        for name in ROWS
    }
    probes = Probes(base, quick=quick)
    rows = []
    for name, plan in plans.items():
        narrate(f"quality of {name}")
        rows.append({"cache": name, "bits": _bits(name, plan), **probes.measure(plan)})
    narrate("decode steps")
    contexts = (64, 128) if quick else CONTEXTS
    times = step_times(base.model, plans, probes.layer_vectors, contexts, rounds=2 if quick else 7)
    for row in rows:
        plan = plans[row["cache"]]
        row["bytes_per_token"] = plan.bytes_per_token
        row["row_bytes"] = {str(n): n * plan.bytes_per_token + plan.window_bytes for n in contexts}
        row["ms"] = times[row["cache"]]
    return {
        "rows": rows,
        "goals": _goals({row["cache"]: row for row in rows}, str(contexts[1])),
        "text_tokens": probes.text_tokens,
        "needles": probes.needles,
        "seconds": round(time.monotonic() - began, 1),
        **describe_run(base),
    }


def _mixed(base: Any, *, quick: bool) -> Any:
    """Affine caches of 4 and 8 bits by measured sensitivity, as `optiq kv-cache` allocates them."""
    from optiq_core.kv.cli import MEASURED
    from optiq_core.kv.factory import head_dims, plan_caches
    from optiq_core.kv.sensitivity import allocate_layers, measure_layers
    from optiq_core.quant.calibration import read_tokens
    from optiq_core.quant.partial import PartialResults, content_digest

    length = 32 if quick else 256
    text = read_tokens(base.tokenizer, most=length, length=length)
    partial = PartialResults(
        "kv", MEASURED, content_digest(base.path), text.digest, "affine", "64", base.profile.compute
    )
    layers = sorted(head_dims(base.model))
    measured = measure_layers(
        base.model, layers, (4.0, 8.0), text, method="affine", group_size=64, partial=partial
    )  # fmt: skip
    return plan_caches(
        base.model, allocate_layers(base.model, measured, MIXED_TARGET, method="affine", group_size=64)
    )  # fmt: skip


def _bits(name: str, plan: Any) -> float:
    """Bits per cached value, scales and norms included."""
    return round(plan.bytes_per_token / plan.float_bytes_per_token * plan.float_bits, 3)


def _goals(rows: dict[str, dict[str, Any]], context: str) -> dict[str, Any]:
    """What the rows say about the goals; the decode step is judged at ``context`` tokens."""
    four, affine, float_ = rows["turboquant:4"], rows["affine:4"], rows["float"]
    return {
        "needle_turboquant_4": four["needle"],
        "needle_affine_4": affine["needle"],
        "needle_close_turboquant_4": four["needle_close"],
        "needle_close_rotated_4": rows["rotated:4"]["needle_close"],
        "needle_close_affine_4": affine["needle_close"],
        "ppl_rel_turboquant_3.5": rows["turboquant:3.5"]["ppl_rel"],
        "ppl_rel_se_turboquant_3.5": rows["turboquant:3.5"]["ppl_rel_se"],
        "ppl_rel_3.5_within_half_a_percent": rows["turboquant:3.5"]["ppl_rel"] <= _SAME_PERPLEXITY,
        "step_turboquant_4_over_affine_4": four["ms"][context] / affine["ms"][context],
        "step_turboquant_4_over_float": four["ms"][context] / float_["ms"][context],
        "kl_affine_4_over_turboquant_4": affine["kl"] / four["kl"],
        "kl_rotated_4_over_turboquant_4": rows["rotated:4"]["kl"] / four["kl"],
    }


@click.command(epilog="\b\nExamples:\n  optiq bench kv --json\n  optiq bench kv --quick")
@click.option("--model", default="embedded", show_default=True)
@click.option("--quick", is_flag=True, help="A fraction of the work, to see that it runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def kv(model: str, quick: bool, as_json: bool) -> None:
    """Compare KV caches: what they lose, what a token takes, how long a decode step takes."""
    try:
        emit(run(model, quick=quick), as_json=as_json)
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
