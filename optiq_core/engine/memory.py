"""What a row's KV caches will take, and what there is for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import psutil

# Of the memory that is left once the base is loaded.
_KV_SHARE = 0.5
_PROBES = (256, 512)
# Of that, what the attention scores of one chunk of a prompt may take.
_CHUNK_SHARE = 0.25
# mlx-lm's caches grow in steps of so many tokens.
_GROWTH = 256
# Limit, usage, and what of the usage could be reclaimed, for version 2 and 1 of control groups.
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file "),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
)


@dataclass(frozen=True)
class RowCost:
    """Bytes of one row's KV caches."""

    per_token: float
    fixed: float

    def rows(self, lengths: Iterable[int]) -> float:
        """Return the bytes of a batch at its full lengths: every row is padded to the longest."""
        padded = [length + _GROWTH for length in lengths]
        return len(padded) * (self.fixed + self.per_token * max(padded, default=0))


def row_cost(model: nn.Module, new_cache: Callable[[nn.Module], list[Any]]) -> RowCost:
    """Measure the caches on prompts of two lengths; shapes are enough, nothing is computed."""
    sizes = []
    for length in _PROBES:
        caches = new_cache(model)
        model(mx.zeros((1, length), mx.int32), cache=caches)
        sizes.append(sum(int(cache.nbytes) for cache in caches))
    per_token = (sizes[1] - sizes[0]) / (_PROBES[1] - _PROBES[0])
    return RowCost(per_token, max(sizes[0] - per_token * _PROBES[0], 0.0))


def kv_budget() -> int:
    """Return the bytes for KV caches where no setting says: half of what this process may still take."""
    return int(_KV_SHARE * _memory_left())


def chunk_limit(wanted: int, *, heads: int, context: int, budget: int) -> int:
    """Return how many prompt tokens may be processed at once: the scores of a chunk against a full context must fit.

    Args:
        wanted: the setting.
        heads: attention heads of a layer.
        context: tokens of the longest prompt; 0 if unknown.
        budget: bytes for KV caches.
    """
    per_token = heads * context * 4
    return wanted if not per_token else max(1, min(wanted, int(_CHUNK_SHARE * budget / per_token)))


def _memory_left() -> int:
    working_set = mx.device_info().get("max_recommended_working_set_size")
    if working_set:
        return max(int(working_set) - mx.get_active_memory(), 0)
    left = int(psutil.virtual_memory().available)
    for folder, limit, usage, reclaimable in _CGROUPS:
        # "max" is no number; version 1 writes a huge one for no limit.
        with contextlib.suppress(OSError, ValueError):
            lines = (folder / "memory.stat").read_text().splitlines()
            cached = sum(int(line.removeprefix(reclaimable)) for line in lines if line.startswith(reclaimable))
            left = min(left, int((folder / limit).read_text()) - int((folder / usage).read_text()) + cached)
    return max(left, 0)
