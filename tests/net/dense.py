"""What a request must answer, found without the bank: adapters are added to the weights, and mlx-lm decodes alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.generate import generate_step
from safetensors.numpy import load_file

from optiq_core.engine.sampling import make_sampler
from optiq_core.engine.types import EngineRequest

Deltas = dict[str, np.ndarray]


def weight_deltas(folder: Path, model: nn.Module) -> Deltas:
    """Return what an adapter folder in mlx-lm's format adds to the model's weights, [out, in] or stacks of these."""
    tensors = load_file(folder / "adapters.safetensors")
    scale = json.loads((folder / "adapter_config.json").read_text())["lora_parameters"]["scale"]
    modules = dict(model.named_modules())
    deltas: Deltas = {}
    for name in tensors:
        path, dot, kind = name.rpartition(".")
        if kind != "lora_a" or not dot:
            continue
        a, b = (tensors[f"{path}.{leaf}"].astype(np.float64) for leaf in ("lora_a", "lora_b"))
        # Stacks of experts: [experts, rank, in] and [experts, out, rank].
        product = (b @ a if a.ndim == 3 else (a @ b).T) * scale
        if f"{path}.m" in tensors:
            weight = np.array(modules[path].weight, np.float64)
            merged = weight + product
            gain = tensors[f"{path}.m"] / np.linalg.norm(merged, axis=1)
            product = gain[:, None] * merged - weight
        deltas[path] = product
    return deltas


@dataclass(frozen=True)
class Difference:
    """Where an answer leaves the reference; None stands for a stop token.

    ``explained``: the reference too draws the found token if its logit is raised by the tolerance.
    """

    at: int
    expected: int | None
    found: int | None
    explained: bool


class Dense:
    """A model of its own to which adapters are merged for one request at a time.

    Args:
        model: float weights; nobody else may use it.
        stops: tokens that end a turn.
        tolerance: logits of the two may differ by so much.
    """

    def __init__(self, model: nn.Module, stops: set[int], tolerance: float) -> None:
        self.model = model
        self._stops = stops
        self._tolerance = tolerance
        self._modules: dict[str, Any] = dict(model.named_modules())

    @contextmanager
    def merged(self, parts: Sequence[tuple[Deltas, float]]) -> Iterator[None]:
        """Add weighted deltas for the length of a block."""
        total: Deltas = {}
        for deltas, weight in parts:
            for path, delta in deltas.items():
                total[path] = total[path] + weight * delta if path in total else weight * delta
        kept = {path: self._modules[path].weight for path in total}
        for path, delta in total.items():
            self._modules[path].weight = mx.array((np.array(kept[path], np.float64) + delta).astype(np.float32))
        try:
            yield
        finally:
            for path, weight in kept.items():
                self._modules[path].weight = weight

    def answer(self, request: EngineRequest) -> list[int]:
        """Return the tokens of a request, decoded alone with the weights as they are now."""
        tokens: list[int] = []
        prompt = mx.array(request.prompt)
        sampler = make_sampler(request.sampling)
        for token, _ in generate_step(prompt, self.model, max_tokens=request.max_tokens, sampler=sampler):
            if int(token) in self._stops:
                break
            tokens.append(int(token))
        return tokens

    def difference(
        self, request: EngineRequest, parts: Sequence[tuple[Deltas, float]], found: Sequence[int], *, ended: bool
    ) -> Difference | None:
        """Compare an answer with the reference; None if they are the same.

        Args:
            request: what was asked; greedy, or with a seed.
            parts: deltas and weights of its adapters.
            found: the tokens that it got.
            ended: whether it ran to its end; a cancelled one is compared as far as it came.
        """
        with self.merged(parts):
            expected = self.answer(request)
            if not ended:
                expected = expected[: len(found)]
            if expected == list(found):
                return None
            pairs = zip(expected, found, strict=False)
            at = next((i for i, (one, two) in enumerate(pairs) if one != two), min(len(expected), len(found)))
            wanted = expected[at] if at < len(expected) else None
            got = found[at] if at < len(found) else None
            logits = self.model(mx.array([[*request.prompt, *found[:at]]]))[:, -1]
            return Difference(at, wanted, got, self._within(logits, request, at, got))

    def _within(self, logits: mx.array, request: EngineRequest, at: int, got: int | None) -> bool:
        sampler = make_sampler(request.sampling)
        for _ in range(at):
            # Every draw takes the next key of the row's own stream.
            sampler(mx.zeros_like(logits))
        accepted = list(self._stops) if got is None else [got]
        raised = mx.array(logits)
        raised[:, mx.array(accepted)] += self._tolerance
        drawn = sampler(raised - mx.logsumexp(raised, axis=-1, keepdims=True))
        return int(drawn.item()) in accepted
