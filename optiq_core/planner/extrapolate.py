"""Steps of models that are unrolled over time, from shorter ones: their graphs grow with the width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import msgspec

from optiq_core.planner.plan import StepPlan
from optiq_core.planner.shape import StepShape
from optiq_core.planner.step import forward_signature

_COUNTS = ("live_buffers", "allocations", "primitives")
_BYTES = ("peak_bytes", "activation_bytes", "temporary_bytes", "flops")


def is_recurrent(model: Any) -> bool:
    """Whether the graph of a training pass has more nodes for more tokens."""
    model.train()
    return len(forward_signature(model, model, 4)) != len(forward_signature(model, model, 8))


def extrapolate(plan: Callable[[StepShape], StepPlan], shape: StepShape, widths: Sequence[int]) -> StepPlan:
    """A step of a width that is too long to trace.

    Buffers grow linearly with the width. Bytes grow with its square, where blocks with attention stand between the
    recurrent ones. Three widths give the parabola exactly as long as the peak stays in the same place. Where it moves,
    the parabola may bend down, which no step does: the line through the last two widths is then the least.
    """
    per_row = Fraction(shape.positions, shape.width)
    shapes = [StepShape(shape.rows, width, max(1, int(per_row * width))) for width in widths]
    plans = [plan(each) for each in shapes]
    at = [Fraction(width) for width in widths]
    values: dict[str, Any] = {}
    for name in _COUNTS:
        values[name] = _through(at[1:], [getattr(p, name) for p in plans[1:]], shape.width)
    for name in _BYTES:
        known = [getattr(p, name) for p in plans]
        line = _through(at[1:], known[1:], shape.width)
        values[name] = max(_through(at, known, shape.width), line, *known)
    fixed = plans[-1].base_bytes + plans[-1].adapter_bytes + plans[-1].optimizer_bytes
    values["activation_bytes"] = min(values["activation_bytes"], values["peak_bytes"] - fixed)
    values["temporary_bytes"] = values["peak_bytes"] - fixed - values["activation_bytes"]
    return msgspec.structs.replace(plans[-1], **values, width=shape.width, positions=shape.positions, extrapolated=True)


def _through(at: Sequence[Fraction], values: Sequence[int], where: int) -> int:
    """Lagrange's polynomial through the points."""
    total = Fraction(0)
    for i, value in enumerate(values):
        weight = Fraction(1)
        for j, other in enumerate(at):
            if i != j:
                weight *= (where - other) / (at[i] - other)
        total += weight * value
    return max(0, int(total))
