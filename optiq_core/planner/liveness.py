"""Which buffers live when: a step's peak memory from its graph, as MLX would evaluate it. No MLX here.

The rules are MLX's: the order of evaluation (:mod:`optiq_core.planner.order`), arrays that share a buffer, element-wise
primitives that write into an input which nobody else reads, copies of operands that lie unsuitably, and buffers that
are given back only when the work that reads them has run, which is some way behind the point where it was scheduled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from optiq_core.planner.buffers import Buffers, Kind
from optiq_core.planner.devices import Backend
from optiq_core.planner.graph import Graph, Node
from optiq_core.planner.order import staged_orders
from optiq_core.planner.primitives import run


@dataclass(frozen=True, slots=True)
class Liveness:
    """What evaluating one graph takes.

    Attributes:
        peak_bytes: of array memory, at the fullest moment.
        by_kind: the same, split by :class:`Kind`.
        live_buffers: most buffers alive at once.
        allocations: buffers allocated in all.
        kept_buffers: alive when all is done.
        kept_bytes: their bytes.
        where: label of the region in which the peak is reached.
        backward: it is reached in the backward pass.
        primitive: at the peak.
    """

    peak_bytes: int
    by_kind: dict[Kind, int]
    live_buffers: int
    allocations: int
    kept_buffers: int
    kept_bytes: int
    where: str
    backward: bool
    primitive: str


@dataclass(slots=True)
class _Queue:
    """Work that is scheduled and has not run: it holds on to the buffers that it reads."""

    backend: Backend
    buffers: Buffers
    waiting: deque[deque[tuple[int, ...]]] = field(default_factory=deque)
    open: deque[tuple[int, ...]] = field(default_factory=deque)
    operations: int = 0
    moved: int = 0

    def add(self, held: tuple[int, ...], operations: int, moved: int) -> None:
        self.open.append(held)
        self.operations += operations
        self.moved += moved
        backend = self.backend
        if self.operations >= backend.operations_per_task or self.moved > backend.bytes_per_task:
            self.waiting.append(self.open)
            self.open = deque()
            self.operations = self.operations - backend.operations_per_task if backend.carries_over else 0
            self.moved = 0
        while len(self.waiting) > backend.tasks_ahead:
            self._finish(self.waiting.popleft())

    def drain(self) -> None:
        for task in self.waiting:
            self._finish(task)
        self._finish(self.open)
        self.waiting.clear()
        self.open = deque()

    def _finish(self, task: Iterable[tuple[int, ...]]) -> None:
        for held in task:
            for buffer in held:
                self.buffers.release(buffer)


def simulate(
    graph: Graph,
    kinds: dict[int, Kind],
    backend: Backend,
    *,
    held: Iterable[int] = (),
    phases: Iterable[int] = (0,),
    stages: Sequence[tuple[int, ...]] = (),
) -> Liveness:
    """Evaluate a graph without computing anything; the fullest of several ways.

    A task is closed after so many operations, and where its border falls in a step depends on what was evaluated
    before. A run of many steps meets all of them.

    Args:
        graph: with its regions expanded.
        kinds: what the inputs are; the others count as inputs of the step.
        backend: whose rules hold.
        held: inputs that the caller keeps while the graph is evaluated; the others are freed after their last use.
        phases: operations in the open task at the start, one simulation for each.
        stages: arrays that are evaluated first, one group after the other; the caller lets go of each group.
    """
    keep = (*graph.outputs, *graph.constants, *held, *(array for stage in stages for array in stage))
    orders = staged_orders(graph, stages)
    found = []
    for phase in phases:
        buffers = Buffers(graph, kinds, keep)
        found.append(_simulate(graph, orders, stages, buffers, _Queue(backend, buffers, operations=phase)))
    return max(found, key=lambda liveness: liveness.peak_bytes)


def _simulate(
    graph: Graph,
    orders: Sequence[list[int]],
    stages: Sequence[tuple[int, ...]],
    buffers: Buffers,
    queue: _Queue,
) -> Liveness:
    peak_at = None
    for order, stage in zip_longest(orders, stages, fillvalue=()):
        for index in order:
            before = buffers.peak_bytes
            _schedule(graph.nodes[index], buffers, queue)
            if buffers.peak_bytes > before:
                peak_at = index
        queue.drain()
        buffers.let_go(stage)
    label, backward, primitive = _place(graph, peak_at)
    return Liveness(
        peak_bytes=buffers.peak_bytes,
        by_kind=buffers.peak_by_kind,
        live_buffers=buffers.most_live,
        allocations=buffers.allocations,
        kept_buffers=buffers.live,
        kept_bytes=buffers.bytes,
        where=label,
        backward=backward,
        primitive=primitive,
    )


def _schedule(node: Node, buffers: Buffers, queue: _Queue) -> None:
    backend = queue.backend
    temporaries, operations = run(node, buffers, backend)
    own = {buffers.of[array] for array in node.outputs[:1]}
    read = {buffers.of[array] for array in (*node.inputs, *node.outputs[1:])} - own
    moved = sum(buffers.sizes[b] for b in read | own) if backend.bytes_per_task < _NO_LIMIT else 0
    for buffer in read:
        buffers.retain(buffer)
    # Temporaries were allocated with one reference, which passes to the queue.
    queue.add((*read, *temporaries), operations + 1, moved)
    buffers.forget(node)


_NO_LIMIT = 1 << 60


def _place(graph: Graph, index: int | None) -> tuple[str, bool, str]:
    if index is None:
        return "", False, ""
    node = graph.nodes[index]
    return graph.regions[node.region].label if node.region >= 0 else "", node.backward, node.name
