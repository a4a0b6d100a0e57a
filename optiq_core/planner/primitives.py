"""What each MLX primitive allocates, shares or takes over. No MLX here.

Each rule returns the temporaries it allocated and the number of operations that it put into the queue.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from optiq_core.planner import layout as lay
from optiq_core.planner.buffers import Buffers
from optiq_core.planner.devices import Backend
from optiq_core.planner.graph import Node

Effect = tuple[tuple[int, ...], int]
Rule = Callable[[Node, Buffers], Effect]

_VIEW: Effect = ((), 0)
_ONE: Effect = ((), 1)


def run(node: Node, buffers: Buffers, backend: Backend) -> Effect:
    """Allocate a node's outputs and temporaries."""
    return _RULES.get(node.name, _fresh)(node, buffers)


def _fresh(node: Node, buffers: Buffers) -> Effect:
    for array in node.outputs:
        buffers.allocate(array)
    return _ONE


def _same(node: Node, buffers: Buffers) -> Effect:
    for source, target in zip(node.inputs, node.outputs, strict=False):
        buffers.share(target, source)
    return _VIEW


def _custom_transforms(node: Node, buffers: Buffers) -> Effect:
    for source, target in zip(node.inputs[-len(node.outputs) :], node.outputs, strict=True):
        buffers.share(target, source)
    return _VIEW


def _broadcast(node: Node, buffers: Buffers) -> Effect:
    source, target = node.inputs[0], node.outputs[0]
    shapes = buffers.graph.shapes
    buffers.share(target, source, lay.broadcast(buffers.layout(source), shapes[source], shapes[target]))
    return _VIEW


def _transpose(node: Node, buffers: Buffers) -> Effect:
    source, target = node.inputs[0], node.outputs[0]
    shape = buffers.graph.shapes[target]
    buffers.share(target, source, lay.transpose(buffers.layout(source), shape, tuple(node.args[0])))
    return _VIEW


def _slice(node: Node, buffers: Buffers) -> Effect:
    source, target = node.inputs[0], node.outputs[0]
    shape = buffers.graph.shapes[target]
    if prod(shape) == 0:
        buffers.allocate(target)
    else:
        buffers.share(target, source, lay.part(buffers.layout(source), shape, tuple(node.args[2])))
    return _VIEW


def _split(node: Node, buffers: Buffers) -> Effect:
    source = node.inputs[0]
    for target in node.outputs:
        buffers.share(target, source, lay.split(buffers.layout(source), buffers.graph.shapes[target]))
    return _VIEW


def _expand_dims(node: Node, buffers: Buffers) -> Effect:
    source, target = node.inputs[0], node.outputs[0]
    buffers.share(target, source, lay.expand(buffers.layout(source), tuple(node.args[0])))
    return _VIEW


def _squeeze(node: Node, buffers: Buffers) -> Effect:
    source, target = node.inputs[0], node.outputs[0]
    buffers.share(target, source, lay.squeeze(buffers.layout(source), tuple(node.args[0])))
    return _VIEW


def _reshape(node: Node, buffers: Buffers) -> Effect:
    source, target = node.inputs[0], node.outputs[0]
    shapes = buffers.graph.shapes
    view = lay.reshape(buffers.layout(source), shapes[source], shapes[target])
    if view is not None:
        buffers.share(target, source, view)
        return _VIEW
    buffers.allocate(target)
    return _ONE


def _view(node: Node, buffers: Buffers) -> Effect:
    source, target = node.inputs[0], node.outputs[0]
    sizes = buffers.graph.itemsizes
    old = buffers.layout(source)
    if sizes[source] == sizes[target]:
        buffers.share(target, source)
    elif old.row:
        buffers.share(target, source, lay.dense(buffers.graph.shapes[target]))
    else:
        buffers.allocate(target)
        return _ONE
    return _VIEW


def _as_strided(node: Node, buffers: Buffers) -> Effect:
    source, target = node.inputs[0], node.outputs[0]
    shape = buffers.graph.shapes[target]
    strides = tuple(node.args[1])
    buffers.share(
        target, source, lay.part(lay.Layout(strides, True, False, False, prod(shape)), shape, (1,) * len(shape))
    )
    return _VIEW


def _unary(node: Node, buffers: Buffers) -> Effect:
    source, target = node.inputs[0], node.outputs[0]
    if not buffers.layout(source).contiguous:
        buffers.allocate(target)
    elif buffers.donatable(source, target):
        buffers.share(target, source)
    else:
        buffers.allocate_like(target, source)
    return _ONE


def _binary(node: Node, buffers: Buffers) -> Effect:
    a, b = node.inputs
    for target in node.outputs:
        _binary_output(a, b, target, buffers)
    return _ONE


def _binary_output(a: int, b: int, target: int, buffers: Buffers) -> None:
    first, second = buffers.layout(a), buffers.layout(b)
    if first.span == 1 and second.span == 1:
        buffers.allocate_like(target, a)
    elif first.span == 1 and second.contiguous:
        _take_over(target, (b,), b, buffers)
    elif second.span == 1 and first.contiguous:
        _take_over(target, (a,), a, buffers)
    elif (first.row and second.row) or (first.col and second.col):
        _take_over(target, (a, b), a, buffers)
    else:
        size = prod(buffers.graph.shapes[target])
        for source in (a, b):
            same = prod(buffers.graph.shapes[source]) == size
            if same and buffers.layout(source).row and buffers.donatable(source, target):
                buffers.share(target, source)
                return
        buffers.allocate(target)


def _take_over(target: int, candidates: tuple[int, ...], like: int, buffers: Buffers) -> None:
    for source in candidates:
        if buffers.donatable(source, target):
            buffers.share(target, source)
            return
    buffers.allocate_like(target, like)


def _select(node: Node, buffers: Buffers) -> Effect:
    target = node.outputs[0]
    layouts = [buffers.layout(array) for array in node.inputs]
    if all(found.span == 1 for found in layouts):
        buffers.allocate_like(target, node.inputs[1])
    elif all(found.row for found in layouts) or all(found.col for found in layouts):
        _take_over(target, node.inputs, node.inputs[1], buffers)
    else:
        for source, found in zip(node.inputs, layouts, strict=True):
            if found.row and buffers.donatable(source, target):
                buffers.share(target, source)
                break
        else:
            buffers.allocate(target)
    return _ONE


def _copy(source: int, target: int, vector: bool, buffers: Buffers) -> int:
    """Lay a copy of an array into a new one; returns the operations that takes."""
    if not vector:
        buffers.allocate(target)
        return 1
    if buffers.donatable(source, target):
        buffers.share(target, source)
        return 0
    buffers.allocate_like(target, source)
    return 1


def _as_type(node: Node, buffers: Buffers) -> Effect:
    source = node.inputs[0]
    _copy(source, node.outputs[0], buffers.layout(source).contiguous, buffers)
    return _ONE


def _full(node: Node, buffers: Buffers) -> Effect:
    found = buffers.layout(node.inputs[0])
    return (), _copy(node.inputs[0], node.outputs[0], found.span > 1 and found.contiguous, buffers)


def _contiguous(node: Node, buffers: Buffers) -> Effect:
    source, target = node.inputs[0], node.outputs[0]
    found = buffers.layout(source)
    fits = buffers.sizes[buffers.of[source]] <= buffers.graph.nbytes(target) + 16384
    if fits and (found.row or (bool(node.args and node.args[0]) and found.col)):
        buffers.share(target, source)
        return _VIEW
    buffers.allocate(target)
    return _ONE


def _concatenate(node: Node, buffers: Buffers) -> Effect:
    buffers.allocate(node.outputs[0])
    return (), len(node.inputs)


def _matmul(node: Node, buffers: Buffers) -> Effect:
    buffers.allocate(node.outputs[0])
    temporaries = _unsuitable(node.inputs[:2], buffers)
    return temporaries, 1 + len(temporaries)


def _gather_mm(node: Node, buffers: Buffers) -> Effect:
    return _matmul(node, buffers)


def _add_mm(node: Node, buffers: Buffers) -> Effect:
    added = buffers.layout(node.inputs[2])
    operations = _copy(node.inputs[2], node.outputs[0], added.row and added.span > 1, buffers)
    temporaries = _unsuitable(node.inputs[:2], buffers)
    return temporaries, operations + 1 + len(temporaries)


def _unsuitable(arrays: tuple[int, ...], buffers: Buffers) -> tuple[int, ...]:
    """Copies of the matrices that are neither row- nor column-major in their last two axes."""
    copies = []
    for array in arrays:
        shape = buffers.graph.shapes[array]
        step, fine = buffers.layout(array).strides[-2:]
        if not ((step == shape[-1] and fine == 1) or (step == 1 and fine == shape[-2])):
            copies.append(buffers.temporary(buffers.graph.nbytes(array)))
    return tuple(copies)


def _quantized_matmul(node: Node, buffers: Buffers) -> Effect:
    copies = tuple(
        buffers.temporary(buffers.graph.nbytes(array)) for array in node.inputs if not buffers.layout(array).row
    )
    buffers.allocate(node.outputs[0])
    return copies, 1 + len(copies)


def _gather_qmm(node: Node, buffers: Buffers) -> Effect:
    copies = []
    for array in node.inputs[:-2]:
        step, fine = buffers.layout(array).strides[-2:]
        if not (step == buffers.graph.shapes[array][-1] and fine == 1):
            copies.append(buffers.temporary(buffers.graph.nbytes(array)))
    buffers.allocate(node.outputs[0])
    return tuple(copies), 1 + len(copies)


def _softmax(node: Node, buffers: Buffers) -> Effect:
    source, target = node.inputs[0], node.outputs[0]
    found = buffers.layout(source)
    if not (found.contiguous and found.strides[-1] == 1):
        buffers.allocate(target)
        return (), 2
    if buffers.own(source):
        buffers.share(target, source)
    else:
        buffers.allocate_like(target, source)
    return _ONE


def _last_axis_dense(node: Node, buffers: Buffers) -> Effect:
    source = node.inputs[0]
    found = buffers.layout(source)
    fine = found.contiguous and found.strides[-1] == 1
    temporaries = () if fine else (buffers.temporary(buffers.graph.nbytes(source)),)
    buffers.allocate(node.outputs[0])
    return temporaries, 1 + len(temporaries)


def _scan(node: Node, buffers: Buffers) -> Effect:
    source = node.inputs[0]
    temporaries = () if buffers.layout(source).row else (buffers.temporary(buffers.graph.nbytes(source)),)
    buffers.allocate(node.outputs[0])
    return temporaries, 1 + len(temporaries)


def _scatter(node: Node, buffers: Buffers) -> Effect:
    source = node.inputs[0]
    return (), 1 + _copy(source, node.outputs[0], buffers.layout(source).row, buffers)


def _slice_update(node: Node, buffers: Buffers) -> Effect:
    source = node.inputs[0]
    found = buffers.layout(source)
    vector = found.span > 1 and found.contiguous and found.span == prod(buffers.graph.shapes[source])
    return (), 1 + _copy(source, node.outputs[0], vector, buffers)


def _sort(node: Node, buffers: Buffers) -> Effect:
    source = node.inputs[0]
    return (), 1 + _copy(source, node.outputs[0], buffers.layout(source).contiguous, buffers)


def _pad(node: Node, buffers: Buffers) -> Effect:
    buffers.allocate(node.outputs[0])
    return (), 2


def _convolution(node: Node, buffers: Buffers) -> Effect:
    """The CPU's one-dimensional convolution: a padded copy and its windows, in float32."""
    buffers.allocate(node.outputs[0])
    source, weight = node.inputs
    shapes = buffers.graph.shapes
    if len(shapes[source]) != 3 or node.args[-1]:
        return _ONE
    batch, length, channels = shapes[source]
    low, high = node.args[1][0], node.args[2][0]
    windows = batch * shapes[node.outputs[0]][1] * shapes[weight][1] * channels
    temporaries = [buffers.temporary(batch * (length + low + high) * channels * 4), buffers.temporary(windows * 4)]
    if channels // shapes[weight][2] > 1:
        temporaries.append(buffers.temporary(prod(shapes[weight]) * 4))
    return tuple(temporaries), 3 + len(temporaries)


# fmt: off
_UNARY = (
    "Abs", "ArcCos", "ArcCosh", "ArcSin", "ArcSinh", "ArcTan", "ArcTanh", "BitwiseInvert", "Ceil", "Conjugate", "Cos",
    "Cosh", "Erf", "ErfInv", "Exp", "Expm1", "Floor", "Imag", "Log", "Log1p", "LogicalNot", "Negative", "Real", "Round",
    "Rsqrt", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Square", "Tan", "Tanh",
)
_BINARY = (
    "Add", "ArcTan2", "BitwiseBinary", "DivMod", "Divide", "Equal", "Greater", "GreaterEqual", "Less", "LessEqual",
    "LogAddExp", "LogicalAnd", "LogicalOr", "Maximum", "Minimum", "Multiply", "NaNEqual", "NotEqual", "Power",
    "Remainder", "Subtract",
)
# fmt: on

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(("Copy", "StopGradient", "Depends"), _same),
    **dict.fromkeys(("Broadcast", "BroadcastAxes"), _broadcast),
    **dict.fromkeys(("Reshape", "Flatten", "Unflatten"), _reshape),
    **dict.fromkeys(("Scatter", "ScatterAxis", "MaskedScatter"), _scatter),
    **dict.fromkeys(("Sort", "Partition"), _sort),
    "AddMM": _add_mm,
    "AsStrided": _as_strided,
    "AsType": _as_type,
    "Concatenate": _concatenate,
    "Contiguous": _contiguous,
    "Convolution": _convolution,
    "CustomTransforms": _custom_transforms,
    "ExpandDims": _expand_dims,
    "Full": _full,
    "GatherMM": _gather_mm,
    "GatherQMM": _gather_qmm,
    "LogSumExp": _last_axis_dense,
    "Matmul": _matmul,
    "Pad": _pad,
    "QuantizedMatmul": _quantized_matmul,
    "Scan": _scan,
    "Select": _select,
    "Slice": _slice,
    "SliceUpdate": _slice_update,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "View": _view,
}
