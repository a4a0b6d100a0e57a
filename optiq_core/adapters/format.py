"""Reads and validates adapter folders without MLX: mlx-lm's, Hugging Face PEFT's and ours.

The weights file is read by its header only; nothing in a folder is executed or unpickled, links are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from .files import MAX_WEIGHTS_BYTES, TensorInfo, digest_files, read_header, read_json, regular_file
from .manifest import EMBEDDING, AdapterManifest, ModuleDelta, ModuleShape
from .peft_config import PREFIX, PeftConfig, parse_peft_config

CONFIG = "adapter_config.json"
MLX_WEIGHTS = "adapters.safetensors"
PEFT_WEIGHTS = "adapter_model.safetensors"
OPTIQ_CONFIG = "optiq_lora_config.json"
# PEFT puts the base's own weight beside an adapter of an embedding or a head.
BASE_COPY = ".base_layer.weight"
MAX_RANK = 256
# Suffix in the file -> role, per format.
_MLX_ROLES = {"lora_a": "a", "lora_b": "b", "m": "m"}
_PEFT_ROLES = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "m"}
_PEFT_EMBEDDING_ROLES = {"lora_embedding_A": "a", "lora_embedding_B": "b"}

__all__ = ["AdapterManifest", "ModuleDelta", "digest_folder", "read_manifest", "validate_against_base"]


def read_manifest(folder: Path) -> AdapterManifest:
    """Describe an adapter folder from its configuration and the header of its weights file.

    Raises:
        AdapterError: the folder is not an adapter that can be served; names file, field and what would be right.
    """
    config = read_json(folder, CONFIG)
    if "peft_type" in config:
        return _read_peft(folder, config)
    return _read_mlx(folder, config)


def validate_against_base(manifest: AdapterManifest, modules: Mapping[str, ModuleShape]) -> None:
    """Check that every adapted module exists in the base with the same shape.

    Args:
        manifest: an adapter's manifest.
        modules: dotted path of every module of the base that can be adapted, to its shape.

    Raises:
        AdapterError: a module is unknown, of another kind or differs in shape; names the tensor and both shapes.
    """
    for delta in manifest.modules:
        dims = modules.get(delta.path)
        if dims is None:
            raise AdapterError(
                "UNKNOWN_MODULE",
                _why_unknown(delta.path, modules),
                file=manifest.weights_file,
                tensor=delta.a,
                expected="a linear or embedding module of the base",
                found=delta.path,
            )
        _check_kind(manifest.weights_file, delta, dims.kind)
        for name, dimension, found, what in (
            (delta.a, dims[0], delta.input_dims, "input"),
            (delta.b, dims[1], delta.output_dims, "output"),
        ):
            if dimension != found:
                raise AdapterError(
                    "SHAPE_MISMATCH",
                    f"the {what} dimension is not the base's; was it trained on another base?",
                    file=manifest.weights_file,
                    tensor=name,
                    expected=str(_shape(delta, name, dims)),
                    found=str(_shape(delta, name, (delta.input_dims, delta.output_dims))),
                )


def digest_folder(folder: Path, manifest: AdapterManifest) -> str:
    """Return the identity of a version: hex SHA-256 over its canonical configuration and its tensor bytes.

    Raises:
        AdapterError: a file changed while it was read.
    """
    configs = tuple(name for name in manifest.files if name != manifest.weights_file)
    return digest_files(folder, configs, manifest.weights_file)


def _why_unknown(path: str, modules: Mapping[str, ModuleShape]) -> str:
    if path == "lm_head":
        return "the base's head is its embedding: it has no lm_head of its own"
    if ".experts." in path or ".switch_mlp." in path:
        return "adapters on the expert layers of a mixture of experts are not served"
    return "the base has no such module, or it cannot carry an adapter"


def _check_kind(file: str, delta: ModuleDelta, kind: str) -> None:
    if kind == EMBEDDING and delta.dora:
        raise AdapterError(
            "UNSUPPORTED_KIND",
            "DoRA is served on linear modules only",
            file=file,
            tensor=delta.magnitude,
            expected="LoRA on an embedding",
            found="DoRA",
        )
    if delta.transposed and delta.lookup != (kind == EMBEDDING):
        raise AdapterError(
            "UNSUPPORTED_KIND",
            f"the base's module is {'an embedding' if kind == EMBEDDING else 'linear'}",
            file=file,
            tensor=delta.a,
            expected="lora_embedding_A and _B" if kind == EMBEDDING else "lora_A and lora_B",
            found=delta.a.rpartition(f"{delta.path}.")[2],
        )


def _shape(delta: ModuleDelta, name: str, dims: ModuleShape | tuple[int, int]) -> list[int]:
    shape = [dims[0], delta.rank] if name == delta.a else [delta.rank, dims[1]]
    return shape[::-1] if delta.transposed else shape


def _read_mlx(folder: Path, config: dict[str, Any]) -> AdapterManifest:
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise AdapterError(
            "UNSUPPORTED_KIND",
            "only LoRA and DoRA are served",
            file=CONFIG,
            tensor="fine_tune_type",
            expected="lora or dora",
            found=str(kind),
        )
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict) or not _finite(parameters.get("scale")):
        raise AdapterError(
            "BAD_CONFIG",
            "mlx-lm's LoRA configuration needs a finite scale",
            file=CONFIG,
            tensor="lora_parameters.scale",
            expected="number",
            found=str(parameters.get("scale") if isinstance(parameters, dict) else parameters),
        )
    scale = float(parameters["scale"])
    files = [CONFIG, MLX_WEIGHTS]
    true_ranks: dict[str, int] = {}
    base_digest = ""
    form = "mlx-lm"
    if (folder / OPTIQ_CONFIG).is_symlink() or (folder / OPTIQ_CONFIG).exists():
        files.append(OPTIQ_CONFIG)
        form = "optiq"
        ours = read_json(folder, OPTIQ_CONFIG)
        true_ranks = _true_ranks(ours)
        training = ours.get("training")
        base_digest = str(training.get("base_digest") or "") if isinstance(training, dict) else ""
    tensors = read_header(folder, MLX_WEIGHTS)
    groups = _group(tensors, _MLX_ROLES, MLX_WEIGHTS)
    modules = []
    for path, roles in groups.items():
        a, b = tensors[roles["a"]].shape, tensors[roles["b"]].shape
        _check_pair(MLX_WEIGHTS, roles, a, b, rank_of_a=1, rank_of_b=0)
        rank = true_ranks.get(path, a[1])
        if rank > a[1]:
            raise AdapterError(
                "BAD_RANK",
                "the recorded rank is larger than the tensor's",
                file=OPTIQ_CONFIG,
                tensor=path,
                expected=f"<= {a[1]}",
                found=str(rank),
            )
        modules.append(
            _delta(
                path,
                roles,
                tensors,
                file=MLX_WEIGHTS,
                rank=rank,
                scale=scale,
                input_dims=a[0],
                output_dims=b[1],
                dora=kind == "dora",
            )
        )
    return _manifest(
        folder,
        modules,
        form=form,
        base_model=str(config.get("model") or ""),
        files=tuple(files),
        weights=MLX_WEIGHTS,
        base_digest=base_digest,
    )


def _read_peft(folder: Path, config: dict[str, Any]) -> AdapterManifest:
    parsed: PeftConfig = parse_peft_config(config)
    header = read_header(folder, PEFT_WEIGHTS)
    leaves = (*_PEFT_ROLES, *_PEFT_EMBEDDING_ROLES)
    copies = {
        f"{name}{BASE_COPY}"
        for name in (name.removesuffix(BASE_COPY) for name in header)
        if f"{name}{BASE_COPY}" in header and any(f"{name}.{leaf}" in header for leaf in leaves)
    }
    tensors = {name: info for name, info in header.items() if name not in copies}
    embeddings = {name: info for name, info in tensors.items() if name.endswith(tuple(_PEFT_EMBEDDING_ROLES))}
    linears = {name: info for name, info in tensors.items() if name not in embeddings}
    groups = {
        **_group(linears, _PEFT_ROLES, PEFT_WEIGHTS),
        **_group(embeddings, _PEFT_EMBEDDING_ROLES, PEFT_WEIGHTS),
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
        _check_pair(PEFT_WEIGHTS, roles, a, b, rank_of_a=0, rank_of_b=1)
        path, rank = full.removeprefix(PREFIX), a[0]
        modules.append(
            _delta(
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
    return _manifest(
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


def _group(tensors: Mapping[str, TensorInfo], suffixes: Mapping[str, str], file: str) -> dict[str, dict[str, str]]:
    """Collect the tensors of each module: path -> role -> tensor name."""
    groups: dict[str, dict[str, str]] = {}
    for name in sorted(tensors):
        suffix = next((s for s in suffixes if name.endswith(f".{s}")), None)
        if suffix is None:
            raise AdapterError(
                "UNKNOWN_TENSOR",
                "not a tensor of a LoRA or DoRA adapter",
                file=file,
                tensor=name,
                expected=" or ".join(f"*.{s}" for s in suffixes),
                found=name,
            )
        groups.setdefault(name[: -len(suffix) - 1], {})[suffixes[suffix]] = name
    for path, roles in groups.items():
        for suffix, role in suffixes.items():
            if role in ("a", "b") and role not in roles:
                raise AdapterError(
                    "TENSOR_MISSING",
                    "one of the two low-rank matrices is missing",
                    file=file,
                    tensor=f"{path}.{suffix}",
                    expected=f"{path}.{suffix}",
                    found="nothing",
                )
    return groups


def _check_pair(
    file: str, roles: Mapping[str, str], a: tuple[int, ...], b: tuple[int, ...], *, rank_of_a: int, rank_of_b: int
) -> None:
    for role, shape in (("a", a), ("b", b)):
        if len(shape) != 2:
            raise AdapterError(
                "UNSUPPORTED_SHAPE",
                "only linear modules and embeddings are served, not the expert layers of a mixture (SwitchLinear)"
                if len(shape) == 3
                else "only adapters on linear modules and embeddings are served",
                file=file,
                tensor=roles[role],
                expected="2 dimensions",
                found=str(list(shape)),
            )
    if a[rank_of_a] != b[rank_of_b]:
        raise AdapterError(
            "SHAPE_MISMATCH",
            "the two low-rank matrices have different ranks",
            file=file,
            tensor=roles["b"],
            expected=f"rank {a[rank_of_a]}, as {roles['a']} {list(a)}",
            found=str(list(b)),
        )


def _delta(
    path: str,
    roles: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
    *,
    file: str,
    rank: int,
    scale: float,
    input_dims: int,
    output_dims: int,
    dora: bool,
    transposed: bool = False,
    lookup: bool = False,
    base_copy: str = "",
) -> ModuleDelta:
    if not 1 <= rank <= MAX_RANK:
        raise AdapterError(
            "BAD_RANK",
            "the rank is out of range",
            file=file,
            tensor=roles["a"],
            expected=f"1 to {MAX_RANK}",
            found=str(rank),
        )
    if not math.isfinite(scale):
        raise AdapterError("BAD_CONFIG", "the scale is not finite", file=CONFIG, tensor=path, found=str(scale))
    if dora and lookup:
        raise AdapterError(
            "UNSUPPORTED_KIND", "DoRA is served on linear modules only", file=file, tensor=roles["a"], expected="LoRA"
        )
    if dora != ("m" in roles):
        raise AdapterError(
            "TENSOR_MISSING" if dora else "UNKNOWN_TENSOR",
            "a DoRA module has a magnitude vector, a LoRA module has none",
            file=file,
            tensor=roles.get("m", roles["a"]),
            expected="magnitude vector" if dora else "none",
            found="none" if dora else "magnitude vector",
        )
    if dora and tensors[roles["m"]].shape != (output_dims,):
        raise AdapterError(
            "SHAPE_MISMATCH",
            "the magnitude vector has one entry per output; DoRA on embeddings is not served",
            file=file,
            tensor=roles["m"],
            expected=str([output_dims]),
            found=str(list(tensors[roles["m"]].shape)),
        )
    return ModuleDelta(
        path,
        rank,
        scale,
        input_dims,
        output_dims,
        dora,
        roles["a"],
        roles["b"],
        roles.get("m", ""),
        transposed,
        lookup,
        base_copy,
    )


def _manifest(
    folder: Path,
    modules: list[ModuleDelta],
    *,
    form: str,
    base_model: str,
    files: tuple[str, ...],
    weights: str,
    base_digest: str = "",
) -> AdapterManifest:
    parameters = sum(m.rank * (m.input_dims + m.output_dims) + (m.output_dims if m.dora else 0) for m in modules)
    return AdapterManifest(
        format=form,
        kind="dora" if any(m.dora for m in modules) else "lora",
        base_model=base_model,
        modules=tuple(sorted(modules, key=lambda m: m.path)),
        files=files,
        weights_file=weights,
        parameter_count=parameters,
        disk_bytes=sum(regular_file(folder, name, MAX_WEIGHTS_BYTES).stat().st_size for name in files),
        base_digest=base_digest,
    )


def _true_ranks(config: dict[str, Any]) -> dict[str, int]:
    ranks = config.get("ranks", {})
    if not isinstance(ranks, dict) or not all(isinstance(r, int) and r >= 1 for r in ranks.values()):
        raise AdapterError(
            "BAD_CONFIG", "expected module paths with their ranks", file=OPTIQ_CONFIG, tensor="ranks", expected="object"
        )
    return ranks


def _finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
