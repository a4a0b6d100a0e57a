"""Makes the caches of a row: compressed where a layer's attention allows it, the model's own everywhere else.

Sliding windows, recurrent states and whatever else a model keeps in place of mlx-lm's plain `KVCache` stay as they are.
Whether a layer's attention can be compressed is found out by running the model on one token without computing anything:
shapes are known and errors come from building the graph alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, make_prompt_cache

from ..errors import KVConfigError
from .attention import patch_attention
from .cache import CompressedKVCache
from .codec import Codec
from .codecs import codec_of
from .config import DEFAULT_GROUP_SIZE, FLOAT, GROUP_SIZES, LayerCache, UniformCache, plain, window_of
from .exact import FIRST

# The rotation of layer i has this seed plus i.
_SEED = 42


@dataclass(frozen=True)
class CachePlan:
    """How each layer of a model caches. Calling it makes the caches of a row.

    Attributes:
        name: ``float``, ``turboquant:4``, or a summary of a file.
        codecs: by layer; layers that are not in it keep the model's own cache.
        windows: recent tokens that a layer keeps as they came, where any.
        centers: about the mean of each head's keys, [Hkv, 1, D], of layers that have one.
        bytes_per_token: of all plain and compressed caches; sliding windows and recurrent states hold no more with
            every token and are not counted.
        window_bytes: of a row's first and recent tokens, which are kept as they came beside their codes.
        float_bytes_per_token: the same as bytes_per_token without compression.
        notes: sentences on layers that were left alone.
        heads: KV heads of the layers in ``codecs``.
        dtype: of the model's own caches.
    """

    name: str
    codecs: dict[int, Codec] = field(default_factory=dict)
    windows: dict[int, int] = field(default_factory=dict)
    centers: Mapping[int, mx.array] = field(default_factory=dict)
    bytes_per_token: float = 0.0
    window_bytes: float = 0.0
    float_bytes_per_token: float = 0.0
    notes: tuple[str, ...] = ()
    heads: dict[int, int] = field(default_factory=dict)
    dtype: mx.Dtype = mx.float32

    @property
    def float_bits(self) -> int:
        """Bits of a value that is not compressed."""
        return 8 * self.dtype.size

    def values_of(self, layer: int) -> int:
        """Return the values that a compressed layer caches per token."""
        return 2 * self.heads[layer] * self.codecs[layer].dim

    def __call__(self, model: nn.Module) -> list[Any]:
        """Return the caches of one row, one per layer."""
        caches: list[Any] = make_prompt_cache(model)
        for layer, codec in self.codecs.items():
            caches[layer] = self.cache(layer, codec)
        return caches

    def cache(self, layer: int, codec: Codec) -> CompressedKVCache:
        """Return the cache of one row in a layer."""
        return CompressedKVCache(codec, self.windows.get(layer, 0), self.centers.get(layer))


def plan_caches(
    model: nn.Module,
    wanted: UniformCache | Sequence[LayerCache] | None,
    centers: Mapping[int, mx.array] | None = None,
) -> CachePlan:
    """Decide how each layer of a model caches, and let its attention take compressed caches.

    Args:
        model: an mlx-lm model.
        wanted: one way for all layers, entries of ``kv_config.json``, or None for float everywhere.
        centers: as :func:`optiq_core.kv.centers.key_centers` finds them; what keys lose is more without.

    Raises:
        KVConfigError: an entry names a layer that is not there, that cannot be compressed, or whose heads do not fit;
            or no layer at all can be compressed.
    """
    layers = _heads(model)
    total = float(sum(heads.bytes_per_token for heads in layers.values()))
    dtype = next((heads.dtype for heads in layers.values()), mx.float32)
    if wanted is None:
        return CachePlan(FLOAT, bytes_per_token=total, float_bytes_per_token=total, dtype=dtype)
    patch_attention()
    notes: list[str] = []
    if isinstance(wanted, UniformCache):
        codecs, notes = _uniform(wanted, layers, len(make_prompt_cache(model)))
        entries = [LayerCache(i, wanted.bits, method=wanted.method, window=wanted.window) for i in codecs]
    else:
        codecs, entries = {entry.layer_idx: _named(entry, layers, model) for entry in wanted}, list(wanted)
    windows = {entry.layer_idx: window_of(entry.method, entry.window) for entry in entries}
    centered = {entry.layer_idx for entry in entries if entry.method != "affine"}
    plan = CachePlan(
        str(wanted) if isinstance(wanted, UniformCache) else _summary(entries),
        codecs,
        windows={layer: window for layer, window in windows.items() if window},
        centers={layer: center for layer, center in (centers or {}).items() if layer in centered},
        bytes_per_token=total + sum(_added_bytes(codec, layers[layer]) for layer, codec in codecs.items()),
        window_bytes=sum(_window_bytes(window, layers[layer]) for layer, window in windows.items()),
        float_bytes_per_token=total,
        notes=tuple(notes),
        heads={i: layers[i].count for i in codecs},
        dtype=dtype,
    )
    _check(model, plan)
    return plan


def codec_for(method: str, bits: float, dim: int, group_size: int, layer: int) -> Codec:
    """Return the codec of a layer.

    Raises:
        ValueError: the heads do not fit the bits or the group size.
    """
    number = f"{plain(bits)}:{dim}"
    return codec_of(
        {
            "turboquant": f"turboquant:{number}:{_SEED + layer}",
            "rotated": f"rotated:{number}:{group_size}:{_SEED + layer}",
            "affine": f"affine:{number}:{group_size}",
        }[method]
    )


def vector_bytes(codec: Codec, dtype: mx.Dtype) -> float:
    """Return the bytes of one key or one value, scales and norms included."""
    return float(sum(part.nbytes for part in codec.encode(mx.zeros((1, 1, 1, codec.dim), dtype))))


def _added_bytes(codec: Codec, heads: _Heads) -> float:
    """Return what compressing a layer adds to the bytes of a token: less than nothing."""
    return vector_bytes(codec, heads.dtype) * 2 * heads.count - heads.bytes_per_token


def _window_bytes(window: int, heads: _Heads) -> float:
    size = min(heads.dtype.size, mx.float16.size)
    return (FIRST + window) * heads.count * (heads.keys + heads.values) * size if window else 0.0


def head_dims(model: nn.Module) -> dict[int, int]:
    """Return the channels of a head of every layer that can be compressed."""
    return {i: heads.keys for i, heads in _heads(model).items() if heads.keys == heads.values}


@dataclass(frozen=True)
class _Heads:
    """What a layer caches per token: ``count`` keys of ``keys`` channels, and as many values of ``values``."""

    count: int
    keys: int
    values: int
    dtype: mx.Dtype

    @property
    def bytes_per_token(self) -> int:
        return self.count * (self.keys + self.values) * self.dtype.size


class _Spy(KVCache):
    """Notes the shape of what a layer caches."""

    heads: _Heads | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        self.heads = _Heads(keys.shape[1], keys.shape[-1], values.shape[-1], keys.dtype)
        return super().update_and_fetch(keys, values)


class _Watched(CompressedKVCache):
    """Notes whether the model's attention hands the call over."""

    attended = False

    def attend(self, *args: Any, **kwargs: Any) -> mx.array:
        self.attended = True
        return super().attend(*args, **kwargs)


def _heads(model: nn.Module) -> dict[int, _Heads]:
    """Return what the layers with a plain cache keep."""
    caches: list[Any] = make_prompt_cache(model)
    caches = [_Spy() if type(cache) is KVCache else cache for cache in caches]
    model(mx.zeros((1, 1), mx.int32), cache=caches)
    return {i: cache.heads for i, cache in enumerate(caches) if isinstance(cache, _Spy) and cache.heads is not None}


def _uniform(wanted: UniformCache, plain_layers: dict[int, _Heads], count: int) -> tuple[dict[int, Codec], list[str]]:
    codecs: dict[int, Codec] = {}
    reasons: dict[str, int] = {}
    for layer in range(count):
        heads = plain_layers.get(layer)
        if heads is None:
            reason = "their cache is not a plain one (a sliding window, or a recurrent state)"
        elif heads.keys != heads.values:
            reason = "their keys and values have different dimensions"
        else:
            group = next((g for g in (DEFAULT_GROUP_SIZE, *GROUP_SIZES) if heads.keys % g == 0), DEFAULT_GROUP_SIZE)
            try:
                codecs[layer] = codec_for(wanted.method, wanted.bits, heads.keys, group, layer)
                continue
            except ValueError as error:
                reason = str(error)
        reasons[reason] = reasons.get(reason, 0) + 1
    if not codecs:
        raise KVConfigError(f"{wanted}: no layer of this model can be compressed: {'; '.join(reasons)}")
    return codecs, [f"{n} of {count} layers keep their own cache: {reason}" for reason, n in reasons.items()]


def _named(entry: LayerCache, plain_layers: dict[int, _Heads], model: nn.Module) -> Codec:
    where = f"layer_idx {entry.layer_idx}"
    heads = plain_layers.get(entry.layer_idx)
    if heads is None:
        layers = len(make_prompt_cache(model))
        if entry.layer_idx >= layers:
            raise KVConfigError(f"{where}: the model has {layers} layers, 0 to {layers - 1}")
        raise KVConfigError(f"{where}: this layer's cache is not a plain one and cannot be compressed; leave it out")
    if heads.keys != heads.values:
        raise KVConfigError(
            f"{where}: keys of {heads.keys} and values of {heads.values} channels cannot be compressed; leave it out"
        )
    try:
        return codec_for(entry.method, entry.bits, heads.keys, entry.group_size, entry.layer_idx)
    except ValueError as error:
        raise KVConfigError(f"{where}: {error}") from None


def _check(model: nn.Module, plan: CachePlan) -> None:
    """Build one step's graph with compressed caches and see that every attention takes its own."""
    caches: list[Any] = make_prompt_cache(model)
    watched = {layer: _Watched(codec) for layer, codec in plan.codecs.items()}
    for layer, cache in watched.items():
        caches[layer] = cache
    try:
        model(mx.zeros((1, 1), mx.int32), cache=caches)
    except Exception as error:  # whatever a model's own attention raises on keys that it cannot compute with
        raise KVConfigError(f"this model's attention cannot use compressed caches: {error}") from error
    if missing := [layer for layer, cache in watched.items() if not cache.attended]:
        raise KVConfigError(f"the attention of layers {missing} does not go through mlx-lm's; use {FLOAT} for them")


def _summary(entries: Sequence[LayerCache]) -> str:
    counts: dict[str, int] = {}
    for entry in entries:
        name = f"{entry.method}:{plain(entry.bits)}"
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{name} in {count} layers" for name, count in sorted(counts.items())) or FLOAT
