"""Predicts one case and runs it, in a process of its own: ``python -m optiq_core.bench.planner_case '<json>'``."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

STEPS = 3


def predict(case: Any) -> tuple[Any, dict[str, Any]]:
    """The lazy model of a case, and what the planner says of it."""
    from optiq_core.planner.devices import CPU
    from optiq_core.planner.shape import full_shape
    from optiq_core.planner.step import Knobs, plan_step
    from optiq_core.train.layers import find_targets

    started = time.perf_counter()
    model = _lazy(case)
    found = find_targets(model, case.targets, case.num_layers)
    knobs = Knobs(
        dict.fromkeys(found, case.rank),
        dropout=case.dropout,
        grad_checkpoint=case.grad_checkpoint,
        loss_chunk=case.loss_chunk,
    )
    shape = full_shape(case.batch_size, case.tokens)
    plan = plan_step(model, knobs, shape, CPU)
    return model, {"plan": plan, "shape": shape, "plan_s": time.perf_counter() - started}


def _lazy(case: Any) -> Any:
    import mlx.core as mx
    from mlx import nn
    from mlx_lm.utils import _get_classes

    from optiq_core.base import resolve_base
    from optiq_core.bench.planner_cases import CONFIGS
    from optiq_core.planner.model import lazy_model

    mx.random.seed(0)
    if case.model == "embedded":
        return lazy_model(resolve_base("embedded"), dense=True)[0]
    config = dict(CONFIGS[case.model])
    config["num_hidden_layers"] = case.layers or config["num_hidden_layers"]
    model_class, args_class = _get_classes(config=config)
    model = model_class(args_class.from_dict(config))
    if case.bits:
        nn.quantize(model, group_size=64, bits=case.bits)
    return model


def measure(case: Any, model: Any, shape: Any) -> dict[str, Any]:
    """Take some steps of the case with the trainer's own step; bytes of each step's peak."""
    import mlx.core as mx
    import numpy as np
    from mlx import optimizers

    from optiq_core.planner.step import splits
    from optiq_core.train.batches import collate
    from optiq_core.train.data import Example
    from optiq_core.train.layers import recomputed_blocks
    from optiq_core.train.loss import make_loss, to_inputs
    from optiq_core.train.step import make_step

    mx.eval(model.parameters())
    loss = make_loss(split=splits(model), chunk=case.loss_chunk)
    rng = np.random.default_rng(0)
    examples = [Example(tuple(rng.integers(1, 4000, case.tokens).tolist()), 1) for _ in range(case.batch_size)]
    batch = collate(examples)
    assert (batch.tokens.shape[1] - 1, len(batch.positions)) == (shape.width, shape.positions)
    model.train()
    peaks, seconds = [], []
    with recomputed_blocks(model, case.grad_checkpoint):
        step = make_step(model, optimizers.Adam(learning_rate=1e-4), loss, compiled=False)
        for _ in range(STEPS):
            inputs = to_inputs(batch)
            mx.clear_cache()
            mx.reset_peak_memory()
            started = time.perf_counter()
            step(inputs)
            seconds.append(time.perf_counter() - started)
            peaks.append(mx.get_peak_memory())
    return {"peaks": peaks, "seconds": seconds}


def main(argument: str) -> None:
    """Print one JSON object: the plan, and what was measured."""
    from optiq_core.base.device import setup_device

    setup_device()
    import msgspec

    from optiq_core.bench.planner_cases import Case

    case = Case.from_dict(json.loads(argument))
    model, predicted = predict(case)
    measured = measure(case, model, predicted["shape"])
    print(json.dumps({"plan": msgspec.to_builtins(predicted["plan"]), "plan_s": predicted["plan_s"], **measured}))


if __name__ == "__main__":
    main(sys.argv[1])
