"""Reads Hugging Face PEFT's adapter folders. No MLX here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from .files import TensorInfo, read_header
from .format_tensors import CONFIG, PEFT_WEIGHTS, check_pair, group, make_manifest, module_delta
from .manifest import AdapterManifest
from .peft_config import PREFIX, PeftConfig, parse_peft_config

# PEFT puts the base's own weight beside an adapter of an embedding or a head.
BASE_COPY = ".base_layer.weight"
# Suffix in the file -> role.
_ROLES = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "m"}
_EMBEDDING_ROLES = {"lora_embedding_A": "a", "lora_embedding_B": "b"}


def read_peft(folder: Path, config: dict[str, Any]) -> AdapterManifest:
    parsed: PeftConfig = parse_peft_config(config)
    header = read_header(folder, PEFT_WEIGHTS)
    leaves = (*_ROLES, *_EMBEDDING_ROLES)
    copies = {
        f"{name}{BASE_COPY}"
        for name in (name.removesuffix(BASE_COPY) for name in header)
        if f"{name}{BASE_COPY}" in header and any(f"{name}.{leaf}" in header for leaf in leaves)
    }
    tensors = {name: info for name, info in header.items() if name not in copies}
    embeddings = {name: info for name, info in tensors.items() if name.endswith(tuple(_EMBEDDING_ROLES))}
    linears = {name: info for name, info in tensors.items() if name not in embeddings}
    groups = {
        **group(linears, _ROLES, PEFT_WEIGHTS),
        **group(embeddings, _EMBEDDING_ROLES, PEFT_WEIGHTS),
    }
    modules = []
    for full, roles in groups.items():
        if not full.startswith(PREFIX):
            raise AdapterError(
                "UNKNOWN_TENSOR",
                "not a PEFT tensor name",
                file=PEFT_WEIGHTS,
                tensor=roles["a"],
                expected=f"{PREFIX}<module>",
                found=full,
            )
        a, b = tensors[roles["a"]].shape, tensors[roles["b"]].shape
        check_pair(PEFT_WEIGHTS, roles, a, b, rank_of_a=0, rank_of_b=1)
        path, rank = full.removeprefix(PREFIX), a[0]
        modules.append(
            module_delta(
                path,
                roles,
                tensors,
                file=PEFT_WEIGHTS,
                rank=rank,
                scale=parsed.scale(path, rank),
                input_dims=a[1],
                output_dims=b[0],
                dora=parsed.dora,
                transposed=True,
                lookup=roles["a"] in embeddings,
                base_copy=_checked_copy(header, f"{full}{BASE_COPY}", a[1], b[0], lookup=roles["a"] in embeddings),
            )
        )
    return make_manifest(
        folder,
        modules,
        form="peft",
        base_model=parsed.base_model,
        files=(CONFIG, PEFT_WEIGHTS),
        weights=PEFT_WEIGHTS,
    )


def _checked_copy(header: Mapping[str, TensorInfo], name: str, inputs: int, outputs: int, *, lookup: bool) -> str:
    """The name of the copy of a module's weight, empty if there is none; its shape must fit the matrices."""
    if name not in header:
        return ""
    shape = (inputs, outputs) if lookup else (outputs, inputs)
    if header[name].shape != shape:
        raise AdapterError(
            "SHAPE_MISMATCH",
            "the copy of the base's weight does not fit the low-rank matrices",
            file=PEFT_WEIGHTS,
            tensor=name,
            expected=str(list(shape)),
            found=str(list(header[name].shape)),
        )
    return name
