"""A compressed cache with the interface of mlx-lm's `KVCache`."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import create_attention_mask

from .codec import Codec, Compressed, Parts, parts_of

_STEP = 256


class CompressedKVCache:
    """Keys and values of rows of one length, compressed by a codec as they come.

    Args:
        codec: compresses, and attends to what it compressed.

    Attributes:
        parts: the codec's arrays [B, 2 * Hkv, T, ...], a layer's keys and then its values; None before the first token.
        offset: tokens in use.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.parts: Parts | None = None
        self.offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Compressed, Compressed]:
        """Append keys and values [B, Hkv, L, D]; returns all of them, for :meth:`attend`."""
        begin, self.offset = self.offset, self.offset + keys.shape[2]
        self.parts = append(self.parts, encode(self.codec, keys, values), begin)
        return fetch(self.parts, self.offset, keys.shape[-1])

    def attend(
        self,
        queries: mx.array,
        keys: Any,
        values: Any,
        *,
        scale: float,
        mask: mx.array | str | None = None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Attention over what :meth:`update_and_fetch` returned; see :meth:`optiq_core.kv.codec.Codec.attend`."""
        return self.codec.attend(queries, parts_of(keys), parts_of(values), scale=scale, mask=mask, sinks=sinks)

    def size(self) -> int:
        """Return the number of tokens."""
        return self.offset

    def empty(self) -> bool:
        """Say whether nothing was ever written."""
        return self.parts is None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, room for tokens to come included."""
        return sum(part.nbytes for part in self.parts or ())

    @property
    def state(self) -> Any:
        """The arrays, the tokens in use, and what makes the codec."""
        return self.parts, self.offset, self.codec.spec

    @state.setter
    def state(self, state: Any) -> None:
        from .codecs import codec_of

        parts, self.offset, spec = state
        self.parts = None if parts is None else tuple(parts)
        self.codec = codec_of(spec)

    @classmethod
    def from_state(cls, state: Any) -> CompressedKVCache:
        """Make a cache from another one's state."""
        cache = cls.__new__(cls)
        cache.state = state
        return cache

    def is_trimmable(self) -> bool:
        """Tokens can be taken off the end."""
        return True

    def trim(self, n: int) -> int:
        """Take up to n tokens off the end; returns how many."""
        n = min(self.offset, n)
        self.offset -= n
        return n

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Return the causal mask for the next n tokens, as mlx-lm's cache does: None, "causal" or [n, T + n]."""
        return create_attention_mask(n, self.offset, return_array, window_size)

    @classmethod
    def merge(cls, caches: list[CompressedKVCache]) -> Any:
        """Join single rows into a batch."""
        from .batch import BatchCompressedKVCache

        return BatchCompressedKVCache.merge(caches)


def encode(codec: Codec, keys: mx.array, values: mx.array) -> Parts:
    """Compress a layer's new keys and values in one go: half the operations of a decode step.

    Raises:
        ValueError: keys and values have different dimensions, or not the codec's.
    """
    if keys.shape[-1] != codec.dim or values.shape[-1] != codec.dim:
        raise ValueError(
            f"{codec.spec} takes heads of {codec.dim} channels, got {keys.shape[-1]} and {values.shape[-1]}"
        )
    return codec.encode(mx.concatenate([keys, values], axis=1))


def append(parts: Parts | None, new: Parts, begin: int) -> Parts:
    """Write new positions at ``begin``; the arrays grow in steps."""
    end = begin + new[0].shape[2]
    if parts is None or end > parts[0].shape[2]:
        room = -(-new[0].shape[2] // _STEP) * _STEP
        old = () if parts is None else cut(parts, 0, begin)
        grown = []
        for i, part in enumerate(new):
            blank = mx.zeros((*part.shape[:2], room, *part.shape[3:]), part.dtype)
            grown.append(mx.concatenate([old[i], blank], axis=2) if old else blank)
        parts = tuple(grown)
    for part, piece in zip(parts, new, strict=True):
        part[:, :, begin:end] = piece
    return parts


def fetch(parts: Parts, end: int, dim: int) -> tuple[Compressed, Compressed]:
    """Return the keys and the values of the first ``end`` positions."""
    heads = parts[0].shape[1] // 2
    return (
        Compressed(tuple(part[:, :heads, :end] for part in parts), dim),
        Compressed(tuple(part[:, heads:, :end] for part in parts), dim),
    )


def cut(parts: Parts, begin: int, end: int) -> Parts:
    """Return positions begin to end."""
    return tuple(part[:, :, begin:end] for part in parts)
