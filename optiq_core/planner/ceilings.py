"""How much a training step may take: bytes and, on Metal, resources. No MLX here.

Two cliffs, not one: an Apple GPU fails when a command buffer's memory exceeds the recommended working set, and,
whatever the bytes, when more than so many buffers are bound at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from optiq_core.errors import PlanError

# What MLX assumes where the system does not say (`iogpu.rsrc_limit`).
RESOURCE_LIMIT = 499_000
# Kept free for everything that is not an array: kernels, the Python process, the system.
RESERVE_FRACTION = 0.03

_GIB = 1 << 30
_CGROUP = Path("/sys/fs/cgroup")
_APPLE = re.compile(r"^m[1-9](-(pro|max|ultra))?-(\d+)gb$")
_CUDA = {"rtx-3090-24gb": 24, "rtx-4090-24gb": 24, "a100-40gb": 40, "a100-80gb": 80, "h100-80gb": 80, "h200-141gb": 141}


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """What there is for a training process.

    Attributes:
        device: its name.
        backend: ``cpu``, ``metal`` or ``cuda``.
        limit_bytes: of the device, before anything is taken off.
        resident_bytes: what is there already and stays, such as the engine's base.
        reserve_bytes: kept free.
        user_bytes: the user's own limit for training, 0 for none.
        resources: buffers that may live at once, 0 where nothing limits them.
        notes: where the figures come from.
    """

    device: str
    backend: str
    limit_bytes: int
    resident_bytes: int = 0
    reserve_bytes: int = 0
    user_bytes: int = 0
    resources: int = 0
    notes: tuple[str, ...] = ()

    @property
    def free_bytes(self) -> int:
        """What a training process may take at its peak."""
        free = max(0, self.limit_bytes - self.resident_bytes - self.reserve_bytes)
        return min(free, self.user_bytes) if self.user_bytes else free


@dataclass(frozen=True, slots=True)
class _Device:
    backend: str
    limit_bytes: int
    resources: int
    note: str


def ceiling_of(
    name: str,
    *,
    resident_bytes: int = 0,
    user_bytes: int = 0,
    user_resources: int = 0,
    device_info: Mapping[str, Any] | None = None,
) -> Ceiling:
    """The ceiling of a device.

    Args:
        name: ``cpu``, ``metal`` or ``cuda`` for this machine, or a device to simulate, for example ``m3-max-36gb``.
        resident_bytes: of other processes that share the device's memory and are not in its own figure.
        user_bytes, user_resources: limits of the user's own, 0 for none.
        device_info: ``mx.device_info()``, for this machine's GPU.

    Raises:
        PlanError: no such device.
    """
    found = _this_machine(name, device_info or {}) or _simulated(name)
    if found is None:
        raise PlanError(
            f"device {name!r} is not known; say cpu, an Apple chip with its memory such as m3-max-36gb, or one of "
            f"{', '.join(_CUDA)}"
        )
    resources = min(filter(None, (found.resources, user_resources)), default=0)
    return Ceiling(
        device=name,
        backend=found.backend,
        limit_bytes=found.limit_bytes,
        resident_bytes=resident_bytes,
        reserve_bytes=int(found.limit_bytes * RESERVE_FRACTION),
        user_bytes=user_bytes,
        resources=resources,
        notes=(found.note,),
    )


def _simulated(name: str) -> _Device | None:
    if name in _CUDA:
        return _Device("cuda", _CUDA[name] * _GIB, 0, f"{_CUDA[name]} GiB of device memory")
    if match := _APPLE.match(name):
        memory = int(match[3])
        # The system's default: three quarters of the memory from 36 GB on, two thirds below.
        share, said = (3 / 4, "three quarters") if memory >= 36 else (2 / 3, "two thirds")
        note = f"recommended working set: {said} of {memory} GiB; {RESOURCE_LIMIT:,} resources"
        return _Device("metal", int(memory * _GIB * share), RESOURCE_LIMIT, note)
    return None


def _this_machine(name: str, info: Mapping[str, Any]) -> _Device | None:
    if name == "cpu":
        return _cpu()
    if name == "metal" and info:
        limit = int(info["max_recommended_working_set_size"])
        resources = int(info.get("resource_limit") or RESOURCE_LIMIT)
        return _Device("metal", limit, resources, "recommended working set and resource limit of this device")
    if name == "cuda" and info:
        free = int(info.get("free_memory") or info.get("total_memory") or info.get("memory_size") or 0)
        return _Device("cuda", free, 0, "free memory of this device")
    return None


def system_free_bytes() -> int:
    """What the system says is available, or what is left of the control group's limit if that is less."""
    return _cpu().limit_bytes


def _cpu() -> _Device:
    import psutil

    available = int(psutil.virtual_memory().available)
    grouped = _cgroup_free()
    if grouped is not None and grouped < available:
        return _Device("cpu", grouped, 0, "what is left of the control group's memory limit")
    return _Device("cpu", available, 0, "available system memory")


def _cgroup_free() -> int | None:
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        current = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - current)
