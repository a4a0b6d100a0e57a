"""AdaLoRA (arXiv:2303.10512): ranks that are pruned during training, where they matter least.

The change of a module is ``s A diag(e) B``. A triplet (a column of A, an entry of e, a row of B) is rated by how much
the loss would change without it, smoothed over steps, times how uncertain that is. The parameters that are kept fall
from the initial ones to the budget along a cubic curve; then the ranks stay. What is exported has the true ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from optiq_core.adapters.kinds import linear_dims
from optiq_core.train.loss import Inputs, Loss

# Of the smoothed importance and of its uncertainty.
_BETA = 0.85
# Weight of how far A's columns and B's rows are from orthonormal.
_ORTHOGONALITY = 0.5
# Shares of a run before ranks are pruned, and after they are settled.
_BEFORE, _AFTER = 0.1, 0.3
# Prunings of a run.
_TIMES = 50
_LEAVES = ("lora_a", "lora_e", "lora_b")


class AdaLinear(nn.Module):
    """A low-rank layer whose ranks can be switched off one by one.

    Args:
        linear: plain or quantized.
        rank: to begin with.
        scale, dropout: of the low-rank path.
    """

    def __init__(self, linear: nn.Module, *, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        inputs, outputs = linear_dims(linear)
        self.linear = linear
        self.dropout = nn.Dropout(p=dropout)
        self.scale = scale
        self.lora_a = mx.random.normal((inputs, rank), scale=inputs**-0.5)
        self.lora_e = mx.zeros((rank,))
        self.lora_b = mx.random.normal((rank, outputs), scale=outputs**-0.5)

    def __call__(self, x: mx.array) -> mx.array:
        low_rank = ((self.dropout(x) @ self.lora_a) * self.lora_e) @ self.lora_b
        return self.linear(x) + (self.scale * low_rank).astype(x.dtype)

    def exported(self) -> dict[str, mx.array]:
        """The same function as an ordinary adapter of the rank that is left; nothing where none is."""
        kept = mx.array(np.flatnonzero(np.array(self.lora_e)))
        if not kept.size:
            return {}
        return {"lora_a": self.lora_a[:, kept] * self.lora_e[kept], "lora_b": self.lora_b[kept]}


def with_orthogonality(loss: Loss) -> Loss:
    """A loss of the same value whose gradient also draws A's columns and B's rows to orthonormal ones."""

    def regularized(model: nn.Module, inputs: Inputs) -> tuple[mx.array, mx.array]:
        value, count = loss(model, inputs)
        layers = [layer for layer in model.modules() if isinstance(layer, AdaLinear)]
        penalties = [_off(layer.lora_a.T) + _off(layer.lora_b) for layer in layers]
        penalty = _ORTHOGONALITY * sum(penalties, mx.array(0.0)) / max(1, 2 * len(layers))
        return value + (penalty - mx.stop_gradient(penalty)), count

    return regularized


def _off(rows: mx.array) -> mx.array:
    """Squared distance of the rows' products from those of orthonormal ones."""
    return mx.square(rows @ rows.T - mx.eye(rows.shape[0])).sum()


class Pruner:
    """Rates triplets and switches the least of them off.

    Args:
        model: with :class:`AdaLinear` layers.
        costs: parameters of a rank, by module path.
        budget: parameters to end with.
        steps: of the run.
    """

    def __init__(self, model: nn.Module, *, costs: Mapping[str, int], budget: int, steps: int) -> None:
        self._layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, AdaLinear)}
        self._costs, self._budget = costs, budget
        self._initial = sum(costs[path] * layer.lora_e.size for path, layer in self._layers.items())
        self._first, self._last = int(steps * _BEFORE), max(1, int(steps * (1 - _AFTER)))
        self._every = max(1, steps // _TIMES)
        names = [f"{path}.{leaf}" for path in self._layers for leaf in _LEAVES]
        arrays = dict(tree_flatten(model.trainable_parameters()))
        # Smoothed importance and uncertainty of every entry, and which triplets are on; kept in checkpoints.
        self.state: dict[str, mx.array] = {
            **{f"importance.{name}": mx.zeros_like(arrays[name]) for name in names},
            **{f"uncertainty.{name}": mx.zeros_like(arrays[name]) for name in names},
            **{f"on.{path}": mx.ones_like(layer.lora_e) for path, layer in self._layers.items()},
        }

    def rate(self, grads: Any) -> None:
        """Take a step's gradients, before the weights change."""
        slopes = dict(tree_flatten(grads))
        for path, layer in self._layers.items():
            for leaf in _LEAVES:
                name = f"{path}.{leaf}"
                now = mx.abs(layer[leaf] * slopes[name])
                smooth = _BETA * self.state[f"importance.{name}"] + (1 - _BETA) * now
                spread = _BETA * self.state[f"uncertainty.{name}"] + (1 - _BETA) * mx.abs(now - smooth)
                self.state[f"importance.{name}"], self.state[f"uncertainty.{name}"] = smooth, spread
        mx.eval(self.state)

    def prune(self, step: int) -> None:
        """After step number ``step`` changed the weights: switch off what is beyond the step's budget."""
        if self._first <= step < self._last and (step - self._first) % self._every == 0:
            self._choose(self.budget_at(step))
        elif step == self._last:
            self._choose(self._budget)
        elif step < self._last:
            return
        for path, layer in self._layers.items():
            layer.lora_e = layer.lora_e * self.state[f"on.{path}"]
        mx.eval([layer.lora_e for layer in self._layers.values()])

    def budget_at(self, step: int) -> int:
        """Parameters to keep after a step: all at first, the budget at last, a cubic curve between."""
        if step < self._first:
            return self._initial
        left = max(0.0, 1 - (step - self._first) / max(1, self._last - self._first))
        return int(self._budget + (self._initial - self._budget) * left**3)

    def ranks(self) -> dict[str, int]:
        """Ranks that are left, by module; modules without any are left out."""
        counts = {path: int(np.count_nonzero(np.array(layer.lora_e))) for path, layer in self._layers.items()}
        return {path: count for path, count in counts.items() if count}

    def _choose(self, budget: int) -> None:
        rated: list[tuple[float, str, int]] = []
        for path in self._layers:
            # Sorting by a float that two triplets share falls back to path and number, so that it is the same anywhere.
            rated += [(-score, path, at) for at, score in enumerate(self._scores(path))]
        on: dict[str, list[float]] = {path: [0.0] * layer.lora_e.size for path, layer in self._layers.items()}
        left = budget
        for _, path, at in sorted(rated):
            if self._costs[path] <= left:
                on[path][at] = 1.0
                left -= self._costs[path]
        self.state |= {f"on.{path}": mx.array(values) for path, values in on.items()}

    def _scores(self, path: str) -> list[float]:
        a, e, b = (
            self.state[f"importance.{path}.{leaf}"] * self.state[f"uncertainty.{path}.{leaf}"] for leaf in _LEAVES
        )
        scores: Any = (e + a.mean(axis=0) + b.mean(axis=1)).tolist()
        return list(scores)
