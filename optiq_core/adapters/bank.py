"""The adapter bank: every resident adapter stacked, a different one for every row of a batch.

Each adapted module of the base carries two stacks, ``A`` [slots, in, R] and ``B`` [slots, R, out]. Slot 0 is all
zeros, the bare base. A batch names a slot and a factor per row, and two ``gather_mm`` calls add
``factor * (x A[slot]) B[slot]`` to the base's output for all rows at once, whatever adapters they name; decode and
padded prefill take the same path (S-LoRA, arXiv:2311.03285, does this with custom kernels).

``R`` is the largest resident rank of the module, rounded up to a power of two; smaller ranks are zero-padded.

A module without a stack pays nothing, neither does a batch without adapters. The bank is written by one thread,
between steps: arrays are replaced, never changed, so a step that is still being computed keeps what it began with.
"""

from __future__ import annotations

import contextvars
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from .tensors import DeltaTensors, combine

_MIN_RANK = 4
_MIN_SLOTS = 4


@dataclass(frozen=True)
class SlotHandle:
    """A loaded adapter's place. The generation tells a recycled slot from the one that a row was given."""

    slot: int
    generation: int


BASE = SlotHandle(0, 0)


@dataclass(frozen=True)
class ActiveRows:
    """Which adapter each row of a forward pass uses.

    Attributes:
        slots: [rows] uint32.
        factors: [rows, 1, 1], multiplies what the adapter adds.
        uniform: the slot if all rows share one, else None.
    """

    slots: mx.array
    factors: mx.array
    uniform: int | None


# What the modules of the running forward pass add: rows of a batch, or the name of a mounted adapter.
# A context variable, so that concurrent tasks and threads keep their own.
active: contextvars.ContextVar[ActiveRows | str | None] = contextvars.ContextVar("optiq_active_adapter", default=None)


class BankedLinear(nn.Module):
    """A linear module of the base with the stacks of all resident adapters beside it."""

    def __init__(self, base: nn.Module, rows: Callable[[], ActiveRows | None], slots: int, dtype: mx.Dtype) -> None:
        super().__init__()
        self.base = base
        self._rows = rows
        self._dtype = dtype
        self._input_dims, self._output_dims = linear_dims(base)
        # Kept in a plain object: stacks are not parameters of the model.
        self._stack = _Stack(
            a=mx.zeros((slots, self._input_dims, _MIN_RANK), dtype),
            b=mx.zeros((slots, _MIN_RANK, self._output_dims), dtype),
        )

    def __call__(self, x: mx.array) -> mx.array:
        y = self.base(x)
        rows = self._rows()
        if rows is None:
            return y
        stack = self._stack
        h = x.astype(self._dtype)
        if rows.uniform is not None:
            delta = (h @ stack.a[rows.uniform]) @ stack.b[rows.uniform]
        else:
            low = mx.gather_mm(h, stack.a, rhs_indices=rows.slots)
            delta = mx.gather_mm(low, stack.b, rhs_indices=rows.slots)
        if stack.gain is not None:
            product = y - self.base.bias if "bias" in self.base else y
            delta = delta + stack.gain[rows.slots][:, None, :] * product.astype(self._dtype)
        return y + (rows.factors * delta).astype(y.dtype)

    def write(self, slot: int, tensors: DeltaTensors | None) -> None:
        """Put an adapter's tensors into a slot, or zeros."""
        stack = self._stack
        if tensors is None:
            stack.a[slot] = mx.zeros(stack.a.shape[1:], self._dtype)
            stack.b[slot] = mx.zeros(stack.b.shape[1:], self._dtype)
            if stack.gain is not None:
                stack.gain[slot] = mx.zeros(stack.gain.shape[1:], self._dtype)
            return
        rank = tensors.a.shape[1]
        if rank > stack.a.shape[2]:
            extra = _power_of_two(rank) - stack.a.shape[2]
            stack.a = mx.pad(stack.a, [(0, 0), (0, 0), (0, extra)])
            stack.b = mx.pad(stack.b, [(0, 0), (0, extra), (0, 0)])
        pad = stack.a.shape[2] - rank
        stack.a[slot] = mx.pad(tensors.a, [(0, 0), (0, pad)])
        stack.b[slot] = mx.pad(tensors.b, [(0, pad), (0, 0)])
        if tensors.gain is not None:
            if stack.gain is None:
                stack.gain = mx.zeros((stack.a.shape[0], self._output_dims), self._dtype)
            stack.gain[slot] = tensors.gain
        elif stack.gain is not None:
            stack.gain[slot] = mx.zeros(stack.gain.shape[1:], self._dtype)

    def resize(self, slots: int) -> None:
        """Grow the stacks to a number of slots; what is there stays."""
        stack = self._stack
        extra = slots - stack.a.shape[0]
        stack.a = mx.pad(stack.a, [(0, extra), (0, 0), (0, 0)])
        stack.b = mx.pad(stack.b, [(0, extra), (0, 0), (0, 0)])
        if stack.gain is not None:
            stack.gain = mx.pad(stack.gain, [(0, extra), (0, 0)])

    def read(self, slot: int, rank: int, *, dora: bool) -> DeltaTensors:
        """Return what a slot holds, as views of its true rank."""
        stack = self._stack
        gain = stack.gain[slot] if dora and stack.gain is not None else None
        return DeltaTensors(stack.a[slot, :, :rank], stack.b[slot, :rank], gain)

    def stacks(self) -> list[mx.array]:
        """Return the arrays of the stacks."""
        return [t for t in (self._stack.a, self._stack.b, self._stack.gain) if t is not None]


@dataclass
class _Stack:
    a: mx.array
    b: mx.array
    gain: mx.array | None = None


@dataclass
class _Loaded:
    handle: SlotHandle
    # Module path to (true rank, whether it has a gain).
    shapes: dict[str, tuple[int, bool]]
    nbytes: int
    parts: tuple[tuple[str, float], ...] = ()


@dataclass
class AdapterBank:
    """All resident adapters of one model.

    Args:
        model: an mlx-lm model. Its linear modules are wrapped as adapters first touch them.
        dtype: type in which adapters are kept and added; CPU kernels need float32.
    """

    model: nn.Module
    dtype: mx.Dtype = mx.float32
    linears: dict[str, nn.Module] = field(init=False)
    _banked: dict[str, BankedLinear] = field(init=False, default_factory=dict)
    _loaded: dict[str, _Loaded] = field(init=False, default_factory=dict)
    _generations: list[int] = field(init=False, default_factory=lambda: [0] * _MIN_SLOTS)
    _free: list[int] = field(init=False, default_factory=lambda: list(range(_MIN_SLOTS - 1, 0, -1)))

    def __post_init__(self) -> None:
        self.linears = adaptable_modules(self.model)

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Dotted path of every module that can be adapted, to its (input, output) dims."""
        return {path: linear_dims(module) for path, module in self.linears.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all stacks, padding and free slots included."""
        return sum(t.nbytes for module in self._banked.values() for t in module.stacks())

    def __len__(self) -> int:
        return len(self._loaded)

    def __contains__(self, key: str) -> bool:
        return key in self._loaded

    def load(self, key: str, tensors: Mapping[str, DeltaTensors]) -> SlotHandle:
        """Give an adapter a slot; a key that is loaded keeps its slot.

        Args:
            key: identity of the version, such as its digest.
            tensors: dotted module path to what the adapter adds there.
        """
        if key in self._loaded:
            return self._loaded[key].handle
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._generations[slot] += 1
        for path, delta in tensors.items():
            self._module(path).write(slot, delta)
        mx.eval([t for path in tensors for t in self._banked[path].stacks()])
        nbytes = sum(t.nbytes for d in tensors.values() for t in (d.a, d.b, d.gain) if t is not None)
        handle = SlotHandle(slot, self._generations[slot])
        shapes = {path: (d.a.shape[1], d.gain is not None) for path, d in tensors.items()}
        self._loaded[key] = _Loaded(handle, shapes, nbytes)
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
            self.load(key, combine([(self._tensors_of(part), weight) for part, weight in ordered if weight]))
            self._loaded[key].parts = ordered
        return key

    def parts_of(self, key: str) -> tuple[tuple[str, float], ...]:
        """Return the keys and weights that a blend was made of, ordered by key; empty for an adapter."""
        return self._loaded[key].parts

    def _tensors_of(self, key: str) -> dict[str, DeltaTensors]:
        loaded = self._loaded[key]
        return {
            path: self._banked[path].read(loaded.handle.slot, rank, dora=dora)
            for path, (rank, dora) in loaded.shapes.items()
        }

    def unload(self, key: str) -> None:
        """Free an adapter's slot; unknown keys are ignored. No row may use it any more."""
        loaded = self._loaded.pop(key, None)
        if loaded is None:
            return
        for path in loaded.shapes:
            self._banked[path].write(loaded.handle.slot, None)
        mx.eval([t for path in loaded.shapes for t in self._banked[path].stacks()])
        # The next generation begins now, so that a stale handle fails even before the slot is reused.
        self._generations[loaded.handle.slot] += 1
        self._free.append(loaded.handle.slot)

    def handle(self, key: str) -> SlotHandle:
        """Return a loaded adapter's slot.

        Raises:
            KeyError: it is not loaded.
        """
        return self._loaded[key].handle

    def bytes_of(self, key: str) -> int:
        """Return the bytes of an adapter's own tensors in the bank's type, padding not counted."""
        return self._loaded[key].nbytes

    def rows(self, handles: Sequence[SlotHandle], factors: Sequence[float]) -> ActiveRows | None:
        """Build the rows of a forward pass; None if no row uses an adapter.

        Raises:
            LookupError: a row's slot was recycled.
        """
        for handle in handles:
            if handle.slot and self._generations[handle.slot] != handle.generation:
                raise LookupError(f"slot {handle.slot} was recycled while a row still used it")
        slots = [h.slot if f else 0 for h, f in zip(handles, factors, strict=True)]
        if not any(slots):
            return None
        return ActiveRows(
            slots=mx.array(slots, mx.uint32),
            factors=mx.array(list(factors), self.dtype)[:, None, None],
            uniform=slots[0] if len(set(slots)) == 1 else None,
        )

    def _active_rows(self) -> ActiveRows | None:
        chosen = active.get()
        if isinstance(chosen, str):
            return self.rows([self.handle(chosen)], [1.0]) if chosen in self._loaded else None
        return chosen

    def _module(self, path: str) -> BankedLinear:
        module = self._banked.get(path)
        if module is None:
            module = BankedLinear(self.linears[path], self._active_rows, len(self._generations), self.dtype)
            self.model.update_modules(tree_unflatten([(path, module)]))
            self._banked[path] = module
        return module

    def _grow(self) -> None:
        old = len(self._generations)
        new = old * 2
        self._generations += [0] * (new - old)
        self._free += list(range(new - 1, old - 1, -1))
        for module in self._banked.values():
            module.resize(new)


def adaptable_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return every plain or quantized linear module of a model by its dotted path."""
    return {
        path: module for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.QuantizedLinear)
    }


def linear_dims(module: nn.Module) -> tuple[int, int]:
    """Return (input, output) dims of a linear module, from its weight's shape."""
    output_dims, columns = module.weight.shape
    if isinstance(module, nn.QuantizedLinear):
        return columns * 32 // module.bits, output_dims
    return columns, output_dims


def compute_dtype(model: nn.Module) -> mx.Dtype:
    """Return the type in which a bank adds to this model: the model's own, float32 on the CPU.

    ``gather_mm`` takes nothing but float32 there.
    """
    if mx.default_device() == mx.Device(mx.cpu):
        return mx.float32
    floats = (mx.float16, mx.bfloat16, mx.float32)
    return next((v.dtype for _, v in tree_flatten(model.parameters()) if v.dtype in floats), mx.float16)


def _power_of_two(rank: int) -> int:
    return 1 << max(rank - 1, _MIN_RANK - 1).bit_length()
