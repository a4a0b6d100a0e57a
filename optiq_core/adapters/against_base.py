"""Whether an adapter fits a base: every adapted module exists there, of the same kind and shape. No MLX here."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import AdapterError
from .manifest import EMBEDDING, EXPERTS, AdapterManifest, ModuleDelta, ModuleShape


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
                expected="a linear module, an embedding or a stack of experts of the base",
                found=delta.path,
            )
        _check_kind(manifest.weights_file, delta, dims)
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
                    found=str(_shape(delta, name, ModuleShape(delta.input_dims, delta.output_dims, "", dims.experts))),
                )


def _why_unknown(path: str, modules: Mapping[str, ModuleShape]) -> str:
    if path == "lm_head":
        return "the base's head is its embedding: it has no lm_head of its own"
    if ".experts." in path and any(shape.kind == EXPERTS for shape in modules.values()):
        return "the base keeps its experts in stacks: adapters of whole stacks, as mlx-lm's, are served"
    return "the base has no such module, or it cannot carry an adapter"


def _check_kind(file: str, delta: ModuleDelta, shape: ModuleShape) -> None:
    kind = shape.kind
    found = ModuleShape(delta.input_dims, delta.output_dims, experts=delta.experts)
    if delta.experts != shape.experts:
        same_kind = bool(delta.experts) == (kind == EXPERTS)
        raise AdapterError(
            "SHAPE_MISMATCH" if same_kind else "UNSUPPORTED_SHAPE",
            "the number of experts is not the base's"
            if same_kind
            else f"the base's module is {'a stack of experts' if kind == EXPERTS else 'no stack of experts'}",
            file=file,
            tensor=delta.a,
            expected=str(_shape(delta, delta.a, shape)),
            found=str(_shape(delta, delta.a, found)),
        )
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


def _shape(delta: ModuleDelta, name: str, dims: ModuleShape) -> list[int]:
    shape = [dims.input_dims, delta.rank] if name == delta.a else [delta.rank, dims.output_dims]
    if dims.experts:
        return [dims.experts, *shape[::-1]]
    return shape[::-1] if delta.transposed else shape
