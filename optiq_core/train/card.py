"""The card that a trained adapter carries: what it is, and what made it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from optiq_core.adapters.lora_config import LoraConfig, TrainingCard
from optiq_core.train.adapted import AdaptedBase, TrainableBase
from optiq_core.train.checkpoint import RunState
from optiq_core.train.config import TrainConfig
from optiq_core.train.data import TrainingData


def make_card(
    base: TrainableBase, config: TrainConfig, adapted: AdaptedBase, state: RunState, data: TrainingData
) -> LoraConfig:
    """Configuration and card of the adapter that a run ends with."""
    return LoraConfig(
        base_model=base_name(base.path),
        rank=config.rank,
        rank_scaling=config.rank_scaling,
        scale=config.scale,
        dropout=config.dropout,
        ranks=adapted.final_ranks,
        scales=adapted.scales,
        method="dora" if config.method == "dora" else "lora",
        bits={path: bits for path, bits in adapted.bits.items() if bits is not None},
        training=TrainingCard(
            steps=state.step,
            trained_tokens=state.trained_tokens,
            examples=len(data.train.examples),
            cut_examples=data.train.cut,
            dropped_examples=data.train.dropped,
            skipped_steps=state.skipped_steps,
            train_loss=state.train_loss,
            valid_loss=state.best_loss if state.best_step else state.valid_loss,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            max_seq_length=config.max_seq_length,
            mask_prompt=config.mask_prompt,
            seed=config.seed,
            data_digest=data.digest,
            base_digest=base.digest,
            best_step=state.best_step,
            config={key: value for key, value in msgspec.to_builtins(config).items() if key != "data_path"},
        ),
    )


def base_name(path: Path) -> str:
    """Name of a base by its folder: ``owner/name`` inside a hub cache, else the folder's name."""
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return path.name
