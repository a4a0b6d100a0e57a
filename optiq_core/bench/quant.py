"""Bench ``quant``: mixed precision against uniform 4 bits of the same size, 8 bits, and the float weights.

All rows have the same source weights, dense in float32, and differ in what these are rounded to, so what is compared is
the choice of bits alone. The text and the questions are not in the calibration text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from optiq_core.bench.harness import describe_run, emit, narrate
from optiq_core.errors import OptiqError

METHODS = ("gradient", "kl", "static")
_CANDIDATES = "3,mxfp4,4,5,6,8"
_GROUP_SIZE = 64
_QUICK_TOKENS = 256
_QUICK_QUESTIONS = 16


def run(
    model: str = "embedded",
    *,
    method: str = "gradient",
    candidate_bits: str = _CANDIDATES,
    calibration_tokens: int = 1024,
    quick: bool = False,
) -> dict[str, Any]:
    """Measure every row on one model.

    Args:
        model: as :func:`optiq_core.base.resolve_base` takes it.
        method: how the mixed row finds its sensitivities.
        candidate_bits: what the mixed row may choose from.
        calibration_tokens: of the calibration text.
        quick: a fraction of the tokens and questions, to see that it works.

    Returns:
        ``rows`` of ``{name, bpw, kl, ppl, accuracy, bytes}`` with KL from the float row in nats per token,
        ``kl_uniform_over_mixed`` and the ``limit`` of that ratio, what greedy allocation loses against the exact one,
        the mixed row's modules per option, and the run's description.

    Raises:
        OptiqError: the model cannot be loaded or quantized.
    """
    from optiq_core.base import resolve_base, setup_device

    setup_device()
    from optiq_core.quant.calibration import EVALUATION, FACTS, read_tokens
    from optiq_core.quant.evaluate import read_questions
    from optiq_core.quant.modules import find_quant_targets
    from optiq_core.quant.options import Option
    from optiq_core.quant.plan import Footprint, PlanSettings, plan
    from optiq_core.quant.source import load_source

    began = time.monotonic()
    source = load_source(resolve_base(model, progress=narrate))
    most = _QUICK_TOKENS if quick else None
    calibration = read_tokens(source.tokenizer, most=most or calibration_tokens)
    text = read_tokens(source.tokenizer, EVALUATION, most=most)
    questions = read_questions(FACTS)[:: len(read_questions(FACTS)) // _QUICK_QUESTIONS if quick else 1]

    four, eight = Option(4, _GROUP_SIZE), Option(8, _GROUP_SIZE)
    targets = find_quant_targets(source.model, (four, eight))
    size = Footprint.of(source, targets)
    uniform_bits = sum(four.stored_bits(t.size, size.scale_bits) for t in targets)
    narrate(f"sensitivity by {method}")
    settings = PlanSettings(
        target_bpw=size.bpw(uniform_bits),
        candidate_bits=candidate_bits,
        group_sizes=(_GROUP_SIZE,),
        method=method,  # type: ignore[arg-type]
        protect=(),
    )
    measured = time.monotonic()
    mixed = plan(source, settings, calibration)
    measured = time.monotonic() - measured
    exact = plan(source, _exact(settings), calibration)

    table = _Table(source, text, questions)
    rows = [
        table.row("float", {}),
        table.row("8-bit", {t.path: eight for t in targets}),
        table.row("uniform 4-bit", {t.path: four for t in targets}),
        table.row("mixed", mixed.options),
    ]
    counts: dict[str, int] = {}
    for option in mixed.options.values():
        counts[option.label] = counts.get(option.label, 0) + 1
    return {
        "rows": rows,
        "kl_uniform_over_mixed": rows[2]["kl"] / rows[3]["kl"],
        "limit": _limit(mixed, four.label),
        "mixed_modules": dict(sorted(counts.items())),
        "allocator": {
            "greedy_kl": mixed.allocation.kl,
            "exact_kl": exact.allocation.kl,
            "gap": mixed.allocation.kl / exact.allocation.kl - 1,
        },
        "sensitivity": {"method": method, "tokens": calibration.size, "seconds": round(measured, 1)},
        "evaluation": {"text": text.name, "tokens": text.size, "questions": len(questions)},
        "source": {
            "model": Path(source.folder).name,
            "sha256": source.content,
            "bits_per_weight": source.bits_per_weight,
            "notes": list(source.notes),
        },
        "seconds": round(time.monotonic() - began, 1),
        **describe_run(),
    }


class _Table:
    """Scores one set of options after the other on the same model.

    Args:
        source: its model's weights are replaced while a row is scored.
        text: to score on.
        questions: to answer.
    """

    def __init__(self, source: Any, text: Any, questions: Any) -> None:
        from optiq_core.quant.divergence import Reference

        self._source, self._text, self._questions = source, text, questions
        self._batches = text.batches(4)
        self._references = [Reference.of(source.model(tokens)) for tokens in self._batches]

    def row(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Score the model with every named module rounded to its option."""
        import mlx.core as mx

        from optiq_core.quant.evaluate import score_questions, score_text
        from optiq_core.quant.modules import find_quant_targets, quantize_dequantize
        from optiq_core.quant.plan import Footprint
        from optiq_core.train.loss import number

        narrate(f"scoring {name}")
        source = self._source
        targets = (
            [t for t in find_quant_targets(source.model, tuple(set(options.values()))) if t.path in options]
            if options
            else []
        )
        originals = [t.module.weight for t in targets]
        size = Footprint.of(source, targets)
        stored = size.other_bits + sum(options[t.path].stored_bits(t.size, size.scale_bits) for t in targets)
        try:
            for target in targets:
                target.module.weight = quantize_dequantize(target.module.weight, options[target.path], source.store)
                mx.eval(target.module.weight)
            score = score_text(source.model, self._text)
            kl = mx.concatenate(
                [r.kl(source.model(tokens)) for tokens, r in zip(self._batches, self._references, strict=True)]
            ).mean()
            right = score_questions(source.model, source.tokenizer, self._questions)
        finally:
            for target, weight in zip(targets, originals, strict=True):
                target.module.weight = weight
        return {
            "name": name,
            "bpw": round(stored / size.parameters, 4),
            "kl": number(kl),
            "ppl": score.perplexity,
            "accuracy": sum(right) / len(right),
            "bytes": stored // 8,
        }


def _limit(plan: Any, label: str) -> float | None:
    """The ratio that no allocation of the same size can exceed while KL falls by a factor of four with every bit.

    With real-valued bits the optimum equalizes KL per weight, which then is the geometric mean of what uniform bits
    give, where their own KL is the arithmetic mean (the rate-distortion argument behind reverse water-filling).
    """
    costs = [(t.size, plan.sensitivity[t.path].get(label)) for t in plan.targets]
    if not all(kl for _, kl in costs):
        return None
    total = sum(size for size, _ in costs)
    arithmetic = sum(kl for _, kl in costs) / total
    geometric = math.exp(sum(size / total * math.log(kl / size) for size, kl in costs))
    return round(arithmetic / geometric, 4)


def _exact(settings: Any) -> Any:
    from dataclasses import replace

    return replace(settings, allocator="exact")


@click.command(
    epilog="\b\nExamples:\n  optiq bench quant --json\n  optiq bench quant --method kl --candidate-bits 3,4,6"
)
@click.option("--model", default="embedded", show_default=True)
@click.option("--method", type=click.Choice(METHODS), default="gradient", show_default=True, help="Of the mixed row.")
@click.option("--candidate-bits", default=_CANDIDATES, show_default=True, help="Of the mixed row.")
@click.option("--calibration-tokens", type=click.IntRange(128), default=1024, show_default=True)
@click.option("--quick", is_flag=True, help="A fraction of the work, to see that it runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def quant(as_json: bool, **options: Any) -> None:
    """Compare mixed precision with uniform 4 bits at the same size: KL, perplexity, accuracy, bytes."""
    try:
        emit(run(**options), as_json=as_json)
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
