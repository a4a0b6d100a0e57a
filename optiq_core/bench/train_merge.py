"""What a merge into the base's own bits keeps of an adapter's gain, trained with it in mind or not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from optiq_core.adapters.tensors import base_weight
from optiq_core.base.metadata import ModuleBits
from optiq_core.experiments.tasks import DIGITS, write_data
from optiq_core.train.config import TrainConfig
from optiq_core.train.data import TrainingData, load_data
from optiq_core.train.layers import exported_tensors
from optiq_core.train.loss import full_loss
from optiq_core.train.quantized import FLOAT_BITS, rounded
from optiq_core.train.trainer import train
from optiq_core.train.validation import mean_loss

_FOUR = ModuleBits(4, 64, "affine")
_BATCH = 8


def kept_by_a_merge(base: Any, *, steps: int, narrate: Callable[[str], None]) -> dict[str, Any]:
    """Train twice on the same data in the same order, merge both, and compare validation losses.

    Args:
        base: a loaded base without adapters; the same afterwards.
        steps: of both runs.
        narrate: told what begins.

    Returns:
        ``kept_with`` and ``kept_without``: how far the merged base's loss falls below the bare base's, over how far it
        falls with the plainly trained adapter beside the base; and the losses themselves.
    """
    with tempfile.TemporaryDirectory() as folder:
        train_items, held_out = DIGITS.split(train=400, held_out=64)
        write_data(Path(folder) / "data", train_items, held_out)
        losses = {}
        for name, bits in (("without", 0), ("with", 4)):
            narrate(f"training {name} QAT")
            config = TrainConfig(
                data_path=str(Path(folder) / "data"),
                rank_scaling="constant",
                iters=steps,
                batch_size=_BATCH,
                learning_rate=1e-4,
                steps_per_eval=steps,
                steps_per_checkpoint=steps,
                qat_bits=bits,
            )
            losses[name] = _losses(base, config, Path(folder) / name)
    bare, served = losses["without"]["bare"], losses["without"]["adapter"]
    return {
        "kept_with": (bare - losses["with"]["merged"]) / (bare - served),
        "kept_without": (bare - losses["without"]["merged"]) / (bare - served),
        "loss_bare": bare,
        "loss_adapter": served,
        "loss_merged_with": losses["with"]["merged"],
        "loss_merged_without": losses["without"]["merged"],
        "bits": sorted({grid.bits for grid in losses["with"]["grids"]}),
        "steps": steps,
    }


def _losses(base: Any, config: TrainConfig, folder: Path) -> dict[str, Any]:
    bare = dict(base.model.named_modules())
    data = load_data(config.data_path, base.tokenizer, config)
    loss = {"bare": _validation(base.model, data)}
    train(base, config, data=data, out_dir=folder, checkpoint_dir=folder.with_suffix(".checkpoint"))
    tensors = exported_tensors(base.model)
    paths = sorted({name.rpartition(".")[0] for name in tensors})
    loss["adapter"] = _validation(base.model, data)
    grids, merged = [], []
    for path in paths:
        grid = base.metadata.modules.get(path)
        grid = grid if grid is not None and grid.bits < FLOAT_BITS else _FOUR
        change = config.scale * (tensors[f"{path}.lora_a"] @ tensors[f"{path}.lora_b"]).T
        linear: Any = nn.Linear(1, 1, bias="bias" in bare[path])
        linear.weight = rounded(base_weight(bare[path]) + change, grid)
        if "bias" in linear:
            linear.bias = bare[path].bias
        grids.append(grid)
        merged.append((path, linear))
    base.model.update_modules(tree_unflatten(merged))
    loss["merged"] = _validation(base.model, data)
    base.model.update_modules(tree_unflatten([(path, bare[path]) for path in paths]))
    mx.clear_cache()
    return {**loss, "grids": grids}


def _validation(model: Any, data: TrainingData) -> float:
    """Mean loss per answer token over the held-out items."""
    return mean_loss(model, full_loss, data.valid.examples[: _BATCH * 64], rows=_BATCH)[0]
