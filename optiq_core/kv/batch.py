"""A compressed cache of rows of different lengths, with the interface of mlx-lm's `BatchKVCache`.

Rows end at the same position; shorter ones begin after `left_padding` positions that no query sees. What pads is zero,
whose scale is zero, so it decodes to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import dynamic_roll

from .cache import CompressedKVCache, append, cut, encode, fetch
from .codec import Codec, Compressed, Parts, parts_of


class BatchCompressedKVCache:
    """Keys and values of a batch, compressed by a codec as they come.

    Args:
        codec: of every row.
        left_padding: positions before each row's first token.

    Attributes:
        parts: the codec's arrays [B, 2 * Hkv, T, ...], a layer's keys and then its values; None before the first token.
        offset: [B] tokens of each row.
        left_padding: [B] positions before each row's first token.
    """

    def __init__(self, codec: Codec, left_padding: Sequence[int]) -> None:
        self.codec = codec
        self.parts: Parts | None = None
        self.left_padding = mx.array(list(left_padding))
        self.offset = -self.left_padding
        self._end = 0
        self._right_padding: mx.array | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Compressed, Compressed]:
        """Append keys and values [B, Hkv, L, D]; returns all of them, for :meth:`attend`."""
        begin, self._end = self._end, self._end + keys.shape[2]
        self.offset = self.offset + keys.shape[2]
        self.parts = append(self.parts, encode(self.codec, keys, values), begin)
        return fetch(self.parts, self._end, keys.shape[-1])

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

    def make_mask(self, n: int, return_array: bool = False, **kwargs: Any) -> mx.array:
        """Return the mask [B, 1, n, T + n] for the next n tokens."""
        return create_causal_mask(n, offset=self._end, left_padding=self.left_padding, **kwargs)

    def prepare(
        self,
        *,
        left_padding: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
        right_padding: Sequence[int] | None = None,
    ) -> None:
        """Announce padding of the tokens to come; :meth:`finalize` moves padding on the right to the left.

        Raises:
            ValueError: left padding for a cache that holds tokens.
        """
        if left_padding is not None:
            if self.parts is not None:
                raise ValueError("left padding can only be added to an empty cache")
            added = mx.array(list(left_padding))
            self.left_padding = self.left_padding + added
            self.offset = self.offset - added
        if right_padding is not None and max(right_padding) > 0:
            self._right_padding = mx.array(list(right_padding))

    def finalize(self) -> None:
        """Move the padding that was announced on the right to the left."""
        if self._right_padding is None:
            return
        padding, self._right_padding = self._right_padding, None
        if self.parts is not None:
            used = cut(self.parts, 0, self._end)
            self.parts = tuple(dynamic_roll(part, padding[:, None], axis=2) for part in used)
        self.offset = self.offset - padding
        self.left_padding = self.left_padding + padding

    @classmethod
    def merge(cls, caches: Sequence[CompressedKVCache]) -> BatchCompressedKVCache:
        """Join single rows; empty ones may be among them."""
        sizes = [cache.size() for cache in caches]
        longest = max(sizes)
        batch = cls(caches[0].codec, [longest - size for size in sizes])
        if longest:
            batch.parts = _stack([cache.parts for cache in caches], sizes)
            batch.offset = batch.offset + longest
            batch._end = longest
        return batch

    def extend(self, other: BatchCompressedKVCache) -> None:
        """Append another batch's rows."""
        end = max(self._end, other._end)
        like = self.parts or other.parts
        if like is not None:
            mine, others = self._padded(end, like), other._padded(end, like)
            self.parts = tuple(mx.concatenate(list(pair)) for pair in zip(mine, others, strict=True))
        padding = [self.left_padding + (end - self._end), other.left_padding + (end - other._end)]
        self.left_padding = mx.concatenate(padding)
        self.offset = mx.concatenate([self.offset, other.offset])
        self._end = end

    def filter(self, keep: Any) -> None:
        """Keep the rows with these indices, in that order, and drop padding that no row needs."""
        rows = mx.array(keep)
        self.left_padding, self.offset = self.left_padding[rows], self.offset[rows]
        spare = min(_ints(self.left_padding))
        if self.parts is not None:
            self.parts = tuple(part[rows][:, :, spare:] for part in self.parts)
        if spare > 0:
            self._end -= spare
            self.left_padding = self.left_padding - spare

    def extract(self, index: int) -> CompressedKVCache:
        """Return one row as a cache of its own."""
        row = CompressedKVCache(self.codec)
        begin = _ints(self.left_padding)[index]
        if self.parts is not None:
            used = cut(self.parts, begin, self._end)
            row.parts = tuple(mx.contiguous(part[index : index + 1]) for part in used)
            row.offset = self._end - begin
        return row

    def is_trimmable(self) -> bool:
        """Tokens can be taken off the end."""
        return True

    def trim(self, n: int) -> int:
        """Take up to n tokens off the end of every row; returns how many."""
        n = min(self._end, n)
        self._end -= n
        self.offset = self.offset - n
        return n

    def size(self) -> int:
        """Return the positions in use, padding included."""
        return self._end

    def empty(self) -> bool:
        """Say whether nothing was ever written."""
        return self.parts is None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, padding and room for tokens to come included."""
        return sum(part.nbytes for part in self.parts or ())

    @property
    def state(self) -> Any:
        """The arrays, offsets, left padding, end, and what makes the codec."""
        return self.parts, self.offset, self.left_padding, self._end, self.codec.spec

    @state.setter
    def state(self, state: Any) -> None:
        from .codecs import codec_of

        parts, self.offset, self.left_padding, self._end, spec = state
        self.parts = None if parts is None else tuple(parts)
        self.codec, self._right_padding = codec_of(spec), None

    @classmethod
    def from_state(cls, state: Any) -> BatchCompressedKVCache:
        """Make a cache from another one's state."""
        cache = cls.__new__(cls)
        cache.state = state
        return cache

    def _padded(self, end: int, like: Parts) -> Parts:
        """Return the used positions, moved to end at ``end``."""
        if self.parts is None:
            rows = self.offset.shape[0]
            return tuple(mx.zeros((rows, part.shape[1], end, *part.shape[3:]), part.dtype) for part in like)
        used = cut(self.parts, 0, self._end)
        if self._end == end:
            return used
        return tuple(mx.pad(part, [(0, 0), (0, 0), (end - self._end, 0), *[(0, 0)] * (part.ndim - 3)]) for part in used)


def _stack(rows: Sequence[Parts | None], sizes: Sequence[int]) -> Parts:
    """Put rows one below the other, ending at the same position."""
    longest = max(sizes)
    stacked = []
    for i, like in enumerate(next(row for row in rows if row is not None)):
        blank = mx.zeros((len(rows), like.shape[1], longest, *like.shape[3:]), like.dtype)
        for at, (row, size) in enumerate(zip(rows, sizes, strict=True)):
            if row is not None and size:
                blank[at : at + 1, :, longest - size :] = row[i][:, :, :size]
        stacked.append(blank)
    return tuple(stacked)


def _ints(x: mx.array) -> list[int]:
    return cast("list[int]", x.tolist())
