"""What would make a run fit, cheapest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from optiq_core.planner.devices import BACKENDS
from optiq_core.planner.plan import Advice, StepPlan, Verdict
from optiq_core.planner.planner import Planner
from optiq_core.train.config import TrainConfig
from optiq_core.train.data import Example

_CHUNK = 256
_SHORTER = (99, 95, 90, 75, 50, 25)
_MOST = 6

Changes = dict[str, int | bool]


def advise(planner: Planner, config: TrainConfig) -> Verdict:
    """Judge a run and, if it does not fit, say what would.

    Single changes come first. Where no single one is enough, checkpointing and chunked loss stay on and the others are
    tried on top.
    """
    verdict = planner.judge(config)
    if verdict.fits:
        return verdict
    found = list(_fitting(planner, config, verdict, {}))
    if not found:
        both: Changes = {"grad_checkpoint": True, "loss_chunk": _CHUNK}
        found = list(_fitting(planner, config, verdict, both))
    found.sort(key=lambda advice: (_loses(advice), advice.time_ratio))
    return msgspec.structs.replace(verdict, advice=tuple(found[:_MOST]))


def _loses(advice: Advice) -> bool:
    """Whether the run learns from less, or less, than was asked."""
    return not set(advice.changes) <= {"grad_checkpoint", "loss_chunk", "micro_batch_size"}


def _fitting(planner: Planner, config: TrainConfig, asked: Verdict, common: Changes) -> Iterator[Advice]:
    seen = set()
    for changes, said in _candidates(planner, config, common):
        field = next(reversed(changes))
        if field in seen:
            # The first of a kind that fits changes least.
            continue
        verdict = planner.judge(msgspec.structs.replace(config, **changes))
        if not verdict.fits:
            continue
        seen.add(field)
        per_example = _seconds(planner, verdict.step) / _seconds(planner, asked.step)
        text = f"{said}: {_gigabytes(verdict.expected_bytes)}, about {per_example:.2f} of the time per example"
        yield Advice(changes=changes, text=text, expected_bytes=verdict.expected_bytes, time_ratio=per_example)


def _seconds(planner: Planner, step: StepPlan) -> float:
    """Of one example, roughly: what its matrix products take, and its share of what every primitive costs."""
    backend = BACKENDS[planner.ceiling.backend]
    return (step.flops / backend.flops_per_second + step.primitives * backend.seconds_per_primitive) / step.rows


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 5e7 else f"{count / 1e6:.2f} MB"


def _candidates(planner: Planner, config: TrainConfig, common: Changes) -> Iterator[tuple[Changes, str]]:
    prefix = "checkpointing and chunked loss, " if common else ""
    if common:
        yield {**common}, "grad_checkpoint on and loss_chunk 256"
    else:
        if not config.loss_chunk:
            yield {"loss_chunk": _CHUNK}, f"loss_chunk {_CHUNK}"
        if not config.grad_checkpoint:
            yield {"grad_checkpoint": True}, "grad_checkpoint on"
    rows = config.rows_at_a_time
    while rows > 1:
        rows //= 2
        yield {**common, "micro_batch_size": rows}, f"{prefix}micro_batch_size {rows}, with the same result"
    for length, share in _lengths(planner.examples, config.max_seq_length):
        cut = f"cuts {share:.0%} of the examples" if planner.examples else "cuts what is longer"
        yield {**common, "max_seq_length": length}, f"{prefix}max_seq_length {length}, which {cut}"
    blocks = config.num_layers if config.num_layers > 0 else 32
    while blocks > 1:
        blocks //= 2
        yield {**common, "num_layers": blocks}, f"{prefix}num_layers {blocks}"
    if config.rank > 1:
        yield {**common, "rank": max(1, config.rank // 2)}, f"{prefix}rank {max(1, config.rank // 2)}"


def _lengths(examples: Sequence[Example], limit: int) -> Iterator[tuple[int, float]]:
    """Shorter limits, and the share of examples that each would cut; by the data's own lengths if there are any."""
    if not examples:
        while limit > 16:
            limit //= 2
            yield limit, 0.0
        return
    lengths = sorted(min(len(example.tokens), limit) for example in examples)
    last = lengths[-1]
    for percent in _SHORTER:
        length = max(8, lengths[len(lengths) * percent // 100 - 1])
        if length < last:
            last = length
            yield length, sum(own > length for own in lengths) / len(lengths)
