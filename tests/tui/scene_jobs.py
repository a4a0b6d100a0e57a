"""Jobs of the scene, with their plans and curves."""

from __future__ import annotations

import math

from optiq_protos.v1 import training_pb2
from tests.tui.scene_adapters import MIB, TENANT, ago


def loss_at(step: int) -> float:
    """A loss curve that looks like one."""
    return 2.6 * math.exp(-step / 14) + 0.42 + 0.09 * math.sin(step * 1.7) * math.exp(-step / 40)


def running_progress(step: int, total: int = 60, slower: float = 1.0) -> training_pb2.TrainingProgress:
    """A report of the running job."""
    report = training_pb2.TrainingProgress(
        step=step,
        total_steps=total,
        train_loss=loss_at(step / slower),
        tokens_per_second=91.4,
        trained_tokens=step * 232,
        seconds_left=(total - step) * 2.5,
        peak_memory_bytes=1180 * MIB,
        learning_rate=2e-4,
    )
    if step >= 20:
        report.valid_loss = loss_at(step - step % 20) + 0.11
    return report


def job(
    number: int, adapter_id: str, state: int, *, age: float, reason: str = "", iters: int = 60
) -> training_pb2.TrainingJob:
    """A job of the scene."""
    return training_pb2.TrainingJob(
        name=f"{TENANT}/jobs/{adapter_id}-{number:04d}",
        state=state,  # type: ignore[arg-type]
        state_reason=reason,
        adapter_id=adapter_id,
        config=training_pb2.TrainingConfig(
            data_path=f"/home/ada/data/{adapter_id}",
            rank=8,
            rank_scaling=training_pb2.RANK_SCALING_BY_BITS,
            iters=iters,
            batch_size=8,
            learning_rate=2e-4,
        ),
        create_time=ago(age),
        attempts=1,
        etag="1",
    )


def plan(fits: bool = True) -> training_pb2.TrainingPlan:
    """What a job of the scene would take."""
    made = training_pb2.TrainingPlan(
        expected_bytes=(1210 if fits else 6900) * MIB,
        bound_bytes=(1380 if fits else 7800) * MIB,
        free_bytes=6100 * MIB,
        base_bytes=538 * MIB,
        adapter_bytes=2 * MIB,
        optimizer_bytes=4 * MIB,
        activation_bytes=(480 if fits else 6000) * MIB,
        temporary_bytes=(186 if fits else 356) * MIB,
        live_buffers=18_240,
        resource_limit=499_000,
        fits=fits,
        peak_at="model.layers.29.mlp.down_proj",
    )
    if not fits:
        made.reasons.append("7.6 GiB may be needed at once, 6.0 GiB are free")
        made.advice.add(text="recompute activations (grad_checkpoint)", expected_bytes=2300 * MIB, time_ratio=1.27)
        made.advice.add(text="batch size 4 instead of 8", expected_bytes=3900 * MIB, time_ratio=1.04)
    return made


def copied(message: training_pb2.TrainingJob) -> training_pb2.TrainingJob:
    """Another message of the same content."""
    made = training_pb2.TrainingJob()
    made.CopyFrom(message)
    return made
