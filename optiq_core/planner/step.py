"""Predicts what one training step takes, from the graph of the step that the trainer runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import mlx.core as mx
from mlx import nn, optimizers
from mlx.utils import tree_flatten, tree_unflatten

from optiq_core.base.metadata import ModuleBits
from optiq_core.planner.buffers import Kind
from optiq_core.planner.devices import CPU, Backend
from optiq_core.planner.graph import Graph, mark_backward
from optiq_core.planner.liveness import Liveness, simulate
from optiq_core.planner.plan import StepPlan
from optiq_core.planner.shape import StepShape
from optiq_core.planner.trace import Borders, trace
from optiq_core.train.cpu import cross_entropy_for, fast_blocks, takes_cpu_forms
from optiq_core.train.exportable import exporting
from optiq_core.train.layers import apply_lora
from optiq_core.train.loss import make_loss, model_parts
from optiq_core.train.preference import preference_loss
from optiq_core.train.schemes import Method, Objective
from optiq_core.train.stages import gradient_stages, recording, staged_blocks
from optiq_core.train.step import make_gradient, make_part

_PRODUCTS = ("Matmul", "AddMM", "QuantizedMatmul", "GatherMM", "GatherQMM")
# Positions in an open task at which a step may begin; see :func:`optiq_core.planner.liveness.simulate`.
_PHASES = (0, 3, 6)


@dataclass(frozen=True)
class Knobs:
    """What a plan may vary of a run on one base.

    Attributes:
        ranks: module path to rank.
        scale, dropout, method, grids, dynamic: of the low-rank layers.
        objective, grad_checkpoint, loss_chunk: see :class:`optiq_core.train.config.TrainConfig`.
        accumulate: a batch comes in several parts, of which the shape is one.
    """

    ranks: Mapping[str, int]
    scale: float = 20.0
    dropout: float = 0.0
    method: Method = "lora"
    grids: Mapping[str, ModuleBits] | None = None
    dynamic: bool = False
    objective: Objective = "sft"
    grad_checkpoint: bool = False
    loss_chunk: int = 0
    accumulate: bool = False


def plan_step(model: Any, knobs: Knobs, shape: StepShape, backend: Backend, *, split: bool | None = None) -> StepPlan:
    """Predict one training step.

    Args:
        model: an mlx-lm model without adapters, lazy or loaded; low-rank layers are put on it, once.
        knobs: of the run.
        shape: of the batch.
        backend: whose rules hold.
        split: whether the model's head can be taken off; found out from its graph if absent.
    """
    if split is None:
        split = splits(model)
    if not any(hasattr(module, "lora_a") for module in model.modules()):
        apply_lora(
            model,
            dict(knobs.ranks),
            scale=knobs.scale,
            dropout=knobs.dropout,
            method=knobs.method,
            grids=knobs.grids,
            dynamic=knobs.dynamic,
        )
    model.train()
    parameters = tree_flatten(model.parameters())
    trained = dict(tree_flatten(model.trainable_parameters()))
    graph, stages = _gradient_graph(model, parameters, knobs, shape, split=split, backend=backend)
    kinds = {
        array: Kind.ADAPTER if name in trained else Kind.BASE
        for array, (name, _) in zip(graph.inputs, parameters, strict=False)
    }
    held = graph.inputs
    if knobs.accumulate:
        # The sums so far are written over.
        sums = graph.inputs[-len(trained) :]
        kinds.update(dict.fromkeys(sums, Kind.TEMPORARY))
        held = graph.inputs[: -len(trained)]
    gradient = simulate(graph, kinds, backend, held=held, phases=_PHASES, stages=stages)
    optimizer = optimizers.Adam(learning_rate=1e-4)
    optimizer.init(model.trainable_parameters())
    state = tree_flatten(optimizer.state)
    update = _update(model, optimizer, trained, state, backend)
    return _plan(graph, gradient=gradient, update=update, state=state, shape=shape, trained=trained)


def splits(model: Any) -> bool:
    """Whether head after body is the same graph as the model; the lazy twin of ``loss.split_head``."""
    parts = model_parts(model)
    if parts is None:
        return False
    body, head = parts
    try:
        return forward_signature(model, model, 4) == forward_signature(model, lambda x: head(body(x)), 4)
    except (TypeError, ValueError, AttributeError):
        # A body that wants other arguments, or a head of another shape.
        return False


def forward_signature(model: Any, function: Callable[[mx.array], mx.array], width: int) -> list[str]:
    """Every primitive of a forward pass over one row of so many tokens, with its shapes and types.

    Weights are inputs of the trace: those that are still in their files cannot be constants of it.
    """
    parameters = tree_flatten(model.parameters())
    names = [name for name, _ in parameters]
    found: list[str] = []

    def take(event: dict[str, Any]) -> None:
        if event["type"] == "primitive":
            found.append(f"{event['name']} {[(shape, str(dtype)) for _, shape, dtype in event['outputs']]}")

    def forward(tokens: mx.array, *arrays: mx.array) -> list[mx.array]:
        model.update(tree_unflatten(list(zip(names, arrays, strict=True))))
        return [function(tokens)]

    try:
        mx.export_function(take, forward, mx.zeros((1, width), mx.int32), *(value for _, value in parameters))
    finally:
        model.update(tree_unflatten(parameters))
    return found


def _gradient_graph(
    model: Any,
    parameters: list[tuple[str, mx.array]],
    knobs: Knobs,
    shape: StepShape,
    *,
    split: bool,
    backend: Backend,
) -> tuple[Graph, list[tuple[int, ...]]]:
    """The graph, and the arrays that are evaluated one after the other before its outputs."""
    inputs = {
        "tokens": mx.zeros((shape.rows, shape.width + 1), mx.int32),
        "spans": mx.zeros((shape.rows, 2), mx.int32),
        "positions": mx.zeros((shape.positions,), mx.int32),
        "count": mx.zeros((), mx.int32),
    }
    if shape.packed:
        inputs["segments"] = mx.zeros((shape.rows, shape.width), mx.int32)
    names = [name for name, _ in parameters]
    on_cpu = backend.name == CPU.name
    loss = (
        make_loss(split=split, chunk=knobs.loss_chunk, cross_entropy=cross_entropy_for(model, on_cpu=on_cpu))
        if knobs.objective == "sft"
        else preference_loss(split=split, objective=knobs.objective, beta=1.0)
    )

    borders = Borders()
    trainable = dict(tree_flatten(model.trainable_parameters()))
    trained = [at for at, name in enumerate(names) if name in trainable]
    sums = [mx.zeros_like(value) for value in trainable.values()] if knobs.accumulate else []
    before = [mx.array(1), *sums] if sums else []

    counts: list[int] = []

    def staged(function: Callable[[], tuple[list[mx.array], Any]]) -> list[mx.array]:
        """Outputs, and behind them the arrays of all stages."""
        with recording() as stages:
            outputs, grads = function()
        stages += gradient_stages(model, grads)
        found = [] if backend.compiled else stages
        counts.extend(len(each) for each in found)
        return [*outputs, *(array for each in found for array in each)]

    def step(*arrays: mx.array) -> list[mx.array]:
        return staged(lambda: computed(*arrays))

    def computed(*arrays: mx.array) -> tuple[list[mx.array], Any]:
        model.update(tree_unflatten(list(zip(names, arrays, strict=False))))
        batch = dict(zip(inputs, arrays[len(names) :], strict=False))
        if not sums:
            value, count, finite, grads = make_gradient(model, loss)(batch)
            return [value, count, finite, *(grad for _, grad in tree_flatten(grads))], grads
        total, *sofar = arrays[-len(before) :]
        tree = tree_unflatten(list(zip(trainable, sofar, strict=True)))
        value, count, grads = make_part(model, loss)(batch, total, tree)
        return [value, count, *(grad for _, grad in tree_flatten(grads))], grads

    try:
        with (
            exporting(),
            fast_blocks(model, on_cpu and takes_cpu_forms(model)),
            borders.around_blocks(model, knobs.grad_checkpoint),
            staged_blocks(model),
        ):
            values = [*(value for _, value in parameters), *inputs.values(), *before]
            graph = trace(step, values, borders, differentiated=trained)
    finally:
        model.update(tree_unflatten(parameters))
    mark_backward(graph)
    ends = list(accumulate((len(graph.outputs) - sum(counts), *counts)))
    stages = [graph.outputs[begin:end] for begin, end in pairwise(ends)]
    graph.outputs = graph.outputs[: ends[0]]
    return graph, stages


def _flops(graph: Graph) -> int:
    """Of the matrix products."""
    total = 0
    for node in graph.nodes:
        if node.name in _PRODUCTS:
            total += 2 * prod(graph.shapes[node.outputs[0]]) * graph.shapes[node.inputs[0]][-1]
    return total


def _update(
    model: nn.Module,
    optimizer: optimizers.Optimizer,
    trained: dict[str, mx.array],
    state: list[tuple[str, mx.array]],
    backend: Backend,
) -> Liveness:
    names, states = list(trained), [name for name, _ in state]
    kept = optimizer.state

    def update(*arrays: mx.array) -> list[mx.array]:
        parameters = tree_unflatten(list(zip(names, arrays, strict=False)))
        grads = tree_unflatten(list(zip(names, arrays[len(names) :], strict=False)))
        optimizer.state = tree_unflatten(list(zip(states, arrays[2 * len(names) :], strict=True)))
        updated = optimizer.apply_gradients(grads, parameters)
        return [*(v for _, v in tree_flatten(updated)), *(v for _, v in tree_flatten(optimizer.state))]

    values = list(trained.values())
    graph = trace(update, [*values, *values, *(value for _, value in state)], Borders())
    optimizer.state = kept
    count = len(names)
    kinds = dict.fromkeys(graph.inputs[: 2 * count], Kind.ADAPTER)
    kinds.update(dict.fromkeys(graph.inputs[2 * count :], Kind.OPTIMIZER))
    # The gradients are held by whoever asked for them; parameters and state are replaced.
    return simulate(graph, kinds, backend, held=graph.inputs[count : 2 * count])


def _plan(
    graph: Graph,
    *,
    gradient: Liveness,
    update: Liveness,
    state: list[tuple[str, mx.array]],
    shape: StepShape,
    trained: dict[str, mx.array],
) -> StepPlan:
    state_bytes = sum(value.nbytes for _, value in state)
    base = gradient.by_kind[Kind.BASE]
    kinds = dict(gradient.by_kind)
    kinds[Kind.OPTIMIZER] = state_bytes
    peak = gradient.peak_bytes + state_bytes
    where, backward, primitive = gradient.where, gradient.backward, gradient.primitive
    buffers = gradient.live_buffers + len(state)
    if base + update.peak_bytes > peak:
        kinds = dict(update.by_kind)
        kinds[Kind.BASE] = base
        peak, where, backward, primitive = base + update.peak_bytes, "optimizer", False, update.primitive
    return StepPlan(
        peak_bytes=peak,
        base_bytes=kinds[Kind.BASE],
        adapter_bytes=kinds[Kind.ADAPTER],
        optimizer_bytes=kinds[Kind.OPTIMIZER],
        activation_bytes=kinds[Kind.ACTIVATION],
        temporary_bytes=kinds[Kind.TEMPORARY] + kinds[Kind.INPUT],
        live_buffers=buffers,
        allocations=gradient.allocations + update.allocations,
        primitives=len(graph.nodes),
        trainable_parameters=sum(value.size for value in trained.values()),
        where=where,
        backward=backward,
        primitive=primitive,
        flops=_flops(graph),
        rows=shape.rows,
        width=shape.width,
        positions=shape.positions,
    )
