"""What a back end does differently: how far it schedules ahead, and what it fuses. No MLX here."""

from __future__ import annotations

from dataclasses import dataclass

_UNLIMITED = 1 << 62


@dataclass(frozen=True, slots=True)
class Backend:
    """How MLX evaluates on one kind of device.

    Attributes:
        name: ``cpu``, ``metal`` or ``cuda``.
        tasks_ahead: tasks that may wait or run before scheduling stops for one to end.
        operations_per_task, bytes_per_task: a task is closed when it has this many operations, or reads and writes
            more than so many bytes.
        carries_over: operations beyond the limit count for the next task.
        compiled: the step goes through ``mx.compile``, which fuses element-wise chains.
        page: allocations are rounded up to it, in bytes.
        flops_per_second, seconds_per_primitive: for rough comparisons of two plans on the same device only.
    """

    name: str
    tasks_ahead: int
    operations_per_task: int
    bytes_per_task: int = _UNLIMITED
    carries_over: bool = False
    compiled: bool = False
    page: int = 1
    flops_per_second: float = 4e10
    seconds_per_primitive: float = 15e-6


CPU = Backend("cpu", tasks_ahead=10, operations_per_task=10, carries_over=True)
METAL = Backend(
    "metal",
    tasks_ahead=10,
    operations_per_task=40,
    bytes_per_task=40 << 20,
    compiled=True,
    page=16384,
    flops_per_second=5e12,
    seconds_per_primitive=10e-6,
)
CUDA = Backend(
    "cuda",
    tasks_ahead=10,
    operations_per_task=100,
    bytes_per_task=1000 << 20,
    compiled=True,
    page=512,
    flops_per_second=5e13,
    seconds_per_primitive=5e-6,
)

BACKENDS = {backend.name: backend for backend in (CPU, METAL, CUDA)}
