"""Training data as token ids: what to train on, and what had to be cut or dropped.

Records become tokens through mlx-lm's own dataset classes, so that text, chat templates and prompt offsets
are exactly those of mlx-lm. Nothing at the top of this module imports MLX: the daemon uses ``check_data``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optiq_core.errors import DataError
from optiq_core.train.config import TrainConfig
from optiq_core.train.records import (
    TRAIN_FILE,
    VALID_FILE,
    DataSummary,
    Record,
    check_data,
    read_records,
    read_source,
)

__all__ = ["DataSummary", "Example", "Split", "TrainingData", "check_data", "encode", "load_data"]


@dataclass(frozen=True)
class Example:
    """Token ids, and the index of the first one to predict (at least 1: nothing predicts the first).

    ``line`` is where the example stands in its file, counted from 1; 0 if it comes from none. With preferences the
    answer that is not preferred comes along, as an example with the same prompt.
    """

    tokens: tuple[int, ...]
    start: int
    line: int = 0
    rejected: Example | None = None

    @property
    def length(self) -> int:
        """Tokens, of the longer answer where there are two."""
        return max(len(self.tokens), self.rejected.length if self.rejected else 0)

    @property
    def trainable(self) -> int:
        """Tokens that carry loss, of the shorter answer where there are two."""
        own = max(0, len(self.tokens) - self.start)
        return min(own, self.rejected.trainable) if self.rejected else own

    def cut(self, length: int) -> Example:
        """The first ``length`` tokens."""
        if self.length <= length:
            return self
        rejected = self.rejected.cut(length) if self.rejected else None
        return Example(self.tokens[:length], self.start, self.line, rejected)


@dataclass
class Split:
    """The usable examples of one file, with counts of what was cut short or dropped."""

    examples: list[Example] = field(default_factory=list)
    cut: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class TrainingData:
    """Both splits, and a digest over every token: a checkpoint is resumed only on the same data."""

    train: Split
    valid: Split
    digest: str

    def warnings(self, max_seq_length: int) -> list[str]:
        """Sentences on what was cut or dropped, for a person."""
        said: list[str] = []
        for name, split in ((TRAIN_FILE, self.train), (VALID_FILE, self.valid)):
            if split.cut:
                said.append(f"{name}: {split.cut} examples are longer than {max_seq_length} tokens and were cut")
            if split.dropped:
                said.append(f"{name}: {split.dropped} examples have no token to train on and were dropped")
        return said


def load_data(
    source: str | Path, tokenizer: Any, config: TrainConfig, *, cache_dir: Path | None = None
) -> TrainingData:
    """Read and tokenize training data.

    Args:
        source: a folder with ``train.jsonl`` and optionally ``valid.jsonl``, one such file, or a hub dataset's id.
        tokenizer: mlx-lm's wrapper or a Hugging Face tokenizer.
        config: ``max_seq_length``, ``mask_prompt`` and ``objective`` are used.
        cache_dir: where tokens are kept for the next run on the same data; none are without.

    Raises:
        DataError: naming file, line and key; also when no example has a token to train on.
    """
    train_records, valid_records = read_source(source)
    train = _tokenize(train_records, tokenizer, config, TRAIN_FILE, cache_dir)
    valid = _tokenize(valid_records, tokenizer, config, VALID_FILE, cache_dir)
    if not train.examples:
        raise DataError(
            f"{source}: no example has a token to train on within "
            f"max_seq_length={config.max_seq_length}; raise max_seq_length or shorten the prompts"
        )
    return TrainingData(train=train, valid=valid, digest=_digest((*train.examples, *valid.examples)))


def load_examples(file: str | Path, tokenizer: Any, config: TrainConfig) -> list[Example]:
    """The examples of one JSONL file that have a token to train on.

    Raises:
        DataError: naming file, line and key; also when there is none.
    """
    path = Path(file)
    examples = _tokenize(read_records(path), tokenizer, config, path.name, None).examples
    if not examples:
        raise DataError(f"{path}: no example has a token to score within max_seq_length={config.max_seq_length}")
    return examples


def encode(
    records: Iterable[Record], tokenizer: Any, *, mask_prompt: bool | None, file: str
) -> Iterator[tuple[Record, Example]]:
    """Each record with its tokens, uncut; an empty text has none.

    Raises:
        DataError: naming file, line and key.
    """
    processors = _Processors(tokenizer, mask_prompt)
    for record in records:
        where = f"{file} line {record.line}"
        if record.format == "text" and not record.value["text"]:
            yield record, Example(tokens=(), start=1, line=record.line)
            continue
        try:
            if record.format == "preference":
                chosen, rejected = (processors.answer(record, key, where) for key in ("chosen", "rejected"))
                yield record, replace(chosen, rejected=rejected)
                continue
            tokens, offset = processors.of(record, where).process(record.value)
        except DataError:
            raise
        except Exception as error:  # templates raise whatever their author wrote
            raise DataError(f"{where}: the chat template refused it ({error})") from error
        yield record, Example(tokens=tuple(tokens), start=max(1, offset), line=record.line)


def _tokenize(
    records: Sequence[Record], tokenizer: Any, config: TrainConfig, file: str, cache_dir: Path | None
) -> Split:
    split = Split()
    if cache_dir is None or config.retokenize:
        examples = [example for _, example in encode(records, tokenizer, mask_prompt=config.mask_prompt, file=file)]
    else:
        from optiq_core.train.token_cache import TokenCache

        examples = TokenCache(cache_dir).examples(records, tokenizer, mask_prompt=config.mask_prompt, file=file)
    for whole in examples:
        if (whole.rejected is not None) != (config.objective in ("dpo", "orpo")):
            needed = "'prompt', 'chosen' and 'rejected'" if whole.rejected is None else "answers without a rejected one"
            raise DataError(f"{file} line {whole.line}: objective {config.objective} needs {needed}")
        split.cut += whole.length > config.max_seq_length
        example = whole.cut(config.max_seq_length)
        # An example that is all prompt after the cut has a loss of 0 over 0 tokens: NaN for the whole run.
        if example.trainable > 0:
            split.examples.append(example)
        else:
            split.dropped += 1
    return split


class _Processors:
    """mlx-lm's dataset classes, used for their ``process`` only, one per format."""

    def __init__(self, tokenizer: Any, mask_prompt: bool | None) -> None:
        from mlx_lm.tuner.datasets import ChatDataset, CompletionsDataset, TextDataset

        mask = mask_prompt is not False
        self._mask_text = mask_prompt is True
        self._by_format: dict[str, Any] = {
            "completions": CompletionsDataset([], tokenizer, "prompt", "completion", mask),
            "chat": ChatDataset([], tokenizer, mask_prompt=mask),
            "text": TextDataset([], tokenizer),
        }
        self._answers = ChatDataset([], tokenizer, mask_prompt=True)
        self._has_template = getattr(tokenizer, "chat_template", None) is not None or bool(
            getattr(tokenizer, "has_chat_template", False)
        )

    def answer(self, record: Record, key: str, where: str) -> Example:
        """The prompt with one of its answers."""
        if not self._has_template:
            raise DataError(f"{where}: the base has no chat template, which preferences need")
        prompt, answer = record.value["prompt"], record.value[key]
        messages = [
            *(prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]),
            *(answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]),
        ]
        tokens, offset = self._answers.process({"messages": messages, "tools": record.value.get("tools")})
        return Example(tokens=tuple(tokens), start=max(1, offset), line=record.line)

    def of(self, record: Record, where: str) -> Any:
        if record.format == "text" and self._mask_text:
            raise DataError(f"{where}: 'text' has no prompt to mask; leave mask_prompt unset or use 'messages'")
        if record.format != "text" and not self._has_template:
            raise DataError(f"{where}: the base has no chat template; use 'text' records")
        return self._by_format[record.format]


def _digest(examples: Iterable[Example]) -> str:
    hasher = hashlib.sha256()
    for example in examples:
        for answer in (example, example.rejected):
            if answer is not None:
                hasher.update(f"{answer.start}:{','.join(map(str, answer.tokens))}\n".encode())
    return hasher.hexdigest()
