"""The graph of one evaluation: arrays, the primitives that make them, and which of them are recomputed. No MLX here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

Shape = tuple[int, ...]

NO_REGION = -1


@dataclass(slots=True)
class Node:
    """One primitive.

    Attributes:
        name: MLX's, for example ``Matmul``.
        args: its state, as :func:`mlx.core.export_function` tells it.
        inputs, outputs: array ids.
        region: index into :attr:`Graph.regions`, or ``NO_REGION``.
        backward: belongs to the backward pass.
    """

    name: str
    args: tuple[Any, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    region: int = NO_REGION
    backward: bool = False


@dataclass(slots=True)
class Region:
    """A part of the forward pass that is entered and left by its arguments and results only.

    Attributes:
        label: for a person, for example ``layer 3``.
        recompute: its inner arrays are computed again for the backward pass.
        entries, inside: its array arguments, as they are outside and as its nodes see them, in the same order.
        results, exits: its results, as its nodes make them and as they are outside, in the same order.
    """

    label: str
    recompute: bool
    entries: tuple[int, ...] = ()
    inside: tuple[int, ...] = ()
    results: tuple[int, ...] = ()
    exits: tuple[int, ...] = ()


@dataclass(slots=True)
class Graph:
    """Everything that one call of ``mx.eval`` would compute.

    Attributes:
        shapes, itemsizes: by array id; an item size is in bytes.
        nodes: in an order in which each comes after its inputs.
        outputs: arrays asked for, in the order in which they are asked for.
        inputs: arrays that exist before, in the caller's order.
        constants: further arrays that exist before, such as scalars and tables.
        regions: see :class:`Region`.
    """

    shapes: list[Shape] = field(default_factory=list)
    itemsizes: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    outputs: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    constants: tuple[int, ...] = ()
    regions: list[Region] = field(default_factory=list)

    def add_array(self, shape: Shape, itemsize: int) -> int:
        """A new array id."""
        self.shapes.append(shape)
        self.itemsizes.append(itemsize)
        return len(self.shapes) - 1

    def nbytes(self, array: int) -> int:
        """Bytes of an array if it is stored densely."""
        return prod(self.shapes[array]) * self.itemsizes[array]


def assign_regions(graph: Graph) -> None:
    """Say of every node which region it belongs to, and whether to its forward or its backward pass.

    A region's forward pass is what its results need, up to its arguments. Whatever else reads an array from
    within it belongs to its backward pass.
    """
    producer = {array: node for node in graph.nodes for array in node.outputs}
    within: dict[int, int] = {}
    for index, region in enumerate(graph.regions):
        within.update(dict.fromkeys(region.inside, index))
        stack = [array for array in region.results if array not in region.inside]
        while stack:
            node = producer.get(stack.pop())
            if node is None or node.region != NO_REGION:
                continue
            node.region = index
            within.update(dict.fromkeys(node.outputs, index))
            stack += [array for array in node.inputs if array not in region.inside]
    for node in graph.nodes:
        if node.region == NO_REGION:
            for array in node.inputs:
                if array in within:
                    node.region, node.backward = within[array], True


def mark_backward(graph: Graph) -> None:
    """Everything that the first output, the loss, does not need belongs to the backward pass."""
    forward = {id(node) for node in _reachable(graph.nodes, graph.outputs[:1])}
    for node in graph.nodes:
        node.backward = id(node) not in forward


# Primitives of which each call makes its own, whoever else has the same.
_REPEATED = ("Broadcast", "Flatten", "Full")


def restore_repeats(graph: Graph) -> None:
    """Undo what the export merged: such a primitive is there once for each one of the forward pass that reads it.

    The step itself is not simplified. The copies cost little memory, but they are work that is scheduled, and how far
    MLX runs ahead is counted in work.
    """
    repeated = {node.outputs[0]: node for node in graph.nodes if node.name in _REPEATED}
    taken: set[int] = set()
    added: list[Node] = []
    for node in graph.nodes:
        if node.backward:
            continue
        inputs = list(node.inputs)
        for at, array in enumerate(inputs):
            if array in taken and array in repeated:
                source = repeated[array]
                inputs[at] = graph.add_array(graph.shapes[array], graph.itemsizes[array])
                added.append(Node(source.name, source.args, source.inputs, (inputs[at],), source.region))
            taken.add(array)
        node.inputs = tuple(inputs)
    graph.nodes += added


def restore_copies(graph: Graph, inputs: Iterable[int]) -> None:
    """Put back the views through which a function that is differentiated reads those inputs."""
    copies = {array: graph.add_array(graph.shapes[array], graph.itemsizes[array]) for array in inputs}
    for node in graph.nodes:
        node.inputs = _renamed(node.inputs, copies)
    graph.nodes[:0] = [Node("Copy", (), (array,), (copy,)) for array, copy in copies.items()]


def expand_regions(graph: Graph) -> Graph:
    """The graph without the region's borders, with recomputed regions as ``mx.checkpoint`` makes them.

    ``mx.checkpoint`` cannot be exported, therefore it is done to the graph: a region's results pass through one
    node that waits for all of them; once it has run, the region is computed again from its arguments, as far as the
    backward pass needs it, and the backward pass reads those arrays.
    """
    alias: dict[int, int] = {}
    nodes = list(graph.nodes)
    for index, region in enumerate(graph.regions):
        if region.recompute:
            nodes = _recompute(graph, nodes, index, region)
        else:
            alias.update(zip(region.inside, region.entries, strict=True))
            alias.update(zip(region.exits, region.results, strict=True))

    def resolve(array: int) -> int:
        while array in alias:
            array = alias[array]
        return array

    for node in nodes:
        node.inputs = tuple(map(resolve, node.inputs))
    outputs = tuple(map(resolve, graph.outputs))
    kept = _reachable(nodes, outputs)
    return Graph(graph.shapes, graph.itemsizes, kept, outputs, graph.inputs, graph.constants, graph.regions)


def _recompute(graph: Graph, nodes: list[Node], index: int, region: Region) -> list[Node]:
    def like(array: int) -> int:
        return graph.add_array(graph.shapes[array], graph.itemsizes[array])

    forward = [node for node in nodes if node.region == index and not node.backward]
    # The first pass reads its arguments directly, the second behind a node that waits for the results.
    direct = dict(zip(region.inside, region.entries, strict=True))
    again = {array: like(array) for array in (*region.inside, *(a for node in forward for a in node.outputs))}
    # The views that MLX puts in between allocate nothing, but count as work when it decides how far to run ahead.
    gated, stopped = tuple(map(like, region.inside)), tuple(map(like, region.results))
    gate = Node("Depends", (), region.entries + region.exits, gated, index, True)
    copies = [Node("Copy", (), (a,), (again[b],), index, True) for a, b in zip(gated, region.inside, strict=True)]
    stops = [Node("StopGradient", (), (a,), (b,), index) for a, b in zip(region.results, stopped, strict=True)]
    second = [
        Node(node.name, node.args, _renamed(node.inputs, again), _renamed(node.outputs, again), index, True)
        for node in forward
    ]
    border = Node("CustomTransforms", (), region.entries + stopped, region.exits, index)
    own = {id(node) for node in forward}
    for node in nodes:
        node.inputs = _renamed(node.inputs, direct if id(node) in own else again)
    return [*nodes, *stops, border, gate, *copies, *second]


def _renamed(arrays: tuple[int, ...], names: dict[int, int]) -> tuple[int, ...]:
    return tuple(names.get(array, array) for array in arrays)


def _reachable(nodes: Sequence[Node], outputs: Iterable[int]) -> list[Node]:
    """The nodes that the outputs need, each after its inputs."""
    producer = {array: node for node in nodes for array in node.outputs}
    done: set[int] = set()
    ordered: list[Node] = []
    for output in outputs:
        stack = [producer[output]] if output in producer else []
        while stack:
            node = stack[-1]
            if id(node) in done:
                stack.pop()
                continue
            waiting = [
                made for array in node.inputs if (made := producer.get(array)) is not None and id(made) not in done
            ]
            if waiting:
                stack += waiting
                continue
            done.add(id(node))
            ordered.append(node)
            stack.pop()
    return ordered
