"""The daemon's status in the scene, and what it was in the minute and a half before."""

from __future__ import annotations

import math

from optiq_protos.v1 import generation_pb2, runtime_pb2
from tests.tui.scene_adapters import MIB, TENANT, ago, digest

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
