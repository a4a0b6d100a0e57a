"""Lloyd-Max centroids for one coordinate of a random unit vector.

A random rotation spreads a unit vector evenly over the sphere, so every coordinate has the density
``(1 - x^2)^((d - 3) / 2)`` on [-1, 1] (a Beta, close to a Gaussian of variance 1/d). The quantizer of least mean
squared error for that density depends on the dimension and the bits only: it is computed, never trained.

Zandieh et al., "TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate", arXiv:2504.19874.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Cells of the grid on which the density is integrated; the error of a centroid is far below float32's.
_GRID = 1 << 17
# Beyond this many standard deviations lies no probability that float64 could hold.
_REACH = 12.0
_MAX_ROUNDS = 20_000
_TOLERANCE = 1e-11


@dataclass(frozen=True, eq=False)
class Codebook:
    """A scalar quantizer for the coordinates of unit vectors.

    Attributes:
        centroids: [2^bits] ascending, symmetric about 0.
        boundaries: [2^bits - 1], halfway between neighbours.
        distortion: mean squared error of a unit vector, summed over its coordinates.
    """

    centroids: Floats
    boundaries: Floats
    distortion: float


@functools.cache
def codebook(dim: int, bits: int) -> Codebook:
    """Compute the Lloyd-Max quantizer of a dimension.

    Args:
        dim: dimension of the rotated vectors, at least 2.
        bits: 1 to 8.

    Raises:
        ValueError: out of these ranges.
    """
    if dim < 2 or not 1 <= bits <= 8:
        raise ValueError(f"a codebook needs dim >= 2 and 1 to 8 bits, got dim {dim} and {bits} bits")
    edges, mass, moment, second = _density(dim)
    # The density is even: the positive half is enough, and symmetry is then exact.
    levels = 2 ** (bits - 1)
    centroids = _start(edges, mass, levels)
    for _ in range(_MAX_ROUNDS):
        inner = (centroids[1:] + centroids[:-1]) / 2
        cells = np.concatenate(([0.0], inner, [edges[-1]]))
        at_mass, at_moment = np.interp(cells, edges, mass), np.interp(cells, edges, moment)
        moved = np.diff(at_moment) / np.maximum(np.diff(at_mass), np.finfo(np.float64).tiny)
        change = float(np.max(np.abs(moved - centroids)))
        centroids = moved
        if change < _TOLERANCE * centroids[-1]:
            break
    inner = (centroids[1:] + centroids[:-1]) / 2
    cells = np.concatenate(([0.0], inner, [edges[-1]]))
    held = np.diff(np.interp(cells, edges, moment)) * centroids
    # E(x - c)^2 = E x^2 - 2 c E x + c^2 P, and E x = c P in every cell.
    distortion = dim * 2 * (second - float(held.sum()))
    full = np.concatenate((-centroids[::-1], centroids))
    return Codebook(full, (full[1:] + full[:-1]) / 2, distortion)


def _density(dim: int) -> tuple[Floats, Floats, Floats, float]:
    """Return a grid on [0, reach], the running probability and first moment there, and half the second moment."""
    reach = min(1.0, _REACH / np.sqrt(dim))
    edges = np.linspace(0.0, reach, _GRID + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    # dim 2 has its mass at the ends, where the density is infinite; midpoints stay inside.
    density = np.exp((dim - 3) / 2 * np.log1p(-(middle**2)))
    density /= 2 * density.sum()
    running = [np.concatenate(([0.0], np.cumsum(density * middle**power))) for power in (0, 1)]
    return edges, running[0], running[1], float((density * middle**2).sum())


def _start(edges: Floats, mass: Floats, levels: int) -> Floats:
    """Start near the answer: quantiles of the density to the power 1/3 (Panter and Dite)."""
    density = np.diff(mass) ** (1 / 3)
    running = np.concatenate(([0.0], np.cumsum(density)))
    wanted = (np.arange(levels) + 0.5) / levels * running[-1]
    return np.asarray(np.interp(wanted, running, edges))
