"""The order in which MLX evaluates a graph. No MLX here.

``mx.eval`` puts the graph on a tape breadth-first from the outputs, at most twenty arrays wide: where the tape is
full, it goes down a level and comes back later. It then runs the tape from the far end. Peak memory depends on this
order: a depth-first order reads tens of per cent low.
"""

from __future__ import annotations

from collections.abc import Sequence

from optiq_core.planner.graph import Graph

# MLX_BFS_MAX_WIDTH, as it is unless the environment says otherwise.
MAX_WIDTH = 20


def evaluation_order(graph: Graph, max_width: int = MAX_WIDTH) -> list[int]:
    """Indices of the nodes, first evaluated first."""
    producer = [-1] * len(graph.shapes)
    for index, node in enumerate(graph.nodes):
        for array in node.outputs:
            producer[array] = index
    # What each node waits for, as nodes; arrays that exist already do not count. The outputs' reader comes last.
    reads = [[producer[array] for array in node.inputs if producer[array] >= 0] for node in graph.nodes]
    reader = len(reads)
    reads.append([producer[array] for array in graph.outputs if producer[array] >= 0])
    degree = [0] * len(reads)
    for inputs in reads:
        for index in inputs:
            degree[index] += 1

    tape = [reader]
    stack: list[tuple[int, int]] = []
    position = 0
    while position < len(tape) or stack:
        if position >= len(tape):
            reading, start = stack.pop()
        else:
            reading, start = tape[position], 0
            position += 1
        inputs = reads[reading]
        for at in range(start, len(inputs)):
            if len(tape) - position >= max_width:
                stack.append((reading, at))
                break
            index = inputs[at]
            degree[index] -= 1
            if degree[index] == 0:
                tape.append(index)
    tape.reverse()
    tape.pop()
    return tape


def staged_orders(graph: Graph, stages: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Indices of the nodes that each stage evaluates, and last those that the outputs need then.

    Args:
        graph: with the outputs of the last evaluation.
        stages: arrays of the evaluations before it.
    """
    producer = {array: index for index, node in enumerate(graph.nodes) for array in node.outputs}
    done: set[int] = set()
    orders = []
    for wanted in (*stages, graph.outputs):
        needed: set[int] = set()
        stack = [producer[array] for array in wanted if array in producer]
        while stack:
            index = stack.pop()
            if index in needed or index in done:
                continue
            needed.add(index)
            stack += [producer[array] for array in graph.nodes[index].inputs if array in producer]
        own = sorted(needed)
        part = Graph(graph.shapes, graph.itemsizes, [graph.nodes[i] for i in own], tuple(wanted))
        orders.append([own[i] for i in evaluation_order(part)])
        done |= needed
    return orders
