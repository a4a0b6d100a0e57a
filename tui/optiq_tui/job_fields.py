"""The fields of the submit form, and the job's settings that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optiq_client import RankScaling, TrainingConfig


class FieldError(ValueError):
    """A field that cannot be used; ``field`` is its name, the message what would be right."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Field:
    """One line of the form.

    Attributes:
        name: setting that it makes.
        label: before it.
        hint: in it while it is empty: the daemon's default, or what is wanted.
        read: from text to value.
        wanted: what text would be right.
    """

    name: str
    label: str
    hint: str
    read: Callable[[str], Any]
    wanted: str


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def _rate(text: str) -> float:
    if not 0 < (value := float(text)) < 1:
        raise ValueError
    return value


def _layers(text: str) -> int:
    return -1 if text == "all" else _positive(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


WHOLE = "a whole number from 1"

FIELDS = (
    Field("adapter", "adapter", "name to serve it under", str, "a name"),
    Field("data_path", "data", "folder with train.jsonl", str, "a folder on the daemon's machine"),
    Field("rank", "rank", "8", _positive, WHOLE),
    Field("iters", "steps", "100", _positive, WHOLE),
    Field("batch_size", "batch", "4", _positive, WHOLE),
    Field("learning_rate", "rate", "1e-4", _rate, "a number between 0 and 1, for example 1e-4"),
    Field("max_seq_length", "tokens", "2048 an example", _positive, WHOLE),
    Field("num_layers", "layers", "16 from the last, or all", _layers, "a whole number from 1, or all"),
    Field("target_modules", "targets", "q_proj v_proj", _names, "names of modules"),
)


def to_config(texts: Mapping[str, str], *, scaling: RankScaling, checkpoint: bool) -> TrainingConfig:
    """The settings that the fields make; an empty field leaves the daemon's default.

    Args:
        texts: field name to what was typed.
        scaling: how ranks are spread.
        checkpoint: recompute activations.

    Raises:
        FieldError: a field says what it cannot mean, or there is no data.
    """
    values: dict[str, Any] = {}
    for field in FIELDS:
        text = texts.get(field.name, "").strip()
        if field.name == "adapter" or not text:
            continue
        try:
            values[field.name] = field.read(text)
        except ValueError:
            raise FieldError(field.name, f"expected {field.wanted}, found {text!r}") from None
    if "data_path" not in values:
        raise FieldError("data_path", "a folder with train.jsonl is needed")
    return TrainingConfig(**values, rank_scaling=scaling, grad_checkpoint=checkpoint)
