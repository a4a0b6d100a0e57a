"""Runs of stock mlx-lm's trainer and of ours on one loaded base, step by step."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import optimizers
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.trainer import TrainingArgs, iterate_batches, train

from optiq_core.train.batches import Batch, collate
from optiq_core.train.cpu import cross_entropy_for, training_forms
from optiq_core.train.data import Example
from optiq_core.train.layers import apply_lora, find_targets
from optiq_core.train.loss import loss_for, to_inputs
from optiq_core.train.step import make_step

TARGETS = ("q_proj", "v_proj")
NUM_LAYERS = 16
RANK = 8
LEARNING_RATE = 1e-4


@dataclass
class Curve:
    """What a run reported.

    Attributes:
        losses: nats per token, by step.
        seconds, tokens, shapes: of every step; tokens are those that carried loss.
        peak_bytes: of the whole run, the base included.
    """

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Over the steps whose shape had been seen before: what is compiled at a shape's first is not counted."""
        seen: set[tuple[int, ...]] = set()
        tokens, seconds = 0, 0.0
        for shape, count, took in zip(self.shapes, self.tokens, self.seconds, strict=True):
            if shape in seen:
                tokens, seconds = tokens + count, seconds + took
            seen.add(shape)
        return tokens / seconds if seconds else 0.0


class Arena:
    """A base on which runs follow each other, each from the same fresh adapter.

    Args:
        model: an mlx-lm model without adapters.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._ranks = dict.fromkeys(find_targets(model, TARGETS, NUM_LAYERS), RANK)
        modules = dict(model.named_modules())
        self._bare = [(path, modules[path]) for path in self._ranks]

    @contextlib.contextmanager
    def adapted(self) -> Iterator[Any]:
        """The model with a fresh adapter, the same every time."""
        mx.random.seed(0)
        apply_lora(self.model, self._ranks, scale=20.0, dropout=0.0)
        mx.eval(self.model.trainable_parameters())
        mx.clear_cache()
        mx.reset_peak_memory()
        try:
            yield self.model
        finally:
            self.model.update_modules(tree_unflatten(self._bare))

    def stock(self, examples: Sequence[Example], *, steps: int, batch_size: int, max_length: int) -> Curve:
        """mlx-lm's own ``train`` on its own batches, reporting every step."""
        curve = Curve()

        class Reports(TrainingCallback):
            def on_train_loss_report(self, info: dict[str, Any]) -> None:
                curve.losses.append(info["train_loss"])
                curve.seconds.append(1 / info["iterations_per_second"])
                curve.tokens.append(info["trained_tokens"] - sum(curve.tokens))

        def recorded(**options: Any) -> Iterator[Any]:
            for batch, spans in iterate_batches(**options):
                curve.shapes.append(tuple(batch.shape))
                yield batch, spans

        np.random.seed(0)
        with self.adapted() as model, tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArgs(
                batch_size=batch_size,
                iters=steps,
                steps_per_report=1,
                steps_per_save=steps + 1,
                max_seq_length=max_length,
                adapter_file=str(Path(folder) / "adapters.safetensors"),
            )
            with contextlib.redirect_stdout(io.StringIO()):
                train(
                    model=model,
                    optimizer=optimizers.Adam(learning_rate=LEARNING_RATE),
                    train_dataset=[(list(e.tokens), e.start) for e in examples],
                    args=arguments,
                    iterate_batches=recorded,
                    training_callback=Reports(),
                )
            curve.peak_bytes = mx.get_peak_memory()
        del curve.shapes[len(curve.losses) :]
        return curve

    def ours(
        self,
        batches: Iterable[Batch | Sequence[Batch]],
        *,
        grad_checkpoint: bool = False,
        loss_chunk: int = 0,
    ) -> Curve:
        """Our trainer's step on the given batches; one in parts accumulates their gradients."""
        curve = Curve()
        loss = loss_for(self.model, loss_chunk, cross_entropy_for(self.model))
        with self.adapted() as model, training_forms(model, grad_checkpoint=grad_checkpoint):
            model.train()
            compiled = mx.default_device() == mx.gpu
            step = make_step(model, optimizers.Adam(learning_rate=LEARNING_RATE), loss, compiled=compiled)
            for batch in batches:
                parts = [batch] if isinstance(batch, Batch) else batch
                began = time.perf_counter()
                result = step(*map(to_inputs, parts))
                curve.seconds.append(time.perf_counter() - began)
                curve.losses.append(result.loss)
                curve.tokens.append(result.tokens)
                largest = max(parts, key=lambda part: part.tokens.size)
                curve.shapes.append((*largest.tokens.shape, len(largest.positions)))
            curve.peak_bytes = mx.get_peak_memory()
            model.eval()
        return curve

    @property
    def parameters(self) -> int:
        """Trainable ones of the adapter."""
        with self.adapted() as model:
            return sum(value.size for _, value in tree_flatten(model.trainable_parameters()))


def stock_batches(examples: Sequence[Example], *, steps: int, batch_size: int, max_length: int) -> list[Batch]:
    """The batches that stock mlx-lm takes, in its order and with its loss: one token of padding after each answer."""
    np.random.seed(0)
    dataset = [(list(e.tokens), e.start) for e in examples]
    drawn = iterate_batches(dataset=dataset, batch_size=batch_size, max_seq_length=max_length, loop=True)
    made = []
    for tokens, spans in islice(drawn, steps):
        rows = [
            Example(tuple(row[: end + 1].tolist()), max(1, start))
            for row, (start, end) in zip(np.array(tokens), np.array(spans).tolist(), strict=True)
        ]
        made.append(collate(rows))
    return made
