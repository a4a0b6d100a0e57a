"""Codes of 1 to 8 bits in bytes, and their values back by table.

A row of codes is cut into groups of channels that share bytes: byte j of 4-bit codes holds channels j and j + D/2.
Values are looked up two at a time, by the byte itself in a table of 256 pairs; on the CPU that costs less than the
multiplication by a scale that affine quantization needs. Codes of 3 bits put three pairs into the low 6 bits of three
bytes and a fourth pair into their high bits. Codes of 5 to 7 bits are a plane of 4 bits and planes of the rest.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

_PLANES = (4, 2, 1)
_PAIRED = (1, 2, 3, 4)


def packed_bytes(dim: int, bits: int) -> int:
    """Return the bytes of ``dim`` codes.

    Raises:
        ValueError: ``dim`` is not a multiple of 8, or ``bits`` is not 1 to 8.
    """
    if dim <= 0 or dim % 8 or not 1 <= bits <= 8:
        raise ValueError(f"codes are packed for a multiple of 8 channels at 1 to 8 bits, got {dim} at {bits}")
    return dim * bits // 8


def pack(codes: mx.array, bits: int) -> mx.array:
    """Pack codes [..., dim] uint8 below ``2^bits`` into [..., dim * bits / 8] uint8."""
    packed_bytes(codes.shape[-1], bits)
    if bits == 8:
        return codes
    if bits == 3:
        return _pack3(codes)
    parts, shift = [], bits
    for width in _planes(bits):
        shift -= width
        parts.append(_pack_plane((codes >> shift) & _mask(width), width))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)


def unpack(packed: mx.array, dim: int, bits: int) -> mx.array:
    """Undo :func:`pack`: [..., dim * bits / 8] to [..., dim] uint8."""
    if bits == 8:
        return packed
    if bits == 3:
        pairs = mx.concatenate([packed & _mask(6), _fourth_pair(packed)], axis=-1)
        low, high = pairs & _mask(3), pairs >> 3
        both = mx.stack([low, high], axis=-2).reshape(*low.shape[:-1], 2, 4, -1)
        return both.swapaxes(-2, -3).reshape(*low.shape[:-1], dim)
    codes, start = None, 0
    for width in _planes(bits):
        stop = start + dim * width // 8
        plane = packed[..., start:stop]
        plane = mx.concatenate([(plane >> place) & _mask(width) for place in range(0, 8, width)], axis=-1)
        codes = plane if codes is None else (codes << width) | plane
        start = stop
    assert codes is not None
    return codes


class Lookup:
    """Turns packed codes into values.

    Args:
        centroids: [2^bits] values.
        bits: 1 to 8.
        dtype: of the values that come out: float32, float16 or bfloat16.
    """

    def __init__(self, centroids: npt.NDArray[np.float64], bits: int, dtype: mx.Dtype) -> None:
        self.bits, self.dtype = bits, dtype
        self._single = mx.array(centroids.astype(np.float32)).astype(dtype)
        self._pairs: list[mx.array] = []
        if bits in _PAIRED:
            # A pair of values is one element of a dtype twice as wide.
            wide = mx.complex64 if dtype == mx.float32 else mx.uint32
            byte = np.arange(256)
            codes = [(byte >> place) & _mask(bits) for place in range(0, 8 // bits * bits, bits)]
            for i in range(0, len(codes), 2):
                values = self._single[mx.array(np.stack(codes[i : i + 2], axis=-1))]
                self._pairs.append(values.view(wide).reshape(256))
        # Used from any thread later on, so nothing may stay lazy.
        mx.eval(self._single, self._pairs)

    def __call__(self, packed: mx.array, dim: int) -> list[mx.array]:
        """Look up [..., dim * bits / 8] uint8.

        Returns:
            Runs of channels, [..., n] each, in the order of :func:`channel_order`; not joined, for a product with each
            run costs less than moving them together.
        """
        rows = packed.shape[:-1]
        if not self._pairs:
            return [_take(self._single, unpack(packed, dim, self.bits)).reshape(*rows, dim)]
        indexed = [(pairs, packed) for pairs in self._pairs]
        if self.bits == 3:
            indexed.append((self._pairs[0], _fourth_pair(packed)))
        return [_take(pairs, index).view(self.dtype).reshape(*rows, -1) for pairs, index in indexed]


def channel_order(dim: int, bits: int) -> npt.NDArray[np.int64]:
    """Return which channel each position of a :class:`Lookup`'s result is.

    Pairs come out interleaved. Whoever makes the codes puts the channels into the order that undoes it, once, so that
    nothing has to be moved on the way back.
    """
    if bits not in _PAIRED:
        return np.arange(dim)
    if bits == 3:
        stride, pairs = dim // 8, np.arange(8).reshape(4, 2)
    else:
        stride, pairs = dim * bits // 8, np.arange(8 // bits).reshape(-1, 2)
    return np.concatenate([(np.arange(stride)[:, None] + pair[None] * stride).reshape(-1) for pair in pairs])


def _pack3(codes: mx.array) -> mx.array:
    groups = mx.split(codes, 8, axis=-1)
    pairs = [low | (high << 3) for low, high in zip(groups[::2], groups[1::2], strict=True)]
    return mx.concatenate([pairs[i] | (((pairs[3] >> (2 * i)) & 3) << 6) for i in range(3)], axis=-1)


def _fourth_pair(packed: mx.array) -> mx.array:
    first, second, third = mx.split(packed, 3, axis=-1)
    return (first >> 6) | ((second >> 4) & 12) | ((third >> 2) & 48)


def _pack_plane(plane: mx.array, width: int) -> mx.array:
    byte, *rest = mx.split(plane, 8 // width, axis=-1)
    for place, part in enumerate(rest, 1):
        byte = byte | (part << (place * width))
    return byte


def _planes(bits: int) -> list[int]:
    return [width for width in _PLANES if bits & width]


def _take(table: mx.array, index: mx.array) -> Any:
    # On the CPU this is ten times as fast as table[index].
    return mx.take_along_axis(table, index.reshape(-1), axis=0)


def _mask(width: int) -> int:
    return (1 << width) - 1
