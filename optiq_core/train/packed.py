"""Several examples in one row, each attending to itself alone.

mlx-lm's models take their masks and positions from the caches they are given: :class:`PackedCache` answers as an empty
cache of one call would, with a mask that is block-diagonal. Positions run on over the whole row. That is the same
function where attention sees positions only through their differences, as with rotary embeddings; a model is asked
whether it does (:func:`check_packable`), and one with recurrent layers, whose state would run on too, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from optiq_core.errors import TrainingError

_PROBE = [[1, 2, 3, 4], [5, 6, 7, 8, 9]]
# A token that sees another example, or another position, is off by far more; bfloat16 rounds by 0.4 %.
_TOLERANCE = 0.03


class PackedCache:
    """What a layer of an mlx-lm model sees in place of a cache.

    Args:
        segments: ``[B, T]``, the number of the example that each token belongs to.
    """

    offset = 0

    def __init__(self, segments: mx.array) -> None:
        self._segments = segments
        self.windowed = False

    @cached_property
    def bounds(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """First and last position, the latter not included, of every example of every row; waits for the segments."""
        return tuple(tuple(_runs(row)) for row in np.array(self._segments))

    def make_mask(self, length: int, *, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """Tokens of the same example that are not later, at most ``window_size`` of them: ``[B, 1, T, T]``."""
        at = mx.arange(length)
        mask = (at[:, None] >= at[None]) & (self._segments[:, :, None] == self._segments[:, None, :])
        if window_size is not None:
            self.windowed = True
            mask = mask & (at[:, None] < at[None] + window_size)
        return mask[:, None]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values of this call are all there are."""
        return keys, values


def _runs(row: npt.NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
    return ((begin, end) for begin, end in pairwise(edges) if row[begin])


def packed_caches(model: Any, segments: mx.array) -> list[PackedCache]:
    """One for each cache that the model would be given when it generates."""
    return [PackedCache(segments)] * len(make_prompt_cache(model))


def check_packable(model: Any) -> None:
    """Raise TrainingError, naming ``pack_length``, unless packed examples give what they give alone."""
    kinds = {type(cache) for cache in make_prompt_cache(model)}
    other = sorted(kind.__name__ for kind in kinds - {KVCache, RotatingKVCache})
    if other:
        raise TrainingError(
            f"pack_length: this model has layers that carry a state from token to token ({', '.join(other)}); "
            "train it unpacked, with pack_length 0",
            field="pack_length",
        )
    row = mx.array([_PROBE[0] + _PROBE[1]])
    segments = mx.array([[1] * len(_PROBE[0]) + [2] * len(_PROBE[1])])
    expected = mx.concatenate([model(mx.array([tokens])) for tokens in _PROBE], axis=1).astype(mx.float32)
    try:
        found = model(row, cache=packed_caches(model, segments)).astype(mx.float32)
    except (TypeError, AttributeError) as error:
        raise TrainingError(f"pack_length: this model cannot be packed ({error})", field="pack_length") from error
    off = (mx.abs(found - expected).max() / mx.abs(expected).max()).item()
    if not off <= _TOLERANCE:  # type: ignore[operator]
        raise TrainingError(
            f"pack_length: this model's attention depends on absolute positions (packed outputs are off by {off:.2g}); "
            "train it unpacked, with pack_length 0",
            field="pack_length",
        )
