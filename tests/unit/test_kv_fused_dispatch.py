"""The whole way to a device's kernel, up to its compiler: what is launched, with which arguments, and when.

The sources are those that Metal and CUDA would get, compiled as C++ for one thread and run over the whole grid. That
the devices' own compilers take them is not shown here: no device was there.
"""

from __future__ import annotations

import ctypes
import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from optiq_core.kv import fused
from optiq_core.kv.attend import attend
from optiq_core.kv.codec import Compressed
from optiq_core.kv.turboquant import TurboQuantCodec

DIM = 64
COMPILER = shutil.which("g++") or shutil.which("c++")
C_TYPES = {"float32": "float", "uint8": "uint8_t", "int32": "int", "int64": "int64_t"}

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


class HostKernel:
    """Takes the place of what `mx.fast.metal_kernel` and `mx.fast.cuda_kernel` return."""

    def __init__(self, kernel: fused.Kernel, where: str, folder: Path) -> None:
        self.kernel, self.where, self.folder = kernel, where, folder
        self.launches: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __call__(
        self,
        *,
        inputs: list[mx.array],
        template: list[tuple[str, int]],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        output_shapes: list[tuple[int, ...]],
        output_dtypes: list[mx.Dtype],
    ) -> list[mx.array]:
        assert all(n % t == 0 for n, t in zip(grid, threadgroup, strict=True))
        assert output_dtypes == [mx.float32]
        self.launches.append((grid, output_shapes[0]))
        names = [*self.kernel.inputs, "total"]
        # A copy would hide it if a kernel did not follow the strides of a view.
        held = {name: np.ascontiguousarray(np.array(x)) for name, x in zip(names, inputs, strict=True)}
        codes = held["codes"]
        room = np.full((*codes.shape[:2], codes.shape[2] + 5, codes.shape[3]), 255, np.uint8)
        room[:, :, : codes.shape[2]] = codes
        held["codes"] = room
        strides = np.array(room.strides, np.int64)
        out = np.full(output_shapes[0], np.nan, np.float32)
        library = self._compiled(tuple(template), {name: C_TYPES[str(x.dtype)] for name, x in held.items()})
        sizes = np.array([*grid, *threadgroup], np.int32)
        library.run(*(a.ctypes.data_as(ctypes.c_void_p) for a in (*held.values(), strides, out, sizes)))
        assert not np.isnan(out).any()
        return [mx.array(out)]

    def _compiled(self, template: tuple[tuple[str, int], ...], types: dict[str, str]) -> Any:
        name = "_".join([self.kernel.name, self.where, *(f"{k}{v}" for k, v in template)])
        library = self.folder / f"{name}.so"
        if not library.exists():
            defines = "\n".join(f"#define {key} {value}" for key, value in template)
            arguments = ", ".join(f"const {kind}* {arg}" for arg, kind in types.items())
            (self.folder / f"{name}.cpp").write_text(
                f"""#include <cstdint>
{defines}
{fused.HEADER}
struct Place {{ int x, y, z; }};
static void thread(Place thread_position_in_grid, Place blockIdx, Place blockDim, Place threadIdx,
                   {arguments}, const int64_t* codes_strides, float* out) {{
int T = total[0];
{self.kernel.source(self.where)}
}}
extern "C" void run({arguments}, const int64_t* codes_strides, float* out, const int* n) {{
    for (int z = 0; z < n[2]; ++z) for (int y = 0; y < n[1]; ++y) for (int x = 0; x < n[0]; ++x)
        thread({{x, y, z}}, {{x / n[3], y / n[4], z / n[5]}}, {{n[3], n[4], n[5]}}, {{x % n[3], y % n[4], z % n[5]}},
               {", ".join(types)}, codes_strides, out);
}}
"""
            )
            command = [str(COMPILER), "-O1", "-shared", "-fPIC", "-o", str(library), str(self.folder / f"{name}.cpp")]
            subprocess.run(command, check=True, capture_output=True, text=True)
        return ctypes.CDLL(str(library))


Kernels = dict[tuple[str, str], Any]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Kernels]]:
    """Pretends to be on a device; returns the kernels that are made for it, by name and device."""
    made: Kernels = {}

    def pretend(where: str, make: Any = HostKernel) -> Kernels:
        def compiled(kernel: fused.Kernel, where: str) -> Any:
            return made.setdefault((kernel.name, where), make(kernel, where, tmp_path))

        monkeypatch.setattr(fused, "device", lambda: where)
        monkeypatch.setattr(fused, "_compiled", compiled)
        return made

    fused._agrees.cache_clear()
    yield pretend
    fused._agrees.cache_clear()


@pytest.mark.parametrize("where", ["metal", "cuda"])
def test_a_device_s_attention_is_that_of_plain_operations(where: str, on: Callable[..., Kernels]) -> None:
    codec = TurboQuantCodec(DIM, 4, seed=3)
    keys, values = (mx.random.normal((2, 2, 300, DIM), key=mx.random.key(k)) for k in (1, 2))
    queries = mx.random.normal((2, 6, 1, DIM), key=mx.random.key(3))
    held = [Compressed(codec.encode(x), DIM) for x in (keys, values)]
    expected = attend(codec, queries, *held, scale=0.125, mask=None, sinks=None)
    kernels = on(where)
    found = attend(codec, queries, *held, scale=0.125, mask=None, sinks=None)
    assert mx.allclose(found, expected, atol=1e-5)
    assert set(kernels) == {("turboquant_scores", where), ("turboquant_values", where)}
    # The comparison at first use, and then this step: 300 positions in blocks of 128 threads, and in splits of 256.
    assert kernels["turboquant_scores", where].launches[-1] == ((384, 4, 1), (2, 2, 3, 300))
    assert kernels["turboquant_values", where].launches[-1] == ((32, 2, 4), (2, 2, 2, 3, DIM))


def test_kernels_take_decode_steps_of_whole_power_of_two_bits(on: Callable[..., Kernels]) -> None:
    on("metal")
    assert fused.usable(DIM, [(DIM, 4)], 3)
    assert not fused.usable(DIM, [(DIM, 4)], 17)
    assert not fused.usable(DIM, [(DIM, 3)], 3)
    assert not fused.usable(DIM, [(DIM // 2, 4), (DIM // 2, 3)], 3)


def test_a_device_that_disagrees_or_cannot_compile_takes_plain_operations(
    on: Callable[..., Kernels], caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(HostKernel):
        def __call__(self, **launch: Any) -> list[mx.array]:
            return [super().__call__(**launch)[0] * 1.1]

    class Broken(HostKernel):
        def __call__(self, **launch: Any) -> list[mx.array]:
            raise RuntimeError("no such instruction")

    for make, said in ((Wrong, "are off by"), (Broken, "no such instruction")):
        fused._agrees.cache_clear()
        caplog.clear()
        on("cuda", make).clear()
        with caplog.at_level(logging.WARNING, logger=fused.__name__):
            assert not fused.usable(DIM, [(DIM, 4)], 3)
        assert said in caplog.text and "plain operations are used" in caplog.text
