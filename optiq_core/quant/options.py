"""What a module's weight can be quantized to: bits, group size and MLX's mode. No MLX here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optiq_core.errors import QuantizationError

AFFINE = "affine"
MXFP4 = "mxfp4"
BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
_MX_GROUP = 32


@dataclass(frozen=True, order=True)
class Option:
    """One way to quantize a weight.

    Attributes:
        bits: of a weight's code.
        group_size: weights along a row that share a scale.
        mode: ``affine`` (a scale and a bias per group) or ``mxfp4`` (4-bit floats, an 8-bit exponent per group).
    """

    bits: int
    group_size: int
    mode: str = AFFINE

    @property
    def label(self) -> str:
        """Short name, for example ``4g64`` or ``mxfp4``."""
        return f"{self.bits}g{self.group_size}" if self.mode == AFFINE else self.mode

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of MLX's ``to_quantized``, and the module's entry in `config.json`."""
        settings: dict[str, Any] = {"group_size": self.group_size, "bits": self.bits}
        return settings if self.mode == AFFINE else {**settings, "mode": self.mode}

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a weight's rows divide into whole groups."""
        return len(shape) >= 2 and shape[-1] % self.group_size == 0

    def stored_bits(self, size: int, scale_bits: int) -> int:
        """Bits on disk of a weight with ``size`` values, scales included.

        Args:
            size: number of values.
            scale_bits: width of a scale, which is that of the model's floats.
        """
        per_group = 8 if self.mode == MXFP4 else 2 * scale_bits
        return size * self.bits + size // self.group_size * per_group


def parse_candidates(text: str, group_sizes: Sequence[int]) -> tuple[Option, ...]:
    """Read ``4,8`` or ``3,mxfp4,6``, each number at every group size, cheapest first.

    Raises:
        QuantizationError: a number of bits or a group size that MLX does not have.
    """
    for group_size in group_sizes:
        if group_size not in GROUP_SIZES:
            raise QuantizationError(f"group size {group_size}: must be one of {', '.join(map(str, GROUP_SIZES))}")
    options: set[Option] = set()
    for part in (p.strip().lower() for p in text.split(",")):
        if part == MXFP4:
            options.add(Option(4, _MX_GROUP, MXFP4))
        elif part.isdecimal() and int(part) in BITS:
            options.update(Option(int(part), group_size) for group_size in group_sizes)
        else:
            raise QuantizationError(
                f"candidate bits {part!r}: must be among {', '.join(map(str, BITS))} and {MXFP4}, separated by commas"
            )
    if not options:
        raise QuantizationError("candidate bits: none were given, for example 4,8")
    return tuple(sorted(options, key=lambda o: (o.stored_bits(128, 16), o)))
