"""Reads mlx-lm's adapter folders, and Optiq's, which are mlx-lm's with the true ranks beside them. No MLX here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from .files import read_header, read_json
from .format_tensors import CONFIG, MLX_WEIGHTS, OPTIQ_CONFIG, check_pair, group, make_manifest, module_delta
from .manifest import AdapterManifest

# Suffix in the file -> role.
_ROLES = {"lora_a": "a", "lora_b": "b", "m": "m"}


def read_mlx(folder: Path, config: dict[str, Any]) -> AdapterManifest:
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
    groups = group(tensors, _ROLES, MLX_WEIGHTS)
    modules = []
    for path, roles in groups.items():
        a, b = tensors[roles["a"]].shape, tensors[roles["b"]].shape
        # Stacks of experts lie the other way round: [experts, rank, in] and [experts, out, rank].
        stacked = len(a) == 3
        check_pair(MLX_WEIGHTS, roles, a, b, rank_of_a=1, rank_of_b=2 if stacked else 0, dims=3 if stacked else 2)
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
            module_delta(
                path,
                roles,
                tensors,
                file=MLX_WEIGHTS,
                rank=rank,
                scale=scale,
                input_dims=a[2] if stacked else a[0],
                output_dims=b[1],
                dora=kind == "dora",
                experts=a[0] if stacked else 0,
            )
        )
    return make_manifest(
        folder,
        modules,
        form=form,
        base_model=str(config.get("model") or ""),
        files=tuple(files),
        weights=MLX_WEIGHTS,
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
