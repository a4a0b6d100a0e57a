"""Answers that are held to a schema keep to it, and change nothing for the rows beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from optiq_core.engine.constraint import ConstraintCompiler, ConstraintError
from optiq_core.engine.engine import Engine
from optiq_core.engine.types import Finished, Reason, Sampling
from tests.unit.engine_run import Run, request
from tests.unit.tiny import tiny_base, tiny_model, tiny_tokenizer

COLOURS = json.dumps(
    {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
)
NUMBERS = '{"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 2, "maxItems": 2}'
PROMPT = tuple(range(5, 15))
VOCABULARY = 257


def byte_tokenizer() -> TokenizerWrapper:
    """A token for each byte; 0 ends a turn."""
    words = {"<eos>": 0, **{char: i + 1 for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    return TokenizerWrapper(
        fast, tool_call_start="<call>", tool_call_end="</call>", tool_parser=lambda text, tools: json.loads(text)
    )


@pytest.fixture
def engine() -> Iterator[Engine]:
    # Wider logits than the tokenizer has words, as padded embeddings are.
    base = replace(tiny_base(), model=tiny_model(vocab=VOCABULARY + 7), tokenizer=byte_tokenizer())
    engine = Engine(base, max_batch=8)
    engine.start()
    yield engine
    engine.close()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.5, seed=4)], ids=["greedy", "drawn"])
def test_mixed_rows_keep_each_to_its_own_schema(engine: Engine, sampling: Sampling) -> None:
    compiler = ConstraintCompiler(byte_tokenizer())
    alone = Run(engine, request("alone", PROMPT, sampling=sampling))
    alone.wait()
    free = Run(engine, request("free", PROMPT, sampling=sampling))
    asked = {"max_tokens": 60, "sampling": sampling}
    colour = Run(engine, request("colour", PROMPT, constraint=compiler.schema(COLOURS), **asked))
    numbers = Run(engine, request("numbers", PROMPT, constraint=compiler.schema(NUMBERS), **asked))
    assert [run.wait().reason for run in (colour, numbers)] == [Reason.STOP, Reason.STOP]
    free.wait()
    assert json.loads(colour.text)["colour"] in ("red", "blue")
    first, second = json.loads(numbers.text)
    assert 0 <= first <= 99 and 0 <= second <= 99
    assert free.ids == alone.ids


def test_a_schema_survives_its_batch_changing(engine: Engine) -> None:
    compiler = ConstraintCompiler(byte_tokenizer())
    runs = [
        Run(
            engine,
            request(
                f"{i}",
                PROMPT[: 3 + i],
                constraint=compiler.schema(NUMBERS),
                max_tokens=40,
                sampling=Sampling(0.9, seed=i),
            ),
        )
        for i in range(6)
    ]
    short = Run(engine, request("short", PROMPT, max_tokens=2))
    for run in [short, *runs]:
        run.wait()
    assert all(len(json.loads(run.text)) == 2 for run in runs)


def test_a_tool_is_called_in_the_tokenizers_marks(engine: Engine) -> None:
    tools = [
        {"function": {"name": "paint", "parameters": json.loads(COLOURS)}},
        {
            "function": {
                "name": "count",
                "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
            }
        },
    ]
    constraint = ConstraintCompiler(byte_tokenizer()).tool_call(tools)
    run = Run(engine, request("call", PROMPT, constraint=constraint, max_tokens=120))
    assert run.wait().reason is Reason.STOP
    assert run.text.startswith("<call>\n") and run.text.endswith("\n</call>")
    call = json.loads(run.text[len("<call>") : -len("</call>")])
    assert call["name"] in ("paint", "count") and isinstance(call["arguments"], dict)


def test_an_answer_that_is_cut_is_a_beginning(engine: Engine) -> None:
    compiler = ConstraintCompiler(byte_tokenizer())
    run = Run(engine, request("cut", PROMPT, constraint=compiler.schema(COLOURS), max_tokens=5))
    assert isinstance(end := run.wait(), Finished) and end.reason is Reason.LENGTH
    assert '{"colour": "'.startswith(run.text)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ("nope", "not JSON"),
        ("[]", "a schema is an object"),
        ('{"type": "frob"}', "frob"),
        ('{"$ref": "http://elsewhere/schema"}', "not present"),
        ('{"type": "string", "pattern": "(("}', "regex"),
    ],
)
def test_what_is_no_schema_is_refused_with_a_reason(schema: str, why: str) -> None:
    with pytest.raises(ConstraintError, match=why):
        ConstraintCompiler(byte_tokenizer()).schema(schema)


def test_a_tokenizer_without_bytes_is_refused() -> None:
    with pytest.raises(ConstraintError, match="tokenizer"):
        ConstraintCompiler(tiny_tokenizer()).schema(COLOURS)
