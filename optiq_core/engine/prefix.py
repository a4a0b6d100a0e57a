"""Keeps the KV caches of prompts that were processed, for later prompts that begin the same way.

An entry belongs to a namespace (the tenant and everything that shapes the values: adapter digests with their weights)
and to the tokens that its caches hold. A prompt takes the entry with which it shares the most tokens; caches that can
be trimmed serve any common prefix, others (recurrent state, a window that has wrapped) only all of what they hold.

mlx-lm's `LRUPromptCache` keeps a dictionary per token and forgets the longest common prefix of caches that it cannot
trim to; here a namespace's entries are compared as arrays, which takes microseconds for each.

Caches are copied by handle and never written: mlx arrays are immutable, and a batch copies what it is given.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
# Below this a hit saves less than it costs to keep.
MIN_TOKENS = 16


@dataclass(eq=False)
class _Entry:
    namespace: Hashable
    tokens: Tokens
    caches: list[Any]
    nbytes: int


class PrefixCache:
    """Least recently used entries leave first. One thread at a time.

    Args:
        max_bytes: bytes of KV caches at most; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.hits = 0
        self.hit_tokens = 0
        self._spaces: dict[Hashable, OrderedDict[_Entry, None]] = {}
        self._order: OrderedDict[_Entry, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def longest(self, namespace: Hashable, prompt: Tokens) -> int:
        """Return how many of a prompt's tokens a :meth:`fetch` would bring; the last one is never among them."""
        return self._best(namespace, prompt)[1]

    def fetch(self, namespace: Hashable, prompt: Tokens) -> tuple[list[Any], int]:
        """Find the caches for the longest known beginning of a prompt.

        Returns:
            Caches of one row that the caller may go on with, and how many tokens they hold; ([], 0) if there are none.
        """
        entry, length = self._best(namespace, prompt)
        if entry is None:
            return [], 0
        caches = copy.deepcopy(entry.caches)
        if length < len(entry.tokens):
            trim_prompt_cache(caches, len(entry.tokens) - length)
        self._order.move_to_end(entry)
        self.hits += 1
        self.hit_tokens += length
        return caches, length

    def store(self, namespace: Hashable, tokens: Sequence[int], caches: list[Any]) -> None:
        """Keep one row's caches.

        Args:
            namespace: what else must be equal for them to be right.
            tokens: what they hold.
            caches: one per layer, with mlx-lm's cache interface; not to be written any more.
        """
        held = np.asarray(tokens, np.int64)
        nbytes = sum(int(cache.nbytes) for cache in caches)
        if len(held) < MIN_TOKENS or nbytes > self.max_bytes:
            return
        for entry in list(self._spaces.get(namespace, ())):
            common = common_prefix(entry.tokens, held)
            if common == len(held) and (len(entry.tokens) == len(held) or can_trim_prompt_cache(entry.caches)):
                self._order.move_to_end(entry)
                return
            if common == len(entry.tokens) and can_trim_prompt_cache(caches):
                self._drop(entry)
        # Slices of a batch that are not evaluated would keep the whole batch alive.
        mx.eval([cache.state for cache in caches])
        entry = _Entry(namespace, held, caches, nbytes)
        self._spaces.setdefault(namespace, OrderedDict())[entry] = None
        self._order[entry] = None
        self.nbytes += nbytes
        while self.nbytes > self.max_bytes:
            self._drop(next(iter(self._order)))

    def clear(self) -> None:
        """Forget everything."""
        self._spaces.clear()
        self._order.clear()
        self.nbytes = 0

    def _best(self, namespace: Hashable, prompt: Tokens) -> tuple[_Entry | None, int]:
        best: _Entry | None = None
        longest = MIN_TOKENS - 1
        entries = self._spaces.get(namespace)
        if not entries:
            return None, 0
        # The last token is always processed: its logits are what the first draw needs.
        wanted = prompt[:-1]
        for entry in entries:
            common = common_prefix(entry.tokens, wanted)
            if common > longest and (common == len(entry.tokens) or can_trim_prompt_cache(entry.caches)):
                best, longest = entry, common
        return best, longest if best is not None else 0

    def _drop(self, entry: _Entry) -> None:
        del self._order[entry]
        space = self._spaces[entry.namespace]
        del space[entry]
        if not space:
            del self._spaces[entry.namespace]
        self.nbytes -= entry.nbytes


def common_prefix(first: Tokens, second: Tokens) -> int:
    """Return how many leading tokens two sequences share."""
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    at = int(differs.argmax()) if length else 0
    return at if length and differs[at] else length
