"""Random orthogonal rotations, the same on every machine."""

from __future__ import annotations

import functools

import mlx.core as mx
import numpy as np


@functools.lru_cache(maxsize=1024)
def random_rotation(dim: int, seed: int) -> mx.array:
    """Draw an orthogonal matrix evenly from all of them.

    The QR decomposition of a Gaussian matrix, with the signs of R's diagonal taken out: without that the draw is not
    even (Mezzadri, "How to generate random matrices from the classical compact groups", 2007).

    Args:
        dim: rows and columns.
        seed: fixes the draw.

    Returns:
        [dim, dim] float32; rows and columns are orthonormal. ``x @ rotation.T`` rotates rows of x.
    """
    gaussian = np.random.default_rng(seed).standard_normal((dim, dim))
    q, r = np.linalg.qr(gaussian)
    rotation = mx.array((q * np.sign(np.diagonal(r))).astype(np.float32))
    mx.eval(rotation)
    return rotation
