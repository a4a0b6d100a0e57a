"""What an adapter folder holds, known from its headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

LINEAR, EMBEDDING, EXPERTS = "linear", "embedding", "experts"


class ModuleShape(NamedTuple):
    """A module of the base that can carry an adapter.

    Attributes:
        input_dims: columns of its weight; an embedding's tokens.
        output_dims: rows of its weight; an embedding's width.
        kind: ``linear``, ``embedding``, or ``experts`` for a stack of linear modules that tokens are routed through.
        experts: modules of a stack; 0 for the other kinds. Dims are those of one.
    """

    input_dims: int
    output_dims: int
    kind: str = LINEAR
    experts: int = 0


@dataclass(frozen=True)
class ModuleDelta:
    """The low-rank change of one module: ``dW = scale * (A B)``.

    Attributes:
        path: dotted path in the mlx-lm model, for example ``model.layers.0.self_attn.q_proj``.
        rank: true rank; the tensors may be zero-padded beyond it.
        scale: factor on the product.
        input_dims: columns of the base's weight.
        output_dims: rows of the base's weight.
        dora: the module also has a magnitude vector (DoRA, arXiv:2402.09353).
        a, b, magnitude: tensor names in the weights file; ``magnitude`` is empty without DoRA.
        transposed: tensors are stored as PEFT does, A as [rank, in] and B as [out, rank].
        lookup: PEFT's kind of embedding adapter, which changes what tokens are looked up as and never a tied head.
        base_copy: tensor name of the base's weight as the file repeats it, or empty.
        experts: A and B are stacks of so many, [experts, rank, in] and [experts, out, rank]; 0 for a plain module.
    """

    path: str
    rank: int
    scale: float
    input_dims: int
    output_dims: int
    dora: bool
    a: str
    b: str
    magnitude: str = ""
    transposed: bool = False
    lookup: bool = False
    base_copy: str = ""
    experts: int = 0

    @property
    def parameter_count(self) -> int:
        """Numbers in the tensors, padding not counted."""
        low_rank = self.rank * (self.input_dims + self.output_dims) * max(self.experts, 1)
        return low_rank + (self.output_dims if self.dora else 0)


@dataclass(frozen=True)
class AdapterManifest:
    """An adapter folder as its files describe it.

    Attributes:
        format: ``mlx-lm``, ``peft`` or ``optiq``.
        kind: ``lora``, or ``dora`` if any module is.
        base_model: base that it says it was trained on, empty if it does not say.
        modules: ordered by path.
        files: names of the files that make up the adapter; nothing else in the folder is read or copied.
        weights_file: the one among them with the tensors.
        parameter_count: numbers in the tensors, padding not counted.
        disk_bytes: bytes of the files.
        base_digest: digest of the base that it was trained on, empty if it does not say.
    """

    format: str
    kind: str
    base_model: str
    modules: tuple[ModuleDelta, ...]
    files: tuple[str, ...]
    weights_file: str
    parameter_count: int
    disk_bytes: int
    base_digest: str = ""

    @property
    def min_rank(self) -> int:
        """Smallest rank of any module."""
        return min(module.rank for module in self.modules)

    @property
    def max_rank(self) -> int:
        """Largest rank of any module."""
        return max(module.rank for module in self.modules)

    @property
    def targets(self) -> tuple[str, ...]:
        """Last path components of the adapted modules, sorted."""
        return tuple(sorted({module.path.rsplit(".", 1)[-1] for module in self.modules}))
