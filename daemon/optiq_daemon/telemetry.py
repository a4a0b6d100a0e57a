"""Memory of the processes and of the machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def process_memory(pids: Iterable[int]) -> int:
    """Resident bytes of these processes together; those that are gone count nothing."""
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(pid).memory_info().rss
    return total


def memory_limit() -> int:
    """Bytes that the machine, or the cgroup that this process is in, has."""
    limit = int(psutil.virtual_memory().total)
    for file in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            # "max" is no number; version 1 writes a huge one for no limit.
            limit = min(limit, int(file.read_text()))
    return limit
