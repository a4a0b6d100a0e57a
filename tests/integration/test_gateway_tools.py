"""Tools and JSON schemas through OpenAI's and Anthropic's own clients, on a base whose template knows tools."""

from __future__ import annotations

import json
from collections.abc import Iterator

import anthropic
import openai
import pytest

from optiq_client import Client, Message, Tool
from optiq_core.base import resolve_base
from tests.integration.conftest import Daemon, free_port

# Qwen's form, in short: what the tokenizer's `json_tools` parser is chosen by.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools:{% for tool in tools %} {{ tool.function | tojson }}{% endfor %}\n"
    'Call one as <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>.<|im_end|>\n{% endif %}'
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for tool_call in message.tool_calls or [] %}{% if tool_call.function %}"
    "{% set tool_call = tool_call.function %}{% endif %}<tool_call>\n"
    '{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
ASKED = [{"role": "user", "content": "How will the weather be in Paris?"}]
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Forecast.", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    base = tmp_path_factory.mktemp("base") / "with-tools"
    base.mkdir()
    for file in resolve_base("embedded").iterdir():
        if file.is_file() and file.name != "chat_template.jinja":
            (base / file.name).symlink_to(file)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").unlink()
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    daemon = Daemon("--model", str(base), "--max-tokens", "60", "--port", str(free_port()))
    try:
        with daemon.start():
            pass
        yield daemon
        assert daemon.stop() == 0, daemon.output()
    finally:
        daemon.remove()


@pytest.fixture
def url(daemon: Daemon) -> str:
    return daemon.url


@pytest.fixture
def model(gpt: openai.OpenAI) -> str:
    return next(iter(gpt.models.list())).id


def check_city(arguments: dict) -> None:
    assert set(arguments) == {"city", "days"} and arguments["city"] in ("Paris", "Rome") and 1 <= arguments["days"] <= 9


def test_a_schema_is_kept_to(gpt: openai.OpenAI, claude: anthropic.Anthropic, daemon: Daemon, model: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "trip", "schema": CITY}}
    told = gpt.chat.completions.create(model=model, messages=ASKED, response_format=wanted).choices[0]
    check_city(json.loads(told.message.content))
    assert told.finish_reason == "stop"
    streamed = gpt.chat.completions.create(model=model, messages=ASKED, response_format=wanted, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == told.message.content
    config = {"format": {"type": "json_schema", "schema": CITY}}
    said = claude.messages.create(model=model, max_tokens=60, messages=ASKED, output_config=config)
    assert said.content[0].text == told.message.content
    with Client(home=daemon.home) as client:
        assert client.generate(ASKED, json_schema=CITY).read() == told.message.content


def test_any_object(gpt: openai.OpenAI, model: str) -> None:
    asked = {"model": model, "messages": ASKED, "response_format": {"type": "json_object"}, "max_tokens": 400}
    told = gpt.chat.completions.create(**asked).choices[0]
    if told.finish_reason == "stop":
        assert isinstance(json.loads(told.message.content), dict)
    assert told.message.content.startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_openai_calls(gpt: openai.OpenAI, model: str, choice: object) -> None:
    asked = {"model": model, "messages": ASKED, "tools": [WEATHER], "tool_choice": choice}
    told = gpt.chat.completions.create(**asked).choices[0]
    assert told.finish_reason == "tool_calls" and not told.message.content
    (call,) = told.message.tool_calls
    assert call.function.name == "weather"
    check_city(json.loads(call.function.arguments))
    chunks = [chunk.choices[0] for chunk in gpt.chat.completions.create(**asked, stream=True)]
    (streamed,) = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert (streamed.index, streamed.function) == (0, streamed.function.model_copy(update=call.function.model_dump()))
    assert chunks[-1].finish_reason == "tool_calls"
    history = [*ASKED, told.message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}]
    after = gpt.chat.completions.create(model=model, messages=history, tools=[WEATHER, CLOCK], max_tokens=5)
    assert after.choices[0].finish_reason == "length" and after.usage.prompt_tokens > 60


def test_anthropic_calls(claude: anthropic.Anthropic, model: str) -> None:
    tools = [{"name": "weather", "description": "Forecast.", "input_schema": CITY}]
    asked = {"model": model, "max_tokens": 60, "messages": ASKED, "tools": tools, "tool_choice": {"type": "any"}}
    told = claude.messages.create(**asked)
    (block,) = told.content
    assert told.stop_reason == "tool_use" and (block.type, block.name) == ("tool_use", "weather")
    check_city(block.input)
    with claude.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert final.content[0].input == block.input and final.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "Sunny."}
    history = [*ASKED, {"role": "assistant", "content": told.content}, {"role": "user", "content": [result]}]
    after = claude.messages.create(model=model, max_tokens=5, messages=history, tools=tools)
    assert after.content[0].type == "text" and after.stop_reason == "max_tokens"


def test_grpc_calls(daemon: Daemon) -> None:
    tool = Tool("weather", "Forecast.", CITY)
    with Client(home=daemon.home) as client:
        asked = client.generate(ASKED, tools=[tool], tool_choice="weather")
        assert asked.read() == "" and asked.finished.reason == "TOOL_CALLS"
        (call,) = asked.tool_calls
        check_city(dict(call.arguments))
        turns = [Message("assistant", "", (call,)), Message("tool", "Sunny.", tool_call_id=call.id)]
        after = client.generate([Message("user", "Weather?"), *turns], tools=[tool], max_tokens=4)
        after.read()
        assert after.finished.usage.completion_tokens == 4


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "absent"}}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{**WEATHER, "function": {"name": "a b"}}]}, "tools[0].name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "frob"}}}},
            "response_format",
        ),
    ],
)
def test_a_wrong_field_is_named(gpt: openai.OpenAI, model: str, fields: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        gpt.chat.completions.create(model=model, messages=ASKED, **fields)
    assert caught.value.param == param
