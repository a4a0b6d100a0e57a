"""``kv_config.json`` and ``--kv``: which layers keep their cache in how many bits. No MLX here.

The file is a list with one entry per compressed layer; layers that it does not name stay float::

    [{"layer_idx": 3, "bits": 8, "group_size": 64},
     {"layer_idx": 7, "bits": 4, "group_size": 64, "method": "turboquant"}]

``turboquant`` and ``rotated`` also keep a row's first tokens and a window of its last ones as they came;
``"window": 0`` does without.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

from ..errors import KVConfigError

FILE_NAME = "kv_config.json"
SCHEMA_FILE = Path(__file__).with_name("kv_config.schema.json")
FLOAT = "float"
DEFAULT_GROUP_SIZE = 64

Method = Literal["affine", "rotated", "turboquant"]
METHODS: tuple[Method, ...] = get_args(Method)
AFFINE_BITS = (2, 3, 4, 5, 6, 8)
TURBOQUANT_BITS = (1, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8)
GROUP_SIZES = (32, 64, 128)
# Without it 4 bits cost six times the KL on the embedded model; twice as many gain little.
DEFAULT_WINDOW = 64
_WIDEST = 4096


class LayerCache(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one layer keeps its keys and values.

    Attributes:
        layer_idx: the layer, from 0.
        bits: per value, scales not counted.
        group_size: channels that share a scale; TurboQuant keeps one norm per vector whatever it says.
        method: ``affine`` (mlx's own), ``rotated`` (affine after a random rotation) or ``turboquant``.
        window: recent tokens that are kept as they came; None for the method's default.
    """

    layer_idx: Annotated[int, msgspec.Meta(ge=0)]
    bits: float
    group_size: int = DEFAULT_GROUP_SIZE
    method: Method = "affine"
    window: Annotated[int, msgspec.Meta(ge=0, le=_WIDEST)] | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry of the file; ``method`` is left out where it is affine, ``window`` where it is the default."""
        entry: dict[str, Any] = {"layer_idx": self.layer_idx, "bits": plain(self.bits), "group_size": self.group_size}
        if self.method != "affine":
            entry["method"] = self.method
        return entry if self.window is None else {**entry, "window": self.window}


class UniformCache(msgspec.Struct, frozen=True):
    """``--kv METHOD:BITS[:WINDOW]``: one way for every layer that can be compressed."""

    method: Method
    bits: float
    window: int | None = None

    def __str__(self) -> str:
        return f"{self.method}:{plain(self.bits)}" + ("" if self.window is None else f":{self.window}")


def parse_uniform(text: str) -> UniformCache | None:
    """Read ``float`` (None) or ``METHOD:BITS[:WINDOW]``, for example ``turboquant:4``.

    Raises:
        KVConfigError: anything else.
    """
    if text == FLOAT:
        return None
    method, _, numbers = text.partition(":")
    bits, *window = numbers.split(":")
    try:
        value, tokens = float(bits), int(window[0]) if window else None
    except ValueError:
        value, tokens = 0.0, None
    if method not in METHODS or value not in _bits_of(method) or len(window) > 1 or not 0 <= (tokens or 0) <= _WIDEST:
        raise KVConfigError(
            f"{text!r} is no KV cache; expected {FLOAT}, or METHOD:BITS with {_choices()}, for example turboquant:4; "
            f"METHOD:BITS:WINDOW keeps so many recent tokens as they came, up to {_WIDEST}"
        )
    return UniformCache(method, value, tokens)


def window_of(method: Method, window: int | None) -> int:
    """Return how many recent tokens a cache keeps as they came."""
    if window is not None:
        return window
    return 0 if method == "affine" else DEFAULT_WINDOW


def read_kv_config(file: Path) -> tuple[LayerCache, ...]:
    """Read ``kv_config.json``.

    Raises:
        KVConfigError: the file, the entry and the field, what was found and what would be right.
    """
    try:
        entries = msgspec.json.decode(file.read_bytes(), type=list[LayerCache])
    except OSError as error:
        raise KVConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise KVConfigError(
            f'{file}: {error}; expected a list such as [{{"layer_idx": 3, "bits": 8, "group_size": 64}}]'
        ) from None
    seen: set[int] = set()
    for at, entry in enumerate(entries):
        if entry.bits not in _bits_of(entry.method):
            raise KVConfigError(f"{file}: $[{at}].bits: {plain(entry.bits)} for {entry.method}; expected {_choices()}")
        if entry.group_size not in GROUP_SIZES:
            raise KVConfigError(f"{file}: $[{at}].group_size: {entry.group_size}; expected one of {GROUP_SIZES}")
        if entry.layer_idx in seen:
            raise KVConfigError(f"{file}: $[{at}].layer_idx: layer {entry.layer_idx} is there twice")
        seen.add(entry.layer_idx)
    return tuple(entries)


def write_kv_config(file: Path, layers: tuple[LayerCache, ...]) -> None:
    """Write ``kv_config.json``, one entry per line, in the order of the layers."""
    entries = [msgspec.json.encode(layer.as_json()).decode() for layer in sorted(layers, key=lambda x: x.layer_idx)]
    file.write_text("[\n " + ",\n ".join(entries) + "\n]\n" if entries else "[]\n", encoding="utf-8")


def plain(bits: float) -> int | float:
    """4 in place of 4.0."""
    return int(bits) if bits == int(bits) else bits


def _bits_of(method: str) -> tuple[float, ...]:
    return TURBOQUANT_BITS if method == "turboquant" else AFFINE_BITS


def _choices() -> str:
    return "; ".join(f"{method} {', '.join(str(b) for b in _bits_of(method))}" for method in METHODS)
