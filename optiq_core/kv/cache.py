"""A compressed cache with the interface of mlx-lm's `KVCache`."""

from __future__ import annotations

from typing import Any, Self

import mlx.core as mx
from mlx_lm.models.cache import create_attention_mask

from .attend import attend
from .codec import Codec, Compressed, Parts, compressed
from .exact import FIRST, extend, keep_recent, trim_recent

_STEP = 256


class CompressedCache:
    """Keys and values, compressed by a codec as they come: what caches of one and of many rows share.

    Args:
        codec: compresses, and computes with what it compressed.
        window: recent tokens to keep as they came, beside the first ones; 0 for none. See :mod:`optiq_core.kv.exact`.
        center: [Hkv, 1, D], about the mean of each head's keys; it is taken off before they are compressed. Values
            gain nothing by it.

    Attributes:
        parts: the codec's arrays [B, 2 * Hkv, T, ...], a layer's keys and then its values; None before the first token.
        exact: [B, 2 * Hkv, FIRST + R, D], tokens as they came; None before the first token, or without a window.
    """

    state: Any

    def __init__(self, codec: Codec, window: int = 0, center: mx.array | None = None) -> None:
        self.codec, self.window, self.center = codec, window, center
        self.parts: Parts | None = None
        self.exact: mx.array | None = None

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
        """Attention over what `update_and_fetch` returned; see :func:`optiq_core.kv.attend.attend`."""
        return attend(
            self.codec, queries, compressed(keys), compressed(values),
            scale=scale, mask=mask, sinks=sinks, padding=self._padding,
        )  # fmt: skip

    def empty(self) -> bool:
        """Say whether nothing was ever written."""
        return self.parts is None

    def is_trimmable(self) -> bool:
        """Tokens can be taken off the end."""
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays: padding, room for tokens to come, and tokens that are kept as they came included."""
        return sum(part.nbytes for part in self.parts or ()) + (0 if self.exact is None else self.exact.nbytes)

    @classmethod
    def from_state(cls, state: Any) -> Self:
        """Make a cache from another one's state."""
        cache = cls.__new__(cls)
        cache.state = state
        return cache

    @property
    def _padding(self) -> mx.array | None:
        """[B] positions before each row's first token; None where no row has any."""
        return None

    @property
    def _kept(self) -> tuple[Any, ...]:
        """What :meth:`_keep` takes."""
        return self.parts, self.exact, self.center, self.codec.spec, self.window

    def _keep(self, parts: Any, exact: mx.array | None, center: mx.array | None, spec: str, window: int) -> None:
        from .codecs import codec_of

        self.parts = None if parts is None else tuple(parts)
        self.exact, self.center, self.codec, self.window = exact, center, codec_of(spec), window

    def _decoded(self, begin: int, end: int, dtype: mx.Dtype) -> mx.array:
        """Return what the codes of positions begin to end stand for, [B, 2 * Hkv, T, D]."""
        assert self.parts is not None
        found = self.codec.decode(cut(self.parts, begin, end), mx.float32)
        if self.center is not None:
            heads = found.shape[1] // 2
            found = mx.concatenate([found[:, :heads] + self.center, found[:, heads:]], axis=1)
        return found.astype(dtype)

    def _write(
        self, keys: mx.array, values: mx.array, begin: int, *, filling: bool, recent: int
    ) -> tuple[Compressed, Compressed]:
        """Append keys and values [B, Hkv, L, D] at ``begin``; returns all of them.

        Args:
            keys: new keys.
            values: new values.
            begin: their position.
            filling: whether a row may have fewer tokens than are kept of its first ones.
            recent: recent tokens to keep as they came.

        Raises:
            ValueError: keys and values have different dimensions, or not the codec's.
        """
        dim = self.codec.dim
        if keys.shape[-1] != dim or values.shape[-1] != dim:
            raise ValueError(
                f"{self.codec.spec} takes heads of {dim} channels, got {keys.shape[-1]} and {values.shape[-1]}"
            )
        # Keys and values in one go: half the operations of a decode step.
        new = mx.concatenate([keys, values], axis=1)
        coded = new
        if self.center is not None:
            coded = mx.concatenate([keys - self.center.astype(keys.dtype), values], axis=1)
        self.parts = append(self.parts, self.codec.encode(coded), begin)
        seen = None
        if self.window:
            seen = extend(self.exact, new, begin, self._padding, filling=filling)
            self.exact = keep_recent(seen, recent)
        heads, end = keys.shape[1], begin + keys.shape[2]
        return (
            Compressed(
                tuple(part[:, :heads, :end] for part in self.parts), dim,
                exact=None if seen is None else seen[:, :heads], window=self.window, center=self.center,
            ),
            Compressed(
                tuple(part[:, heads:, :end] for part in self.parts), dim,
                exact=None if seen is None else seen[:, heads:], window=self.window,
            ),
        )  # fmt: skip


class CompressedKVCache(CompressedCache):
    """Keys and values of rows of one length.

    Attributes:
        offset: tokens in use.
    """

    def __init__(self, codec: Codec, window: int = 0, center: mx.array | None = None) -> None:
        super().__init__(codec, window, center)
        self.offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Compressed, Compressed]:
        """Append keys and values [B, Hkv, L, D]; returns all of them, for :meth:`attend`."""
        begin, self.offset = self.offset, self.offset + keys.shape[2]
        return self._write(keys, values, begin, filling=begin < FIRST, recent=self.window)

    def size(self) -> int:
        """Return the number of tokens."""
        return self.offset

    @property
    def state(self) -> Any:
        """The arrays, what makes the codec, the window, and the tokens in use."""
        return *self._kept, self.offset

    @state.setter
    def state(self, state: Any) -> None:
        *kept, self.offset = state
        self._keep(*kept)

    def trim(self, n: int) -> int:
        """Take up to n tokens off the end; returns how many.

        Tokens that come into the window by it are seen by their codes: they were not kept as they came.
        """
        n = min(self.offset, n)
        self.offset -= n
        if n and self.exact is not None:
            self.exact = trim_recent(self.exact, n, self.offset, self.window, self._decoded, padding=None)
        return n

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Return the causal mask for the next n tokens, as mlx-lm's cache does: None, "causal" or [n, T + n]."""
        return create_attention_mask(n, self.offset, return_array, window_size)

    @classmethod
    def merge(cls, caches: list[CompressedKVCache]) -> Any:
        """Join single rows into a batch."""
        from .batch import BatchCompressedKVCache

        return BatchCompressedKVCache.merge(caches)


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


def cut(parts: Parts, begin: int, end: int) -> Parts:
    """Return positions begin to end."""
    return tuple(part[:, :, begin:end] for part in parts)
