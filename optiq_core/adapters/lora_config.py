"""``optiq_lora_config.json``: the true ranks of an adapter and how it was made.

The JSON Schema beside this file is generated from :class:`LoraConfig`; a test keeps the two together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from optiq_core.errors import AdapterError

FILE_NAME = "optiq_lora_config.json"
SCHEMA_PATH = Path(__file__).with_name("optiq_lora_config.schema.json")
FORMAT_VERSION = 1


class TrainingCard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an adapter was trained. No clock and no path: the same training gives the same bytes.

    Attributes:
        steps: optimizer steps taken.
        trained_tokens: tokens that carried loss, counted every time they did.
        examples: usable training examples.
        cut_examples, dropped_examples: longer than ``max_seq_length``; without a token to train on.
        skipped_steps: steps left out because loss or gradient was not finite.
        train_loss, valid_loss: last reported, in nats per token.
        data_digest: hex SHA-256 over the tokens of all examples.
        base_digest: digest of the base, as its loader gives it.
        best_step: step whose weights these are, where those of the lowest validation loss were kept.
        config: every setting of the run but where its data lay.
    """

    steps: int
    trained_tokens: int
    examples: int
    cut_examples: int = 0
    dropped_examples: int = 0
    skipped_steps: int = 0
    train_loss: float | None = None
    valid_loss: float | None = None
    batch_size: int = 0
    learning_rate: float = 0.0
    max_seq_length: int = 0
    mask_prompt: bool | None = None
    seed: int = 0
    data_digest: str = ""
    base_digest: str = ""
    best_step: int = 0
    config: dict[str, Any] = {}


class LoraConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Content of ``optiq_lora_config.json``.

    Attributes:
        base_model: name of the base that the adapter was trained on.
        rank, rank_scaling, scale, dropout: as configured for training.
        ranks: module path to true rank. Where these differ, the tensors in ``adapters.safetensors`` are padded
            with zeros to the largest, and ``scale`` is already in ``lora_b``.
        scales: module path to factor on its product, where it is not ``scale``.
        method: ``lora`` or ``dora``.
        stored_rank: rank of every stored tensor.
        stored_scale: scale to apply to the stored tensors; the same as in ``adapter_config.json``.
        bits: module path to bits of its weight in the base.
        versions: package to version.
        training: how it was trained.
    """

    base_model: str
    rank: int
    rank_scaling: str
    scale: float
    dropout: float
    ranks: dict[str, int]
    scales: dict[str, float] = {}
    method: str = "lora"
    stored_rank: int = 0
    stored_scale: float = 0.0
    bits: dict[str, int] = {}
    versions: dict[str, str] = {}
    training: TrainingCard | None = None
    format_version: int = FORMAT_VERSION


def json_schema() -> bytes:
    """The JSON Schema of the file."""
    schema = msgspec.json.schema(LoraConfig)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return msgspec.json.format(msgspec.json.encode(schema), indent=2) + b"\n"


def encode_lora_config(config: LoraConfig) -> bytes:
    """The file's bytes: indented, defaults left out except the version."""
    content = {**msgspec.to_builtins(config), "format_version": config.format_version}
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def read_lora_config(folder: Path) -> LoraConfig:
    """Read ``optiq_lora_config.json`` of an adapter folder.

    Raises:
        AdapterError: the file is missing, damaged or of a newer format.
    """
    try:
        config = msgspec.json.decode((folder / FILE_NAME).read_bytes(), type=LoraConfig)
    except OSError as error:
        raise AdapterError("FILE_MISSING", f"cannot be read: {error.strerror}", file=FILE_NAME) from error
    except msgspec.DecodeError as error:
        raise AdapterError("BAD_CONFIG", str(error), file=FILE_NAME) from error
    if config.format_version > FORMAT_VERSION:
        raise AdapterError(
            "FORMAT_UNSUPPORTED",
            "written by a newer Optiq",
            file=FILE_NAME,
            tensor="format_version",
            expected=f"at most {FORMAT_VERSION}",
            found=str(config.format_version),
        )
    return config
