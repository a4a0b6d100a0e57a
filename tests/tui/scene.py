"""A daemon in the middle of a working day, the same to the byte every time."""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from optiq_protos.v1 import adapter_pb2, event_pb2, generation_pb2, route_pb2, runtime_pb2, tenant_pb2, training_pb2
from tests.tui.fake_daemon import FakeDaemon

SIZES = [(80, 24), (200, 60)]
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
    version: int = 1,
    pinned: bool = False,
    used: float = 0,
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
        version=0 if quarantine else version,
        pinned=pinned,
        last_use_time=ago(used) if used else None,
    )


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


ROUTED = {
    "route": f"{TENANT}/routes/support",
    "route_target": "legal-summaries@v4",
    "route_why": "weight 10 of 100",
}


def _served(asked: str) -> list[generation_pb2.ServedAdapter]:
    """What serves a request of the scene: its adapter, the parts of its blend, or the target of its route."""
    parts = [part.split("=") for part in asked.split(", ")] if "=" in asked else [[asked, "1"]] if asked else []
    return [
        generation_pb2.ServedAdapter(
            name=f"{TENANT}/adapters/{'legal-summaries' if name == 'support' else name}",
            digest=digest(name),
            weight=float(weight),
        )
        for name, weight in parts
    ]


def status(requests: bool = True) -> runtime_pb2.RuntimeStatus:
    """Status of the scene, with or without live requests."""
    live = [
        ("7f3a01", "roman", "decode", 31, 8.4, 212.0, 4, 0),
        ("7f3a02", "units", "decode", 27, 8.3, 230.0, 4, 0),
        ("7f3a03", "", "decode", 25, 8.4, 241.0, 3, 0),
        ("b20c11", "support", "decode", 12, 7.9, 388.0, 2, 0),
        ("c4410e", "roman=0.7, units=0.3", "prefill", 0, 0.0, 0.0, 1, 0),
        ("c4410f", "sql-notes", "queued", 0, 0.0, 0.0, 0.4, 1),
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
            kv_cache="float",
            kv_bytes_per_token=46_080,
            kv_budget_bytes=1024 * MIB,
            adapter_budget_bytes=512 * MIB,
            prefix_cache_bytes=12 * MIB,
            prefix_cache_entries=7,
            prefix_hits=31,
            prefix_hit_tokens=4_210,
        ),
        adapter_count=5,
        quarantined_adapter_count=1,
        queued_jobs=1,
        running_job=f"{TENANT}/jobs/units-0004",
        requests=[
            runtime_pb2.LiveRequest(
                request_id=f"req-{rid}",
                tenant="acme" if name == "sql-notes" else "default",
                requested_adapter=name,
                adapter_digest="" if not name or "=" in name else digest(name),
                phase=phase,
                completion_tokens=done,
                tokens_per_second=speed,
                time_to_first_token_ms=first,
                start_time=ago(age),
                adapters=_served(name),
                queue_position=place,
                **(ROUTED if name == "support" else {}),
            )
            for rid, name, phase, done, speed, first, age, place in (live if requests else [])
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
        daemon.put_job(_copy(running), report=True)
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


def versions() -> list[adapter_pb2.AdapterVersion]:
    """Versions of the adapter `roman`."""
    origins = {3: "training", 2: "folder", 1: "import"}
    return [
        adapter_pb2.AdapterVersion(
            number=number,
            digest=digest("roman" if number == 3 else f"roman-{number}"),
            current=number == 3,
            origin=origin,
            create_time=ago(5400 * (4 - number)),
            publish_time=ago(5400 * (4 - number)),
            format="optiq",
            kind="lora",
            min_rank=8,
            max_rank=16 if number == 3 else 8,
            parameter_count=552_960 if number == 3 else 460_800,
            disk_bytes=2_200_000,
            resident_bytes=2_211_840 if number == 3 else 0,
            active_leases=2 if number == 3 else 0,
        )
        for number, origin in origins.items()
    ]


def past() -> list[runtime_pb2.RuntimeStatus]:
    """A minute and a half of statuses before the present one."""
    found = []
    for second in range(90):
        at = status()
        at.engine.tokens_per_second = max(0.0, 26 + 14 * math.sin(second / 9) + 6 * math.sin(second * 1.3))
        at.engine.active_rows = round(4 + 3 * math.sin(second / 9))
        at.engine.queued_requests = max(0, round(4 * math.sin(second / 7 - 2)))
        found.append(at)
    return found


def fill_routing(daemon: FakeDaemon) -> None:
    """Routes with their decisions and shadow answers, and three tenants."""
    targets = [("legal-summaries@v3", 90), ("legal-summaries@v4", 10)]
    support = route_pb2.Route(
        name=f"{TENANT}/routes/support",
        targets=[route_pb2.RouteTarget(target=target, weight=weight) for target, weight in targets],
        fallbacks=["base"],
        shadow="legal-summaries@v5",
        sticky=True,
        generation=4,
        change="weights set",
        create_time=ago(86400),
        update_time=ago(1200),
        counts=[
            route_pb2.RouteTargetCount(target="legal-summaries@v3", requests=1_804),
            route_pb2.RouteTargetCount(target="legal-summaries@v4", requests=197, fallbacks=2),
            route_pb2.RouteTargetCount(target="base", requests=3, fallbacks=3),
        ],
    )
    numbers = route_pb2.Route(
        name=f"{TENANT}/routes/numbers",
        targets=[route_pb2.RouteTarget(target="roman", weight=1), route_pb2.RouteTarget(target="units", weight=1)],
        generation=1,
        change="created",
        create_time=ago(4000),
        update_time=ago(4000),
        counts=[
            route_pb2.RouteTargetCount(target="roman", requests=211),
            route_pb2.RouteTargetCount(target="units", requests=205),
        ],
    )
    for route in (support, numbers):
        daemon.routing.routes[route.name] = route
    ways = [
        (1, "b20c11", "legal-summaries@v4", "weight 10 of 100"),
        (4, "b20c0e", "legal-summaries@v3", "weight 90 of 100, sticky key"),
        (9, "b20c0b", "legal-summaries@v3", "weight 90 of 100, sticky key"),
        (31, "b20c05", "base", "fallback: legal-summaries@v4 is loading"),
    ]
    daemon.routing.decisions[support.name] = [
        route_pb2.RouteDecision(
            time=ago(age), request_id=f"req-{rid}", requested="support", target=target, why=why, generation=4
        )
        for age, rid, target, why in ways
    ]
    answers = [
        (4, "b20c0e", "The clause ends the lease after 30 days.", "The lease ends 30 days after notice.", "ANSWERED"),
        (9, "b20c0b", "Both parties share the costs.", "The costs are shared.", "ANSWERED"),
        (12, "b20c0a", "No penalty applies.", "", "EVICTED"),
    ]
    daemon.routing.shadows[support.name] = [
        route_pb2.ShadowAnswer(
            time=ago(age),
            request_id=f"req-{rid}",
            target="legal-summaries@v3",
            shadow="legal-summaries@v5",
            answer=answer,
            shadow_answer=other,
            outcome=outcome,
            completion_tokens=len(answer.split()),
            shadow_completion_tokens=len(other.split()),
            tokens_per_second=8.3,
            shadow_tokens_per_second=8.1 if other else 0,
        )
        for age, rid, answer, other, outcome in answers
    ]
    shares = [
        ("default", 3.0, 4, 0, 3_120.0, 0),
        ("acme", 1.0, 1, 1, 9_210.0, 60_000),
        ("lab", 0.5, 0, 0, 120.0, 20_000),
    ]
    for name, weight, running, queued, tokens, quota in shares:
        daemon.tenancy.tenants.append(
            tenant_pb2.Tenant(
                name=f"tenants/{name}",
                role=tenant_pb2.TENANT_ROLE_ADMIN if name == "default" else tenant_pb2.TENANT_ROLE_TENANT,
                weight=weight,
                quotas=tenant_pb2.TenantQuotas(
                    concurrent_requests=8 if quota else 0,
                    tokens_per_minute=quota,
                    resident_bytes=64 * MIB if quota else 0,
                    queued_jobs=2 if quota else 0,
                ),
                load=tenant_pb2.TenantLoad(
                    running_requests=running,
                    queued_requests=queued,
                    adapter_count={"default": 5, "acme": 2, "lab": 0}[name],
                    resident_bytes={"default": 9, "acme": 2, "lab": 0}[name] * MIB,
                    open_jobs=2 if name == "default" else 0,
                    virtual_tokens=tokens,
                ),
            )
        )


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


def _copy(message: training_pb2.TrainingJob) -> training_pb2.TrainingJob:
    copied = training_pb2.TrainingJob()
    copied.CopyFrom(message)
    return copied
