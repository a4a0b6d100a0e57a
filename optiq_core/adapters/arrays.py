"""An adapter's tensors as numpy arrays in float32, in one form whatever the folder's format. No MLX here."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import AdapterError
from .manifest import AdapterManifest, ModuleDelta

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModuleArrays:
    """What one adapter adds to one module: ``scale * (A B)``.

    Attributes:
        a: [in, rank].
        b: [rank, out], without the scale.
        scale: factor on the product.
        magnitude: [out] for DoRA, else None.
    """

    a: Array
    b: Array
    scale: float
    magnitude: Array | None

    @property
    def rank(self) -> int:
        """Columns of ``a``."""
        return int(self.a.shape[1])


def read_arrays(folder: Path, manifest: AdapterManifest) -> dict[str, ModuleArrays]:
    """Read all tensors of an adapter folder; zero padding beyond the true ranks is cut off.

    Args:
        folder: the folder that the manifest was read from.

    Returns:
        Arrays by dotted module path.

    Raises:
        AdapterError: an adapter of a module that is not a plain linear one.
    """
    tensors = _Tensors(folder / manifest.weights_file)
    return {delta.path: _module(tensors, delta, manifest.weights_file) for delta in manifest.modules}


def _module(tensors: _Tensors, delta: ModuleDelta, file: str) -> ModuleArrays:
    a, b = tensors.read(delta.a), tensors.read(delta.b)
    if a.ndim != 2 or b.ndim != 2 or delta.lookup:
        raise AdapterError(
            "UNSUPPORTED_SHAPE",
            "only adapters of plain linear modules can be rewritten",
            file=file,
            tensor=delta.a,
            expected="a linear module's matrices, of 2 dimensions",
            found=f"{'an embedding, ' if delta.lookup else ''}{list(a.shape)}",
        )
    if delta.transposed:
        a, b = a.T, b.T
    magnitude = tensors.read(delta.magnitude) if delta.dora else None
    return ModuleArrays(
        np.ascontiguousarray(a[:, : delta.rank]), np.ascontiguousarray(b[: delta.rank]), delta.scale, magnitude
    )


class _Tensors:
    """Tensors of one safetensors file that was validated before; numpy itself knows no bfloat16."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            self._header: dict[str, Any] = json.loads(handle.read(length))
        self._begin = 8 + length

    def read(self, name: str) -> Array:
        entry = self._header[name]
        begin, end = entry["data_offsets"]
        with self._path.open("rb") as handle:
            handle.seek(self._begin + begin)
            data = handle.read(end - begin)
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[entry["dtype"]]).astype(np.float32)
        return values.reshape(entry["shape"])
