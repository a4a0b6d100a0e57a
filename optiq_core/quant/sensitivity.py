"""What quantizing each module alone does to the model's output.

Three ways, from exact to free:

``kl``
    The module's weight is quantized and dequantized, everything else stays as it is, and the KL divergence of the
    output distribution from the unchanged model's is averaged over all positions of the calibration text, in float32.
    Only the blocks from the changed one on are computed again.
``gradient``
    One backward pass, see :mod:`optiq_core.quant.gradient`.
``static``
    No pass at all, see :mod:`optiq_core.quant.static`: for models that are too large to run here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import mlx.core as mx

from optiq_core.quant.calibration import TokenText
from optiq_core.quant.divergence import Reference
from optiq_core.quant.modules import QuantTarget, quantize_dequantize
from optiq_core.quant.partial import PartialResults
from optiq_core.quant.replay import Replay
from optiq_core.train.loss import number

Method = Literal["kl", "gradient", "static"]
METHODS: tuple[Method, ...] = get_args(Method)

# Module path to option label to nats per token.
Sensitivity = dict[str, dict[str, float]]
# Told the share of the work that is done, from 0 to 1, and what is being done.
Progress = Callable[[float, str], None]

# Sequences that are run together: enough for full speed, and memory for the logits stays small.
_SEQUENCES = 8


@dataclass(frozen=True)
class _Batch:
    replay: Replay
    reference: Reference


def measure_kl(
    model: Any,
    targets: Sequence[QuantTarget],
    text: TokenText,
    *,
    store: mx.Dtype,
    partial: PartialResults | None = None,
    progress: Progress = lambda share, what: None,
) -> Sensitivity:
    """Measure every option of every module.

    Args:
        model: dense, in float32; unchanged afterwards.
        targets: its modules with their options.
        text: to measure on.
        store: type of scales in the file to come.
        partial: results of an earlier run are taken from it, and new ones are added module by module.
        progress: told how far it is; its shares follow the work, so that the time left can be told from them.
    """
    found: Sensitivity = {t.path: {} for t in targets}
    missing: list[tuple[QuantTarget, list[Any]]] = []
    for target in targets:
        known = {o.label: partial.get(target.path, o.label) if partial else None for o in target.options}
        found[target.path] = {label: value for label, value in known.items() if value is not None}
        if left := [o for o in target.options if known[o.label] is None]:
            missing.append((target, left))
    if not missing:
        return found
    progress(0.0, "running the unchanged model")
    batches = [_batch(model, tokens) for tokens in text.batches(_SEQUENCES)]
    work = [len(options) * _cost(target, batches[0].replay) for target, options in missing]
    done = 0.0
    for (target, options), cost in zip(missing, work, strict=True):
        progress(done / sum(work), target.path)
        own = {o.label: _kl_of(target, o, batches, store) for o in options}
        found[target.path].update(own)
        if partial is not None:
            partial.add({target.path: own})
        done += cost
    progress(1.0, "measured")
    return found


def mean_kl(model: Any, references: Sequence[tuple[mx.array, Reference]]) -> float:
    """Mean KL of a changed model from references on their tokens, in nats."""
    parts = [reference.kl(model(tokens)) for tokens, reference in references]
    return number(mx.concatenate(parts).mean())


def _batch(model: Any, tokens: mx.array) -> _Batch:
    replay = Replay(model, tokens)
    return _Batch(replay, Reference.of(replay.logits))


def _kl_of(target: QuantTarget, option: Any, batches: Sequence[_Batch], store: mx.Dtype) -> float:
    original = target.module.weight
    target.module.weight = quantize_dequantize(original, option, store)
    try:
        parts = [b.reference.kl(b.replay.run(target.block)) for b in batches]
    finally:
        target.module.weight = original
    return number(mx.concatenate(parts).mean())


def _cost(target: QuantTarget, replay: Replay) -> float:
    """Relative time of one measurement: the blocks to compute, and the head, which takes about as long as eight."""
    blocks = replay.blocks - max(target.block, 0) if replay.exact else replay.blocks
    return blocks + 8.0
