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

from .cache import CompressedCache, CompressedKVCache, cut
from .codec import Codec, Compressed, Parts
from .exact import FIRST, keep_recent, pad_recent, roll_recent, trim_recent


class BatchCompressedKVCache(CompressedCache):
    """Keys and values of a batch.

    Args:
        codec: of every row.
        left_padding: positions before each row's first token.
        window: recent tokens to keep as they came.
        center: see :class:`optiq_core.kv.cache.CompressedCache`.

    Attributes:
        offset: [B] tokens of each row.
    """

    def __init__(
        self, codec: Codec, left_padding: Sequence[int], window: int = 0, center: mx.array | None = None
    ) -> None:
        super().__init__(codec, window, center)
        self.left_padding = mx.array(list(left_padding))
        self.offset = -self.left_padding
        self._end = 0
        self._right_padding: mx.array | None = None
        # Recent tokens to keep beyond the window while rows end at different positions.
        self._spare = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Compressed, Compressed]:
        """Append keys and values [B, Hkv, L, D]; returns all of them, for :meth:`attend`."""
        begin, self._end = self._end, self._end + keys.shape[2]
        self.offset = self.offset + keys.shape[2]
        filling = begin - self._most_padding < FIRST
        return self._write(keys, values, begin, filling=filling, recent=self.window + self._spare)

    def make_mask(self, n: int, return_array: bool = False, **kwargs: Any) -> mx.array | None:
        """Return the mask [B, 1, n, T + n] for the next n tokens; None for one token of rows that see everything."""
        if n == 1 and not return_array and kwargs.get("window_size") is None and self._most_padding == 0:
            return None
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
            self._spare = max(right_padding)

    def finalize(self) -> None:
        """Move the padding that was announced on the right to the left."""
        if self._right_padding is None:
            return
        padding, self._right_padding, self._spare = self._right_padding, None, 0
        if self.parts is not None:
            used = cut(self.parts, 0, self._end)
            self.parts = tuple(dynamic_roll(part, padding[:, None], axis=2) for part in used)
        if self.exact is not None:
            self.exact = roll_recent(self.exact, padding, min(self._end, self.window))
        self.offset = self.offset - padding
        self.left_padding = self.left_padding + padding

    @classmethod
    def merge(cls, caches: Sequence[CompressedKVCache]) -> BatchCompressedKVCache:
        """Join single rows; empty ones may be among them."""
        sizes = [cache.size() for cache in caches]
        longest = max(sizes)
        like = caches[0]
        batch = cls(like.codec, [longest - size for size in sizes], like.window, like.center)
        if longest:
            batch.parts = _stack([cache.parts for cache in caches], sizes)
            if like.window:
                batch.exact = _stack_exact([cache.exact for cache in caches], min(longest, like.window))
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
            if self.window:
                exact = [_or_blank(x.exact, y.exact, x.offset.shape[0]) for x, y in ((self, other), (other, self))]
                self.exact = mx.concatenate([pad_recent(x, min(end, self.window)) for x in exact])
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
        if self.exact is not None:
            self.exact = keep_recent(self.exact[rows], self._end)

    def extract(self, index: int) -> CompressedKVCache:
        """Return one row as a cache of its own."""
        row = CompressedKVCache(self.codec, self.window, self.center)
        begin = _ints(self.left_padding)[index]
        if self.parts is not None:
            used = cut(self.parts, begin, self._end)
            row.parts = tuple(mx.contiguous(part[index : index + 1]) for part in used)
            row.offset = self._end - begin
        if self.exact is not None:
            row.exact = mx.contiguous(keep_recent(self.exact[index : index + 1], row.offset))
        return row

    def trim(self, n: int) -> int:
        """Take up to n tokens off the end of every row; returns how many. See :meth:`CompressedKVCache.trim`."""
        n = min(self._end, n)
        self._end -= n
        self.offset = self.offset - n
        if n and self.exact is not None:
            self.exact = trim_recent(self.exact, n, self._end, self.window, self._decoded, padding=self.left_padding)
        return n

    def size(self) -> int:
        """Return the positions in use, padding included."""
        return self._end

    @property
    def state(self) -> Any:
        """The arrays, what makes the codec, the window, offsets, left padding and end."""
        return *self._kept, self.offset, self.left_padding, self._end

    @state.setter
    def state(self, state: Any) -> None:
        *kept, self.offset, self.left_padding, self._end = state
        self._keep(*kept)
        self._right_padding, self._spare = None, 0

    @property
    def left_padding(self) -> mx.array:
        """[B] positions before each row's first token."""
        return self._left_padding

    @left_padding.setter
    def left_padding(self, padding: mx.array) -> None:
        self._left_padding = padding
        self._known: int | None = None

    @property
    def _most_padding(self) -> int:
        """The largest left padding; read from the array only after it changed."""
        if self._known is None:
            self._known = max(_ints(self._left_padding))
        return self._known

    @property
    def _padding(self) -> mx.array | None:
        return self._left_padding if self._most_padding else None

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


def _stack_exact(rows: Sequence[mx.array | None], recent: int) -> mx.array:
    """Put the rows' tokens that are kept as they came one below the other, ending at the same position."""
    like = next(row for row in rows if row is not None)
    return mx.concatenate([pad_recent(_or_blank(row, like, 1), recent) for row in rows])


def _or_blank(exact: mx.array | None, like: mx.array | None, rows: int) -> mx.array:
    if exact is not None:
        return exact
    assert like is not None
    return mx.zeros((rows, like.shape[1], FIRST, like.shape[3]), like.dtype)


def _ints(x: mx.array) -> list[int]:
    return cast("list[int]", x.tolist())
