"""Masked cross-entropy, with logits only where a token carries loss.

With a vocabulary of tens of thousands the head costs as much as many blocks, and prompt and padding positions
need no logits. Where a model can be taken apart into body and head, only the positions with loss go through the head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
from mlx import nn

from optiq_core.train.batches import Batch
from optiq_core.train.packed import packed_caches
from optiq_core.train.stages import stage

Head = Callable[[mx.array], mx.array]
Inputs = dict[str, mx.array]
Loss = Callable[[nn.Module, Inputs], tuple[mx.array, mx.array]]
# From logits [N, V] and targets [N] to nats [N].
CrossEntropy = Callable[[mx.array, mx.array], mx.array]

_PROBE = [[1, 2, 3, 4]]


def hidden_states(body: Head, model: nn.Module, inputs: Inputs) -> mx.array:
    """Hidden states (or logits) of the inputs, each example by itself where several share a row."""
    tokens = inputs["tokens"][:, :-1]
    if "segments" not in inputs:
        return body(tokens)
    caches: Any = packed_caches(model, inputs["segments"])
    return cast(Any, body)(tokens, cache=caches)


def full_loss(model: nn.Module, inputs: Inputs) -> tuple[mx.array, mx.array]:
    """Mean cross-entropy over the tokens in the spans, and their number.

    The same value as ``mlx_lm.tuner.trainer.default_loss`` on the same batch, but always in float32.
    """
    if "segments" in inputs:
        return sparse_loss(model, model, lambda logits: logits, inputs)
    tokens, spans = inputs["tokens"], inputs["spans"]
    logits = model(tokens[:, :-1])
    steps = mx.arange(1, tokens.shape[1])
    mask = mx.logical_and(steps >= spans[:, 0:1], steps <= spans[:, 1:])
    losses = nn.losses.cross_entropy(logits.astype(mx.float32), tokens[:, 1:]) * mask
    count = mask.sum()
    return losses.sum() / count, count


def sparse_loss(
    model: nn.Module,
    body: Head,
    head: Head,
    inputs: Inputs,
    cross_entropy: CrossEntropy = nn.losses.cross_entropy,
) -> tuple[mx.array, mx.array]:
    """``full_loss`` with the head computed at ``inputs["positions"]`` only."""
    tokens, positions, count = inputs["tokens"], inputs["positions"], inputs["count"]
    hidden = hidden_states(body, model, inputs)
    hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
    targets = tokens[:, 1:].reshape(-1)[positions]
    mask = mx.arange(positions.size) < count
    losses = cross_entropy(head(hidden).astype(mx.float32), targets) * mask
    return losses.sum() / count, count


def chunked_loss(
    model: nn.Module,
    body: Head,
    head: Head,
    inputs: Inputs,
    *,
    chunk: int,
    cross_entropy: CrossEntropy = nn.losses.cross_entropy,
) -> tuple[mx.array, mx.array]:
    """``sparse_loss`` with at most ``chunk`` rows of logits alive at a time.

    The head is frozen, so that all that its backward pass yields is a gradient at the hidden states. Each chunk
    computes it at once and gives its logits back; nothing is computed twice. One chunk waits for the one before.
    """
    tokens, positions, count = inputs["tokens"], inputs["positions"], inputs["count"]
    hidden = hidden_states(body, model, inputs)
    hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
    targets = tokens[:, 1:].reshape(-1)[positions]
    mask = mx.arange(positions.size) < count

    def total(rows: mx.array, at: slice) -> mx.array:
        return (cross_entropy(head(rows).astype(mx.float32), targets[at]) * mask[at]).sum()

    frozen = mx.stop_gradient(hidden)
    losses: list[mx.array] = []
    slopes: list[mx.array] = []
    for start in range(0, positions.size, chunk):
        at = slice(start, start + chunk)
        rows = frozen[at]
        if slopes:
            rows = mx.depends([rows], [losses[-1], slopes[-1]])[0]
        value, slope = mx.value_and_grad(total)(rows, at)
        stage(value)
        stage(slope)
        losses.append(value)
        slopes.append(slope)
    # Worth nothing, but its gradient at the hidden states is the one that was computed.
    carrier = (mx.stop_gradient(mx.concatenate(slopes)) * (hidden - frozen)).astype(mx.float32).sum()
    return (mx.stop_gradient(sum(losses, mx.array(0.0))) + carrier) / count, count


def loss_for(model: nn.Module, chunk: int = 0, cross_entropy: CrossEntropy = nn.losses.cross_entropy) -> Loss:
    """The cheapest loss that is exact for this model.

    Args:
        model: asked on four tokens whether its head can be taken off.
        chunk: rows of logits to hold at a time, 0 for all; no effect where the head cannot be taken off.
        cross_entropy: of the head's logits; no effect where the head cannot be taken off.
    """
    return make_loss(split=split_head(model) is not None, chunk=chunk, cross_entropy=cross_entropy)


def make_loss(*, split: bool, chunk: int = 0, cross_entropy: CrossEntropy = nn.losses.cross_entropy) -> Loss:
    """The loss for a model of which it is known whether its head can be taken off."""
    if not split:
        return full_loss

    def loss(current: nn.Module, inputs: Inputs) -> tuple[mx.array, mx.array]:
        parts = model_parts(current)
        assert parts is not None
        if 0 < chunk < inputs["positions"].size:
            return chunked_loss(current, *parts, inputs, chunk=chunk, cross_entropy=cross_entropy)
        return sparse_loss(current, *parts, inputs, cross_entropy)

    return loss


def split_head(model: nn.Module) -> tuple[Head, Head] | None:
    """Body and head of a model, or None if applying one after the other is not the model.

    Some models scale or cap their logits after the head; whether this one does is found by trying it on
    four tokens, which is safer than a list of names.
    """
    parts = model_parts(model)
    if parts is None:
        return None
    body, head = parts
    probe = mx.array(_PROBE)
    try:
        expected = model(probe).astype(mx.float32)
        found = head(body(probe)).astype(mx.float32)
        same = expected.shape == found.shape and mx.allclose(expected, found, rtol=1e-3, atol=1e-3).item()
    except (TypeError, ValueError, AttributeError):
        # A body that wants other arguments, or a head of another shape: the plain form works for all.
        return None
    return parts if same else None


def model_parts(model: Any) -> tuple[Head, Head] | None:
    """Body and head of a model as mlx-lm names them; whether the model is one after the other is another question."""
    # Multimodal classes keep their text model one level down.
    model = getattr(model, "language_model", model)
    body = getattr(model, "model", None)
    if not isinstance(body, nn.Module):
        return None
    head = getattr(model, "lm_head", None)
    if head is None:
        head = getattr(getattr(body, "embed_tokens", None), "as_linear", None)
    return (body, head) if callable(head) else None


def to_inputs(batch: Batch) -> Inputs:
    """A batch as arrays of the default device."""
    inputs = {
        "tokens": mx.array(batch.tokens),
        "spans": mx.array(batch.spans),
        "positions": mx.array(batch.positions),
        "count": mx.array(batch.loss_tokens),
    }
    if batch.pairs:
        inputs["pairs"] = mx.array(batch.pairs)
    if batch.segments is not None:
        inputs["segments"] = mx.array(batch.segments)
    return inputs


def number(value: mx.array) -> float:
    """A real scalar array as a float; waits for it to be computed."""
    return cast(float, value.item())
