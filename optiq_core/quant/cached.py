"""Conversions that are made once and kept in the cache, for what needs a mixed-precision base by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from optiq_core.base import resolve_base
from optiq_core.base.paths import cache_path
from optiq_core.quant.calibration import read_tokens
from optiq_core.quant.convert import convert
from optiq_core.quant.partial import content_digest
from optiq_core.quant.plan import PlanSettings
from optiq_core.quant.sensitivity import Progress
from optiq_core.quant.source import load_source

# Raised where the same settings would now give another result.
_VERSION = 1
CALIBRATION_TOKENS = 1024


def cached_conversion(
    model: str,
    settings: PlanSettings,
    *,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda share, what: None,
) -> Path:
    """Folder of a model's conversion; made on first use, then found by the content of the model and the settings.

    Args:
        model: as :func:`optiq_core.base.resolve_base` takes it.
        settings: what is asked for; measured on the package's own text.
        say: told what takes long.
        progress: told how far the measurement is.

    Raises:
        BaseModelError: the model cannot be found or loaded.
        QuantizationError: settings that cannot be met.
    """
    folder = resolve_base(model, progress=say)
    key = msgspec.json.encode([_VERSION, CALIBRATION_TOKENS, content_digest(folder), settings], order="sorted")
    name = f"{Path(model).stem or 'base'}-{settings.target_bpw:g}bpw-{hashlib.sha256(key).hexdigest()[:12]}"
    target = cache_path() / "bases" / name
    if not target.exists():
        say(f"converting {model} to {settings.target_bpw:g} bits per weight ({settings.method})")
        run = settings.method != "static"
        source = load_source(folder, run=run)
        text = read_tokens(source.tokenizer, most=CALIBRATION_TOKENS) if run else None
        convert(source, settings, target, name=model, text=text, overwrite=True, progress=progress)
    return target
