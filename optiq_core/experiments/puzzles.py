"""Six kinds of short puzzles with one checkable answer each, generated from a seed. No MLX here.

The kinds are those of the experiments that Optiq sets out to repeat: numeral conversion, unit conversion, equation
transformation, bit manipulation, text encryption and gravitational constant. Public generators of such tasks (for
example reasoning-gym) aim at models a hundred times larger; these are sized so that a model of 135 million
parameters can learn some of them and not all.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from optiq_core.experiments.tasks import UNITS, Item, Task

_ROMAN = (
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"),
    (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SHIFT = 3


def roman(number: int) -> str:
    """Roman numeral of a number from 1 to 3999."""
    if not 1 <= number <= 3999:
        raise ValueError(f"number must be between 1 and 3999, is {number}")
    text = ""
    for value, letters in _ROMAN:
        count, number = divmod(number, value)
        text += letters * count
    return text


def _numerals() -> list[Item]:
    return [Item("Convert.", f"{n} in Roman numerals", roman(n)) for n in range(1, 100)]


def _equations() -> list[Item]:
    return [
        Item("Solve.", f"{a}x + {b} = {a * x + b}", f"x = {x}")
        for a in range(1, 6)
        for b in range(1, 10)
        for x in range(1, 10)
    ]


def _bits() -> list[Item]:
    operations: dict[str, Callable[[int, int], int]] = {
        "AND": lambda a, b: a & b,
        "OR": lambda a, b: a | b,
        "XOR": lambda a, b: a ^ b,
    }
    return [
        Item("Bits.", f"{_spaced(a)} {name} {_spaced(b)}", _spaced(operation(a, b)))
        for name, operation in operations.items()
        for a in range(16)
        for b in range(16)
    ]


def _ciphers() -> list[Item]:
    draw = random.Random("ciphers")
    words = {"".join(draw.choices(_LETTERS, k=draw.randint(2, 3))) for _ in range(600)}
    return [Item("Decode.", " ".join(_shifted(word)), " ".join(word)) for word in sorted(words)]


def _gravity() -> list[Item]:
    return [
        Item("Fall.", f"g = {g} m/s2, t = {t} s, d = g t^2 / 2", f"{g * t * t // 2} m")
        for g in range(2, 42, 2)
        for t in range(2, 11)
    ]


def _spaced(bits: int) -> str:
    # A tokenizer may take several digits as one token; apart they stay digits.
    return " ".join(format(bits, "04b"))


def _shifted(word: str) -> str:
    return "".join(_LETTERS[(_LETTERS.index(letter) + _SHIFT) % 26] for letter in word)


PUZZLES = {
    task.name: task
    for task in (
        Task("numerals", _numerals),
        UNITS,
        Task("equations", _equations),
        Task("bits", _bits),
        Task("ciphers", _ciphers),
        Task("gravity", _gravity),
    )
}


@dataclass(frozen=True)
class LabelledItem:
    """An item and the kind that it is of."""

    category: str
    item: Item


@dataclass(frozen=True)
class Splits:
    """Disjoint items."""

    train: tuple[LabelledItem, ...]
    valid: tuple[LabelledItem, ...]
    test: tuple[LabelledItem, ...]


def draw_splits(tasks: dict[str, Task], *, train: int, valid: int, test: int, seed: int) -> Splits:
    """Draw disjoint splits with the categories in equal parts, each split in an order of its own.

    Args:
        tasks: by category.
        train, valid, test: items of all categories together; the first categories get one more where it does not
            divide.
        seed: same seed, same items.

    Raises:
        ValueError: a category has fewer questions.
    """
    parts: dict[str, list[LabelledItem]] = {"train": [], "valid": [], "test": []}
    sizes = {"train": train, "valid": valid, "test": test}
    for index, (category, task) in enumerate(tasks.items()):
        share = {name: size // len(tasks) + (index < size % len(tasks)) for name, size in sizes.items()}
        kept, test_items = task.split(train=share["train"] + share["valid"], held_out=share["test"], seed=seed)
        parts["train"] += [LabelledItem(category, item) for item in kept[: share["train"]]]
        parts["valid"] += [LabelledItem(category, item) for item in kept[share["train"] :]]
        parts["test"] += [LabelledItem(category, item) for item in test_items]
    for name, items in parts.items():
        random.Random(f"{name}:{seed}").shuffle(items)
    return Splits(*(tuple(parts[name]) for name in ("train", "valid", "test")))
