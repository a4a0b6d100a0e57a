"""What a KV cache loses: in attention, in the next token, and in finding one key among thousands."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import mlx.core as mx
import numpy as np

from ..kv.cache import CompressedKVCache
from ..kv.exact import FIRST
from ..kv.factory import CachePlan, plan_caches
from ..quant.calibration import CALIBRATION, EVALUATION, read_tokens
from ..quant.divergence import Reference
from ..train.loss import number

DEPTHS = (0.05, 0.25, 0.5, 0.75, 0.95)
_PASS_KEYS = ("70412", "38956", "15283", "92637", "46190")
_NEEDLE = " The pass key is {}. Remember it: {} is the pass key. "
_QUESTION = " What is the pass key? The pass key is"
# How far below a needle's score its distractors lie, in standard deviations of the scores of the text's keys.
GAPS = (0.1, 0.25, 0.5, 1.0)
_CLOSE_NEEDLES, _DISTRACTORS = 64, 32
# Every so many layers are looked at where looking at all of them would tell the same.
_LAYER_STRIDE = 3
_QUERIES = 128


class _Recorder(CompressedKVCache):
    """Keeps queries, keys and values as they are, and attends to them exactly."""

    def __init__(self) -> None:
        self.offset = 0
        self.seen: tuple[mx.array, mx.array, mx.array] | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        return keys, values

    def attend(
        self, queries: mx.array, keys: Any, values: Any, *, scale: float, mask: Any = None, sinks: Any = None
    ) -> Any:
        self.seen = (queries, keys, values)
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)


class Probes:
    """Measures any cache plan on one model and one text.

    Args:
        base: the loaded base; its layers all have plain caches of one head dimension.
        quick: short texts.

    Attributes:
        layer_vectors: keys and values of the text by layer.
        text_tokens: tokens of the text.
        needles: how many needles of either kind are looked for, and at which lengths.
    """

    def __init__(self, base: Any, *, quick: bool = False) -> None:
        self._model, self._tokenizer = base.model, base.tokenizer
        length = 96 if quick else 1536
        text = read_tokens(base.tokenizer, EVALUATION, most=length, length=length)
        self._tokens = text.tokens[:1]
        self.text_tokens = int(self._tokens.size)
        self._record()
        self._reference: Reference | None = None
        self._losses: mx.array | None = None
        self._lengths = (64, 128) if quick else (512, 2048, 8192)
        self._trials = 1 if quick else 8
        self._text_cases = self._hide((160,) if quick else (512, 1024), 2 if quick else len(DEPTHS))
        layers = len(self._seen[::_LAYER_STRIDE])
        heads = self._seen[0][1].shape[1]
        self.needles = {
            "planted": layers * heads * len(self._lengths) * len(DEPTHS) * self._trials,
            "planted_lengths": list(self._lengths),
            "text": len(self._text_cases),
            "text_lengths": sorted({case[0].size for case in self._text_cases}),
        }

    def measure(self, plan: CachePlan) -> dict[str, Any]:
        """Return everything but the times; what is relative is so to the first plan that is measured."""
        error, attention_kl = self._attention(plan)
        kl, losses = self._next_token(plan)
        if self._losses is None:
            self._losses = losses
        more = losses - self._losses
        return {
            "attention_error": error,
            "attention_kl": attention_kl,
            "kl": kl,
            "ppl": math.exp(number(losses.mean())),
            "ppl_rel": math.exp(number(more.mean())),
            "ppl_rel_se": number(more.var(ddof=1)) ** 0.5 / more.size**0.5,
            "needle": self._needles(plan),
            "needle_close": self._close_needles(plan),
            "needle_text": self._text_needles(plan),
        }

    def _record(self) -> None:
        # Any compressed plan lets the model's attention hand its calls over.
        plan_caches(self._model, [])
        recorders = [_Recorder() for _ in self._model.layers]
        mx.eval(self._model(self._tokens, cache=recorders))
        self._seen = [r.seen for r in recorders if r.seen is not None]
        mx.eval(self._seen)
        self.layer_vectors = {i: (keys, values) for i, (_, keys, values) in enumerate(self._seen)}

    def _attention(self, plan: CachePlan) -> tuple[float, float]:
        errors, divergences = [], []
        for layer in range(0, len(self._seen), _LAYER_STRIDE):
            queries, keys, values = self._seen[layer]
            queries = queries[:, :, -_QUERIES:]
            exact_weights, exact = _attend(queries, keys, values, None)
            weights, out = _attend(queries, keys, values, _decoded(plan, layer, keys, values))
            errors.append(number(mx.linalg.norm(out - exact) / mx.linalg.norm(exact)))
            divergences.append(number((mx.exp(exact_weights) * (exact_weights - weights)).sum(axis=-1).mean()))
        return float(np.mean(errors)), max(float(np.mean(divergences)), 0.0)

    def _next_token(self, plan: CachePlan) -> tuple[float, mx.array]:
        """Return the KL of the next token, and each token's loss in nats."""
        logits = self._model(self._tokens, cache=plan(self._model))[0].astype(mx.float32)
        mx.eval(logits)
        if self._reference is None:
            self._reference = Reference.of(logits)
        kl = number(self._reference.kl(logits).mean())
        targets = self._tokens[0, 1:]
        chosen = mx.take_along_axis(logits[:-1], targets[:, None], axis=-1)[:, 0]
        return max(kl, 0.0), mx.logsumexp(logits[:-1], axis=-1) - chosen

    def _needles(self, plan: CachePlan) -> float:
        """Share of planted keys that score highest for their own query.

        Keys of the text fill the context. The needle is drawn from a Gaussian with the mean and covariance of a head's
        keys; its query is the needle itself without the mean, as long as the layer's queries are. What counts is
        whether the compressed needle still scores above all other compressed keys where it does so exactly.
        """
        rng = np.random.default_rng(0)
        found = asked = 0
        for layer in range(0, len(self._seen), _LAYER_STRIDE):
            _, keys, _ = self._seen[layer]
            for length in self._lengths:
                context, needles, places, queries = _planted(np.array(keys[0]), length, self._trials, rng)
                exact = _hits(context, needles, places, queries)
                context, needles = _coded(plan, layer, context), _coded(plan, layer, needles)
                found += int((_hits(context, needles, places, queries) & exact).sum())
                asked += int(exact.sum())
        return found / max(asked, 1)

    def _close_needles(self, plan: CachePlan) -> dict[str, float]:
        """Share of needles that still score above distractors which came close to them, by how close.

        Needles and queries are those of :meth:`_needles`. A distractor is another draw from the same Gaussian, moved
        along the query until it scores so many standard deviations below the needle. Thirty-two of them lie with each
        needle: many keys that match a query almost as well as the right one, as in a text that repeats itself.
        """
        found = dict.fromkeys(GAPS, 0)
        asked = 0
        for layer in range(0, len(self._seen), _LAYER_STRIDE):
            rng = np.random.default_rng(layer)
            keys = np.array(self._seen[layer][1][0])
            mean, roots = _statistics(keys)
            needles, others = (
                mean[:, None] + np.einsum("h...d,hed->h...e", rng.standard_normal((len(keys), *shape)), roots)
                for shape in ((_CLOSE_NEEDLES, 1, keys.shape[2]), (_CLOSE_NEEDLES, _DISTRACTORS, keys.shape[2]))
            )
            queries = needles - mean[:, None]
            own, scores = ((queries * x).sum(axis=-1, keepdims=True) for x in (needles, others))
            spread = (queries[:, :, 0] @ keys.swapaxes(-1, -2)).std(axis=-1)[..., None, None]
            asked += own.size
            for gap in GAPS:
                moved = others + queries * (own - gap * spread - scores) / (queries**2).sum(axis=-1, keepdims=True)
                seen = _coded(plan, layer, np.concatenate([needles, moved], axis=2))
                found_scores = (queries * seen).sum(axis=-1)
                found[gap] += int((found_scores[..., 0] > found_scores[..., 1:].max(axis=-1)).sum())
        return {f"{gap:g}": count / asked for gap, count in found.items()}

    def _hide(self, lengths: tuple[int, ...], depths: int) -> list[tuple[mx.array, mx.array, str]]:
        """Texts with a pass key, the question that follows, and what the model answers with float caches."""
        encode = self._tokenizer.encode
        question = mx.array(encode(_QUESTION))
        filler = encode(CALIBRATION.read_text(encoding="utf-8"))
        cases = []
        for (length, depth), key in zip(itertools.product(lengths, DEPTHS[:depths]), itertools.cycle(_PASS_KEYS)):
            needle = encode(_NEEDLE.format(key, key))
            room = max(length - len(needle) - question.size, 0)
            at = int(room * depth)
            context = mx.array([*filler[:at], *needle, *filler[at:room]])
            cases.append((context, question, key))
        self._prefilled = [self._prefill(context) for context, _, _ in cases]
        return cases

    def _prefill(self, context: mx.array) -> list[tuple[mx.array, mx.array]]:
        caches = plan_caches(self._model, None)(self._model)
        mx.eval(self._model(context[None], cache=caches)[:, -1:])
        return [cache.keys_and_values() for cache in caches]

    def _text_needles(self, plan: CachePlan) -> float:
        """Share of pass keys that the model repeats when the text before the question lies in this cache."""
        right = 0
        for (_, question, key), vectors in zip(self._text_cases, self._prefilled, strict=True):
            caches = plan(self._model)
            for cache, (keys, values) in zip(caches, vectors, strict=True):
                cache.update_and_fetch(keys, values)
            right += _answer(self._model, self._tokenizer, question, caches, len(key)) == key
        return right / len(self._text_cases)


def _answer(model: Any, tokenizer: Any, question: mx.array, caches: list[Any], digits: int) -> str:
    tokens = question[None]
    text: list[int] = []
    for _ in range(digits + 2):
        token = int(number(mx.argmax(model(tokens, cache=caches)[0, -1])))
        text.append(token)
        tokens = mx.array([[token]])
    return re.sub(r"\D", "", tokenizer.decode(text))[:digits]


def _decoded(plan: CachePlan, layer: int, keys: mx.array, values: mx.array) -> Any:
    """Return what codes hold of keys and values, and how far back a query sees them as they came; None for float."""
    codec = plan.codecs.get(layer)
    if codec is None:
        return None
    center = plan.centers.get(layer, mx.zeros((1,)))
    coded_keys = codec.decode(codec.encode(keys - center), mx.float32) + center
    return coded_keys, codec.decode(codec.encode(values), mx.float32), plan.windows.get(layer)


def _attend(queries: mx.array, keys: mx.array, values: mx.array, decoded: Any) -> tuple[mx.array, mx.array]:
    """Return log weights [B, Hkv, R, L, T] and the output of causal attention over what a cache lets queries see."""
    batch, heads, length, dim = queries.shape
    total = keys.shape[2]
    coded_keys, coded_values, window = decoded or (keys, values, None)
    at, columns = mx.arange(total - length, total)[:, None], mx.arange(total)
    near = mx.zeros((length, total), mx.bool_)
    if window is not None:
        near = (at - columns <= window) | (columns < FIRST)
    grouped = queries.reshape(batch, keys.shape[1], heads // keys.shape[1], length, dim) * dim**-0.5
    scores = mx.where(near, *(grouped @ x[:, :, None].swapaxes(-1, -2) for x in (keys, coded_keys)))
    scores = mx.where(at >= columns, scores, mx.finfo(scores.dtype).min)
    log_weights = scores - mx.logsumexp(scores, axis=-1, keepdims=True)
    weights = mx.exp(log_weights)
    out = mx.where(near, weights, 0) @ values[:, :, None] + mx.where(near, 0, weights) @ coded_values[:, :, None]
    return log_weights, out


def _planted(keys: Any, length: int, trials: int, rng: np.random.Generator) -> tuple[Any, Any, Any, Any]:
    """Return a context [H, T, D], needles [H, N, D], their places [N] and their queries [H, N, D]."""
    _, total, dim = keys.shape
    context = keys[:, rng.integers(0, total, length)]
    count = len(DEPTHS) * trials
    mean, roots = _statistics(keys)
    needles = mean + np.stack([rng.standard_normal((count, dim)) @ root.T for root in roots])
    places = np.repeat((np.array(DEPTHS) * length).astype(int), trials)
    queries = needles - mean
    return context, needles, places, queries


def _statistics(keys: Any) -> tuple[Any, Any]:
    """Return the mean [H, 1, D] of keys [H, T, D], and roots [H, D, D] of their covariances."""
    regular = 1e-6 * np.eye(keys.shape[2])
    return keys.mean(axis=1, keepdims=True), np.stack([np.linalg.cholesky(np.cov(head.T) + regular) for head in keys])


def _hits(context: Any, needles: Any, places: Any, queries: Any) -> Any:
    """Say of each head and needle whether it scores above the whole context without the key in whose place it is."""
    scores = queries @ context.swapaxes(-1, -2)
    scores[:, np.arange(len(places)), places] = -np.inf
    own = (queries * needles).sum(axis=-1)
    return own > scores.max(axis=-1)


def _coded(plan: CachePlan, layer: int, vectors: Any) -> Any:
    """Return what codes hold of keys [H, ..., D]; what a cache also keeps as it came would be found anyway."""
    codec = plan.codecs.get(layer)
    if codec is None:
        return vectors
    center = plan.centers.get(layer, mx.zeros((1,)))
    array = mx.array(vectors.reshape(len(vectors), -1, codec.dim).astype(np.float32))[None] - center
    return np.array((codec.decode(codec.encode(array), mx.float32) + center)[0]).reshape(vectors.shape)
