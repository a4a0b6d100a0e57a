"""What the planner says. No MLX here: the daemon reads and stores these."""

from __future__ import annotations

import msgspec


class StepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One training step, predicted.

    Attributes:
        peak_bytes: of array memory at the fullest moment, base included; the sum of the next five.
        base_bytes, adapter_bytes, optimizer_bytes: there during the whole run.
        activation_bytes: made in the forward pass and kept for the backward pass.
        temporary_bytes: everything else, the batch included.
        live_buffers: most buffers alive at once, which is what a Metal device limits.
        allocations: buffers allocated in one step.
        primitives: nodes of the gradient's graph.
        trainable_parameters: their number.
        where: the region in which the peak is reached, for example ``layer 3``; empty outside of the blocks.
        backward: reached in the backward pass.
        primitive: MLX's name of the primitive at the peak.
        rows, width, positions: of the batch, padded.
        extrapolated: from shorter steps, because the model is unrolled over time.
    """

    peak_bytes: int
    base_bytes: int
    adapter_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    temporary_bytes: int
    live_buffers: int
    allocations: int
    primitives: int
    trainable_parameters: int
    where: str
    backward: bool
    primitive: str
    rows: int
    width: int
    positions: int
    extrapolated: bool = False
