"""What a process has for good is left out of later garbage collections."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import gc
import mlx_lm
from optiq_core.heap import freeze_heap
before = len(gc.get_objects())
freeze_heap()
print(before, len(gc.get_objects()))
"""


def test_later_collections_leave_out_what_was_there() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    before, looked_at = map(int, done.stdout.split())
    assert looked_at < before / 100
