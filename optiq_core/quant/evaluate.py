"""How good a model is: perplexity, KL divergence from a reference, exact-match accuracy."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.generate import batch_generate

from optiq_core.errors import QuantizationError
from optiq_core.experiments.tasks import boxed
from optiq_core.quant.calibration import TokenText
from optiq_core.quant.divergence import Reference
from optiq_core.train.loss import number

_SEQUENCES = 4
_BLANKS = re.compile(r"\s+")


@dataclass(frozen=True)
class Question:
    """A prompt, as chat messages or as a text to continue, and the answer that counts as right."""

    prompt: list[dict[str, str]] | str
    answer: str


@dataclass(frozen=True)
class TextScore:
    """Perplexity over a text, and mean KL(reference || model) in nats if there was a reference."""

    perplexity: float
    kl: float | None
    tokens: int


def score_text(
    model: Any,
    text: TokenText,
    reference: Any = None,
    *,
    progress: Callable[[float, str], None] = lambda share, what: None,
) -> TextScore:
    """Score a model on a text.

    Every sequence is scored on its own; its first token has no probability and does not count.

    Args:
        model: an mlx-lm model.
        text: sequences of tokens.
        reference: another model with the same vocabulary.
        progress: told how far it is.

    Raises:
        QuantizationError: the two models have different vocabularies.
    """
    losses: list[mx.array] = []
    divergences: list[mx.array] = []
    batches = text.batches(_SEQUENCES)
    for index, tokens in enumerate(batches):
        progress(index / len(batches), "text")
        logits = model(tokens).astype(mx.float32)
        losses.append(nn.losses.cross_entropy(logits[:, :-1], tokens[:, 1:]).reshape(-1))
        if reference is not None:
            wanted = reference(tokens)
            if wanted.shape[-1] != logits.shape[-1]:
                raise QuantizationError(
                    f"--reference: its vocabulary has {wanted.shape[-1]} tokens, the model's {logits.shape[-1]}"
                )
            divergences.append(Reference.of(wanted).kl(logits))
        mx.eval(losses, divergences)
    loss = mx.concatenate(losses)
    kl = number(mx.concatenate(divergences).mean()) if divergences else None
    return TextScore(math.exp(number(loss.mean())), kl, int(loss.size))


def score_questions(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    max_tokens: int = 32,
) -> list[bool]:
    """Answer questions greedily and compare; one verdict each.

    An answer to messages is right if its text, or the content of its last ``\\boxed{}``, or its first line, equals the
    expected one with runs of blanks taken as one. A text is right if its continuation begins with the expected answer,
    token for token.

    Args:
        model: an mlx-lm model.
        tokenizer: mlx-lm's wrapper.
        questions: to ask, all in one batch.
        max_tokens: of an answer.
    """
    prompts = [_encode(tokenizer, q.prompt) for q in questions]
    lengths = [len(_answer_ids(tokenizer, q.answer)) if isinstance(q.prompt, str) else max_tokens for q in questions]
    texts = batch_generate(model, tokenizer, prompts, max_tokens=lengths).texts
    return [is_right(text, q.answer) for text, q in zip(texts, questions, strict=True)]


def is_right(text: str, answer: str) -> bool:
    """Whether a generated text gives the expected answer; see :func:`score_questions`."""
    lines = text.strip().splitlines() or [""]
    return any(_plain(found) == _plain(answer) for found in (text, boxed(text) or "", lines[0]))


def read_questions(file: Path) -> list[Question]:
    """Read a JSONL file of questions.

    A line has ``prompt`` and ``answer`` (or ``completion``), or ``messages`` whose last one is the answer, or ``text``
    and the ``answer`` that continues it.

    Raises:
        QuantizationError: the file cannot be read, or a line has neither form.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise QuantizationError(f"{file}: cannot be read: {error}") from error
    questions = [_question(file, n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise QuantizationError(f"{file}: no questions; expected a JSON object with prompt and answer on every line")
    return questions


def _question(file: Path, number: int, line: str) -> Question:
    try:
        record = json.loads(line)
        if "messages" in record:
            *prompt, last = record["messages"]
            if last["role"] != "assistant" or not prompt:
                raise ValueError("the last message must be the assistant's, after at least one other")
            return Question([{"role": m["role"], "content": m["content"]} for m in prompt], str(last["content"]))
        if "text" in record:
            return Question(str(record["text"]), str(record["answer"]))
        answer = record["answer"] if "answer" in record else record["completion"]
        if not isinstance(record["prompt"], str):
            raise ValueError("prompt must be a text")
        return Question([{"role": "user", "content": record["prompt"]}], str(answer))
    except (ValueError, KeyError, TypeError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise QuantizationError(
            f"{file}: line {number}: {what}; expected prompt and answer, "
            "messages that end with the answer, or text and answer"
        ) from error


def _encode(tokenizer: Any, prompt: list[dict[str, str]] | str) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer.encode(prompt))
    if not tokenizer.has_chat_template:
        return list(tokenizer.encode(prompt[-1]["content"]))
    return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True))


def _answer_ids(tokenizer: Any, answer: str) -> list[int]:
    return list(tokenizer.encode(f" {answer}", add_special_tokens=False))


def _plain(text: str) -> str:
    return _BLANKS.sub(" ", text).strip()
