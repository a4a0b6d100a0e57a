"""Calls are taken out of an answer's text, however it is cut into chunks; what is no call stays text."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tool_parsers import json_tools

from optiq_daemon.tool_calls import ToolCallReader, with_calls
from optiq_daemon.tool_checks import form_violations
from optiq_protos.internal.v1 import engine_pb2
from optiq_protos.v1 import generation_pb2 as pb

TOKENIZER = SimpleNamespace(
    tool_call_start=json_tools.tool_call_start,
    tool_call_end=json_tools.tool_call_end,
    tool_parser=json_tools.parse_tool_call,
)
TOOLS = [pb.Tool(name="weather"), pb.Tool(name="clock")]


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def read(text: str, cuts: list[int]) -> tuple[str, list[tuple[str, dict]]]:
    reader = ToolCallReader(TOKENIZER, TOOLS)
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    told, calls = "", []
    for begin, end in pairwise(edges):
        shown, found = reader.push(text[begin:end])
        told, calls = told + shown, calls + found
    shown, found = reader.push("", last=True)
    assert reader.found == len(calls + found)
    return told + shown, [(one.name, json.loads(one.arguments_json)) for one in calls + found]


@given(st.lists(st.integers(0, 500), max_size=12))
def test_chunks_do_not_matter(cuts: list[int]) -> None:
    text = f"Let me see. {call('weather', city='Paris')} and <tool {call('clock')}."
    assert read(text, cuts) == ("Let me see.  and <tool .", [("weather", {"city": "Paris"}), ("clock", {})])


@given(
    st.sampled_from(
        [
            "<tool_call>nonsense</tool_call>",
            call("absent"),
            '<tool_call>{"name": 3}</tool_call>',
            "<tool_call>{",
            "<too",
        ]
    ),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_what_is_no_call_stays_text(wrong: str, cuts: list[int]) -> None:
    assert read(f"a {wrong}", cuts) == (f"a {wrong}", [])


def test_a_call_may_end_with_the_turn() -> None:
    text = call("weather", city="Paris").removesuffix("</tool_call>")
    assert read(text, [5]) == ("", [("weather", {"city": "Paris"})])


def test_the_reason_says_that_results_are_awaited() -> None:
    reader = ToolCallReader(TOKENIZER, TOOLS)
    chunk = engine_pb2.GenerateResponse(chunk=pb.Chunk(text=f"{call('clock')}<tool"))
    (made,) = with_calls(chunk, reader)
    assert made.chunk.text == "" and made.chunk.tool_calls[0].name == "clock"
    end = engine_pb2.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP))
    rest, ended = with_calls(end, reader)
    assert rest.chunk.text == "<tool" and ended.finished.reason == pb.FINISH_REASON_TOOL_CALLS
    cut = engine_pb2.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_LENGTH))
    assert [r.finished.reason for r in with_calls(cut, reader)] == [pb.FINISH_REASON_LENGTH]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"json_schema": "nope"}, "json_schema"),
        ({"json_schema": "[" * 60_000}, "json_schema"),
        ({"json_schema": "x" * 70_000}, "json_schema"),
        ({"tools": [pb.Tool(name="a b")]}, "tools[0].name"),
        ({"tools": [pb.Tool(name="a"), pb.Tool(name="a")]}, "tools[1].name"),
        ({"tools": [pb.Tool(name="a", parameters_json="[]")]}, "tools[0].parameters_json"),
        ({"tools": [pb.Tool(name=f"t{i}") for i in range(129)]}, "tools"),
        ({"tool_choice": pb.TOOL_CHOICE_REQUIRED}, "tool_choice"),
        ({"tool_name": "a"}, "tool_name"),
        ({"tools": [pb.Tool(name="a")], "tool_choice": pb.TOOL_CHOICE_REQUIRED, "tool_name": "b"}, "tool_name"),
        ({"tools": [pb.Tool(name="a")], "json_schema": "{}"}, "json_schema"),
        ({"tools": [pb.Tool(name="a")], "raw_text": "x"}, "tools"),
        (
            {"messages": pb.ChatMessages(messages=[pb.ChatMessage(role="user", tool_call_id="x")])},
            "messages.messages[0].tool_call_id",
        ),
        (
            {
                "messages": pb.ChatMessages(
                    messages=[pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall(name="a", arguments_json="1")])]
                )
            },
            "messages.messages[0].tool_calls[0].arguments_json",
        ),
    ],
)
def test_a_wrong_field_is_named(fields: dict, where: str) -> None:
    assert [field for field, _ in form_violations(pb.GenerateRequest(**fields))] == [where]
