"""What a run reports while it goes on: one JSON object each on the trainer process's stdout. No MLX here."""

from __future__ import annotations

from typing import Any

import msgspec


class Heartbeat(msgspec.Struct, frozen=True, tag_field="type", tag="heartbeat"):
    """The process is alive; sent at least every five seconds."""


class Started(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="started"):
    """Training begins, or goes on, after ``step`` of ``total_steps``; ``ranks`` counts modules per rank."""

    step: int
    total_steps: int
    trainable_parameters: int
    ranks: dict[str, int]


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="progress"):
    """State after a step.

    Attributes:
        train_loss: nats per token, mean since the last report.
        valid_loss: last validation, absent before the first.
        tokens_per_second: tokens read per second, prompts counted and padding not, since the last report.
        trained_tokens: tokens that carried loss since step 0.
        seconds_left: at the mean speed of this process's steps.
        peak_memory_bytes: peak of the array memory of this process.
    """

    step: int
    total_steps: int
    train_loss: float
    valid_loss: float | None = None
    tokens_per_second: float
    trained_tokens: int
    seconds_left: float
    peak_memory_bytes: int
    learning_rate: float


class StepPeak(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="peak"):
    """Array memory in bytes of the largest part of a step so far, which had this padded shape."""

    rows: int
    width: int
    positions: int
    peak_bytes: int


class Shrunk(msgspec.Struct, frozen=True, tag_field="type", tag="shrunk"):
    """From now on ``rows`` rows are held at a time, because more would have exceeded the ceiling."""

    rows: int


class ShortOfMemory(msgspec.Struct, frozen=True, tag_field="type", tag="short"):
    """Not even one row fits; the run stops with a checkpoint."""

    reason: str


class CheckpointSaved(msgspec.Struct, frozen=True, tag_field="type", tag="checkpoint"):
    """Training can go on from ``step``."""

    step: int


class Warned(msgspec.Struct, frozen=True, tag_field="type", tag="warning"):
    """Something a person should know; training goes on."""

    message: str


class Succeeded(msgspec.Struct, frozen=True, tag_field="type", tag="succeeded"):
    """The adapter lies at ``adapter_path``."""

    adapter_path: str


class Failed(msgspec.Struct, frozen=True, tag_field="type", tag="failed"):
    """Training cannot go on; ``reason`` says why and what would be right.

    ``memory`` says that an allocation failed, when the process had, or asked for, ``at_bytes`` of array memory.
    """

    reason: str
    memory: bool = False
    at_bytes: int = 0


class Cancelled(msgspec.Struct, frozen=True, tag_field="type", tag="cancelled"):
    """Ended as asked, without an adapter."""


Event = (
    Heartbeat
    | Started
    | Progress
    | StepPeak
    | Shrunk
    | ShortOfMemory
    | CheckpointSaved
    | Warned
    | Succeeded
    | Failed
    | Cancelled
)

_DECODER: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """One line, newline included."""
    return msgspec.json.encode(event) + b"\n"


def decode_event(line: bytes) -> Event:
    """The event of one line; msgspec.DecodeError where it is none."""
    event: Event = _DECODER.decode(line)
    return event
