"""Meaning of Hugging Face PEFT's `adapter_config.json` for LoRA and DoRA.

Ranks and alphas may differ per module through `rank_pattern` and `alpha_pattern`, whose keys are regular
expressions matched as ``(.*\\.)?(key)$``. Kinds that changed the base's weights when they were made cannot be served
on an unchanged base and are refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from ..errors import AdapterError

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
MAX_PATTERN = 512
# Initialisations that move part of the base's weight into the adapter.
_BASE_CHANGING = ("pissa", "olora", "loftq", "corda", "eva_base")
_UNSUPPORTED = {
    "lora_bias": "biases on the low-rank matrices",
    "layer_replication": "replicated layers",
    "target_parameters": "adapters on bare parameters (their tensors do not name the parameter)",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QA-LoRA's pooled input",
    "modules_to_save": "fully trained modules",
    "trainable_token_indices": "trained tokens",
    "ensure_weight_tying": "adapters shared by embedding and head",
    "megatron_config": "Megatron layers",
}


@dataclass(frozen=True)
class PeftConfig:
    """The part of a PEFT configuration that decides the function of the adapter."""

    base_model: str
    dora: bool
    _alpha: float
    _alpha_pattern: tuple[tuple[re.Pattern[str], float], ...]
    _rslora: bool

    def scale(self, path: str, rank: int) -> float:
        """Return the factor on ``A B`` for a module: alpha over the rank, or over its root for rsLoRA."""
        alpha = next((value for pattern, value in self._alpha_pattern if pattern.match(path)), self._alpha)
        return alpha / (math.sqrt(rank) if self._rslora else rank)


def parse_peft_config(config: dict[str, Any]) -> PeftConfig:
    """Read the fields that matter.

    Raises:
        AdapterError: not LoRA, a kind that cannot be served on an unchanged base, or a field of a wrong type.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise _bad("UNSUPPORTED_KIND", "only LoRA and DoRA are served", "peft_type", "LORA", kind)
    initialisation = config.get("init_lora_weights", True)
    if isinstance(initialisation, str) and initialisation.lower().startswith(_BASE_CHANGING):
        raise _bad(
            "BASE_CHANGED",
            "this initialisation changed the base's weights; convert the adapter to plain LoRA first",
            "init_lora_weights",
            "true, false or gaussian",
            initialisation,
        )
    for field, meaning in _UNSUPPORTED.items():
        if config.get(field):
            raise _bad("UNSUPPORTED_KIND", f"{meaning} are not served", field, "absent", config[field])
    if config.get("bias", "none") != "none":
        raise _bad("UNSUPPORTED_KIND", "trained biases are not served", "bias", "none", config["bias"])
    if config.get("fan_in_fan_out"):
        raise _bad("UNSUPPORTED_KIND", "transposed layers are not served", "fan_in_fan_out", "false", True)
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise _bad("BAD_CONFIG", "expected an object", "alpha_pattern", "object", type(patterns).__name__)
    return PeftConfig(
        base_model=str(config.get("base_model_name_or_path") or ""),
        dora=bool(config.get("use_dora", False)),
        _alpha=_number(config, "lora_alpha", 8),
        _alpha_pattern=tuple((_compile(key), _number(patterns, key, 8)) for key in patterns),
        _rslora=bool(config.get("use_rslora", False)),
    )


def _compile(key: str) -> re.Pattern[str]:
    # A repeated group, or many repetitions, can take exponential time to match.
    if len(key) > MAX_PATTERN or re.search(r"\)\s*[*+{?]", key) or len(re.findall(r"[*+{]", key)) > 3:
        raise _bad(
            "BAD_PATTERN", "the pattern is too complex to match safely", "alpha_pattern", "a module path", key[:80]
        )
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except re.error as error:
        raise _bad(
            "BAD_PATTERN", f"not a regular expression: {error}", "alpha_pattern", "a module path", key
        ) from error


def _number(config: dict[str, Any], field: str, default: float) -> float:
    value = config.get(field, default)
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise _bad("BAD_CONFIG", "expected a finite number", field, "number", value)


def _bad(code: str, message: str, field: str, expected: str, found: Any) -> AdapterError:
    return AdapterError(code, message, file=CONFIG, tensor=field, expected=expected, found=str(found)[:200])
