"""The optimizer of a run and its learning rate, from what MLX and mlx-lm have."""

from __future__ import annotations

from typing import Any

from mlx import optimizers
from mlx_lm.tuner.utils import build_schedule

from optiq_core.train.config import TrainConfig


def learning_rate(config: TrainConfig, factor: float = 1.0) -> Any:
    """A number, or a function of the optimizer's step counter, which its state holds; all of it times a factor."""
    first, last = config.learning_rate * factor, config.lr_end * factor
    if config.lr_schedule == "constant" and not config.warmup_steps:
        return first
    # The step after warmup (or the first) takes the first value, the last step the last one.
    steps = max(1, config.iters - 1 - (config.warmup_steps + 1 if config.warmup_steps else 0))
    name, arguments = {
        "constant": ("linear_schedule", [first, first, 1]),
        "linear": ("linear_schedule", [first, last, steps]),
        "cosine": ("cosine_decay", [first, steps, last]),
        "exponential": ("exponential_decay", [first, (last / first) ** (1 / steps)]),
    }[config.lr_schedule]
    return build_schedule({"name": name, "arguments": arguments, "warmup": config.warmup_steps})


def build_optimizer(config: TrainConfig) -> optimizers.Optimizer:
    """The configured optimizer, without state; with LoRA+ one for A (and all else) and one for B."""
    if not config.loraplus_ratio:
        return _single(config, learning_rate(config))
    pair = [_single(config, learning_rate(config)), _single(config, learning_rate(config, config.loraplus_ratio))]
    return optimizers.MultiOptimizer(pair, [lambda name, _: not name.endswith("lora_b")])


def _single(config: TrainConfig, rate: Any) -> optimizers.Optimizer:
    decay = config.weight_decay
    if config.optimizer == "adamw":
        return optimizers.AdamW(learning_rate=rate, weight_decay=decay)
    if config.optimizer == "sgd":
        return optimizers.SGD(learning_rate=rate, weight_decay=decay)
    if config.optimizer == "muon":
        return optimizers.Muon(learning_rate=rate, weight_decay=decay)
    if config.optimizer == "adafactor":
        # With MLX's defaults it would ignore the learning rate, and hardly move lora_b, which starts at 0.
        return optimizers.Adafactor(learning_rate=rate, weight_decay=decay, relative_step=False, scale_parameter=False)
    return optimizers.Adam(learning_rate=rate)
