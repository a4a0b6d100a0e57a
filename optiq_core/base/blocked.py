"""Dense float32 modules of the CPU profile, laid out and computed for batches of few rows.

OpenBLAS packs a weight anew for every product; at 16 rows that costs as much as the product itself, and handing half of
it to a second thread costs more where the cores are shared. Below a million multiplications it calls kernels that do
not pack. A weight [out, in] kept as [out / n, in, n], with n as wide as stays below that, turns one large product into
many such small ones over memory in order: one thread then does what two did (17 GB/s of weights against 12).

Without a vectorised ``exp``, MLX's CPU kernels spend 18 ns on each; SwiGLU here goes without. RoPE's angles are the
same in every layer of a forward pass and are computed once; RMSNorm takes four kernels where MLX's fallback takes nine.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import llama, qwen2, qwen3

# Classes whose forward pass is down(silu(gate(x)) * up(x)).
GATED_CLASSES = (llama.MLP, qwen2.MLP, qwen3.MLP)

_KERNEL_PRODUCTS = 1_000_000
_WIDTHS = (64, 32, 16)
# Rows up to which the small kernels win.
_FEW_ROWS = 64
_ROWS = 16


def block_width(input_dims: int, output_dims: int) -> int:
    """Return the widest block that 16 rows multiply without packing; 0 if the outputs cannot be cut that way."""
    return next((n for n in _WIDTHS if output_dims % n == 0 and n * input_dims * _ROWS < _KERNEL_PRODUCTS), 0)


class BlockedLinear(nn.Module):
    """A linear module whose weight [out, in] lies in blocks [out / n, in, n].

    Args:
        weight: [out, in].
        bias: [out], or None.
    """

    def __init__(self, weight: mx.array, bias: mx.array | None = None) -> None:
        super().__init__()
        self._output_dims, self._input_dims = weight.shape
        width = block_width(self._input_dims, self._output_dims)
        self.weight = mx.contiguous(weight.reshape(-1, width, self._input_dims).swapaxes(1, 2))
        # Now, on the thread that loads: another thread has no stream to compute it on.
        mx.eval(self.weight)
        if bias is not None:
            self.bias = bias

    @property
    def dims(self) -> tuple[int, int]:
        """(input, output) dims."""
        return self._input_dims, self._output_dims

    @property
    def dense_weight(self) -> mx.array:
        """The weight as [out, in], copied."""
        return self.weight.swapaxes(1, 2).reshape(self._output_dims, self._input_dims)

    def __call__(self, x: mx.array) -> mx.array:
        *lead, _ = x.shape
        flat = x.reshape(-1, self._input_dims)
        rows = flat.shape[0]
        if rows <= _FEW_ROWS:
            y = (flat[None] @ self.weight).swapaxes(0, 1)
        else:
            y = flat @ self.weight.swapaxes(0, 1).reshape(self._input_dims, self._output_dims)
        y = y.reshape(*lead, self._output_dims)
        return y + self.bias if "bias" in self else y


class BlockedEmbedding(nn.Module):
    """An embedding whose weight also projects onto the vocabulary, kept once, in blocks.

    Args:
        weight: [vocabulary, dims].
    """

    def __init__(self, weight: mx.array) -> None:
        super().__init__()
        # Not a module of the model: the base has no such path.
        self._head = (BlockedLinear(weight),)

    @property
    def dims(self) -> tuple[int, int]:
        """(vocabulary, dims)."""
        inputs, outputs = self._head[0].dims
        return outputs, inputs

    @property
    def dense_weight(self) -> mx.array:
        """The weight as [vocabulary, dims], copied."""
        return self._head[0].dense_weight

    def __call__(self, ids: mx.array) -> mx.array:
        blocks = self._head[0].weight
        width = blocks.shape[2]
        return blocks.swapaxes(1, 2)[ids // width, ids % width]

    def as_linear(self, x: mx.array) -> mx.array:
        """Project [..., dims] onto the vocabulary."""
        return self._head[0](x)


class SharedAngles:
    """Cosines and sines of one forward pass, computed by its first layer and kept for the others."""

    def __init__(self) -> None:
        self._tables: dict[tuple[int, float, float, int], tuple[mx.array, mx.array]] = {}

    def clear(self) -> None:
        """Forget them: a new forward pass begins."""
        self._tables.clear()

    def at(self, offset: Any, dims: int, base: float, scale: float, length: int) -> tuple[mx.array, mx.array]:
        """Return cosines and sines, [rows or 1, 1, length, dims / 2].

        Args:
            offset: position of the first token, one for all rows or [rows].
            dims, base, scale: of the RoPE.
            length: tokens.
        """
        key = (dims, base, scale, length)
        if key not in self._tables:
            positions = mx.array(offset).reshape(-1, 1) + mx.arange(length)
            frequencies = mx.power(base, -mx.arange(0, dims, 2, dtype=mx.float32) / dims)
            angles = (positions * scale)[:, None, :, None] * frequencies
            self._tables[key] = (mx.cos(angles), mx.sin(angles))
        return self._tables[key]


class SharedRoPE(nn.Module):
    """`nn.RoPE` over the angles that all layers of a forward pass share.

    Args:
        rope: the module that it replaces, not traditional.
        angles: of the model.
        first: it is the first block's, which begins a forward pass.
    """

    def __init__(self, rope: nn.RoPE, angles: SharedAngles, *, first: bool) -> None:
        super().__init__()
        self.dims, self.base, self.scale = rope.dims, rope.base, rope.scale
        self._angles, self._first = angles, first

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        if self._first:
            self._angles.clear()
        cos, sin = self._angles.at(offset, self.dims, self.base, self.scale, x.shape[-2])
        half = self.dims // 2
        parts = list(_rotate(x[..., :half], x[..., half : self.dims], cos, sin))
        if x.shape[-1] > self.dims:
            parts.append(x[..., self.dims :])
        return mx.concatenate(parts, axis=-1)


class FusedRMSNorm(nn.Module):
    """`nn.RMSNorm` in three kernels.

    Args:
        norm: the module that it replaces.
    """

    def __init__(self, norm: nn.RMSNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = norm.eps

    def __call__(self, x: mx.array) -> mx.array:
        return _normalise(x, mx.square(x).mean(axis=-1, keepdims=True) + self.eps, self.weight)


class GatedMLP(nn.Module):
    """The SwiGLU block of Llama's family without ``exp``.

    Args:
        mlp: the module that it replaces; its three linear modules keep their paths.
    """

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(rational_swiglu(self.gate_proj(x), self.up_proj(x)))


@partial(mx.compile, shapeless=True)
def _rotate(first: mx.array, second: mx.array, cos: mx.array, sin: mx.array) -> tuple[mx.array, mx.array]:
    return first * cos - second * sin, second * cos + first * sin


@partial(mx.compile, shapeless=True)
def _normalise(x: mx.array, square: mx.array, weight: mx.array) -> mx.array:
    return x * mx.rsqrt(square) * weight


@partial(mx.compile, shapeless=True)
def rational_swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """``gate * sigmoid(gate) * x``, see :func:`rational_sigmoid`."""
    return gate * x * rational_sigmoid(gate)


def rational_sigmoid(x: mx.array) -> mx.array:
    """``(1 + tanh(x / 2)) / 2`` with a rational ``tanh``, for use inside a compiled function.

    ``tanh`` is a rational function of degrees 13 and 6, the minimax fit that Eigen uses for float32: within 3e-7 of it,
    and 1 beyond 7.9 to that accuracy.
    """
    t = mx.clip(0.5 * x, -7.90531110763549805, 7.90531110763549805)
    square = t * t
    numerator = square * -2.76076847742355e-16 + 2.00018790482477e-13
    numerator = numerator * square - 8.60467152213735e-11
    numerator = numerator * square + 5.12229709037114e-08
    numerator = numerator * square + 1.48572235717979e-05
    numerator = numerator * square + 6.37261928875436e-04
    numerator = numerator * square + 4.89352455891786e-03
    denominator = square * 1.19825839466702e-06 + 1.18534705686654e-04
    denominator = denominator * square + 2.26843463243900e-03
    denominator = denominator * square + 4.89352518554385e-03
    return 0.5 * (t * numerator / denominator) + 0.5
