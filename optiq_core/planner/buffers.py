"""The buffers of a simulated evaluation and who refers to them. No MLX here."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from math import prod

from optiq_core.planner.graph import Graph, Node
from optiq_core.planner.layout import Layout, dense

# An input is taken over only if it is not larger than the output by more than this.
_DONATION_SLACK = 16384


class Kind(StrEnum):
    """What a buffer's bytes are counted as."""

    BASE = "base"
    ADAPTER = "adapter"
    OPTIMIZER = "optimizer"
    INPUT = "input"
    ACTIVATION = "activation"
    TEMPORARY = "temporary"


class Buffers:
    """Buffers with reference counts: one for each array that lies in it, and one for each task that reads it."""

    def __init__(self, graph: Graph, kinds: dict[int, Kind], keep: Iterable[int]) -> None:
        self.graph = graph
        arrays = len(graph.shapes)
        self.of = [-1] * arrays
        self.layouts: list[Layout | None] = [None] * arrays
        self.sizes: list[int] = []
        self.bytes = self.peak_bytes = 0
        self.live = self.most_live = self.allocations = 0
        self.by_kind = dict.fromkeys(Kind, 0)
        self.peak_by_kind = dict(self.by_kind)
        self._references: list[int] = []
        self._kinds: list[Kind] = []
        # References to the array itself: by nodes that will read it, and by the caller.
        self.readers = [0] * arrays
        for node in graph.nodes:
            for array in node.inputs:
                self.readers[array] += 1
        for array in keep:
            self.readers[array] += 1
        self._across = _read_by_both_passes(graph)
        for array in dict.fromkeys((*graph.inputs, *graph.constants)):
            if self.readers[array]:
                self.allocate(array, kinds.get(array, Kind.INPUT))
        self.allocations = 0

    def allocate(self, array: int, kind: Kind | None = None) -> None:
        """A dense buffer for an array."""
        self.layouts[array] = layout = dense(self.graph.shapes[array])
        self.of[array] = self._new(layout.span * self.graph.itemsizes[array], kind or self._kind(array))

    def allocate_like(self, array: int, source: int) -> None:
        """A buffer for an array that lies as another one does."""
        layout = self.layout(source)
        self.layouts[array] = layout
        self.of[array] = self._new(layout.span * self.graph.itemsizes[array], self._kind(array))

    def temporary(self, nbytes: int) -> int:
        """A buffer that no array has; whoever asked for it releases it."""
        return self._new(nbytes, Kind.TEMPORARY)

    def share(self, array: int, source: int, layout: Layout | None = None) -> None:
        """Lay an array into another one's buffer."""
        self.layouts[array] = layout or self.layout(source)
        self.of[array] = buffer = self.of[source]
        self._references[buffer] += 1

    def layout(self, array: int) -> Layout:
        """Of an array that has been evaluated."""
        found = self.layouts[array]
        assert found is not None
        return found

    def donatable(self, source: int, target: int) -> bool:
        """Whether a primitive may write its output into this input."""
        return (
            self.own(source)
            and self.graph.itemsizes[source] == self.graph.itemsizes[target]
            and self.sizes[self.of[source]] <= self.graph.nbytes(target) + _DONATION_SLACK
        )

    def own(self, source: int) -> bool:
        """Whether nothing but the primitive at hand refers to the array or its buffer."""
        return self.readers[source] == 1 and self._references[self.of[source]] == 1

    def retain(self, buffer: int) -> None:
        """A task reads it."""
        self._references[buffer] += 1

    def release(self, buffer: int) -> None:
        """A task has run, or an array is gone."""
        self._references[buffer] -= 1
        if self._references[buffer] == 0:
            size = self.sizes[buffer]
            self.bytes -= size
            self.by_kind[self._kinds[buffer]] -= size
            self.live -= 1

    def forget(self, node: Node) -> None:
        """A node has been evaluated: it no longer refers to its inputs, and outputs that nobody reads are gone."""
        for array in node.inputs:
            self.readers[array] -= 1
            if self.readers[array] == 0:
                self.release(self.of[array])
        for array in node.outputs:
            if self.readers[array] == 0:
                self.release(self.of[array])

    def let_go(self, arrays: Iterable[int]) -> None:
        """The caller no longer holds these arrays."""
        for array in arrays:
            self.readers[array] -= 1
            if self.readers[array] == 0:
                self.release(self.of[array])

    def _new(self, size: int, kind: Kind) -> int:
        self.sizes.append(size)
        self._references.append(1)
        self._kinds.append(kind)
        self.bytes += size
        self.by_kind[kind] += size
        self.live += 1
        self.allocations += 1
        self.most_live = max(self.most_live, self.live)
        if self.bytes > self.peak_bytes:
            self.peak_bytes = self.bytes
            self.peak_by_kind = dict(self.by_kind)
        return len(self.sizes) - 1

    def _kind(self, array: int) -> Kind:
        return Kind.ACTIVATION if array in self._across else Kind.TEMPORARY


def _read_by_both_passes(graph: Graph) -> set[int]:
    """Arrays of the forward pass that the backward pass reads."""
    forward = {array for node in graph.nodes if not node.backward for array in node.outputs}
    return {array for node in graph.nodes if node.backward for array in node.inputs} & forward


def dense_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes of a dense array."""
    return prod(shape) * itemsize
