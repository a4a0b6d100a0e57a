"""Runs a model from one of its blocks on, with the recorded outputs of the blocks before.

Works for any mlx-lm model whose forward pass calls the members of one list of blocks in turn: blocks that are not to
be computed are replaced by objects that return what was recorded. What a model computes besides its blocks is done as
always, and since MLX is lazy, the embedding is not computed where its result is not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten


class Replay:
    """Records a model's blocks on one batch and replays them.

    Args:
        model: an mlx-lm model.
        tokens: [sequences, length].

    Attributes:
        logits: [sequences, length, vocabulary] of the unchanged model.
        exact: whether replaying works for this model; if not, every run starts at the first block.
    """

    def __init__(self, model: Any, tokens: mx.array) -> None:
        self._model = model
        self._tokens = tokens
        self._blocks = _block_list(model)
        self._outputs: list[Any] = []
        if self._blocks:
            recorders: list[Any] = [_Recorder(block, self._outputs) for block in self._blocks]
            with _replaced(self._blocks, recorders):
                self.logits = model(tokens)
            mx.eval(self.logits, [value for _, value in tree_flatten(self._outputs)])
        else:
            self.logits = model(tokens)
            mx.eval(self.logits)
        self.exact = len(self._outputs) == len(self._blocks) > 0 and self._agrees()

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    def run(self, start: int) -> mx.array:
        """Return the logits with blocks before ``start`` replayed; ``start`` up to the number of blocks."""
        if start <= 0 or not self.exact:
            return self._model(self._tokens)
        stored: list[Any] = [_Stored(b, o) for b, o in zip(self._blocks[:start], self._outputs[:start], strict=True)]
        with _replaced(self._blocks, [*stored, *self._blocks[start:]]):
            return self._model(self._tokens)

    def _agrees(self) -> bool:
        self.exact = True
        middle = self.run((len(self._blocks) + 1) // 2)
        return bool(mx.allclose(middle, self.logits, rtol=1e-4, atol=1e-4).item())


class _Proxy:
    """Stands in for a block; models read attributes of their blocks, such as whether attention slides."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)


class _Recorder(_Proxy):
    def __init__(self, block: nn.Module, outputs: list[Any]) -> None:
        super().__init__(block)
        self._outputs = outputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._block(*args, **kwargs)
        self._outputs.append(output)
        return output


class _Stored(_Proxy):
    def __init__(self, block: nn.Module, output: Any) -> None:
        super().__init__(block)
        self._output = output

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._output


def _block_list(model: Any) -> list[Any]:
    """The list itself that the forward pass iterates over; empty if there is none."""
    first = next(iter(model.layers), None)
    for _, module in model.named_modules():
        for value in module.values():
            if isinstance(value, list) and value and value[0] is first:
                return value
    return []


@contextmanager
def _replaced(blocks: list[Any], others: list[Any]) -> Iterator[None]:
    originals = list(blocks)
    blocks[:] = others
    try:
        yield
    finally:
        blocks[:] = originals
