"""The HTTP gateway, called by OpenAI's and Anthropic's own clients."""

from __future__ import annotations

import asyncio

import anthropic
import httpx2 as httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from optiq_client import Client
from tests.integration.conftest import eventually
from tests.integration.gateway_parts import BASE, QUESTION, STORY, free


def test_models_are_the_base_and_the_adapters(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    assert [model.id for model in gpt.models.list()] == [BASE, "pirate"]
    assert gpt.models.retrieve("pirate").owned_by == "tenants/default"
    assert gpt.models.retrieve(BASE).id == BASE
    assert [model.id for model in claude.models.list()] == [BASE, "pirate"]
    with pytest.raises(openai.NotFoundError):
        gpt.models.retrieve("absent")


def test_chat_is_what_grpc_answers(gpt: openai.OpenAI, grpc_client: Client) -> None:
    for model, adapter in ((BASE, ""), ("pirate", "pirate")):
        expected = grpc_client.generate(QUESTION[0]["content"], adapter=adapter)
        expected.read()
        answer = gpt.chat.completions.create(model=model, messages=QUESTION)
        assert answer.choices[0].message.content == expected.text
        assert answer.choices[0].finish_reason == ("length" if expected.finished.reason == "LENGTH" else "stop")
        assert answer.usage.prompt_tokens == expected.finished.usage.prompt_tokens
        assert answer.usage.completion_tokens == expected.finished.usage.completion_tokens
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_what_the_whole_says(gpt: openai.OpenAI) -> None:
    whole = gpt.chat.completions.create(model="pirate", messages=QUESTION)
    options = {"include_usage": True}
    chunks = list(gpt.chat.completions.create(model="pirate", messages=QUESTION, stream=True, stream_options=options))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    plain = list(gpt.chat.completions.create(model="pirate", messages=QUESTION, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in plain)


def test_several_choices_draw_from_seeds_of_their_own(gpt: openai.OpenAI) -> None:
    def ask(stream: bool) -> list[str]:
        options = {"n": 2, "seed": 7, "temperature": 1.5, "extra_body": {"top_k": 100, "min_p": 0.001}}
        answer = gpt.chat.completions.create(model=BASE, messages=QUESTION, stream=stream, **options)
        if not stream:
            return [choice.message.content for choice in answer.choices]
        texts = ["", ""]
        for chunk in answer:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        return texts

    texts = ask(stream=False)
    assert texts[0] != texts[1]
    assert ask(stream=False) == texts == ask(stream=True)


def test_text_completions(gpt: openai.OpenAI) -> None:
    both = gpt.completions.create(model=BASE, prompt=["The capital of France is", "1, 2, 3,"], max_tokens=3)
    assert [choice.index for choice in both.choices] == [0, 1] and "Paris" in both.choices[0].text
    one = gpt.completions.create(model=BASE, prompt="1, 2, 3,", max_tokens=3, stream=True)
    assert "".join(chunk.choices[0].text for chunk in one) == both.choices[1].text
    tokens = gpt.completions.create(model=BASE, prompt=[33, 28, 216], max_tokens=2)
    assert tokens.usage.prompt_tokens == 3 and tokens.usage.completion_tokens == 2


def test_logprobs(gpt: openai.OpenAI) -> None:
    asked = {"model": "pirate", "messages": QUESTION, "logprobs": True, "top_logprobs": 2}
    whole = gpt.chat.completions.create(**asked).choices[0]
    told = whole.logprobs.content
    assert len(told) == 6 and "".join(one.token for one in told).startswith(whole.message.content)
    for one in told:
        # Greedy: what was drawn is the most likely.
        assert len(one.top_logprobs) == 2 and one.top_logprobs[0].token == one.token
        assert 0 >= one.logprob == one.top_logprobs[0].logprob >= one.top_logprobs[1].logprob
    streamed = [
        one
        for chunk in gpt.chat.completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content
    ]
    assert [one.token for one in streamed] == [one.token for one in told]
    assert [one.logprob for one in streamed] == pytest.approx([one.logprob for one in told], abs=1e-3)
    text = gpt.completions.create(model=BASE, prompt="1, 2, 3,", max_tokens=3, logprobs=1).choices[0].logprobs
    assert len(text.tokens) == len(text.token_logprobs) == len(text.top_logprobs) == 3
    assert text.text_offset == [0, len(text.tokens[0]), len(text.tokens[0] + text.tokens[1])]


def test_a_blend_is_what_grpc_answers(gpt: openai.OpenAI, grpc_client: Client) -> None:
    weights = {"pirate": 0.5}
    expected = grpc_client.generate(QUESTION[0]["content"], adapters=weights).read()
    answer = gpt.chat.completions.create(model=BASE, messages=QUESTION, extra_body={"adapters": weights})
    assert answer.choices[0].message.content == expected
    with pytest.raises(openai.BadRequestError, match="blend"):
        gpt.chat.completions.create(model="pirate", messages=QUESTION, extra_body={"adapters": weights})


def test_routes_are_models(gpt: openai.OpenAI, claude: anthropic.Anthropic, grpc_client: Client) -> None:
    grpc_client.routes.set("canary", {"base": 1, "pirate": 1}, sticky=True)
    try:
        assert [model.id for model in gpt.models.list()] == [BASE, "pirate", "canary"]
        texts = set()
        for user in range(6):
            asked = {"model": "canary", "messages": QUESTION, "max_tokens": 2}
            answer = gpt.chat.completions.create(**asked, user=f"user-{user}")
            same = claude.messages.create(**asked, metadata={"user_id": f"user-{user}"})
            assert same.content[0].text == answer.choices[0].message.content
            texts.add(same.content[0].text)
        assert len(texts) == 2
    finally:
        grpc_client.routes.delete("canary")


def test_stop_strings_and_limits(gpt: openai.OpenAI) -> None:
    free = gpt.completions.create(model=BASE, prompt="1, 2, 3,", max_tokens=8).choices[0]
    stop = free.text[4:6]
    held = gpt.completions.create(model=BASE, prompt="1, 2, 3,", max_tokens=8, stop=[stop, "never"]).choices[0]
    assert held.text == free.text[: free.text.index(stop)] and held.finish_reason == "stop"
    short = gpt.chat.completions.create(model=BASE, messages=QUESTION, max_completion_tokens=1)
    assert short.usage.completion_tokens == 1 and short.choices[0].finish_reason == "length"


def test_messages(claude: anthropic.Anthropic, gpt: openai.OpenAI) -> None:
    system = "You answer in one word."
    expected = gpt.chat.completions.create(
        model="pirate", messages=[{"role": "system", "content": system}, *QUESTION], max_tokens=6
    )
    answer = claude.messages.create(model="pirate", max_tokens=6, system=system, messages=QUESTION)
    assert answer.content[0].text == expected.choices[0].message.content
    assert answer.stop_reason == "max_tokens" and answer.role == "assistant"
    usage = answer.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == expected.usage.prompt_tokens
    assert usage.output_tokens == 6
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    with claude.messages.stream(model="pirate", max_tokens=6, system=system, messages=parts) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == answer.content[0].text == final.content[0].text
    assert final.stop_reason == "max_tokens" and final.usage.output_tokens == 6
    first = text[:2]
    stopped = claude.messages.create(
        model="pirate", max_tokens=6, system=system, messages=QUESTION, stop_sequences=[first]
    )
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == first


def test_leaving_frees_the_row(gpt: openai.OpenAI, url: str, grpc_client: Client) -> None:
    """Closing a stream, and closing a connection that waits for a whole answer."""
    stream = gpt.chat.completions.create(model=BASE, messages=STORY, max_tokens=4000, stream=True)
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    assert len(grpc_client.runtime.status().requests) == 1
    stream.close()
    assert eventually(lambda: free(grpc_client), 10)
    body = {"model": BASE, "messages": STORY, "max_tokens": 4000}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/chat/completions", json=body, timeout=1)
    assert eventually(lambda: free(grpc_client), 10)


def test_many_streams_at_once_keep_to_their_adapters(url: str, gpt: openai.OpenAI) -> None:
    models = [BASE, "pirate"] * 2
    alone = {m: gpt.chat.completions.create(model=m, messages=QUESTION).choices[0].message.content for m in models}
    assert alone[BASE] != alone["pirate"]

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

            async def one(model: str) -> str:
                stream = await client.chat.completions.create(model=model, messages=QUESTION, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(model) for model in models))

    assert asyncio.run(ask()) == [alone[model] for model in models]


def test_health_and_metrics(url: str, gpt: openai.OpenAI) -> None:
    def read() -> dict[tuple[str, str], float]:
        page = httpx.get(f"{url}/metrics").text
        return {
            (sample.name, sample.labels.get("adapter", "") + sample.labels.get("code", "")): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }

    assert httpx.get(f"{url}/healthz").json() == {"status": "ok", "engine": "serving"}
    gpt.chat.completions.create(model="pirate", messages=QUESTION)
    before = read()
    gpt.chat.completions.create(model="pirate", messages=QUESTION)
    with pytest.raises(openai.NotFoundError):
        gpt.chat.completions.create(model="made-up-name", messages=QUESTION)
    after = read()
    assert after["optiq_requests_total", "pirateOK"] == before["optiq_requests_total", "pirateOK"] + 1
    assert after["optiq_completion_tokens_total", "pirate"] == before["optiq_completion_tokens_total", "pirate"] + 6
    assert after["optiq_time_to_first_token_seconds_count", "pirate"] >= 2
    assert after["optiq_engine_up", ""] == 1 and after["optiq_resident_adapters", ""] == 1
    assert not any("made-up-name" in label for _, label in after)
