"""How an array lies in its buffer: strides and contiguity, as MLX's back ends keep them. No MLX here.

Whether a primitive copies, shares or takes over a buffer depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]
Strides = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Strides in elements, three flags, and the elements that the array spans in its buffer.

    Attributes:
        contiguous: no gaps, in whatever order of the axes.
        row, col: contiguous with the last, with the first axis fastest.
        span: elements from the first to the last.
    """

    strides: Strides
    contiguous: bool
    row: bool
    col: bool
    span: int


def dense(shape: Shape) -> Layout:
    """The layout of a freshly allocated array."""
    size = prod(shape)
    return Layout(dense_strides(shape), True, True, size <= 1 or size == max(shape, default=1), size)


def dense_strides(shape: Shape) -> Strides:
    """Row-major strides."""
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


def _order(shape: Shape, strides: Strides) -> tuple[int, bool, bool]:
    """Elements without broadcast axes, and whether the array is row- and column-contiguous."""
    size, row, col = 1, True, True
    forward = backward = 1
    last = len(shape) - 1
    for i, length in enumerate(shape):
        at = last - i
        col &= strides[i] == forward or length == 1
        row &= strides[at] == backward or shape[at] == 1
        forward *= length
        backward *= shape[at]
        if strides[i] > 0:
            size *= length
    return size, row, col


def broadcast(layout: Layout, source: Shape, target: Shape) -> Layout:
    """Of an array repeated along new axes and axes of length 1."""
    extra = len(target) - len(source)
    strides = [0] * len(target)
    for i, length in enumerate(source):
        strides[i + extra] = 0 if length == 1 else layout.strides[i]
    if prod(target) > prod(source):
        return Layout(tuple(strides), layout.contiguous, False, False, layout.span)
    return Layout(tuple(strides), layout.contiguous, layout.row, layout.col, layout.span)


def transpose(layout: Layout, target: Shape, axes: tuple[int, ...]) -> Layout:
    """Of an array with its axes permuted; ``target`` is the shape after."""
    strides = tuple(layout.strides[axis] for axis in axes)
    row, col = layout.row, layout.col
    if layout.contiguous and layout.span == prod(target):
        _, row, col = _order(target, strides)
    return Layout(strides, layout.contiguous, row, col, layout.span)


def part(layout: Layout, target: Shape, steps: tuple[int, ...]) -> Layout:
    """Of a slice with the given steps."""
    strides = tuple(stride * step for stride, step in zip(layout.strides, steps, strict=True))
    span = 1 + sum(abs(stride) * (length - 1) for stride, length in zip(strides, target, strict=True))
    size, row, col = _order(target, strides)
    return Layout(strides, size == span, row, col, span)


def split(layout: Layout, target: Shape) -> Layout:
    """Of one part of a split."""
    size, row, col = _order(target, layout.strides)
    if size == 1:
        contiguous = True
    elif size == layout.span:
        contiguous = layout.contiguous
    else:
        contiguous = layout.contiguous and (row or col)
    return Layout(layout.strides, contiguous, row, col, size)


def expand(layout: Layout, axes: tuple[int, ...]) -> Layout:
    """Of an array with axes of length 1 inserted."""
    strides = list(layout.strides)
    for axis in axes:
        strides.insert(axis, 1)
    return Layout(tuple(strides), layout.contiguous, layout.row, layout.col, layout.span)


def squeeze(layout: Layout, axes: tuple[int, ...]) -> Layout:
    """Of an array with axes of length 1 removed."""
    strides = tuple(stride for i, stride in enumerate(layout.strides) if i not in axes)
    return Layout(strides, layout.contiguous, layout.row, layout.col, layout.span)


def reshape(layout: Layout, source: Shape, target: Shape) -> Layout | None:
    """Of an array in another shape, or None where that needs a copy."""
    size = prod(source)
    if size == 0 or layout.row:
        col = (size <= 1 or size == max(target, default=1)) if layout.row else layout.col
        return Layout(dense_strides(target), layout.contiguous, layout.row, col, layout.span)
    if not source:
        return Layout((0,) * len(target), layout.contiguous, layout.row, layout.col, layout.span)
    shape, strides = _collapse(source, layout.strides)
    out: list[int] = []
    at = 0
    for length in target:
        if at < len(shape) and shape[at] % length == 0:
            shape[at] //= length
            out.append(shape[at] * strides[at])
            at += shape[at] == 1
        elif length == 1:
            out.append(out[-1])
        else:
            return None
    return Layout(tuple(out), layout.contiguous, layout.row, layout.col, layout.span)


def _collapse(shape: Shape, strides: Strides) -> tuple[list[int], list[int]]:
    """Neighbouring axes that step through memory as one, joined; axes of length 1 dropped."""
    joined_shape: list[int] = []
    joined_strides: list[int] = []
    for length, stride in zip(shape, strides, strict=True):
        if length == 1:
            continue
        if joined_shape and joined_strides[-1] == stride * length:
            joined_shape[-1] *= length
            joined_strides[-1] = stride
        else:
            joined_shape.append(length)
            joined_strides.append(stride)
    return (joined_shape, joined_strides) if joined_shape else ([1], [0])
