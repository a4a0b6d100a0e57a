"""Runs of the trainer on a tiny base, for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from optiq_core.base import LoadedBase, load_base
from optiq_core.train.config import TrainConfig
from optiq_core.train.data import load_data
from optiq_core.train.events import Event
from optiq_core.train.trainer import Signal, TrainResult, train
from tests.unit.train_tiny import write_tiny_base, write_tiny_data


class Lab:
    """One base and data folder; every run loads the base afresh."""

    def __init__(self, root: Path, *, quantized: bool = True) -> None:
        self.root = root
        self.base_path = write_tiny_base(root / "base", quantized=quantized)
        self.data_path = write_tiny_data(root / "data")
        self.events: list[Event] = []
        self.base: LoadedBase

    def config(self, **fields: Any) -> TrainConfig:
        defaults: dict[str, Any] = {
            "data_path": str(self.data_path),
            "iters": 8,
            "learning_rate": 1e-3,
            "rank": 4,
            "steps_per_report": 2,
            "steps_per_eval": 4,
            "steps_per_checkpoint": 3,
        }
        return TrainConfig(**{**defaults, **fields})

    def run(
        self, name: str, *, control: Callable[[], Signal] = lambda: "go", checkpoint: str = "", **fields: Any
    ) -> TrainResult:
        self.events = []
        self.base = load_base(self.base_path)
        config = self.config(**fields)
        return train(
            self.base,
            config,
            data=load_data(config.data_path, self.base.tokenizer, config),
            out_dir=self.root / name,
            checkpoint_dir=self.root / (checkpoint or f"{name}.checkpoint"),
            on_event=self.events.append,
            control=control,
        )

    def weights(self, name: str) -> dict[str, Any]:
        return load_file(self.root / name / "adapters.safetensors")

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def stop_after(steps: int) -> Callable[[], Signal]:
    calls = iter(range(10_000))
    return lambda: "stop" if next(calls) >= steps else "go"
