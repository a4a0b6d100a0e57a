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


_NUMERALS = (
    (100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip


def to_roman(number: int) -> str:
    """Roman numeral of a number from 1 to 399."""
    if not 1 <= number <= 399:
        raise ValueError(f"number must be between 1 and 399, is {number}")
    parts: list[str] = []
    for value, symbol in _NUMERALS:
        count, number = divmod(number, value)
        parts.append(symbol * count)
    return "".join(parts)


def _roman_items() -> list[Item]:
    return [Item("Roman.", str(number), to_roman(number)) for number in range(1, 400)]


UNITS = Task("units", _unit_items)
ROMAN = Task("roman", _roman_items)
TASKS = {task.name: task for task in (UNITS, ROMAN)}
