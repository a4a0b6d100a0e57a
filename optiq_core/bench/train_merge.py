"""What a merge into few bits keeps of an adapter's gain, trained with it in mind or not."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from mlx import nn
from mlx.utils import tree_unflatten

from optiq_core.adapters.tensors import base_weight
from optiq_core.base.metadata import ModuleBits
from optiq_core.experiments.tasks import DIGITS, write_data
from optiq_core.train.config import TrainConfig
from optiq_core.train.data import TrainingData, load_data
from optiq_core.train.layers import exported_tensors, merge_grids
from optiq_core.train.loss import full_loss
from optiq_core.train.quantized import rounded
from optiq_core.train.trainer import train
from optiq_core.train.validation import mean_loss

_BATCH = 8
# Bits that a base is merged into as if it were not quantized.
_FROM_FLOAT = (4, 2)


def kept_by_a_merge(base: Any, *, steps: int, narrate: Callable[[str], None]) -> dict[str, Any]:
    """Train plainly and through merges, each on the same data in the same order, merge, and compare validation losses.

    Args:
        base: a loaded base without adapters; the same afterwards.
        steps: of every run.
        narrate: told what begins.

    Returns:
        ``kept_with`` and ``kept_without`` QAT, for a merge into the base's own bits: how far the merged base's loss
        falls below the bare base's, over how far it falls with the plainly trained adapter beside the base. The same
        under ``from_float``, by bits, with the base's weights taken as unquantized: these are rounded along.
    """
    with tempfile.TemporaryDirectory() as folder:
        arena = _Arena(base, Path(folder), steps)
        bare = arena.loss()
        narrate("training without QAT")
        served, plain = arena.trained(base, 0)

        def kept(base: Any, bits: int) -> dict[str, Any]:
            narrate(f"training with QAT for {bits} bits")
            _, own = arena.trained(base, bits)
            grids = merge_grids(base.metadata, arena.config(bits), _adapted(plain)) or {}
            losses = {"with": arena.merged(own, grids), "without": arena.merged(plain, grids)}
            return {
                **{f"kept_{name}": (bare - loss) / (bare - served) for name, loss in losses.items()},
                **{f"loss_merged_{name}": loss for name, loss in losses.items()},
                "bits": sorted({grid.bits for grid in grids.values()}),
            }

        unquantized = dataclasses.replace(base, metadata=msgspec.structs.replace(base.metadata, modules={}))
        return {
            **kept(base, _FROM_FLOAT[0]),
            "from_float": {str(bits): kept(unquantized, bits) for bits in _FROM_FLOAT},
            "loss_bare": bare,
            "loss_adapter": served,
            "steps": steps,
        }


class _Arena:
    """A base and a task on it."""

    def __init__(self, base: Any, folder: Path, steps: int) -> None:
        self._model = base.model
        self._bare = dict(base.model.named_modules())
        self._folder = folder
        self._steps = steps
        train_items, held_out = DIGITS.split(train=400, held_out=64)
        write_data(folder / "data", train_items, held_out)
        self._data: TrainingData = load_data(str(folder / "data"), base.tokenizer, self.config(0))

    def config(self, bits: int) -> TrainConfig:
        return TrainConfig(
            data_path=str(self._folder / "data"),
            rank_scaling="constant",
            iters=self._steps,
            batch_size=_BATCH,
            learning_rate=1e-4,
            steps_per_eval=self._steps,
            steps_per_checkpoint=self._steps,
            qat_bits=bits,
        )

    def loss(self) -> float:
        """Mean over the answer tokens of the held-out items."""
        return mean_loss(self._model, full_loss, self._data.valid.examples[: _BATCH * 64], rows=_BATCH)[0]

    def trained(self, base: Any, bits: int) -> tuple[float, dict[str, mx.array]]:
        """The loss with the adapter beside the base, and the adapter."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            out = Path(folder)
            train(base, self.config(bits), data=self._data, out_dir=out / "out", checkpoint_dir=out / "checkpoint")
        tensors = exported_tensors(self._model)
        loss = self.loss()
        self._restore(_adapted(tensors))
        return loss, tensors

    def merged(self, tensors: Mapping[str, mx.array], grids: Mapping[str, ModuleBits]) -> float:
        """The loss of the base with the adapter added into weights of these bits."""
        scale = self.config(0).scale
        layers = []
        for path, grid in grids.items():
            bare = self._bare[path]
            change = scale * (tensors[f"{path}.lora_a"] @ tensors[f"{path}.lora_b"]).T
            linear: Any = nn.Linear(1, 1, bias="bias" in bare)
            linear.weight = rounded(base_weight(bare) + change, grid)
            if "bias" in linear:
                linear.bias = bare.bias
            layers.append((path, linear))
        self._model.update_modules(tree_unflatten(layers))
        loss = self.loss()
        self._restore(list(grids))
        return loss

    def _restore(self, paths: list[str]) -> None:
        self._model.update_modules(tree_unflatten([(path, self._bare[path]) for path in paths]))
        mx.clear_cache()


def _adapted(tensors: Mapping[str, mx.array]) -> list[str]:
    """The modules that an adapter's tensors belong to."""
    return sorted({name.rpartition(".")[0] for name in tensors})
