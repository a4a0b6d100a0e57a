"""Scores and values straight from packed codes, in one kernel each, on Metal and CUDA.

The plain-ops path of :class:`optiq_core.kv.turboquant.TurboQuantCodec` writes a block's centroids to memory and reads
them back for the product; these kernels look every code up where it is used. They take a decode step of 1, 2, 4 or 8
bits; anything else goes the plain way.

Neither kernel has run on its device: the machine that this was written on has no GPU. What was run is the body that
both share, and the whole source that each would get, compiled as C++ and compared with the plain path over the launch
grid (tests/unit/test_kv_fused.py, test_kv_fused_dispatch.py). Hence the first use on a device compares the kernel's
result with the plain path's and goes back to it, with a line in the log, if they disagree or the kernel does not
compile.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..train.loss import number
from .codebook import codebook
from .packing import packed_bytes

log = logging.getLogger(__name__)

_FUSED_BITS = (1, 2, 4, 8)
# Query rows that a thread keeps sums for; more are a prompt, which is bound by the product and not by the look-ups.
_MOST_ROWS = 16
_KEYS_PER_SPLIT = 256
_THREADS = 128
_TOLERANCE = 2e-3

# The bodies are plain C; X, Y and Z are the thread's place in the grid. A byte holds 8/BITS codes; place s of byte j is
# channel CHANNEL(j, s), the order in which optiq_core.kv.packing.Lookup returns them.
_SHARED = """
#define PER (8 / BITS)
#define BYTES (D / PER)
#define CHANNEL(j, s) (BITS == 8 ? (j) : ((s) / 2) * 2 * BYTES + 2 * (j) + ((s) & 1))
#define CODE(byte, s) (((byte) >> ((s) * BITS)) & ((1 << BITS) - 1))
"""

SCORES_BODY = """
    int t = X, bh = Y;
    if (t >= T) return;
    long row = (long)(bh / H) * codes_strides[0] + (long)(bh % H) * codes_strides[1] + (long)t * codes_strides[2];
    float sums[N];
    for (int n = 0; n < N; ++n) sums[n] = 0.0f;
    for (int j = 0; j < BYTES; ++j) {
        int byte = codes[row + j];
        for (int s = 0; s < PER; ++s) {
            float value = centroids[CODE(byte, s)];
            for (int n = 0; n < N; ++n) sums[n] += queries[(bh * N + n) * D + CHANNEL(j, s)] * value;
        }
    }
    for (int n = 0; n < N; ++n) out[((long)bh * N + n) * T + t] = sums[n] * scales[(long)bh * T + t];
"""

VALUES_BODY = """
    int j = X, split = Y, bh = Z;
    if (j >= BYTES) return;
    int begin = split * SPAN, end = begin + SPAN < T ? begin + SPAN : T;
    float sums[N * PER];
    for (int i = 0; i < N * PER; ++i) sums[i] = 0.0f;
    long head = (long)(bh / H) * codes_strides[0] + (long)(bh % H) * codes_strides[1] + j;
    for (int t = begin; t < end; ++t) {
        int byte = codes[head + (long)t * codes_strides[2]];
        for (int s = 0; s < PER; ++s) {
            float value = centroids[CODE(byte, s)];
            for (int n = 0; n < N; ++n) sums[n * PER + s] += weights[((long)bh * N + n) * T + t] * value;
        }
    }
    for (int n = 0; n < N; ++n)
        for (int s = 0; s < PER; ++s)
            out[(((long)split * BH + bh) * N + n) * D + CHANNEL(j, s)] = sums[n * PER + s];
"""

_PLACES = {
    "metal": "int {0} = thread_position_in_grid.{1};",
    "cuda": "int {0} = blockIdx.{1} * blockDim.{1} + threadIdx.{1};",
}


@dataclass(frozen=True)
class Kernel:
    """A kernel's name, its inputs, and its source for a device."""

    name: str
    inputs: tuple[str, ...]
    body: str

    def source(self, device: str) -> str:
        """Return the body of the device's kernel function."""
        places = "\n".join(_PLACES[device].format(*pair) for pair in zip("XYZ", "xyz", strict=True))
        return f"{places}\n{self.body}"


SCORES = Kernel("turboquant_scores", ("queries", "codes", "scales", "centroids"), SCORES_BODY)
VALUES = Kernel("turboquant_values", ("weights", "codes", "centroids"), VALUES_BODY)
HEADER = _SHARED


def device() -> str:
    """Return ``metal``, ``cuda``, or an empty string where there is nothing to fuse for."""
    if mx.default_device() == mx.Device(mx.cpu):
        return ""
    if mx.metal.is_available():
        return "metal"
    return "cuda" if hasattr(mx.fast, "cuda_kernel") else ""


def usable(dim: int, splits: Sequence[tuple[int, int]], rows: int) -> bool:
    """Say whether a step of ``rows`` query rows per KV head has kernels here that were found to agree."""
    if len(splits) != 1 or splits[0][1] not in _FUSED_BITS or rows > _MOST_ROWS:
        return False
    where = device()
    return bool(where) and _agrees(where, dim, splits[0][1], rows)


def scores(queries: mx.array, codes: mx.array, scale: mx.array, bits: int) -> mx.array:
    """Return scores [B, Hkv, N, T] of rotated queries [B, Hkv, N, D] and packed keys.

    Args:
        queries: in any float dtype, which is also the result's.
        codes: [B, Hkv, T, bytes] uint8, possibly a view into a larger array.
        scale: [B, Hkv, T, 1].
        bits: 1, 2, 4 or 8.
    """
    batch, heads, rows, dim = queries.shape
    total = codes.shape[2]
    inputs = [
        mx.contiguous(queries.astype(mx.float32)),
        codes,
        mx.contiguous(scale.astype(mx.float32)),
        _centroids(dim, bits),
    ]
    constants = [("D", dim), ("BITS", bits), ("H", heads), ("N", rows), ("T", total)]
    grid = (-(-total // _THREADS) * _THREADS, batch * heads, 1)
    out = _run(
        SCORES,
        inputs=inputs,
        constants=constants,
        grid=grid,
        threads=(_THREADS, 1, 1),
        shape=(batch, heads, rows, total),
    )
    return out.astype(queries.dtype)


def weighted(weights: mx.array, codes: mx.array, dim: int, bits: int) -> mx.array:
    """Return the rotated output [B, Hkv, N, D] of weights [B, Hkv, N, T], which hold the values' scales already."""
    batch, heads, rows, total = weights.shape
    splits = -(-total // _KEYS_PER_SPLIT)
    threads = min(packed_bytes(dim, bits), _THREADS)
    inputs = [mx.contiguous(weights.astype(mx.float32)), codes, _centroids(dim, bits)]
    constants = [
        ("D", dim), ("BITS", bits), ("H", heads), ("N", rows), ("T", total), ("BH", batch * heads),
        ("SPAN", _KEYS_PER_SPLIT),
    ]  # fmt: skip
    grid = (-(-packed_bytes(dim, bits) // threads) * threads, splits, batch * heads)
    out = _run(
        VALUES, inputs=inputs, constants=constants, grid=grid, threads=(threads, 1, 1),
        shape=(splits, batch, heads, rows, dim),
    )  # fmt: skip
    return out.sum(axis=0).astype(weights.dtype)


def _run(
    kernel: Kernel,
    *,
    inputs: list[mx.array],
    constants: list[tuple[str, int]],
    grid: tuple[int, int, int],
    threads: tuple[int, int, int],
    shape: tuple[int, ...],
) -> mx.array:
    compiled = _compiled(kernel, device())
    # T changes with every step: a constant of the source would be compiled anew each time.
    sizes = dict(constants)
    total = mx.array([sizes.pop("T")], mx.int32)
    (out,) = compiled(
        inputs=[*inputs, total],
        template=list(sizes.items()),
        grid=grid,
        threadgroup=threads,
        output_shapes=[shape],
        output_dtypes=[mx.float32],
    )
    return out


@functools.cache
def _compiled(kernel: Kernel, where: str) -> Any:
    make = mx.fast.metal_kernel if where == "metal" else mx.fast.cuda_kernel
    return make(
        name=kernel.name,
        input_names=[*kernel.inputs, "total"],
        output_names=["out"],
        source="int T = total[0];\n" + kernel.source(where),
        header=HEADER,
        # The caches hand over views into arrays with room to grow; a copy would cost what the kernel saves.
        ensure_row_contiguous=False,
    )


@functools.cache
def _centroids(dim: int, bits: int) -> mx.array:
    centroids = mx.array(codebook(dim, bits).centroids).astype(mx.float32)
    mx.eval(centroids)
    return centroids


@functools.cache
def _agrees(where: str, dim: int, bits: int, rows: int) -> bool:
    """Compare the kernels with the plain path once, on a view as the caches hand it over."""
    from .turboquant import TurboQuantCodec

    try:
        codec = TurboQuantCodec(dim, bits, seed=0)
        x = mx.random.normal((2, 4, 320, dim), key=mx.random.key(1))
        codes, scale = (part[:, 2:, :300] for part in codec.encode(x))
        queries = mx.random.normal((2, 2, rows, dim), key=mx.random.key(2))
        weights = mx.softmax(mx.random.normal((2, 2, rows, 300), key=mx.random.key(3)), axis=-1)
        pairs = [
            (scores(queries, codes, scale, bits), codec.plain_scores(queries, (codes, scale))),
            (
                weighted(weights * scale.astype(mx.float32).swapaxes(-1, -2), codes, dim, bits),
                codec.plain_weighted(weights, (codes, scale)),
            ),
        ]
        worst = max(number(mx.abs(found - plain).max() / mx.abs(plain).max()) for found, plain in pairs)
    except Exception as error:  # compilers of two devices raise what they like
        log.warning("TurboQuant's fused kernels do not run on %s, plain operations are used: %s", where, error)
        return False
    if worst > _TOLERANCE:
        log.warning("TurboQuant's fused kernels are off by %.2g on %s; plain operations are used", worst, where)
    return worst <= _TOLERANCE
