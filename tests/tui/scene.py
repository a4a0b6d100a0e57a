"""A daemon in the middle of a working day, the same to the byte every time."""

from __future__ import annotations

from datetime import timedelta

from optiq_protos.v1 import adapter_pb2, event_pb2, training_pb2
from tests.tui.fake_daemon import FakeDaemon
from tests.tui.scene_adapters import NOW, SIZES, TENANT, adapter, ago, digest, versions
from tests.tui.scene_jobs import copied, job, plan, running_progress
from tests.tui.scene_routing import fill_routing
from tests.tui.scene_status import past, status

# With these, a test needs no more than the scene.
__all__ = [
    "NOW",
    "SIZES",
    "adapter",
    "ago",
    "digest",
    "fill",
    "fill_all",
    "job",
    "past",
    "plan",
    "running_progress",
    "status",
]


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
        adapter(
            "roman", resident, ranks=(8, 16), parameters=552_960, leases=2, age=5400, version=3, pinned=True, used=1
        ),
        adapter("units", resident, leases=2, age=4100, used=1),
        adapter(
            "legal-summaries",
            resident,
            ranks=(16, 32),
            parameters=1_290_240,
            leases=1,
            kind="dora",
            form="peft",
            version=4,
            used=2,
        ),
        adapter("sql-notes", available, ranks=(4, 4), parameters=230_400, form="mlx-lm", leases=1, age=90),
        adapter("haiku", adapter_pb2.ADAPTER_STATE_QUARANTINED, quarantine=bad_shape, form="mlx-lm", age=25),
    ):
        daemon.put_adapter(item)

    daemon.versions[f"{TENANT}/adapters/roman"] = versions()
    daemon.ranks = {
        f"model.layers.{layer}.self_attn.{module}": 16 if layer < 2 or layer > 27 or layer % 9 == 5 else 8
        for layer in range(30)
        for module in ("q_proj", "v_proj")
    }
    daemon.plan = plan()
    fill_routing(daemon)
    running = job(4, "units", training_pb2.JOB_STATE_RUNNING, age=130)
    running.plan.CopyFrom(plan())
    for at in range(1, step + 1):
        running.progress.CopyFrom(running_progress(at))
        running.start_time.CopyFrom(ago(110))
        daemon.put_job(copied(running), report=True)
    daemon.logs[running.name] = [
        f"2026-03-14 15:07:11,204 INFO optiq.trainer: {running.name}: training units on AMD EPYC",
        "2026-03-14 15:07:21,870 WARNING optiq.trainer: 3 of 118 examples are cut to 2048 tokens",
    ]
    queued = job(5, "tone", training_pb2.JOB_STATE_QUEUED, age=60, iters=100)
    queued.schedule.priority = 5
    queued.schedule.after.append(running.name)
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


def fill_all(daemon: FakeDaemon) -> None:
    """The scene, with what only a dashboard shows: a past, the curve of an ended job, answers by adapter."""
    fill(daemon)
    daemon.past = past()
    daemon.progress[f"{TENANT}/jobs/roman-0002"] = [running_progress(step, slower=1.4) for step in range(1, 61)]
    daemon.replies = {
        "base": [
            "The sum of ",
            "XIV and 9 ",
            "is 23. ",
            "Let me ",
            "explain step ",
            "by step: ",
            "XIV is 14, ",
            "and so on.",
        ],
        "roman": ["XX", "III"],
        "sql-notes": ["SELECT ", "14 + 9;"],
        "roman+sql-notes": ["SELECT ", "'XXIII';"],
    }
