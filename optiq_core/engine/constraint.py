"""Constrained decoding: answers that keep to a JSON schema, or to the calls of given tools.

Llguidance walks a grammar along with a row's tokens and tells which tokens may come next. The walk happens on the
engine's thread while the device computes the logits that the answer is masked with.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import llguidance
import llguidance.hf
import numpy as np
from llguidance.numpy import fill_next_token_bitmask, get_bitmask_shape
from numpy.typing import NDArray

from ..errors import OptiqError

# One way to write white space: small models otherwise fill their answers with it.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class ConstraintError(OptiqError):
    """A schema that no answer can be held to; the message says what is wrong with it."""


class Constraint:
    """What one row may still say. Used by one request only, on one thread at a time.

    Args:
        matcher: at the beginning of the answer.
        vocabulary: of the tokenizer.
    """

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros(get_bitmask_shape(1, vocabulary), np.int32)

    @property
    def error(self) -> str:
        """Why the row cannot go on; empty if it can."""
        return self._matcher.get_error() if self._matcher.is_error() else ""

    def take(self, token: int) -> None:
        """Go on past a token that was drawn; the end of a turn after the answer is whole changes nothing."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)

    def allowed(self, vocabulary: int) -> NDArray[np.bool_]:
        """Whether each token may come next.

        Args:
            vocabulary: width of the model's logits; what lies beyond the tokenizer's is not allowed.

        Returns:
            [vocabulary] bool. After an error everything is allowed: the row ends in the same step.
        """
        fill_next_token_bitmask(self._matcher, self._bits)
        if self._matcher.is_error():
            return np.ones(vocabulary, np.bool_)
        bits = np.unpackbits(self._bits.view(np.uint8)[0], bitorder="little").astype(np.bool_)
        if len(bits) >= vocabulary:
            return bits[:vocabulary]
        return np.concatenate([bits, np.zeros(vocabulary - len(bits), np.bool_)])


class ConstraintCompiler:
    """Makes the constraints of a base's requests; may be used by many threads.

    Args:
        tokenizer: mlx-lm's wrapper of a fast Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._words: llguidance.LLTokenizer | None = None

    def schema(self, text: str) -> Constraint:
        """Hold an answer to a JSON schema.

        Raises:
            ConstraintError: it is no schema, or uses what cannot be enforced.
        """
        return self._compile(_schema_grammar(text))

    def tool_call(self, tools: Sequence[dict[str, Any]]) -> Constraint:
        """Hold an answer to one call of one of some tools, written between the tokenizer's marks as JSON.

        Args:
            tools: OpenAI's form: ``{"function": {"name": ..., "parameters": SCHEMA}}``.

        Raises:
            ConstraintError: as for :meth:`schema`.
        """
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool["function"]["name"]},
                    "arguments": tool["function"].get("parameters") or {"type": "object"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in tools
        ]
        schema = json.dumps({"anyOf": calls, "x-guidance": _JSON_STYLE})
        begin, end = self._mark(self._tokenizer.tool_call_start), self._mark(self._tokenizer.tool_call_end)
        grammar = f'start: {begin} "\\n" %json {schema} "\\n" {end}'
        return self._compile(llguidance.LLMatcher.grammar_from_lark(grammar))

    def _mark(self, text: str) -> str:
        """A mark in Lark: a special token by its name, other text as a string."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1 and self._vocabulary().is_special_token(ids[0]):
            return text
        return json.dumps(text)

    def _compile(self, grammar: str) -> Constraint:
        words = self._vocabulary()
        matcher = llguidance.LLMatcher(words, grammar, log_level=0)
        if matcher.is_error():
            # What follows the first line is a picture of the grammar.
            raise ConstraintError(matcher.get_error().strip().partition("\n")[0])
        return Constraint(matcher, words.vocab_size)

    def _vocabulary(self) -> llguidance.LLTokenizer:
        """The vocabulary as a tree of bytes; takes up to a second to make, so it is made when first needed."""
        with self._lock:
            if self._words is None:
                try:
                    ends = sorted(self._tokenizer.eos_token_ids)
                    self._words = llguidance.hf.from_tokenizer(self._tokenizer._tokenizer, eos_token=ends)
                except ValueError as error:
                    raise ConstraintError(f"the base's tokenizer does not allow constrained answers: {error}") from None
            return self._words


def _schema_grammar(text: str) -> str:
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise ConstraintError(f"not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ConstraintError(f"a schema is an object, this is a {type(schema).__name__}")
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON_STYLE)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConstraintError(str(error)) from None
