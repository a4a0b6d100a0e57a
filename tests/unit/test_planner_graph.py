from __future__ import annotations

from math import prod

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optiq_core.planner import layout as lay
from optiq_core.planner.devices import CPU
from optiq_core.planner.graph import Graph, Node
from optiq_core.planner.liveness import simulate
from optiq_core.planner.order import evaluation_order
from optiq_core.planner.trace import Borders, trace

_SIDE = 256
_UNIT = _SIDE * _SIDE * 4


def measured_peak(outputs: object, arrays: list[mx.array]) -> int:
    """Bytes above what there was before, arrays included.

    The highest of several evaluations: an operation that the CPU's thread finishes before the next one is dispatched
    gives its input up early, which lowers a peak by luck.
    """
    return max(_peak_once(outputs, arrays) for _ in range(5))


def _peak_once(outputs: object, arrays: list[mx.array]) -> int:
    mx.eval(arrays)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory() - sum(array.nbytes for array in arrays)
    mx.eval(outputs(*arrays))  # type: ignore[operator]
    return mx.get_peak_memory() - before


def check(function: object, *arrays: mx.array) -> None:
    graph = trace(function, list(arrays), Borders())  # type: ignore[arg-type]
    predicted = simulate(graph, {}, CPU, held=graph.inputs).peak_bytes
    # Scalars and index tables are a few bytes next to a unit.
    assert round(predicted / _UNIT) == round(measured_peak(function, list(arrays)) / _UNIT)


def square(seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal((_SIDE, _SIDE)).astype(np.float32))


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: [a + b],
        lambda a, b: [mx.exp(mx.sin(a @ b))],
        lambda a, b: [mx.softmax(a @ b, axis=-1)],
        lambda a, b: [mx.softmax(a.T, axis=-1)],
        lambda a, b: [(a @ b).T @ a],
        lambda a, b: [a.reshape(64, 4, 64, 4).transpose(0, 2, 1, 3).reshape(_SIDE, _SIDE) @ b],
        lambda a, b: [a.reshape(4, 64, _SIDE).transpose(1, 0, 2) @ b],
        lambda a, b: [mx.concatenate([a, b], axis=1)],
        lambda a, b: [mx.where(a > 0, a @ b, b)],
        lambda a, b: [mx.split(a @ b, 2, axis=1)[0]],
        lambda a, b: [mx.logsumexp(a.T, axis=-1)],
        lambda a, b: [mx.cumsum(a.T, axis=0)],
        lambda a, b: [mx.pad(a, 2)],
        lambda a, b: [mx.zeros_like(a).at[3:5].add(b[:2])],
        lambda a, b: [mx.sort(a @ b, axis=0)],
        lambda a, b: [mx.broadcast_to(a[:1], (_SIDE, _SIDE)) * b],
        lambda a, b: [a[mx.arange(0, _SIDE, 2)] + 1],
        lambda a, b: [(a @ b).astype(mx.float16)],
        lambda a, b: [mx.addmm(a, a, b)],
        lambda a, b: [mx.quantized_matmul(a, *mx.quantize(b, group_size=64, bits=4), group_size=64, bits=4)],
        lambda a, b: [mx.conv1d(a[None], b[:, :3, None], padding=2, groups=_SIDE)],
    ],
)
def test_each_rule_gives_the_bytes_that_mlx_takes(function: object) -> None:
    check(function, square(1), square(2))


def test_a_buffer_is_taken_over_only_by_its_last_reader() -> None:
    check(lambda a, b: [mx.exp(a @ b), mx.sin(b @ a)], square(1), square(2))

    def shared(a: mx.array, b: mx.array) -> list[mx.array]:
        product = a @ b
        return [mx.exp(product), mx.sin(product)]

    check(shared, square(1), square(2))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.lists(st.sampled_from(["transpose", "slice", "reshape", "expand", "broadcast"]), max_size=4),
    st.randoms(use_true_random=False),
)
def test_layouts_are_those_of_strided_arrays(shape: list[int], steps: list[str], random: object) -> None:
    """Against NumPy, whose views have the same strides wherever one exists at all."""
    array = np.zeros(shape, np.float32)
    layout = lay.dense(tuple(shape))
    for step in steps:
        before = array.shape
        if step == "transpose":
            axes = tuple(random.sample(range(array.ndim), array.ndim))  # type: ignore[attr-defined]
            array = array.transpose(axes)
            layout = lay.transpose(layout, array.shape, axes)
        elif step == "slice":
            pace = tuple(random.choice((1, 2)) for _ in before)  # type: ignore[attr-defined]
            array = array[tuple(slice(None, None, p) for p in pace)]
            layout = lay.part(layout, array.shape, pace)
        elif step == "expand":
            array = array[None]
            layout = lay.expand(layout, (0,))
        elif step == "broadcast":
            array = np.broadcast_to(array, (2, *before))
            layout = lay.broadcast(layout, before, array.shape)
        else:
            target = (array.size,)
            view = lay.reshape(layout, before, target)
            if view is None:
                assert array.size > 1
                layout = lay.dense(target)
            else:
                layout = view
            array = (
                array.reshape(target)
                if view is None
                else np.lib.stride_tricks.as_strided(array, target, [s * 4 for s in view.strides])
            )
        for length, stride, found in zip(array.shape, array.strides, layout.strides, strict=True):
            assert length == 1 or stride == found * 4
    if layout.row and prod(array.shape):
        assert array.flags.c_contiguous


def test_the_tape_is_breadth_first_from_the_outputs_and_bounded() -> None:
    """A chain beside a wide layer: one wave of the chain's end comes last, wherever it was made."""
    graph = Graph()
    start = graph.add_array((1,), 4)
    graph.inputs = (start,)
    wide = []
    for _ in range(30):
        out = graph.add_array((1,), 4)
        graph.nodes.append(Node("Exp", (), (start,), (out,)))
        wide.append(out)
    joined = graph.add_array((30,), 4)
    graph.nodes.append(Node("Concatenate", (0,), tuple(wide), (joined,)))
    graph.outputs = (joined,)
    order = evaluation_order(graph)
    assert sorted(order) == list(range(31))
    assert order[-1] == 30
    # Twenty fit on the tape; the other ten are put on it later, therefore evaluated first.
    assert set(order[:10]) == set(range(20, 30))
