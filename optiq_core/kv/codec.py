"""How keys and values are written to a cache and attended to: the part that caches of one and of many rows share."""

from __future__ import annotations

from typing import Any, Protocol

import mlx.core as mx

# What a codec makes of keys or values: arrays [B, Hkv, T, ...] that are joined, cut and padded along B and T together.
Parts = tuple[mx.array, ...]


class Codec(Protocol):
    """Compresses keys and values, and attends to them without bringing them back.

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
        """Return what attention sees in place of the keys or values, [B, Hkv, T, D]; for measuring and tests."""

    def attend(
        self,
        queries: mx.array,
        keys: Parts,
        values: Parts,
        *,
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array:
        """Attention of queries [B, Hq, L, D] over T cached positions, the last L of which are the queries' own.

        Returns:
            [B, Hq, L, D] of the queries' dtype.
        """


class Compressed:
    """Cached keys or values on their way through a model's attention.

    It has the shape of the keys or values and nothing else: an attention that computes with them itself fails at once
    and not with wrong numbers.

    Args:
        parts: arrays [B, Hkv, T, ...].
        dim: channels of a head.
    """

    def __init__(self, parts: Parts, dim: int) -> None:
        self.parts = parts
        self.shape = (*parts[0].shape[:3], dim)


def parts_of(x: Any) -> Parts:
    """Return the arrays of what `update_and_fetch` returned.

    Raises:
        TypeError: it comes from another cache.
    """
    if not isinstance(x, Compressed):
        raise TypeError(f"expected compressed keys or values, found {type(x).__name__}")
    return x.parts
