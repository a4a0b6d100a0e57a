"""Writes a quantized model: a folder that stock ``mlx_lm.load`` reads, with ``optiq_metadata.json`` beside it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from mlx import nn
from mlx.utils import tree_map_with_path
from mlx_lm.utils import save_model

from optiq_core.base.metadata import Conversion, derive_metadata, weight_files, write_metadata
from optiq_core.files import staged_folder
from optiq_core.quant.calibration import TokenText
from optiq_core.quant.options import Option
from optiq_core.quant.plan import Plan, PlanSettings, plan, reference_label
from optiq_core.quant.sensitivity import Progress
from optiq_core.quant.source import Source

_COPIED = ("generation_config.json", "*.py", "LICENSE*")


@dataclass(frozen=True)
class Converted:
    """A conversion that is done.

    Attributes:
        path: the folder.
        bits_per_weight: bytes of all tensors on disk times 8 over the number of parameters.
        bytes: of the weight files.
        plan: what was decided.
        notes: of the source and the plan.
    """

    path: Path
    bits_per_weight: float
    bytes: int
    plan: Plan
    notes: tuple[str, ...]


def convert(
    source: Source,
    settings: PlanSettings,
    folder: Path,
    *,
    name: str,
    text: TokenText | None,
    overwrite: bool = False,
    progress: Progress = lambda share, what: None,
) -> Converted:
    """Measure, allocate, quantize and write.

    Args:
        source: its model is quantized in place.
        settings: what is asked for.
        folder: to write; staged beside it, then renamed.
        name: of the source, for the metadata.
        text: to measure on; None for the static method.
        overwrite: replace the folder if it exists.
        progress: told how far the measurement is.

    Raises:
        QuantizationError: settings that cannot be met.
        FileExistsError: the folder exists and ``overwrite`` is false.
    """
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists")
    decided = plan(source, settings, text, progress=progress)
    progress(1.0, "quantizing and writing")
    with staged_folder(folder, overwrite=overwrite) as staging:
        write_model(source, decided.options, staging)
        metadata = derive_metadata(staging, {"kind": "convert", "name": name, "sha256": source.content})
        modules = dict(metadata.modules)
        for path, kl in decided.sensitivity.items():
            modules[path] = msgspec.structs.replace(modules[path], kl={k: float(f"{v:.6g}") for k, v in kl.items()})
        notes = (*source.notes, *decided.notes)
        options = sorted({o for t in decided.targets for o in t.options}, key=lambda o: o.stored_bits(128, 16))
        conversion = Conversion(
            method=settings.method,
            allocator=settings.allocator,
            target_bpw=settings.target_bpw,
            achieved_bpw=metadata.bits_per_weight,
            candidates=[o.label for o in options],
            reference=reference_label(decided.targets),
            calibration=_describe(text) if settings.method != "static" else {},
            protected=list(settings.protect),
            unprotected=list(decided.allocation.unprotected),
            notes=list(notes),
        )
        versions = {package: version(package) for package in ("optiq", "mlx", "mlx-lm")}
        write_metadata(
            staging, msgspec.structs.replace(metadata, modules=modules, conversion=conversion, versions=versions)
        )
        size = sum(file.stat().st_size for file in weight_files(staging))
    return Converted(folder, metadata.bits_per_weight, size, decided, notes)


def write_model(source: Source, options: Mapping[str, Option], folder: Path) -> None:
    """Quantize a source's model in place and write weights, configuration and tokenizer into a folder.

    Args:
        source: dense.
        options: by module path; modules that are not named stay in float, and all of them if there are none.
        folder: exists.
    """
    model = source.model
    keeps = getattr(model, "cast_predicate", lambda name: True)

    def stored(name: str, value: mx.array) -> mx.array:
        return value.astype(source.store) if keeps(name) and mx.issubdtype(value.dtype, mx.floating) else value

    model.update(tree_map_with_path(stored, model.parameters()))
    nn.quantize(model, class_predicate=lambda path, _: dict(options[path].arguments) if path in options else False)
    save_model(folder, model)
    config = dict(source.config)
    if options:
        config["quantization"] = config["quantization_config"] = _entries(options)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")
    source.tokenizer.save_pretrained(str(folder))
    for pattern in _COPIED:
        for file in source.folder.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def _entries(options: Mapping[str, Option]) -> dict[str, Any]:
    """mlx-lm's `quantization`: the commonest affine option as the default, the others by module path."""
    counts = Counter(o for o in options.values() if o.mode == "affine") or Counter(options.values())
    default = counts.most_common(1)[0][0]
    return {**default.arguments, **{path: o.arguments for path, o in options.items() if o != default}}


def _describe(text: TokenText | None) -> dict[str, str]:
    return {"name": text.name, "sha256": text.digest, "tokens": str(text.size)} if text else {}
