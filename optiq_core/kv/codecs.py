"""Makes codecs from their names."""

from __future__ import annotations

import functools

from .affine import AffineCodec
from .codec import Codec
from .turboquant import TurboQuantCodec


@functools.cache
def codec_of(spec: str) -> Codec:
    """Return the codec of a spec, the same object for the same spec.

    Args:
        spec: ``turboquant:BITS:DIM:SEED``, ``rotated:BITS:DIM:GROUP:SEED`` or ``affine:BITS:DIM:GROUP``.

    Raises:
        ValueError: not a spec, or one that cannot be.
    """
    method, *numbers = spec.split(":")
    match method, numbers:
        case "turboquant", [bits, dim, seed]:
            return TurboQuantCodec(int(dim), float(bits), int(seed))
        case "rotated", [bits, dim, group, seed]:
            return AffineCodec(int(dim), int(bits), int(group), int(seed))
        case "affine", [bits, dim, group]:
            return AffineCodec(int(dim), int(bits), int(group))
        case _:
            raise ValueError(f"{spec!r} is no codec")
