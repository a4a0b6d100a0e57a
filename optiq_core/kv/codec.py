"""How keys and values are written to a cache and read from it: the part that caches of one and of many rows share."""

from __future__ import annotations

from typing import Any, Protocol

import mlx.core as mx

# What a codec makes of keys or values: arrays [B, Hkv, T, ...] that are joined, cut and padded along B and T together.
Parts = tuple[mx.array, ...]


class Codec(Protocol):
    """Compresses keys and values, and computes with them in the space that their codes are in.

    Codecs hold no tokens and never change, so that caches, batches and threads share them.
    """

    @property
    def dim(self) -> int:
        """Channels of a head."""

    @property
    def spec(self) -> str:
        """What :func:`optiq_core.kv.codecs.codec_of` makes the same codec from."""

    def encode(self, x: mx.array) -> Parts:
        """Compress [B, Hkv, L, D]."""

    def decode(self, parts: Parts, dtype: mx.Dtype) -> mx.array:
        """Return what attention sees in place of the keys or values, [B, Hkv, T, D]."""

    def rotate(self, x: mx.array) -> mx.array:
        """Bring [..., D] into the space of the codes."""

    def unrotate(self, x: mx.array) -> mx.array:
        """Bring [..., D] back from the space of the codes."""

    def scores(self, queries: mx.array, keys: Parts) -> mx.array:
        """Return the products [B, Hkv, N, T] of rotated queries [B, Hkv, N, D] with the keys, of the queries' dtype."""

    def weighted(self, weights: mx.array, values: Parts) -> mx.array:
        """Return the sums [B, Hkv, N, D] of the values by weights [B, Hkv, N, T], rotated, of the weights' dtype."""


class Compressed:
    """Cached keys or values on their way through a model's attention.

    It has the shape of the keys or values and nothing else: an attention that computes with them itself fails at once
    and not with wrong numbers.

    Args:
        parts: arrays [B, Hkv, T, ...].
        dim: channels of a head.
        exact: [B, Hkv, FIRST + R, D], tokens that are kept as they came; see :mod:`optiq_core.kv.exact`.
        window: positions from which on a query sees a token by its codes.
        center: [Hkv, 1, D], what was taken off before compression.
    """

    def __init__(
        self,
        parts: Parts,
        dim: int,
        *,
        exact: mx.array | None = None,
        window: int = 0,
        center: mx.array | None = None,
    ) -> None:
        self.parts, self.exact, self.window, self.center = parts, exact, window, center
        self.shape = (*parts[0].shape[:3], dim)


def compressed(x: Any) -> Compressed:
    """Return what `update_and_fetch` returned, checked.

    Raises:
        TypeError: it comes from another cache.
    """
    if not isinstance(x, Compressed):
        raise TypeError(f"expected compressed keys or values, found {type(x).__name__}")
    return x
