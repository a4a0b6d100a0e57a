"""What this machine computes with, chosen once per process.

On Metal and CUDA the base keeps its quantized kernels. On the CPU, quantized matrix products do not gain from
batching and float16 is emulated, so the base is dequantized to float32 once at load: the same values, more bytes,
several times the speed.
"""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from .allocator import keep_freed_memory
from .blas import preload_blas


@dataclass(frozen=True)
class DeviceProfile:
    """The device and how a base is computed on it.

    Attributes:
        kind: ``cpu``, ``metal`` or ``cuda``.
        name: as the device calls itself.
        dense: dequantize weights to float32 at load.
        notes: sentences on what was chosen and why.
    """

    kind: str
    name: str
    dense: bool
    notes: tuple[str, ...]

    @property
    def compute(self) -> str:
        """``dense-float32`` or ``quantized``."""
        return "dense-float32" if self.dense else "quantized"


@functools.cache
def setup_device(threads: int | None = None) -> DeviceProfile:
    """Prepare the process for MLX and say what it will compute with.

    Call it before anything imports ``mlx``: on Linux CPUs it preloads a fast BLAS, which has no effect later, and lets
    malloc keep what is freed.

    Args:
        threads: of the CPU's BLAS; all cores if absent.
    """
    # transformers is here for its tokenizers; that it found no PyTorch is no news to anybody.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    blas = preload_blas(threads)
    import mlx.core as mx

    if mx.metal.is_available():
        return DeviceProfile("metal", _device_name(), False, ("Metal: quantized kernels, weights stay quantized",))
    if mx.cuda.is_available():
        return DeviceProfile("cuda", _device_name(), False, ("CUDA: quantized kernels, weights stay quantized",))
    keep_freed_memory()
    return DeviceProfile(
        "cpu",
        _cpu_name(),
        True,
        (
            blas,
            "CPU: weights are dequantized to float32 at load; quantized and float16 products are slower here",
        ),
    )


def _device_name() -> str:
    import mlx.core as mx

    info = mx.device_info()
    return str(info.get("device_name") or info.get("architecture") or mx.default_device())


def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
