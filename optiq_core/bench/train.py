"""Bench ``train``: our trainer against stock mlx-lm's on the same loaded base, in turns.

``stock``: the same batches, rank and optimizer, every token trained. ``lean``: conversations of mixed length whose
answers are trained, stock's batches of four against packed rows with chunked loss and recomputed blocks. ``switches``:
the same conversations with our trainer, each technique alone against none of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from optiq_core.bench.harness import describe_run, emit, median_ratio, narrate, paired
from optiq_core.errors import OptiqError
from optiq_core.train.config import TrainConfig

if TYPE_CHECKING:
    from optiq_core.bench.train_contest import Curve
    from optiq_core.planner.planner import Planner

PARTS = ("stock", "lean", "switches", "qat", "shapes", "longest")
_BATCH = 4
_MAX_LENGTH = 512
_PACK_LENGTH = 512
_CHUNK = 256
# Logits of a small chunk are less than a block's activations.
_LEAN_CHUNK = 32


def conversations(tokenizer: Any, count: int, *, longest: int = _MAX_LENGTH, seed: int = 0) -> list[Any]:
    """Examples cut from the evaluation text, of log-normal length (median 90 tokens), the first half or so a prompt."""
    import numpy as np

    from optiq_core.quant.calibration import EVALUATION, read_tokens
    from optiq_core.train.data import Example

    text = np.array(read_tokens(tokenizer, EVALUATION).batches(1)[0]).reshape(-1)
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(90), 0.8, count), 12, longest).astype(int)
    made = []
    for line, length in enumerate(lengths.tolist(), start=1):
        begin = int(rng.integers(0, max(1, len(text) - length)))
        tokens = tuple(text[begin : begin + length].tolist())
        made.append(Example(tokens, max(1, int(len(tokens) * rng.uniform(0.3, 0.7))), line))
    return made


class Bench:
    """The parts of the bench on one base.

    Args:
        model: as :func:`optiq_core.base.resolve_base` takes it.
        rounds, steps: of every paired measurement.
    """

    def __init__(self, model: str, *, rounds: int, steps: int) -> None:
        from optiq_core.base import load_base, resolve_base, setup_device

        profile = setup_device()
        from optiq_core.bench.train_contest import Arena

        self.base = load_base(resolve_base(model, progress=narrate), profile=profile)
        self.arena = Arena(self.base.model)
        self.rounds, self.steps = rounds, steps

    def stock(self) -> dict[str, Any]:
        """Tokens per second over stock's on its own batches, and how far the losses are apart."""
        from optiq_core.bench.train_contest import stock_batches
        from optiq_core.train.data import Example

        # Of few lengths, so that most steps repeat a shape; every token is trained.
        examples = [Example(e.tokens, 1, e.line) for e in conversations(self.base.tokenizer, 64, longest=96)]
        options = {"steps": self.steps, "batch_size": _BATCH, "max_length": 128}
        batches = stock_batches(examples, **options)
        curves: dict[str, list[Curve]] = {"ours": [], "stock": []}

        def run(name: str) -> float:
            curve = self.arena.ours(batches) if name == "ours" else self.arena.stock(examples, **options)
            curves[name].append(curve)
            return curve.tokens_per_second

        figures = paired({name: lambda name=name: run(name) for name in curves}, rounds=self.rounds, progress=narrate)  # type: ignore[misc]
        ours, stock = curves["ours"][0], curves["stock"][0]
        return {
            "tps_ratio": median_ratio(figures["ours"], figures["stock"]),
            "loss_max_diff": max(abs(a - b) for a, b in zip(ours.losses, stock.losses, strict=True)),
            "tokens_equal": ours.tokens == stock.tokens,
            "peak_ratio": ours.peak_bytes / stock.peak_bytes,
            "tps_ours": statistics.median(figures["ours"]),
            "tps_stock": statistics.median(figures["stock"]),
            "losses": [round(loss, 6) for loss in ours.losses],
        }

    def lean(self) -> dict[str, Any]:
        """Trained tokens per second and peak memory over stock's: all techniques, and choices among them.

        Each run is one epoch over the same conversations, as many as stock takes in so many steps.
        """
        from optiq_core.train.batches import BatchOrder

        examples = conversations(self.base.tokenizer, _BATCH * self.steps)
        packed = BatchOrder(examples, batch_size=2, seed=0, pack_length=_PACK_LENGTH)
        rows = BatchOrder(examples, batch_size=_BATCH, seed=0)
        options = {"steps": self.steps, "batch_size": _BATCH, "max_length": _MAX_LENGTH}
        # Kernels that are compiled for a shape are kept by the process: not counted.
        self.arena.stock(examples, **options)

        def ours(order: BatchOrder, at_a_time: int, **fields: Any) -> Curve:
            batches = (order.parts(i, at_a_time) for i in range(order.batches_per_epoch))
            return self.arena.ours(batches, loss_chunk=_LEAN_CHUNK, **fields)

        runs: dict[str, Callable[[], Curve]] = {
            "lean": lambda: ours(packed, 1, grad_checkpoint=True),
            "without_checkpointing": lambda: ours(packed, 1),
            "two_rows_at_a_time": lambda: ours(packed, 2, grad_checkpoint=True),
            "without_packing": lambda: ours(rows, 1, grad_checkpoint=True),
            "stock": lambda: self.arena.stock(examples, **options),
        }
        found = self._compare(runs, "stock")
        return {**found.pop("lean"), **found}

    def switches(self) -> dict[str, dict[str, float]]:
        """Trained tokens per second and peak memory of each technique alone, over those of none."""
        from optiq_core.train.batches import BatchOrder

        examples = conversations(self.base.tokenizer, 256)
        steps = self.steps
        rows = BatchOrder(examples, batch_size=_BATCH, seed=0)
        packed = BatchOrder(examples, batch_size=2, seed=0, pack_length=_PACK_LENGTH)
        runs: dict[str, Callable[[], Curve]] = {
            "nothing": lambda: self.arena.ours(rows[i] for i in range(steps)),
            "packing": lambda: self.arena.ours(packed[i] for i in range(max(2, steps // 3))),
            "chunked loss": lambda: self.arena.ours((rows[i] for i in range(steps)), loss_chunk=_CHUNK),
            "checkpointing": lambda: self.arena.ours((rows[i] for i in range(steps)), grad_checkpoint=True),
            "accumulation": lambda: self.arena.ours(rows.parts(i, 1) for i in range(steps)),
        }
        return self._compare(runs, "nothing")

    def _compare(self, runs: Mapping[str, Callable[[], Curve]], baseline: str) -> dict[str, dict[str, float]]:
        """Trained tokens per second and peak memory of runs in turns, over those of one of them."""
        peaks: dict[str, int] = {}

        def run(name: str) -> float:
            curve = runs[name]()
            peaks[name] = max(peaks.get(name, 0), curve.peak_bytes)
            return sum(curve.tokens) / sum(curve.seconds)

        figures = paired({name: lambda name=name: run(name) for name in runs}, rounds=self.rounds, progress=narrate)  # type: ignore[misc]
        return {
            name: {
                "tps_ratio": median_ratio(figures[name], figures[baseline]),
                "peak_ratio": peaks[name] / peaks[baseline],
                "tps": statistics.median(figures[name]),
                "peak_bytes": peaks[name],
            }
            for name in runs
        }

    def qat(self) -> dict[str, Any]:
        """Share of an adapter's gain that merging it into the base's own bits keeps."""
        from optiq_core.bench.train_merge import kept_by_a_merge

        return kept_by_a_merge(self.base, steps=10 * self.steps, narrate=narrate)

    def shapes(self) -> dict[str, Any]:
        """Distinct shapes of steps over three epochs of a thousand conversations, and buffers of the largest."""
        from optiq_core.bench.train_contest import stock_batches
        from optiq_core.train.batches import BatchOrder

        examples = conversations(self.base.tokenizer, 1000)
        stock = stock_batches(examples, steps=750, batch_size=_BATCH, max_length=_MAX_LENGTH)
        counts: dict[str, Any] = {"stock": len({batch.tokens.shape for batch in stock})}
        for name, pack_length, rows in (("unpacked", 0, _BATCH), ("packed", _PACK_LENGTH, 2)):
            order = BatchOrder(examples, batch_size=rows, seed=0, pack_length=pack_length)
            batches = (order[i] for i in range(3 * order.batches_per_epoch))
            counts[name] = len({(batch.tokens.shape, batch.positions.shape) for batch in batches})
        planner = self._planner(0, examples)
        live = {
            name: planner.plan(config).live_buffers
            for name, config in (
                ("unpacked", self._config()),
                (
                    "packed",
                    self._config(pack_length=_PACK_LENGTH, batch_size=2, grad_checkpoint=True, loss_chunk=_CHUNK),
                ),
            )
        }
        return {"shapes": counts["packed"], "all_shapes": counts, "live_buffers_max": max(live.values()), "live": live}

    def longest(self) -> list[dict[str, Any]]:
        """Tokens of one example that fit, up to the model's context, by what is switched on, as planned."""
        rows = []
        for limit in (1, 2, 4):
            planner = self._planner(limit, ())
            for name, fields in (
                ("nothing", {}),
                ("chunked loss", {"loss_chunk": _CHUNK}),
                ("checkpointing", {"grad_checkpoint": True}),
                ("both", {"loss_chunk": _CHUNK, "grad_checkpoint": True}),
            ):
                narrate(f"longest example within {limit} GB with {name}")
                tokens = planner.longest(self._config(batch_size=1, **fields))
                rows.append({"limit_gb": limit, "with": name, "tokens": tokens})
        return rows

    def _config(self, **fields: Any) -> TrainConfig:
        defaults = {"rank_scaling": "constant", "max_seq_length": _MAX_LENGTH, "batch_size": _BATCH}
        return TrainConfig(data_path="", **{**defaults, **fields})

    def _planner(self, limit_gb: int, examples: Sequence[Any]) -> Planner:
        from optiq_core.planner.ceilings import ceiling_of
        from optiq_core.planner.planner import Planner

        return Planner(self.base.path, ceiling_of("cpu", user_bytes=int(limit_gb * 1e9)), examples=examples)


def run(
    model: str = "embedded", *, only: Sequence[str] = PARTS, rounds: int = 3, steps: int = 8, quick: bool = False
) -> dict[str, Any]:
    """Measure the asked parts.

    Args:
        model: as :func:`optiq_core.base.resolve_base` takes it.
        only: of :data:`PARTS`.
        rounds: of the paired measurements, whose medians are reported.
        steps: of a run; training for ``qat`` takes ten times as many.
        quick: one round of few steps, to see that it works.

    Raises:
        OptiqError: the model cannot be loaded.
    """
    began = time.monotonic()
    bench = Bench(model, rounds=1 if quick else rounds, steps=3 if quick else steps)
    result: dict[str, Any] = {}
    for part in PARTS:
        if part in only:
            narrate(part)
            found = getattr(bench, part)()
            result |= found if part == "shapes" else {part: found}
    return {**result, "seconds": round(time.monotonic() - began, 1), **describe_run(bench.base)}


@click.command(
    epilog="\b\nExamples:\n  optiq bench train --json\n  optiq bench train --only stock --only lean\n"
    "  optiq bench train --quick --only longest"
)
@click.option("--model", default="embedded", show_default=True)
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="A part; repeatable. All if absent.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Of paired runs.")
@click.option("--steps", type=click.IntRange(3), default=8, show_default=True, help="Of a run.")
@click.option("--quick", is_flag=True, help="A fraction of the work, to see that it runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train(as_json: bool, only: tuple[str, ...], **options: Any) -> None:
    """Compare training with stock mlx-lm: speed, loss, memory, each technique's effect, what a merge keeps."""
    try:
        emit(run(only=only or PARTS, **options), as_json=as_json)
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
