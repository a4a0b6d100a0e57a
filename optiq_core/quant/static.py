"""Sensitivity by rule, for models that are too large to run here: only the weights are read.

The error that quantization makes in a weight, relative to the weight's own size, times how much such errors are known
to matter where the module stands. The factors follow what measurements agree on for Transformers (they are also behind
the mixed recipes of llama.cpp and mlx-lm): values and down projections are the most sensitive, the head more than any
block, and the blocks at both ends more than those between. The results order modules; they are not nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from optiq_core.quant.modules import QuantTarget, quantize_dequantize
from optiq_core.quant.sensitivity import Progress, Sensitivity
from optiq_core.train.loss import number

_BY_NAME = {"v_proj": 3.0, "down_proj": 2.0, "o_proj": 1.5, "lm_head": 4.0, "kv_b_proj": 3.0, "w2": 2.0}
_EMBEDDING = 4.0
_ENDS = 2.0


def rate(
    targets: Sequence[QuantTarget],
    *,
    store: mx.Dtype,
    progress: Progress = lambda share, what: None,
) -> Sensitivity:
    """Rate every option of every module; one weight is in memory at a time.

    Args:
        targets: a model's modules with their options.
        store: type of scales in the file to come.
        progress: told how far it is.
    """
    last = max(t.block for t in targets)
    ends = max(1, (last + 1) // 8)
    found: Sensitivity = {}
    for done, target in enumerate(targets):
        progress(done / len(targets), target.path)
        weight = target.module.weight.astype(mx.float32)
        energy = mx.square(weight).sum()
        factor = _BY_NAME.get(target.path.rsplit(".", 1)[-1], _EMBEDDING if target.is_embedding else 1.0)
        if target.block < ends or target.block > last - ends:
            factor *= _ENDS
        errors = [mx.square(quantize_dequantize(weight, o, store) - weight).sum() / energy for o in target.options]
        mx.eval(errors)
        found[target.path] = {o.label: factor * number(e) for o, e in zip(target.options, errors, strict=True)}
    progress(1.0, "rated")
    return found
