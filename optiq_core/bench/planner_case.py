"""Predicts one case and runs it, in a process of its own that `optiq bench planner` and `admission` start."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

STEPS = 3
# Stacks of threads and what malloc loses between arrays: not arrays, and not there yet when the limit is set.
_BESIDE = 48 << 20


def predict(case: Any) -> tuple[Any, dict[str, Any]]:
    """The lazy model of a case, and what the planner says of it."""
    from optiq_core.planner.devices import CPU
    from optiq_core.planner.shape import full_shape
    from optiq_core.planner.step import Knobs, plan_step, splits
    from optiq_core.train.layers import find_targets

    started = time.perf_counter()
    model = _lazy(case)
    found = find_targets(model, case.targets, case.num_layers)
    knobs = Knobs(
        dict.fromkeys(found, case.rank),
        dropout=case.dropout,
        grad_checkpoint=case.grad_checkpoint,
        loss_chunk=case.loss_chunk,
        accumulate=0 < case.micro < case.batch_size,
    )
    shape = full_shape(min(case.micro or case.batch_size, case.batch_size), case.tokens)
    # Of the bare base, as the trainer asks: dropout draws anew in every call.
    split = splits(model)
    plan = plan_step(model, knobs, shape, CPU, split=split)
    return model, {"plan": plan, "shape": shape, "split": split, "plan_s": time.perf_counter() - started}


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


def measure(case: Any, model: Any, shape: Any, *, split: bool) -> dict[str, Any]:
    """Take some steps of the case with the trainer's own step; bytes of each step's peak."""
    import mlx.core as mx
    import numpy as np
    from mlx import optimizers

    from optiq_core.train.batches import collate
    from optiq_core.train.cpu import cross_entropy_for, training_forms
    from optiq_core.train.data import Example
    from optiq_core.train.loss import make_loss, to_inputs
    from optiq_core.train.step import make_step

    mx.eval(model.parameters())
    loss = make_loss(split=split, chunk=case.loss_chunk, cross_entropy=cross_entropy_for(model))
    rng = np.random.default_rng(0)
    examples = [Example(tuple(rng.integers(1, 4000, case.tokens).tolist()), 1) for _ in range(case.batch_size)]
    parts = [collate(examples[at : at + shape.rows]) for at in range(0, len(examples), shape.rows)]
    assert (parts[0].tokens.shape[1] - 1, len(parts[0].positions)) == (shape.width, shape.positions)
    model.train()
    peaks, seconds = [], []
    with training_forms(model, grad_checkpoint=case.grad_checkpoint):
        step = make_step(model, optimizers.Adam(learning_rate=1e-4), loss, compiled=False)
        for _ in range(STEPS):
            inputs = [to_inputs(part) for part in parts]
            mx.clear_cache()
            mx.reset_peak_memory()
            started = time.perf_counter()
            step(*inputs)
            seconds.append(time.perf_counter() - started)
            peaks.append(mx.get_peak_memory())
    return {"peaks": peaks, "seconds": seconds}


def main(argument: str) -> None:
    """Print one JSON object: the plan, whether it was admitted, and what was measured.

    The argument's `free_bytes` and `calibration`, if there, are a ceiling: an admitted case runs in what it leaves,
    plus what the process had before there was a model; a refused one runs without a limit, to see what it takes.
    """
    from optiq_core.base.device import setup_device

    setup_device()
    import msgspec

    from optiq_core.bench.planner_cases import Case
    from optiq_core.planner.calibration import Calibration

    asked = json.loads(argument)
    case = Case.from_dict(asked["case"])
    model, predicted = predict(case)
    admitted = True
    if "free_bytes" in asked:
        calibration = msgspec.convert(asked["calibration"], Calibration)
        admitted = calibration.bound(predicted["plan"].peak_bytes) <= asked["free_bytes"]
        if admitted:
            _limit_memory(asked["free_bytes"])
    measured = measure(case, model, predicted["shape"], split=predicted["split"])
    plan = msgspec.to_builtins(predicted["plan"])
    print(json.dumps({"plan": plan, "plan_s": predicted["plan_s"], "admitted": admitted, **measured}))


def _limit_memory(free_bytes: int) -> None:
    """Let the process allocate no more than this, and what threads and malloc need beside the arrays."""
    import resource
    from pathlib import Path

    import mlx.core as mx

    mx.set_cache_limit(0)
    # BLAS reserves its work space at its first product, over 100 MB of addresses that it hardly touches.
    square = mx.ones((1024, 1024))
    mx.eval(square @ square)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    now = int(status.split("VmData:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (now + free_bytes + _BESIDE, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main(sys.argv[1])
