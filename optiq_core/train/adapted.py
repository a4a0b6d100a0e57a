"""A base made ready for training: its low-rank layers, the objective, and what prunes their ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from optiq_core.train.adalora import Pruner, with_orthogonality
from optiq_core.train.config import TrainConfig
from optiq_core.train.cpu import cross_entropy_for
from optiq_core.train.data import TrainingData
from optiq_core.train.layers import apply_lora, merge_grids
from optiq_core.train.loftq import apply_loftq
from optiq_core.train.loss import Loss, loss_for
from optiq_core.train.packed import check_packable
from optiq_core.train.preference import preference_loss_for
from optiq_core.train.ranks import adalora_budget
from optiq_core.train.step import seed_step
from optiq_core.train.targets import rank_targets, ranks_of


class TrainableBase(Protocol):
    """What training needs of :class:`optiq_core.base.LoadedBase`."""

    @property
    def model(self) -> Any: ...
    @property
    def path(self) -> Path: ...
    @property
    def digest(self) -> str: ...
    @property
    def metadata(self) -> Any: ...


class AdaptedBase:
    """A base with low-rank layers on it.

    Args:
        base: its model is changed in place.
        config: validated.
        data: what gradients are probed on, where the ranks follow them.

    Attributes:
        model: the base's.
        loss: the objective that the configuration names.
        ranks: of each adapted module, as training begins.
        bits: of each module's weight, None where it is not quantized.
        scales: of each module, where the configuration does not give all of them the same.
        pruner: of AdaLoRA's ranks; None for any other scheme.

    Raises:
        TrainingError: a setting does not fit the base.
    """

    def __init__(self, base: TrainableBase, config: TrainConfig, data: TrainingData) -> None:
        self.model: nn.Module = base.model
        if config.compute_dtype:
            self.model.set_dtype(getattr(mx, config.compute_dtype))
        # The head is probed on the bare base; adapters never touch it.
        self.loss: Loss = (
            loss_for(self.model, config.loss_chunk, cross_entropy_for(self.model))
            if config.objective == "sft"
            else preference_loss_for(self.model, config.objective, config.beta)
        )
        if config.pack_length:
            check_packable(self.model)
        targets = rank_targets(self.model, base.metadata, config)
        self.bits = {target.path: target.bits for target in targets}
        self.ranks = ranks_of(self.model, targets, config, data=data, loss=self.loss)
        seed_step(config.seed, 0)
        apply_lora(
            self.model,
            self.ranks,
            scale=config.scale_at,
            dropout=config.dropout,
            method=config.method,
            grids=merge_grids(base.metadata, config, self.ranks),
            dynamic=config.rank_scaling == "adalora",
        )
        if config.init == "loftq":
            apply_loftq(self.model, base.path, self.ranks)
        # What each module's product is multiplied with stays, also where its rank is pruned.
        self.scales = {path: config.scale_at(rank) for path, rank in self.ranks.items()} if config.rslora else {}
        self.pruner: Pruner | None = None
        if config.rank_scaling == "adalora":
            self.pruner = Pruner(
                self.model,
                costs={target.path: target.cost for target in targets},
                budget=adalora_budget(targets, rank=config.rank, budget_like=config.budget_like),
                steps=config.iters,
            )
            self.loss = with_orthogonality(self.loss)

    @property
    def parameters(self) -> int:
        """Trainable ones."""
        return sum(value.size for _, value in tree_flatten(self.model.trainable_parameters()))

    @property
    def final_ranks(self) -> dict[str, int]:
        """Ranks now: what pruning left, where it prunes."""
        return self.pruner.ranks() if self.pruner else self.ranks
