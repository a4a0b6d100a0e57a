"""Time, names, and the adapters of the scene."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from optiq_protos.v1 import adapter_pb2

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
