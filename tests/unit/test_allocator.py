"""What MLX frees on the CPU is used again without the kernel."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_WORK = """
import resource
from optiq_core.base.allocator import keep_freed_memory
assert keep_freed_memory()
import mlx.core as mx
mx.set_default_device(mx.cpu)
x = mx.ones((6 << 20,))
mx.eval(x)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for _ in range(8):
        mx.eval([x + i for i in range(4)])
work()
before = faults()
work()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_buffers_that_come_and_go_are_not_mapped_anew() -> None:
    # 32 buffers of 24 MB, 6,144 pages each. What malloc does by itself depends on the order in which they were freed.
    done = subprocess.run([sys.executable, "-c", _WORK], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 6144
