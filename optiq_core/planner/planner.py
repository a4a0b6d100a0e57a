"""Plans runs on one base: predictions, what still fits, and advice when something does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec

from optiq_core.base.load_in import LoadIn
from optiq_core.base.metadata import context_length, read_config
from optiq_core.planner.calibration import Calibration
from optiq_core.planner.ceilings import Ceiling
from optiq_core.planner.devices import BACKENDS
from optiq_core.planner.extrapolate import extrapolate, is_recurrent
from optiq_core.planner.model import lazy_model
from optiq_core.planner.plan import StepPlan, Verdict, judge
from optiq_core.planner.shape import StepShape, full_shape, largest_packed_shape, largest_pairs_shape, largest_shape
from optiq_core.planner.step import Knobs, plan_step, splits
from optiq_core.train.config import MAX_RANK, TrainConfig
from optiq_core.train.data import Example
from optiq_core.train.layers import merge_grids
from optiq_core.train.loss import full_loss
from optiq_core.train.targets import rank_targets, ranks_of

# Steps that are unrolled over time are traced up to this width and extrapolated beyond.
_UNROLLED_WIDTHS = (32, 48, 64)
_MAX_TOKENS = 1 << 17
_MAX_BATCH = 1 << 12


@dataclass
class Planner:
    """Plans runs on one base against one ceiling.

    Attributes:
        folder: the base, as :func:`optiq_core.base.resolve_base` returns it; config.json is enough.
        ceiling: what there is.
        calibration: what finished steps on the device have taught.
        examples: the data, tokenized at the longest length that is considered; without, every example is as long as
            the configuration allows and trained on all of its tokens.
        load_in: how an unquantized base is quantized at load.
    """

    folder: Path
    ceiling: Ceiling
    calibration: Calibration = field(default_factory=Calibration)
    examples: Sequence[Example] = ()
    load_in: LoadIn | None = None
    _plans: dict[tuple[Any, ...], StepPlan] = field(default_factory=dict)
    _split: bool | None = None
    _recurrent: bool | None = None

    def judge(self, config: TrainConfig) -> Verdict:
        """A run's largest step against the ceiling.

        Raises:
            OptiqError: the base or the configuration cannot be planned.
        """
        return judge(self.plan(config), self.ceiling, self.calibration)

    def plan(self, config: TrainConfig) -> StepPlan:
        """A run's largest step, or part of one."""
        return self.plan_shape(config, self.shape(config))

    def shape(self, config: TrainConfig) -> StepShape:
        """The largest batch, or part of one, that the data can make, or that the configuration allows."""
        rows = config.rows_at_a_time
        limit = config.max_seq_length
        cut = [e.cut(limit) for e in self.examples if e.cut(limit).trainable]
        if not cut:
            return self._full(config, rows, limit)
        if config.objective != "sft":
            return largest_pairs_shape(cut, rows)
        if config.pack_length:
            return largest_packed_shape(cut, rows, config.pack_length)
        return largest_shape(cut, rows)

    def _full(self, config: TrainConfig, batch_size: int, tokens: int) -> StepShape:
        """A batch of examples of this length; of pairs there are two rows each."""
        return full_shape(batch_size * (1 if config.objective == "sft" else 2), tokens, config.pack_length)

    def plan_shape(self, config: TrainConfig, shape: StepShape) -> StepPlan:
        """A step of the given shape."""
        key = (
            *(config.rank, config.rank_scaling, config.num_layers, config.target_modules, config.dropout > 0),
            *(
                config.method,
                config.objective,
                config.qat_bits,
                config.compute_dtype,
                config.rows_at_a_time < config.batch_size,
            ),
            *(config.grad_checkpoint, config.loss_chunk, tuple(sorted(config.rank_pattern.items())), shape),
        )
        if key not in self._plans:
            self._plans[key] = self._plan(config, shape)
        return self._plans[key]

    def _plan(self, config: TrainConfig, shape: StepShape) -> StepPlan:
        backend = BACKENDS[self.ceiling.backend]
        model, metadata = lazy_model(self.folder, dense=backend.name == "cpu", load_in=self.load_in)
        if config.compute_dtype:
            model.set_dtype(getattr(mx, config.compute_dtype))
        if self._split is None:
            self._split = splits(model)
            self._recurrent = is_recurrent(model)
        targets = rank_targets(model, metadata, config)
        # `gradient` ranks are measured on the real weights: planned as the budget that they keep, evenly spread.
        known = (
            config if config.rank_scaling != "gradient" else msgspec.structs.replace(config, rank_scaling="constant")
        )
        knobs = Knobs(
            ranks_of(model, targets, known, data=None, loss=full_loss),
            dropout=config.dropout,
            method=config.method,
            dynamic=config.rank_scaling == "adalora",
            grids=merge_grids(metadata, config, (target.path for target in targets)),
            objective=config.objective,
            grad_checkpoint=config.grad_checkpoint,
            loss_chunk=config.loss_chunk,
            accumulate=config.rows_at_a_time < config.batch_size,
        )

        def at(shape: StepShape) -> StepPlan:
            return plan_step(model, knobs, shape, backend, split=self._split)

        if self._recurrent and shape.width > _UNROLLED_WIDTHS[-1]:
            return extrapolate(at, shape, _UNROLLED_WIDTHS)
        return at(shape)

    def longest(self, config: TrainConfig) -> int:
        """Most tokens per example that fit, up to the model's context, 0 if none do; the data does not matter here."""

        def fits(tokens: int) -> bool:
            return self._shape_fits(config, self._full(config, config.rows_at_a_time, tokens))

        return _largest(fits, 8, context_length(read_config(self.folder)) or _MAX_TOKENS)

    def largest_batch(self, config: TrainConfig) -> int:
        """Most examples per step that fit, each as long as the configuration allows."""

        def fits(rows: int) -> bool:
            return self._shape_fits(config, self._full(config, rows, config.max_seq_length))

        return _largest(fits, 1, _MAX_BATCH)

    def largest_rank(self, config: TrainConfig) -> int:
        """Largest base rank that fits; with `by_bits`, modules at 8 bits get twice as much."""
        top = MAX_RANK if config.rank_scaling == "constant" else MAX_RANK // 2
        return _largest(lambda rank: self.judge(msgspec.structs.replace(config, rank=rank)).fits, 1, top)

    def most_layers(self, config: TrainConfig) -> int:
        """Most blocks, from the last, that can be adapted."""
        model, _ = lazy_model(self.folder, dense=False)
        blocks = len(model.layers)
        return _largest(lambda n: self.judge(msgspec.structs.replace(config, num_layers=n)).fits, 1, blocks)

    def _shape_fits(self, config: TrainConfig, shape: StepShape) -> bool:
        return judge(self.plan_shape(config, shape), self.ceiling, self.calibration).fits


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest value up to ``high`` that fits, 0 if ``low`` does not; exact below 64, to a 32nd above."""
    if not fits(low):
        return 0
    good, bad = low, low
    while good < high:
        bad = min(good * 4, high)
        if not fits(bad):
            break
        good = bad
        if good == high:
            return high
    while bad - good > max(1, good // 32):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
