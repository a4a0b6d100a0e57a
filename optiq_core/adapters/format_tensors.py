"""What the formats of adapter folders share: the tensors of a module, checked, and the manifest they add up to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from ..errors import AdapterError
from .files import MAX_WEIGHTS_BYTES, TensorInfo, regular_file
from .manifest import AdapterManifest, ModuleDelta

CONFIG = "adapter_config.json"
MLX_WEIGHTS = "adapters.safetensors"
PEFT_WEIGHTS = "adapter_model.safetensors"
OPTIQ_CONFIG = "optiq_lora_config.json"
MAX_RANK = 256


def group(tensors: Mapping[str, TensorInfo], suffixes: Mapping[str, str], file: str) -> dict[str, dict[str, str]]:
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


def check_pair(
    file: str,
    roles: Mapping[str, str],
    a: tuple[int, ...],
    b: tuple[int, ...],
    *,
    rank_of_a: int,
    rank_of_b: int,
    dims: int = 2,
) -> None:
    """Check that a module's two low-rank matrices, or stacks of them, belong together.

    Args:
        file: the weights file.
        roles: role -> tensor name.
        a, b: their shapes.
        rank_of_a, rank_of_b: which dimension is the rank.
        dims: 2, or 3 for a matrix per expert.
    """
    for role, shape in (("a", a), ("b", b)):
        if len(shape) != dims:
            raise AdapterError(
                "UNSUPPORTED_SHAPE",
                "only adapters on linear modules, embeddings and mlx-lm's stacks of experts are served",
                file=file,
                tensor=roles[role],
                expected=f"{dims} dimensions",
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
    if dims == 3 and a[0] != b[0]:
        raise AdapterError(
            "SHAPE_MISMATCH",
            "the two low-rank matrices are of different numbers of experts",
            file=file,
            tensor=roles["b"],
            expected=f"{a[0]} experts, as {roles['a']} {list(a)}",
            found=str(list(b)),
        )


def module_delta(
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
    experts: int = 0,
) -> ModuleDelta:
    """Return a module's change once rank, scale and magnitude were checked; the arguments are its attributes."""
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
    if dora and (lookup or experts):
        raise AdapterError(
            "UNSUPPORTED_KIND",
            "DoRA is served on linear modules only" + "; mlx-lm has none for stacks of experts" * bool(experts),
            file=file,
            tensor=roles["a"],
            expected="LoRA",
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
        experts,
    )


def make_manifest(
    folder: Path,
    modules: list[ModuleDelta],
    *,
    form: str,
    base_model: str,
    files: tuple[str, ...],
    weights: str,
    base_digest: str = "",
) -> AdapterManifest:
    """Return the manifest of a folder whose modules were read."""
    return AdapterManifest(
        format=form,
        kind="dora" if any(m.dora for m in modules) else "lora",
        base_model=base_model,
        modules=tuple(sorted(modules, key=lambda m: m.path)),
        files=files,
        weights_file=weights,
        parameter_count=sum(module.parameter_count for module in modules),
        disk_bytes=sum(regular_file(folder, name, MAX_WEIGHTS_BYTES).stat().st_size for name in files),
        base_digest=base_digest,
    )
