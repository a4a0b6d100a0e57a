"""A daemon in the middle of a working day, the same to the byte every time."""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from optiq_protos.v1 import adapter_pb2, event_pb2, runtime_pb2, training_pb2
from tests.tui.fake_daemon import FakeDaemon

NOW = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)
TENANT = "tenants/default"
MIB = 1024 * 1024


def ago(seconds: float) -> Timestamp:
    """A time before NOW."""
    stamp = Timestamp()
    stamp.FromDatetime(NOW - timedelta(seconds=seconds))
    return stamp


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def adapter(
    name: str,
    state: int,
    *,
    ranks: tuple[int, int] = (8, 8),
    parameters: int = 460_800,
    leases: int = 0,
    kind: str = "lora",
    form: str = "optiq",
    quarantine: adapter_pb2.QuarantineReason | None = None,
    age: float = 600,
    tenant: str = TENANT,
) -> adapter_pb2.Adapter:
    """An adapter of the scene."""
    resident = state == adapter_pb2.ADAPTER_STATE_RESIDENT
    return adapter_pb2.Adapter(
        name=f"{tenant}/adapters/{name}",
        digest="" if quarantine else digest(name),
        state=state,  # type: ignore[arg-type]
        quarantine=quarantine,
        format=form,
        kind=kind,
        base_model="SmolLM2-135M-Instruct",
        module_count=60,
        min_rank=ranks[0],
        max_rank=ranks[1],
        parameter_count=parameters,
        targets=["q_proj", "v_proj"],
        disk_bytes=parameters * 4 + 1200,
        resident_bytes=parameters * 4 if resident else 0,
        active_leases=leases,
        create_time=ago(age),
        update_time=ago(age),
        source_path=f"/home/ada/.local/share/optiq/adapters/default/{name}",
        drop_to_routable_ms=412.0,
        etag=digest(name)[:8],
    )


def loss_at(step: int) -> float:
    """A loss curve that looks like one."""
    return 2.6 * math.exp(-step / 14) + 0.42 + 0.09 * math.sin(step * 1.7) * math.exp(-step / 40)


def running_progress(step: int, total: int = 60) -> training_pb2.TrainingProgress:
    """A report of the running job."""
    report = training_pb2.TrainingProgress(
        step=step,
        total_steps=total,
        train_loss=loss_at(step),
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


def status(requests: bool = True) -> runtime_pb2.RuntimeStatus:
    """Status of the scene, with or without live requests."""
    live = [
        ("7f3a01", "roman", "decode", 31, 8.4, 212.0, 4),
        ("7f3a02", "units", "decode", 27, 8.3, 230.0, 4),
        ("7f3a03", "", "decode", 25, 8.4, 241.0, 3),
        ("b20c11", "legal-summaries", "decode", 12, 7.9, 388.0, 2),
        ("c4410e", "roman", "prefill", 0, 0.0, 0.0, 1),
        ("c4410f", "sql-notes", "queued", 0, 0.0, 0.0, 0.4),
    ]
    return runtime_pb2.RuntimeStatus(
        version="0.1.0",
        pid=4242,
        start_time=ago(3 * 3600 + 25 * 60),
        home_path="/home/ada/.local/share/optiq",
        adapters_path="/home/ada/.local/share/optiq/adapters",
        base=runtime_pb2.BaseStatus(
            model="embedded",
            path="/home/ada/.cache/optiq/bases/SmolLM2-135M-Instruct",
            digest=digest("base"),
            memory_bytes=538 * MIB,
            bits_per_weight=4.9,
            layer_count=30,
            max_context=8192,
        ),
        device=runtime_pb2.DeviceStatus(
            kind="cpu",
            name="AMD EPYC, 2 cores",
            compute="dense-float32",
            notes=["OpenBLAS preloaded: the wheel's own BLAS is 30 times slower"],
        ),
        engine=runtime_pb2.EngineStatus(
            state=runtime_pb2.ENGINE_STATE_SERVING,
            pid=4243,
            active_rows=5 if requests else 0,
            queued_requests=1 if requests else 0,
            resident_adapters=3,
            adapter_bytes=9 * MIB,
            kv_cache_bytes=46 * MIB if requests else 0,
            active_memory_bytes=601 * MIB,
            peak_memory_bytes=688 * MIB,
            tokens_per_second=33.0 if requests else 0.0,
            generated_tokens=18_240,
            max_adapters_in_one_step=4,
        ),
        adapter_count=5,
        quarantined_adapter_count=1,
        queued_jobs=1,
        running_job=f"{TENANT}/jobs/units-0004",
        requests=[
            runtime_pb2.LiveRequest(
                request_id=f"req-{rid}",
                tenant="tenants/default",
                requested_adapter=name,
                adapter_digest=digest(name) if name else "",
                phase=phase,
                completion_tokens=done,
                tokens_per_second=speed,
                time_to_first_token_ms=first,
                start_time=ago(age),
            )
            for rid, name, phase, done, speed, first, age in (live if requests else [])
        ],
        process_memory_bytes=1974 * MIB,
        memory_limit_bytes=8192 * MIB,
    )


def fill(daemon: FakeDaemon, *, step: int = 38) -> None:
    """Put the whole scene into a daemon; the running job has reported up to ``step``."""
    resident, available = adapter_pb2.ADAPTER_STATE_RESIDENT, adapter_pb2.ADAPTER_STATE_AVAILABLE
    bad_shape = adapter_pb2.QuarantineReason(
        code="SHAPE_MISMATCH",
        message="lora_a does not fit the base",
        file="adapters.safetensors",
        tensor="model.layers.3.self_attn.q_proj.lora_a",
        expected="[576, 8]",
        found="[512, 8]",
    )
    for item in (
        adapter("roman", resident, ranks=(8, 16), parameters=552_960, leases=2, age=5400),
        adapter("units", resident, leases=1, age=4100),
        adapter("legal-summaries", resident, ranks=(16, 32), parameters=1_290_240, leases=1, kind="dora", form="peft"),
        adapter("sql-notes", available, ranks=(4, 4), parameters=230_400, form="mlx-lm", leases=1, age=90),
        adapter("haiku", adapter_pb2.ADAPTER_STATE_QUARANTINED, quarantine=bad_shape, form="mlx-lm", age=25),
    ):
        daemon.put_adapter(item)

    running = job(4, "units", training_pb2.JOB_STATE_RUNNING, age=130)
    for at in range(1, step + 1):
        running.progress.CopyFrom(running_progress(at))
        running.start_time.CopyFrom(ago(110))
        daemon.put_job(_copy(running), report=True)
    queued = job(5, "tone", training_pb2.JOB_STATE_QUEUED, age=60, iters=100)
    failed = job(
        3, "legal-notes", training_pb2.JOB_STATE_FAILED, age=1900, reason="train.jsonl line 14: no key 'completion'"
    )
    done = job(2, "roman", training_pb2.JOB_STATE_SUCCEEDED, age=5600)
    done.progress.CopyFrom(running_progress(60))
    done.adapter_digest = digest("roman")
    for ended in (failed, done):
        ended.start_time.CopyFrom(ended.create_time)
        ended.end_time.FromDatetime(ended.create_time.ToDatetime() + timedelta(seconds=170))
    for item in (queued, failed, done):
        daemon.put_job(item)

    lines = [
        (5600, "job.created", f"{TENANT}/jobs/roman-0002", "training of roman queued"),
        (5430, "job.succeeded", f"{TENANT}/jobs/roman-0002", "60 steps, loss 0.44"),
        (5400, "adapter.resident", f"{TENANT}/adapters/roman", "routable 412 ms after the last change"),
        (1900, "job.failed", f"{TENANT}/jobs/legal-notes-0003", "train.jsonl line 14: no key 'completion'"),
        (600, "adapter.resident", f"{TENANT}/adapters/legal-summaries", "routable 655 ms after the last change"),
        (240, "engine.restarted", "", "engine process was killed; 3 adapters mounted again"),
        (130, "job.running", f"{TENANT}/jobs/units-0004", "ranks 8 on 60 modules"),
        (90, "adapter.available", f"{TENANT}/adapters/sql-notes", "valid, loads with the first request"),
        (25, "adapter.quarantined", f"{TENANT}/adapters/haiku", "SHAPE_MISMATCH: lora_a does not fit the base"),
    ]
    for revision, (age, kind, resource, message) in enumerate(lines, start=1):
        daemon.put_event(
            event_pb2.Event(revision=revision, time=ago(age), type=kind, resource=resource, message=message)
        )
    daemon.put_status(status())


def _copy(message: training_pb2.TrainingJob) -> training_pb2.TrainingJob:
    copied = training_pb2.TrainingJob()
    copied.CopyFrom(message)
    return copied
