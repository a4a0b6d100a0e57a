"""The bodies of the fused kernels, compiled as C++ and run thread by thread, against the plain operations."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from optiq_core.kv import fused
from optiq_core.kv.codebook import codebook
from optiq_core.kv.turboquant import TurboQuantCodec

DIM, HEADS, BATCH, ROWS, TOTAL, SPAN = 64, 2, 2, 3, 300, 256
COMPILER = shutil.which("g++") or shutil.which("c++")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bodies_compute_what_plain_operations_do(bits: int, tmp_path: Path) -> None:
    codec = TurboQuantCodec(DIM, bits, seed=5)
    whole = codec.encode(mx.random.normal((BATCH, 2 * HEADS, TOTAL + 20, DIM), key=mx.random.key(0)))
    # A view, as the caches hand it over: the second half of the heads, and room at the end.
    codes, scale = (part[:, HEADS:, :TOTAL] for part in whole)
    strides = np.array([2 * HEADS * (TOTAL + 20), TOTAL + 20, 1], np.int64) * codes.shape[-1]
    buffer = np.array(whole[0]).reshape(-1)[HEADS * int(strides[1]) :]
    scales = np.array(scale).astype(np.float32)
    centroids = codebook(DIM, bits).centroids.astype(np.float32)
    queries = np.array(mx.random.normal((BATCH, HEADS, ROWS, DIM), key=mx.random.key(1)))
    weights = np.array(mx.softmax(mx.random.normal((BATCH, HEADS, ROWS, TOTAL), key=mx.random.key(2)), axis=-1))
    library = compiled(bits, tmp_path)

    out = np.zeros((BATCH, HEADS, ROWS, TOTAL), np.float32)
    library.scores(*pointers(queries, buffer, scales, centroids, strides, out))
    expected = np.array(codec.plain_scores(mx.array(queries), (codes, scale)))
    assert out == pytest.approx(expected, abs=1e-4)

    splits = -(-TOTAL // SPAN)
    parts = np.zeros((splits, BATCH, HEADS, ROWS, DIM), np.float32)
    scaled = weights * scales.swapaxes(-1, -2)
    library.values(*pointers(scaled, buffer, centroids, strides, parts))
    expected = np.array(codec.plain_weighted(mx.array(weights), (codes, scale)))
    assert parts.sum(axis=0) == pytest.approx(expected, abs=1e-4)


def test_sources_name_the_place_of_a_thread_on_each_device() -> None:
    assert "int X = thread_position_in_grid.x;" in fused.SCORES.source("metal")
    assert "int Z = blockIdx.z * blockDim.z + threadIdx.z;" in fused.VALUES.source("cuda")


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="there is a GPU")
def test_the_cpu_takes_plain_operations() -> None:
    assert fused.device() == ""
    assert not fused.usable(DIM, [(DIM, 4)], 1)


@pytest.mark.skipif(mx.default_device() == mx.Device(mx.cpu), reason="no GPU")
def test_the_device_s_kernels_agree_with_plain_operations() -> None:
    assert all(fused.usable(DIM, [(DIM, bits)], 3) for bits in (1, 2, 4, 8))


def pointers(*arrays: Any) -> list[Any]:
    assert all(a.flags.c_contiguous for a in arrays)
    return [a.ctypes.data_as(ctypes.c_void_p) for a in arrays]


def compiled(bits: int, folder: Path) -> Any:
    """Wrap both bodies into loops over their grids."""
    constants = {"D": DIM, "BITS": bits, "H": HEADS, "N": ROWS, "BH": BATCH * HEADS, "SPAN": SPAN}
    defines = "\n".join(f"#define {name} {value}" for name, value in constants.items())
    (folder / "bodies.cpp").write_text(
        f"""#include <cstdint>
{defines}
{fused.HEADER}
static void scores_at(int X, int Y, const float* queries, const uint8_t* codes, const float* scales,
                      const float* centroids, const int64_t* codes_strides, float* out) {{
    const int T = {TOTAL};
{fused.SCORES_BODY}
}}
static void values_at(int X, int Y, int Z, const float* weights, const uint8_t* codes, const float* centroids,
                      const int64_t* codes_strides, float* out) {{
    const int T = {TOTAL};
{fused.VALUES_BODY}
}}
extern "C" void scores(const float* queries, const uint8_t* codes, const float* scales, const float* centroids,
                       const int64_t* strides, float* out) {{
    for (int y = 0; y < BH; ++y)
        for (int x = 0; x < {TOTAL + 40}; ++x) scores_at(x, y, queries, codes, scales, centroids, strides, out);
}}
extern "C" void values(const float* weights, const uint8_t* codes, const float* centroids, const int64_t* strides,
                       float* out) {{
    for (int z = 0; z < BH; ++z)
        for (int y = 0; y < {-(-TOTAL // SPAN)}; ++y)
            for (int x = 0; x < BYTES + 3; ++x) values_at(x, y, z, weights, codes, centroids, strides, out);
}}
"""
    )
    library = folder / "bodies.so"
    command = [str(COMPILER), "-O1", "-shared", "-fPIC", "-o", str(library), str(folder / "bodies.cpp")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return ctypes.CDLL(str(library))
