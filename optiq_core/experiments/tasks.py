"""Two small real tasks with checkable answers, generated from a seed. No MLX here.

Each answer stands in ``\\boxed{}`` and is scored by exact match. Training and held-out questions are disjoint. Prompts
are about twenty tokens with SmolLM2's tokenizer; the one-word system message replaces the twenty-token default that
its chat template would insert.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from optiq_core.train.config import TrainConfig

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


@dataclass(frozen=True)
class Item:
    """One question with its answer as it must stand in the box."""

    system: str
    question: str
    answer: str

    @property
    def prompt(self) -> list[dict[str, str]]:
        """Chat messages up to the answer."""
        return [{"role": "system", "content": self.system}, {"role": "user", "content": self.question}]

    @property
    def record(self) -> dict[str, list[dict[str, str]]]:
        """The item as one training record."""
        answer = {"role": "assistant", "content": f"\\boxed{{{self.answer}}}"}
        return {"messages": [*self.prompt, answer]}


@dataclass(frozen=True)
class Task:
    """A task: a name and all of its questions in a fixed order."""

    name: str
    make_items: Callable[[], list[Item]]

    def split(self, *, train: int, held_out: int, seed: int = 0) -> tuple[list[Item], list[Item]]:
        """Disjoint training and held-out items, drawn without replacement.

        Raises:
            ValueError: the task has fewer questions.
        """
        items = self.make_items()
        if train + held_out > len(items):
            raise ValueError(f"{self.name} has {len(items)} questions, {train + held_out} were asked for")
        random.Random(f"{self.name}:{seed}").shuffle(items)
        return items[held_out : held_out + train], items[:held_out]


def boxed(text: str) -> str | None:
    """Content of the last ``\\boxed{}`` of a text, outer blanks removed; None if there is none."""
    found = _BOXED.findall(text)
    return found[-1].strip() if found else None


def score(items: Iterable[Item], outputs: Iterable[str]) -> int:
    """Number of outputs whose boxed answer is exactly the item's."""
    return sum(boxed(output) == item.answer for item, output in zip(items, outputs, strict=True))


def write_data(folder: Path, train: Iterable[Item], valid: Iterable[Item] = ()) -> None:
    """Write ``train.jsonl``, and ``valid.jsonl`` if there are validation items."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, items in (("train.jsonl", train), ("valid.jsonl", valid)):
        lines = [json.dumps(item.record) + "\n" for item in items]
        if lines:
            (folder / name).write_text("".join(lines), encoding="utf-8")


# Unit, smaller unit, how many of the smaller one make the larger one.
_UNITS = (
    ("km", "m", 1000),
    ("m", "cm", 100),
    ("cm", "mm", 10),
    ("kg", "g", 1000),
    ("g", "mg", 1000),
    ("t", "kg", 1000),
    ("L", "mL", 1000),
    ("m", "mm", 1000),
)


def _unit_items() -> list[Item]:
    return [
        Item("Convert.", f"{value} {large} in {small}", f"{value * factor} {small}")
        for large, small, factor in _UNITS
        for value in range(2, 100)
    ]


_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def number_name(number: int) -> str:
    """English name of a number from 0 to 999, for example ``three hundred forty-seven``."""
    if not 0 <= number <= 999:
        raise ValueError(f"number must be between 0 and 999, is {number}")
    if number < 20:
        return _SMALL[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (f"-{_SMALL[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{_SMALL[hundreds]} hundred" + (f" {number_name(rest)}" if rest else "")


def _digit_items() -> list[Item]:
    return [Item("Digits.", number_name(number), str(number)) for number in range(1, 1000)]


UNITS = Task("units", _unit_items)
DIGITS = Task("digits", _digit_items)
TASKS = {task.name: task for task in (UNITS, DIGITS)}


@dataclass(frozen=True)
class DemoJob:
    """A training job of the demo: its task, its data and its settings."""

    task: Task
    train_items: int
    held_out_items: int
    settings: dict[str, int | float | str]

    def items(self) -> tuple[list[Item], list[Item]]:
        """Training and held-out items."""
        return self.task.split(train=self.train_items, held_out=self.held_out_items)

    def config(self, data_path: str | Path) -> TrainConfig:
        """The job's settings for a data folder."""
        return msgspec.convert({"data_path": str(data_path), **self.settings}, TrainConfig)


# Measured with SmolLM2-135M-Instruct in mixed precision (embedded-mixed), 40 held-out items, exact match: both tasks 0
# bare and 40 with the adapter. Forty steps give 30 and 39. Ten times the learning rate diverges at scale 20.
_DEMO_SETTINGS: dict[str, int | float | str] = {
    "rank": 8,
    "rank_scaling": "by_bits",
    "num_layers": 16,
    "iters": 60,
    "batch_size": 8,
    "learning_rate": 1e-4,
    "max_seq_length": 64,
    "steps_per_report": 5,
    "steps_per_checkpoint": 20,
}
DEMO_JOBS = tuple(
    DemoJob(task, train_items=400, held_out_items=40, settings=_DEMO_SETTINGS) for task in (UNITS, DIGITS)
)
