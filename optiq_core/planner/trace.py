"""Reads the graph of a function from MLX without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from optiq_core.planner.graph import (
    Graph,
    Node,
    Region,
    assign_regions,
    expand_regions,
    restore_copies,
    restore_repeats,
)
from optiq_core.train.patches import patched_blocks

# Scalars that mark the borders of regions: 64-bit, and nowhere else in a model.
_FIRST_TOKEN = 0x6F70_7469_7100_0000


def trace(
    function: Callable[..., Sequence[mx.array]],
    inputs: Sequence[mx.array],
    borders: Borders,
    *,
    differentiated: Iterable[int] = (),
) -> Graph:
    """The graph of a function, its regions expanded.

    Args:
        function: takes the inputs as positional arguments and returns what would be evaluated.
        inputs: arrays; only their shapes and types are used, so that they may be lazy and of any size.
        borders: those that the function enters while it runs.
        differentiated: positions of the inputs at which it takes gradients.
    """
    reader = _Reader(borders)
    mx.export_function(reader.take, function, *inputs)
    graph = reader.graph
    assign_regions(graph)
    restore_repeats(graph)
    restore_copies(graph, [graph.inputs[at] for at in differentiated])
    return expand_regions(graph)


class Borders:
    """Wraps functions so that their nodes can be told from others in the exported graph."""

    def __init__(self) -> None:
        self.labels: list[tuple[str, bool]] = []

    def around(self, function: Callable[..., Any], *, label: str, recompute: bool) -> Callable[..., Any]:
        """The function, with its array arguments and results passing through marked nodes."""

        def bordered(*args: Any, **kwargs: Any) -> Any:
            index = len(self.labels)
            self.labels.append((label, recompute))
            args, kwargs = self._pass((args, kwargs), 2 * index)
            return self._pass(function(*args, **kwargs), 2 * index + 1)

        return bordered

    @contextmanager
    def around_blocks(self, model: Any, recompute: bool) -> Iterator[None]:
        """While entered, every block of a model is a region."""
        labels = {id(block): f"layer {i}" for i, block in enumerate(model.layers)}
        with patched_blocks(model, lambda call: self._block(call, labels, recompute)):
            yield

    def _block(self, call: Any, labels: dict[int, str], recompute: bool) -> Any:
        def bordered(block: Any, *args: Any, **kwargs: Any) -> Any:
            def inner(parameters: Any, *args: Any, **kwargs: Any) -> Any:
                block.update(parameters)
                return call(block, *args, **kwargs)

            label = labels.get(id(block), "layer")
            if not recompute:
                return self.around(lambda *a, **k: call(block, *a, **k), label=label, recompute=False)(*args, **kwargs)
            return self.around(inner, label=label, recompute=True)(block.trainable_parameters(), *args, **kwargs)

        return bordered

    def _pass(self, tree: Any, token: int) -> Any:
        arrays = [value for _, value in tree_flatten(tree) if isinstance(value, mx.array)]
        if not arrays:
            return tree
        passed = iter(mx.depends(arrays, [mx.array(_FIRST_TOKEN + token, mx.int64)]))
        return tree_map(lambda leaf: next(passed) if isinstance(leaf, mx.array) else leaf, tree)


class _Reader:
    """Collects what ``mx.export_function`` tells."""

    def __init__(self, borders: Borders) -> None:
        self.graph = Graph(regions=[Region(label, recompute) for label, recompute in borders.labels])
        self._borders = borders
        self._ids: dict[str, int] = {}
        self._tokens: dict[int, int] = {}

    def take(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "inputs":
            self.graph.inputs = self._arrays(event["inputs"])
        elif kind == "outputs":
            self.graph.outputs = self._arrays(event["outputs"])
        elif kind == "constants":
            self._constants(event["constants"])
        elif kind == "primitive":
            self._primitive(event)

    def _constants(self, constants: list[tuple[str, mx.array]]) -> None:
        # Functions have run by now, so that all regions are known.
        self.graph.regions = [Region(label, recompute) for label, recompute in self._borders.labels]
        ids = []
        for name, value in constants:
            array = self._array(name, value.shape, value.dtype)
            token = cast(int, value.item()) if value.dtype == mx.int64 and value.ndim == 0 else 0
            if token >= _FIRST_TOKEN:
                self._tokens[array] = token - _FIRST_TOKEN
            else:
                ids.append(array)
        self.graph.constants = tuple(ids)

    def _primitive(self, event: dict[str, Any]) -> None:
        inputs, outputs = self._arrays(event["inputs"]), self._arrays(event["outputs"])
        name = event["name"]
        if name == "Depends" and inputs[-1] in self._tokens:
            index, leaving = divmod(self._tokens[inputs[-1]], 2)
            region = self.graph.regions[index]
            if leaving:
                region.results, region.exits = inputs[:-1], outputs
            else:
                region.entries, region.inside = inputs[:-1], outputs
            return
        self.graph.nodes.append(Node(name, tuple(event["arguments"]), inputs, outputs))

    def _arrays(self, described: list[tuple[str, tuple[int, ...], mx.Dtype]]) -> tuple[int, ...]:
        return tuple(self._array(*each) for each in described)

    def _array(self, name: str, shape: tuple[int, ...], dtype: mx.Dtype) -> int:
        found = self._ids.get(name)
        if found is None:
            found = self._ids[name] = self.graph.add_array(tuple(shape), dtype.size)
        return found
