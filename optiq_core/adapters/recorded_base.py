"""Compares the base that an adapter says it was made for with the one that is served.

A digest decides: weights of other values may have the same shapes. A name only hints: the same model is published
under many, and a folder's name says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import AdapterError
from .lora_config import FILE_NAME
from .manifest import AdapterManifest

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
# How publishers mark a precision or a file format at the end of a name.
_MARKS = re.compile(
    r"[-_.](\d+-?bits?|bf16|fp16|f16|f32|fp8|mlx|gguf|awq|gptq|bnb|dwq|hf|q\d+([_-][0-9a-z]+)*|mixed[-_0-9a-z]*)$"
)


def check_recorded_base(manifest: AdapterManifest, digest: str) -> None:
    """Refuse an adapter that records the digest of another base; one that records none passes.

    Raises:
        AdapterError: with both digests.
    """
    if manifest.base_digest and digest and manifest.base_digest != digest:
        raise AdapterError(
            "BASE_MISMATCH",
            "it was trained on another base, or on this one at another precision",
            file=FILE_NAME,
            tensor="training.base_digest",
            expected=digest,
            found=manifest.base_digest,
        )


def another_name(manifest: AdapterManifest, names: Iterable[str]) -> str:
    """A sentence if the adapter names a model that none of `names` is; empty otherwise, or if that cannot be told.

    Args:
        names: what the served base is known as; only names like hub ids can be compared.
    """
    recorded = manifest.base_model
    known = [name for name in names if _HUB_ID.fullmatch(name)]
    if not known or not _HUB_ID.fullmatch(recorded):
        return ""
    if model_name(recorded) in {model_name(name) for name in known}:
        return ""
    return f"it says that it was made for {recorded}; the base is {known[0]}"


def model_name(hub_id: str) -> str:
    """Name of a model without its owner and without marks of precision or format, in lower case."""
    name = hub_id.rpartition("/")[2].lower()
    while (shorter := _MARKS.sub("", name)) != name:
        name = shorter
    return name
