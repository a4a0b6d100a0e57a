"""Operations of a training step whose CPU kernels in MLX are slow, with their gradients written out.

MLX's CPU kernels spend 15 ns on an ``exp``, more than a dense layer spends on an activation. Here exponentials are
polynomials that the compiler vectorises. Nothing that is cheap to compute again is kept for the backward pass
(selective recomputation, arXiv:2205.05198): SwiGLU keeps its two inputs, attention its queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import cast

import mlx.core as mx

from optiq_core.base.attention import exp_parts
from optiq_core.base.blocked import rational_sigmoid, rational_swiglu
from optiq_core.train import exportable


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """``silu(gate) * up``, float32 of any one shape."""
    return exportable.swiglu(gate, up) if exportable.is_exporting() else cast(mx.array, _swiglu(gate, up))


@mx.custom_function
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return rational_swiglu(gate, up)


@_swiglu.vjp
def _swiglu_vjp(inputs: Sequence[mx.array], slope: mx.array, output: mx.array) -> tuple[mx.array, mx.array]:
    gate, up = inputs
    return _swiglu_slopes(gate, up, slope)


@partial(mx.compile, shapeless=True)
def _swiglu_slopes(gate: mx.array, up: mx.array, slope: mx.array) -> tuple[mx.array, mx.array]:
    open_ = rational_sigmoid(gate)
    through = slope * open_
    return through * up * (1 + gate * (1 - open_)), through * gate


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Cross-entropy in nats, ``[N]``, of float32 logits ``[N, V]`` at the targets ``[N]``."""
    if exportable.is_exporting():
        return exportable.cross_entropy(logits, targets)
    return cast(tuple[mx.array, ...], _cross_entropy(logits, targets))[0]


@mx.custom_function
def _cross_entropy(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    most = logits.max(axis=-1, keepdims=True)
    at_target = mx.take_along_axis(logits, targets[:, None], axis=-1)
    weights = exponentials(logits, most)
    total = weights.sum(axis=-1, keepdims=True)
    return (mx.log(total) + most - at_target)[:, 0], weights, total


@_cross_entropy.vjp
def _cross_entropy_vjp(
    inputs: Sequence[mx.array], slopes: Sequence[mx.array], outputs: Sequence[mx.array]
) -> tuple[mx.array, mx.array]:
    (_, targets), slope, (_, weights, total) = inputs, slopes[0], outputs
    grad = weights * (slope[:, None] / total)
    return grad.at[mx.arange(targets.size), targets].subtract(slope), mx.zeros_like(targets)


def exponentials(x: mx.array, most: mx.array, scale: float = 1.0) -> mx.array:
    """``exp(scale * (x - most))`` in float32, for ``x`` of at most ``most``."""
    if exportable.is_exporting():
        return exportable.exponentials(x, most)
    mantissa, power = exp_parts(scale)(x, most)
    return mantissa * mx.view(power, mx.float32)


def rotate(x: mx.array, dims: int, base: float, scale: float) -> mx.array:
    """``nn.RoPE`` of positions from 0 over ``[..., T, dims]`` float32; the angles are the same for all layers."""
    cos, sin = _angles(x.shape[-2], dims, base, scale)
    if exportable.is_exporting():
        half = dims // 2
        return mx.concatenate([x[..., :half] * cos, x[..., half:] * sin], axis=-1)
    return cast(mx.array, _rotate(x, cos, sin))


@mx.custom_function
def _rotate(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    half = x.shape[-1] // 2
    return mx.concatenate([*_turned(x[..., :half], x[..., half:], cos, sin)], axis=-1)


@_rotate.vjp
def _rotate_vjp(inputs: Sequence[mx.array], slope: mx.array, output: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    _, cos, sin = inputs
    half = slope.shape[-1] // 2
    back = mx.concatenate([*_turned(slope[..., :half], slope[..., half:], cos, -sin)], axis=-1)
    return back, mx.zeros_like(cos), mx.zeros_like(sin)


@partial(mx.compile, shapeless=True)
def _turned(first: mx.array, second: mx.array, cos: mx.array, sin: mx.array) -> tuple[mx.array, mx.array]:
    return first * cos - second * sin, second * cos + first * sin


@lru_cache(maxsize=4)
def _angles(length: int, dims: int, base: float, scale: float) -> tuple[mx.array, mx.array]:
    frequencies = mx.power(base, -mx.arange(0, dims, 2, dtype=mx.float32) / dims)
    angles = (mx.arange(length) * scale)[:, None] * frequencies
    found = mx.cos(angles), mx.sin(angles)
    mx.eval(found)
    return found
