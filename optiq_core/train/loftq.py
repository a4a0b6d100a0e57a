"""LoftQ's initialization (arXiv:2310.08659): the adapter begins with what quantizing took from the weights.

The paper alternates between quantizing ``W - s (A B)^T`` and the best low-rank fit of what is left. Here the quantized
base stays as it was loaded, because other adapters share it, so that it is the fit alone: ``s (A B)^T`` is the best
approximation of ``W - Q`` of its rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from optiq_core.adapters.tensors import base_weight
from optiq_core.errors import TrainingError

# Columns beyond the rank, and rounds, of the randomized range finder (arXiv:0909.4061, algorithm 4.4).
_EXTRA, _ROUNDS = 16, 4


def apply_loftq(model: Any, folder: Path, ranks: Mapping[str, int]) -> None:
    """Set A and B of every adapted module, in place.

    Args:
        model: with low-rank layers over weights that were quantized at load.
        folder: the base on disk, with its weights in float.
        ranks: module path to rank.

    Raises:
        TrainingError: the base on disk is quantized already, or was not quantized at load.
    """
    from mlx_lm.utils import load_model

    source = dict(load_model(folder, lazy=True)[0].named_modules())
    layers = dict(model.named_modules())
    for path, rank in ranks.items():
        layer, linear = layers[path], source[path]
        if not isinstance(linear, nn.Linear):
            raise TrainingError(
                f"init: loftq needs the float weights of '{path}', and {folder.name} has them quantized; "
                "train an unquantized base with --load-in",
                field="init",
            )
        lost = base_weight(linear) - base_weight(layer.linear)
        if not mx.any(lost).item():
            raise TrainingError(
                f"init: '{path}' is not quantized, so that loftq has nothing to make good; load it with --load-in",
                field="init",
            )
        left, values, right = leading(lost, rank)
        root = np.sqrt(values)
        layer.lora_a = mx.array(right.T * root)
        layer.lora_b = mx.array((left * root).T / layer.scale)
        mx.eval(layer.lora_a, layer.lora_b)


Matrix = npt.NDArray[np.float32]


def leading(matrix: mx.array, rank: int) -> tuple[Matrix, Matrix, Matrix]:
    """The leading singular triplets of a matrix: left ``[m, r]``, values ``[r]``, right ``[r, n]``."""
    rng = np.random.default_rng(0)
    width = min(rank + _EXTRA, *matrix.shape)
    basis = rng.standard_normal((matrix.shape[1], width)).astype(np.float32)
    for _ in range(_ROUNDS):
        left = np.linalg.qr(np.array(matrix @ mx.array(basis)))[0]
        basis = np.linalg.qr(np.array(matrix.T @ mx.array(left)))[0]
    small, values, right = np.linalg.svd(np.array(matrix @ mx.array(basis)), full_matrices=False)
    return small[:, :rank], values[:rank], (right @ basis.T)[:rank]
