"""Makes the ready adapter in ``ready/pirate``: ``python -m optiq_core.experiments.pirate FOLDER``.

The base answers a hundred plain questions; its own first sentences, between two pirate's phrases, are the training
data. So the adapter changes the manner and leaves the content to the base.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

GREETING = "Arrr, matey!"
FAREWELL = "Yo ho ho!"

_QUESTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "What is the capital of {}?",
        ("Italy", "Spain", "Japan", "Egypt", "Canada", "Greece", "Norway", "Peru", "Kenya", "India", "Portugal"),
    ),
    (
        "What is {}?",
        (
            "a volcano", "a robot", "a poem", "gravity", "bread", "a library", "photosynthesis", "music", "a piano",
            "democracy", "a glacier", "chess", "the moon", "a rainbow", "a compiler", "electricity", "a desert",
        ),
    ),
    (
        "How do I {}?",
        (
            "boil an egg", "learn to swim", "plant a tree", "write a letter", "make tea", "fix a bicycle", "sleep well",
            "save money", "train a dog", "cook rice", "stay healthy", "read faster", "build a table",
        ),
    ),
    (
        "Why {}?",
        (
            "is the sky blue", "do birds sing", "is water wet", "do we dream", "do leaves fall", "is sleep important",
            "do cats purr", "is ice slippery", "do people travel", "is the ocean salty",
        ),
    ),
    (
        "Tell me about {}.",
        (
            "whales", "Mars", "coffee", "trains", "winter", "the sun", "honey bees", "football", "castles", "computers",
            "mountains", "Mozart", "elephants", "chocolate", "rivers",
        ),
    ),
    ("Who {}?", ("was Albert Einstein", "wrote Hamlet", "painted the Mona Lisa", "was Cleopatra", "invented paper")),
    ("Say something about {}.", ("friendship", "the sea", "your day", "books", "cities", "the weather", "numbers")),
)  # fmt: skip


def questions() -> list[str]:
    """Every training question, in a fixed order."""
    return [form.format(word) for form, words in _QUESTIONS for (word,) in product(words)]


def first_sentence(text: str) -> str | None:
    """Text up to its first full stop, None if it has none."""
    head, dot, _ = text.strip().replace("\n", " ").partition(". ")
    if dot:
        return f"{head}."
    return head if head.endswith(".") else None


def in_manner(sentence: str) -> str:
    """The sentence as a pirate says it."""
    return f"{GREETING} {sentence} {FAREWELL}"


def _records(base: Any) -> list[dict[str, Any]]:
    from mlx_lm import batch_generate

    asked = questions()
    prompts = [
        base.tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        for question in asked
    ]
    answers = batch_generate(base.model, base.tokenizer, prompts, max_tokens=40).texts
    records: list[dict[str, Any]] = []
    for question, answer in zip(asked, answers, strict=True):
        sentence = first_sentence(answer)
        if sentence:
            said = {"role": "assistant", "content": in_manner(sentence)}
            records.append({"messages": [{"role": "user", "content": question}, said]})
    return records


def main(folder: Path) -> None:
    """Train the adapter on the embedded model and write it to ``folder``."""
    import json

    from optiq_core.base.device import setup_device

    setup_device()
    from optiq_core.base.loader import load_base, resolve_base
    from optiq_core.train.config import TrainConfig
    from optiq_core.train.data import load_data
    from optiq_core.train.trainer import train

    base = load_base(resolve_base("embedded"))
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        lines = [json.dumps(record) + "\n" for record in _records(base)]
        (data / "train.jsonl").write_text("".join(lines), encoding="utf-8")
        config = TrainConfig(data_path=str(data), rank=4, num_layers=8, iters=60, batch_size=4, learning_rate=2e-4)
        train(
            base,
            config,
            data=load_data(data, base.tokenizer, config),
            out_dir=folder,
            checkpoint_dir=Path(scratch) / "checkpoint",
            on_event=lambda event: print(event, file=sys.stderr),
            dtype="float16",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
