"""What the planner says. No MLX here: the daemon reads and stores these."""

from __future__ import annotations

import msgspec

from optiq_core.planner.calibration import Calibration
from optiq_core.planner.ceilings import Ceiling


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
        flops: of the matrix products of one gradient, for comparing plans.
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
    flops: int
    rows: int
    width: int
    positions: int
    extrapolated: bool = False


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """A change that would make a run fit.

    Attributes:
        changes: fields of :class:`optiq_core.train.config.TrainConfig` and their new values.
        text: one sentence for a person.
        expected_bytes: peak after the change, calibrated.
        time_ratio: time per example, relative to the run as asked; a rough estimate from the matrix products and the
            number of primitives.
    """

    changes: dict[str, int | bool]
    text: str
    expected_bytes: int
    time_ratio: float


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A plan held against a ceiling.

    Attributes:
        step: the plan.
        ceiling: what there is.
        calibration: what finished steps on the device have taught.
        expected_bytes: the plan's peak, calibrated.
        bound_bytes: what the step will not exceed; this is what has to fit.
        fits: bytes and resources.
        reasons: what does not fit, one sentence each.
        advice: cheapest first; empty if it fits.
    """

    step: StepPlan
    ceiling: Ceiling
    calibration: Calibration
    expected_bytes: int
    bound_bytes: int
    fits: bool
    reasons: tuple[str, ...] = ()
    advice: tuple[Advice, ...] = ()


def judge(step: StepPlan, ceiling: Ceiling, calibration: Calibration) -> Verdict:
    """Whether a step fits."""
    bound = calibration.bound(step.peak_bytes)
    reasons = []
    if bound > ceiling.free_bytes:
        reasons.append(f"needs {_gb(bound)} and there are {_gb(ceiling.free_bytes)}")
    if ceiling.resources and step.live_buffers > ceiling.resources:
        reasons.append(f"needs {step.live_buffers:,} resources and the device has {ceiling.resources:,}")
    return Verdict(
        step=step,
        ceiling=ceiling,
        calibration=calibration,
        expected_bytes=calibration.expected(step.peak_bytes),
        bound_bytes=bound,
        fits=not reasons,
        reasons=tuple(reasons),
    )


def notes_of(verdict: Verdict) -> tuple[str, ...]:
    """What a prediction leaves out, one sentence each; empty where the rules were checked against real steps."""
    notes = []
    if verdict.ceiling.backend != "cpu":
        notes.append(
            "the CPU's graph is planned: norms, RoPE and attention that this device computes in one kernel count as "
            "their parts, chains that mx.compile fuses are not fused, and launches captured as a CUDA graph are not "
            "modelled; the peak reads high"
        )
    if verdict.step.extrapolated:
        notes.append("unrolled over time: extrapolated from shorter steps")
    return tuple(notes)


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
