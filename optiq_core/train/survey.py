"""What is in a data folder, in tokens: lengths, what a limit would cut, duplicates, examples that teach nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optiq_core.train.data import Example, encode
from optiq_core.train.records import TRAIN_FILE, VALID_FILE, read_source

_BARS = " ▁▂▃▄▅▆▇█"
_BUCKETS = 16
_PERCENTS = (50, 90, 99)


@dataclass
class FileSurvey:
    """One file with at least one example.

    Attributes:
        file: its name.
        lines: of each example, from 1.
        lengths: tokens of each example.
        trained: tokens that carry loss under the limit.
        cut: lines longer than the limit.
        untrainable: lines with no token to train on under the limit; training drops them.
        duplicates: line to the earlier line that holds the same tokens.
        in_train: lines of the validation file that the training file holds too.
    """

    file: str
    formats: tuple[str, ...] = ()
    lines: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    trained: int = 0
    cut: list[int] = field(default_factory=list)
    untrainable: list[int] = field(default_factory=list)
    duplicates: dict[int, int] = field(default_factory=dict)
    in_train: list[int] = field(default_factory=list)

    def percentile(self, percent: int) -> int:
        """Length that ``percent`` of the examples do not exceed."""
        ordered = sorted(self.lengths)
        return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]

    def histogram(self) -> list[tuple[int, int, int]]:
        """(shortest, longest, examples) of buckets of equal width; the shortest and longest length are inside."""
        low, high = min(self.lengths), max(self.lengths)
        width = max(1, -(-(high - low + 1) // _BUCKETS))
        counts = [0] * (-(-(high - low + 1) // width))
        for length in self.lengths:
            counts[(length - low) // width] += 1
        return [(low + i * width, low + (i + 1) * width - 1, count) for i, count in enumerate(counts)]

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        lengths = {"min": min(self.lengths), "max": max(self.lengths)}
        lengths |= {f"p{p}": self.percentile(p) for p in _PERCENTS}
        return {
            "file": self.file,
            "formats": list(self.formats),
            "examples": len(self.lines),
            "tokens": sum(self.lengths),
            "trained_tokens": self.trained,
            "lengths": lengths,
            "histogram": [list(bucket) for bucket in self.histogram()],
            "cut": self.cut,
            "untrainable": self.untrainable,
            "duplicates": {str(line): first for line, first in self.duplicates.items()},
            "in_train": self.in_train,
        }

    def as_text(self, limit: int) -> str:
        """Lines for a person."""
        kinds = ", ".join(self.formats)
        buckets = self.histogram()
        most = max(count for *_, count in buckets)
        bars = "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for *_, count in buckets)
        percentiles = "  ".join(f"p{p} {self.percentile(p)}" for p in _PERCENTS)
        said = [
            f"{self.file}: {len(self.lines):,} examples ({kinds}), {sum(self.lengths):,} tokens, "
            f"{self.trained:,} of them trained on",
            f"  lengths: {buckets[0][0]} |{bars}| {max(self.lengths)}  {percentiles}",
        ]
        if self.cut:
            said.append(f"  longer than {limit} tokens, would be cut: {_listed(self.cut)}")
        if self.untrainable:
            said.append(f"  no token to train on, would be dropped: {_listed(self.untrainable)}")
        if self.duplicates:
            pairs = [f"{line} = {first}" for line, first in self.duplicates.items()]
            said.append(f"  same tokens as an earlier line: {_listed(pairs)}")
        if self.in_train:
            said.append(f"  also in {TRAIN_FILE}, so that the loss here says less: {_listed(self.in_train)}")
        return "\n".join(said)


def survey_folder(
    folder: str | Path, tokenizer: Any, *, max_seq_length: int, mask_prompt: bool | None = None
) -> list[FileSurvey]:
    """Survey ``train.jsonl`` and, if there is one, ``valid.jsonl``.

    Args:
        folder: the data folder, a file, or a hub id.
        tokenizer: of the base to train.
        max_seq_length: what training would cut to.
        mask_prompt: as in training.

    Raises:
        DataError: naming file, line and key.
    """
    surveys: list[FileSurvey] = []
    train: dict[tuple[int, ...], int] = {}
    for file, records in zip((TRAIN_FILE, VALID_FILE), read_source(folder), strict=True):
        survey = FileSurvey(file, tuple(dict.fromkeys(record.format for record in records)))
        seen: dict[tuple[int, ...], int] = {}
        for record, example in encode(records, tokenizer, mask_prompt=mask_prompt, file=file):
            _count(survey, record.line, example, max_seq_length)
            if example.tokens in train:
                survey.in_train.append(record.line)
            first = seen.setdefault(example.tokens, record.line)
            if first != record.line:
                survey.duplicates[record.line] = first
        train = seen
        if records:
            surveys.append(survey)
    return surveys


def _count(survey: FileSurvey, line: int, example: Example, limit: int) -> None:
    survey.lines.append(line)
    survey.lengths.append(len(example.tokens))
    kept = example.cut(limit)
    survey.trained += kept.trainable
    if kept is not example:
        survey.cut.append(line)
    if not kept.trainable:
        survey.untrainable.append(line)


def _listed(items: Sequence[object]) -> str:
    shown = ", ".join(str(item) for item in items[:5])
    rest = len(items) - 5
    return f"{len(items)} (line {shown}{f' and {rest} more' if rest > 0 else ''})"
