"""The adapter bank: any number of resident adapters on one model, a different one for every row of a batch.

Two levels. *Resident* adapters are their own tensors, nothing more: mounting one is an entry in a table, its memory is
its exact bytes, and what is resident costs a step nothing. The adapters that rows of a batch *use* are in the pages of
each module (see `pages`), written when the first row that names one joins, between two steps, and left there until the
room is needed. So a step's cost depends on the adapters in the batch, not on how many are mounted.

A module without pages pays nothing, neither does a batch without adapters. The bank is written by one thread, between
steps: arrays are replaced, never changed, so a step that is still being computed keeps what it began with.
"""

from __future__ import annotations

import contextvars
import hashlib
import json
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from .banked import BankedEmbedding, BankedLinear
from .experts import BankedExperts, routing_of
from .kinds import (
    LOOKUP,
    adaptable_embeddings,
    adaptable_experts,
    adaptable_modules,
    compute_dtype,
    linear_dims,
    module_shape,
    siblings_of,
)
from .manifest import EMBEDDING, EXPERTS, LINEAR, ModuleShape
from .pages import ModulePages, ModuleRun, PagePool, PageRun
from .plan import ActiveRows
from .tensors import DeltaTensors, combine

__all__ = [
    "BASE", "ActiveRows", "AdapterBank", "SlotHandle", "active", "adaptable_modules", "compute_dtype", "linear_dims"
]  # fmt: skip


@dataclass(frozen=True)
class SlotHandle:
    """A loaded adapter's place. The generation tells a recycled slot from the one that a row was given."""

    slot: int
    generation: int


BASE = SlotHandle(0, 0)
Banked = BankedLinear | BankedEmbedding | BankedExperts

# What the modules of the running forward pass add: rows of a batch, or the name of a mounted adapter.
# A context variable, so that concurrent tasks and threads keep their own.
active: contextvars.ContextVar[ActiveRows | str | None] = contextvars.ContextVar("optiq_active_adapter", default=None)


@dataclass
class _Loaded:
    handle: SlotHandle
    tensors: Mapping[str, DeltaTensors]
    nbytes: int
    parts: tuple[tuple[str, float], ...] = ()


@dataclass
class AdapterBank:
    """All resident adapters of one model.

    Args:
        model: an mlx-lm model. Its modules are wrapped as adapters first touch them.
        dtype: type in which adapters are kept and added; CPU kernels need float32.
    """

    model: nn.Module
    dtype: mx.Dtype = mx.float32
    linears: dict[str, nn.Module] = field(init=False)
    targets: dict[str, nn.Module] = field(init=False)
    _banked: dict[str, Banked] = field(init=False, default_factory=dict)
    # By module path; what adapters add to an embedding's lookup alone has its own.
    _pages: dict[str, ModulePages] = field(init=False, default_factory=dict)
    _loaded: dict[str, _Loaded] = field(init=False, default_factory=dict)
    # Slot 0 is the bare base.
    _generations: list[int] = field(init=False, default_factory=lambda: [0])
    _keys: list[str] = field(init=False, default_factory=lambda: [""])
    _free: list[int] = field(init=False, default_factory=list)
    # Slot to its pages in each module, least recently used first.
    _paged: dict[int, dict[str, ModuleRun]] = field(init=False, default_factory=dict)
    _live: weakref.WeakSet[ActiveRows] = field(init=False, default_factory=weakref.WeakSet)
    _named: dict[str, ActiveRows | None] = field(init=False, default_factory=dict)
    _stream: mx.Stream | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.linears = adaptable_modules(self.model)
        self.targets = {**self.linears, **adaptable_embeddings(self.model), **adaptable_experts(self.model)}

    @property
    def modules(self) -> dict[str, ModuleShape]:
        """Dotted path of every module that can be adapted, to its shape."""
        return {path: module_shape(module) for path, module in self.targets.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all resident adapters and of all pages, free ones included."""
        return sum(entry.nbytes for entry in self._loaded.values()) + self.page_nbytes

    @property
    def page_nbytes(self) -> int:
        """Bytes of the pages that batches read, free ones included."""
        return sum(pool.nbytes for pool in self._pools)

    def __len__(self) -> int:
        return len(self._loaded)

    def __contains__(self, key: str) -> bool:
        return key in self._loaded

    def load(self, key: str, tensors: Mapping[str, DeltaTensors]) -> SlotHandle:
        """Make an adapter resident; a key that is loaded keeps its slot. Nothing is copied.

        Args:
            key: identity of the version, such as its digest.
            tensors: dotted module path to what the adapter adds there, in the bank's type. The path of an embedding
                followed by ``@lookup`` leaves a head that is tied to it alone.
        """
        if key in self._loaded:
            return self._loaded[key].handle
        for path in tensors:
            self._wrap(path)
        if not self._free:
            self._free.append(len(self._keys))
            self._keys.append("")
            self._generations.append(0)
        slot = self._free.pop()
        self._generations[slot] += 1
        self._keys[slot] = key
        nbytes = sum(t.nbytes for d in tensors.values() for t in (d.a, d.b, d.gain) if t is not None)
        handle = SlotHandle(slot, self._generations[slot])
        self._loaded[key] = _Loaded(handle, dict(tensors), nbytes)
        return handle

    def blend(self, parts: Sequence[tuple[str, float]]) -> str:
        """Load the weighted sum of loaded adapters as an entry of its own; a blend that is loaded is kept.

        The sum is exact: ranks are concatenated, with the weight in ``b``, and DoRA's gains are added with their
        weights. The entry owns its tensors, so its parts may be unloaded before it is.

        Args:
            parts: key and weight of each adapter; a key named twice counts with the sum of its weights.

        Returns:
            The entry's key, the same for the same parts in any order. Unload it like any other.

        Raises:
            KeyError: a part is not loaded.
            ValueError: no parts, or a weight that is not finite.
        """
        weights: dict[str, float] = {}
        for part, weight in parts:
            weights[part] = weights.get(part, 0.0) + weight
        if not weights or not all(math.isfinite(weight) for weight in weights.values()):
            raise ValueError(f"a blend needs parts with finite weights, got {list(parts)}")
        ordered = tuple(sorted(weights.items()))
        key = "blend:" + hashlib.sha256(json.dumps(ordered).encode()).hexdigest()
        if key not in self._loaded:
            tensors = combine([(self._loaded[part].tensors, weight) for part, weight in ordered if weight])
            mx.eval([t for d in tensors.values() for t in (d.a, d.b, d.gain) if t is not None])
            self.load(key, tensors)
            self._loaded[key].parts = ordered
        return key

    def parts_of(self, key: str) -> tuple[tuple[str, float], ...]:
        """Return the keys and weights that a blend was made of, ordered by key; empty for an adapter."""
        return self._loaded[key].parts

    def unload(self, key: str) -> None:
        """Forget an adapter and free its pages; unknown keys are ignored. No row may use it any more."""
        loaded = self._loaded.pop(key, None)
        if loaded is None:
            return
        slot = loaded.handle.slot
        self._named.pop(key, None)
        touched = {pool for path in self._paged.get(slot, ()) for pool in self._pools_of(path)}
        self._page_out(slot)
        mx.eval([pool.pages for pool in touched if pool.shrink()])
        # The next generation begins now, so that a stale handle fails even before the slot is reused.
        self._generations[slot] += 1
        self._keys[slot] = ""
        self._free.append(slot)

    def handle(self, key: str) -> SlotHandle:
        """Return a loaded adapter's slot.

        Raises:
            KeyError: it is not loaded.
        """
        return self._loaded[key].handle

    def bytes_of(self, key: str) -> int:
        """Return the exact bytes of an adapter's own tensors in the bank's type."""
        return self._loaded[key].nbytes

    def rows(self, handles: Sequence[SlotHandle], factors: Sequence[float]) -> ActiveRows | None:
        """Build the rows of a forward pass; None if no row uses an adapter.

        Adapters that are not in the pages yet are written there, which waits for the step that is being computed.

        Raises:
            LookupError: a row's slot was recycled.
        """
        for handle in handles:
            if handle.slot and self._generations[handle.slot] != handle.generation:
                raise LookupError(f"slot {handle.slot} was recycled while a row still used it")
        slots = [h.slot if f else 0 for h, f in zip(handles, factors, strict=True)]
        if not any(slots):
            return None
        self._page_in({slot for slot in slots if slot})
        rows = ActiveRows(slots, factors, self._lookup, self.dtype, self._stream)
        self._live.add(rows)
        return rows

    def overlap(self) -> None:
        """On the CPU, compute adapters' products on a second stream of this thread, beside the base's, from now on.

        Only this thread may run the model then. The stream ends with the thread's others.
        """
        if self._stream is None and mx.default_device() == mx.Device(mx.cpu):
            self._stream = mx.new_stream(mx.cpu)

    def _lookup(self, path: str, slot: int) -> tuple[ModuleRun, mx.array | None] | None:
        run = self._paged[slot].get(path)
        return (run, self._loaded[self._keys[slot]].tensors[path].gain) if run else None

    def _page_in(self, wanted: set[int]) -> None:
        missing = sorted(slot for slot in wanted if slot not in self._paged)
        if missing:
            # Pages are written in place only if no running step holds them.
            mx.synchronize()
        in_use = wanted.union(*(rows.slots for rows in self._live))
        written: list[PagePool] = []
        for slot in missing:
            runs = self._paged.setdefault(slot, {})
            for path, delta in self._loaded[self._keys[slot]].tensors.items():
                pages, rank = self._pages[path], delta.a.shape[-1]
                a, b = (self._take(pool, rank, in_use) for pool in (pages.a, pages.b))
                runs[path] = ModuleRun(a, b, rank)
                pages.write(runs[path], delta.a, delta.b)
                written += [pages.a, pages.b]
        mx.eval([pool.pages for pool in written])
        for slot in wanted:
            self._paged[slot] = self._paged.pop(slot)

    def _take(self, pool: PagePool, rank: int, in_use: set[int]) -> PageRun:
        """Reserve pages, at the cost of adapters that no batch uses, least recently used first."""
        run = pool.take(rank, grow=False)
        if run is not None:
            return run
        idle = [
            slot
            for slot, runs in self._paged.items()
            if slot not in in_use and any(pool in self._pools_of(path) for path in runs)
        ]
        while run is None and idle:
            self._page_out(idle.pop(0))
            run = pool.take(rank, grow=False)
        if run is None:
            run = pool.take(rank, grow=True)
        assert run is not None
        return run

    def _page_out(self, slot: int) -> None:
        for path, run in self._paged.pop(slot, {}).items():
            self._pages[path].give_back(run)

    def _pools_of(self, path: str) -> tuple[PagePool, PagePool]:
        pages = self._pages[path]
        return pages.a, pages.b

    @property
    def _pools(self) -> set[PagePool]:
        return {pool for path in self._pages for pool in self._pools_of(path)}

    def _active_rows(self) -> ActiveRows | None:
        chosen = active.get()
        if not isinstance(chosen, str):
            return chosen
        if chosen not in self._loaded:
            return None
        if chosen not in self._named:
            self._named[chosen] = self.rows([self.handle(chosen)], [1.0])
        return self._named[chosen]

    def _wrap(self, key: str) -> None:
        """Put pages beside a module, or, for an embedding's lookup, more of them."""
        if key in self._pages:
            return
        path = key.removesuffix(LOOKUP)
        base = self.targets[path]
        shape = module_shape(base)
        siblings = siblings_of(path, self.linears) if shape.kind == LINEAR else (key,)
        shared = next((self._pages[other].a for other in siblings if other in self._pages), None)
        self._pages[key] = pages = ModulePages(
            shared or PagePool(shape.input_dims, self.dtype, experts=shape.experts, modules=len(siblings)),
            PagePool(shape.output_dims, self.dtype, experts=shape.experts),
            siblings,
        )
        if path not in self._banked:
            self._banked[path] = module = self._beside(base, path, pages)
            self.model.update_modules(tree_unflatten([(path, module)]))

    def _beside(self, base: nn.Module, path: str, pages: ModulePages) -> Banked:
        kind = module_shape(base).kind
        if kind == EMBEDDING:
            return BankedEmbedding(base, path, self._active_rows, self._pages.get)
        if kind == EXPERTS:
            block = dict(self.model.named_modules())[path.rpartition(".")[0]]
            return BankedExperts(base, path, self._active_rows, pages, routing_of(block))
        return BankedLinear(base, path, self._active_rows, pages)
