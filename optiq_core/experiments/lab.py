"""What a joint search measures on a base in float: sensitivity, gradients, and short trainings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from optiq_core.base import LoadedBase, setup_device
from optiq_core.base.metadata import read_metadata
from optiq_core.experiments.fixed import write_base
from optiq_core.experiments.grid import draw
from optiq_core.experiments.space import Assignment, Module, SearchError, Space
from optiq_core.experiments.spec import Experiment
from optiq_core.experiments.tasks import write_data
from optiq_core.quant.calibration import read_tokens
from optiq_core.quant.modules import (
    PROTECTED,
    QuantTarget,
    block_paths,
    find_quant_targets,
    protected_paths,
    quantize_dequantize,
)
from optiq_core.quant.options import Option, parse_candidates
from optiq_core.quant.plan import Footprint, sensitivity_of
from optiq_core.quant.source import load_source
from optiq_core.train.batches import BatchOrder
from optiq_core.train.config import TrainConfig, decode_config
from optiq_core.train.data import TrainingData, load_data
from optiq_core.train.loss import loss_for, to_inputs
from optiq_core.train.ranks import is_attention
from optiq_core.train.targets import PROBE_BATCHES, rank_targets
from optiq_core.train.trainer import train

_CALIBRATION_TOKENS = 512


class Lab:
    """A base with dense weights, and the data of one seed of an experiment.

    Args:
        folder: of the base; what it has quantized is dequantized.
        experiment: for its items, training settings and ``search``; the first seed counts.
        work: for data and passing files; made if missing.
    """

    def __init__(self, folder: Path, experiment: Experiment, work: Path) -> None:
        self._settings = experiment.search
        profile = setup_device()
        self._source = load_source(folder)
        self.bits = tuple(sorted(set(self._settings.bits)))
        options = parse_candidates(",".join(map(str, self.bits)), (self._settings.group_size,))
        self._targets = [t for t in find_quant_targets(self._source.model, options) if len(t.options) == len(self.bits)]
        self._weights = {t.path: t.module.weight for t in self._targets}
        self._base = LoadedBase(
            model=self._source.model,
            tokenizer=self._source.tokenizer,
            config=self._source.config,
            path=folder,
            digest=self._source.content,
            profile=profile,
            memory_bytes=0,
            metadata=read_metadata(folder),
        )
        self._work = work
        self._config = _short_config(experiment, str(work / "data"))
        splits = draw(experiment.items, experiment.seeds[0])
        write_data(work / "data", [i.item for i in splits.train], [i.item for i in splits.valid])
        self._data: TrainingData = load_data(self._config.data_path, self._base.tokenizer, self._config)
        if not self._data.valid.examples:
            raise SearchError("items.valid: a search compares validation losses; give it some items")

    @property
    def rank(self) -> int:
        """Of a module at 4 bits, without a search."""
        return self._config.rank

    def space(self, progress: Callable[[float, str], None]) -> Space:
        """Measure what every choice costs: one pass backwards over a calibration text, and one over training data."""
        text = read_tokens(self._base.tokenizer, most=_CALIBRATION_TOKENS)
        kl = sensitivity_of(self._source, self._targets, "gradient", text, progress)
        progress(1.0, "gradients of the training data")
        targets = {t.path: t for t in rank_targets(self._base.model, self._base.metadata, self._config)}
        if missing := sorted(set(targets) - set(self._weights)):
            group = self._settings.group_size
            raise SearchError(f"target_modules: {missing[0]} cannot be quantized in groups of {group}")
        captured = self._captured(list(targets))
        size = Footprint.of(self._source, self._targets)
        blocks = len(block_paths(self._base.model))
        modules = tuple(
            Module(
                path=t.path,
                group=_group(t, blocks, self._settings.parts),
                stored={o.bits: o.stored_bits(t.size, size.scale_bits) for o in t.options},
                kl={o.bits: kl[t.path][o.label] for o in t.options},
                rank_cost=targets[t.path].cost if t.path in targets else 0,
                captured=captured.get(t.path, ()),
            )
            for t in self._targets
        )
        # With the rank of the solution without a search, which is a choice too.
        ranks = tuple(sorted({*self._settings.ranks, self._config.rank}))
        protected = frozenset(protected_paths(self._targets, PROTECTED))
        return Space(modules, self.bits, ranks, -(-size.other_bits // 8), protected)

    def short_loss(self, chosen: Assignment) -> float:
        """Validation loss, in nats per token, after a short training with these bits and ranks; the same every time."""
        modules = dict(self._base.model.named_modules())
        config = self._config_of(chosen)
        try:
            for target in self._targets:
                option = Option(chosen.bits[target.path], self._settings.group_size)
                target.module.weight = quantize_dequantize(self._weights[target.path], option, self._source.store)
            out, checkpoint = self._work / "adapter", self._work / "checkpoint"
            shutil.rmtree(checkpoint, ignore_errors=True)
            result = train(self._base, config, data=self._data, out_dir=out, checkpoint_dir=checkpoint, overwrite=True)
        finally:
            self._base.model.update_modules(tree_unflatten([(path, modules[path]) for path in chosen.ranks]))
            for target in self._targets:
                target.module.weight = self._weights[target.path]
            self._base.model.unfreeze()
            mx.clear_cache()
        if result.valid_loss is None:
            raise SearchError("a short training ended without a validation loss")
        return result.valid_loss

    def write(self, chosen: Assignment, folder: Path) -> None:
        """Write the base with these bits, as every other conversion does; an existing folder is replaced."""
        options = {path: Option(bits, self._settings.group_size) for path, bits in chosen.bits.items()}
        # Writing quantizes the model: another copy.
        write_base(load_source(self._source.folder), options, folder, kind="search")

    def _config_of(self, chosen: Assignment) -> TrainConfig:
        return decode_config(
            {**msgspec.structs.asdict(self._config), "rank_scaling": "pattern", "rank_pattern": dict(chosen.ranks)}
        )

    def _captured(self, paths: list[str]) -> dict[str, list[float]]:
        """Sums of the largest squared singular values of the gradient, of one, two and so on, by module."""
        model: Any = self._base.model
        modules = dict(model.named_modules())
        loss = loss_for(model)
        model.freeze()
        for path in paths:
            modules[path].unfreeze(keys=["weight"], recurse=False)
        value_and_grad = nn.value_and_grad(model, loss)
        order = BatchOrder(self._data.train.examples, batch_size=self._config.batch_size, seed=self._config.seed)
        sums: dict[str, mx.array] = {}
        for batch in islice((order[i] for i in range(order.batches_per_epoch)), PROBE_BATCHES):
            _, gradients = value_and_grad(model, to_inputs(batch))
            for name, gradient in tree_flatten(gradients):
                path = name.removesuffix(".weight")
                sums[path] = sums[path] + gradient if path in sums else gradient
            mx.eval(sums)
        model.unfreeze()
        found = {}
        for path in paths:
            values = np.linalg.svd(np.array(sums[path], np.float32), compute_uv=False)
            found[path] = np.cumsum(np.square(values, dtype=np.float64)).tolist()
        return found


def _short_config(experiment: Experiment, data: str) -> TrainConfig:
    steps = experiment.search.short_steps
    changed: dict[str, object] = {
        "data_path": data,
        "seed": experiment.seeds[0],
        "rank_scaling": "constant",
        "rank_pattern": {},
        "budget_like": "",
        "iters": steps,
        "steps_per_report": steps,
        "steps_per_eval": steps,
        "steps_per_checkpoint": steps,
        "warmup_steps": 0,
        "patience": 0,
    }
    config = decode_config({**experiment.train, **changed})
    if config.method not in ("lora", "dora") or config.qat_bits or config.init != "default":
        raise SearchError("train: a search trains beside bases that change; method lora or dora, without QAT and LoftQ")
    return config


def _group(target: QuantTarget, blocks: int, parts: int) -> str:
    """Which modules share their bits: a part of the blocks, attention and the rest apart; embeddings and head."""
    if not 0 <= target.block < blocks:
        return "ends"
    part = min(target.block * parts // blocks, parts - 1)
    first, last = -(-part * blocks // parts), -(-(part + 1) * blocks // parts) - 1
    kind = "attention" if is_attention(target.path) else "ffn"
    return f"{kind} {first}-{last}"
