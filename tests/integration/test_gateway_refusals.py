"""What the HTTP gateway refuses, and how it says so; the last two tests ask for keys, then for TLS."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable

import anthropic
import httpx2 as httpx
import openai
import pytest

from optiq_client import Client
from tests.integration.conftest import Daemon, eventually, free_port
from tests.integration.gateway_parts import BASE, QUESTION, STORY, free


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"n": 1000}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "word " * 20_000}]}, "messages"),
        ({"stop": [""]}, "stop[0]"),
        ({"model": "../escape"}, "model"),
        ({"model": ""}, "model"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"extra_body": {"adapters": {"pirate": "much"}}}, "adapters[...]"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
        ({"extra_body": {"adapter_scale": 1e9}}, "adapter_scale"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_field_is_named(gpt: openai.OpenAI, fields: dict, param: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        gpt.chat.completions.create(**{"model": BASE, "messages": QUESTION, "stream": stream, **fields})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error" and param in caught.value.message


def test_an_unknown_model_is_not_the_base(gpt: openai.OpenAI) -> None:
    for name in ("absent", "embedded", "gpt-4"):
        with pytest.raises(openai.NotFoundError) as caught:
            gpt.chat.completions.create(model=name, messages=QUESTION)
        assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_errors_of_messages(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as absent:
        claude.messages.create(model="absent", max_tokens=6, messages=QUESTION)
    assert absent.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="tools"):
        tools = [{"name": "f", "input_schema": {"type": "object"}}]
        claude.messages.create(model=BASE, max_tokens=6, messages=QUESTION, tools=tools)
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\].role"):
        claude.messages.create(model=BASE, max_tokens=6, messages=[{"role": "boss", "content": "x"}])


async def test_a_full_queue_says_when_to_come_back(url: str, grpc_client: Client) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def ask() -> None:
            await client.chat.completions.create(model=BASE, messages=STORY, max_tokens=4000)

        asked = [asyncio.create_task(ask()) for _ in range(4)]
        everyone = lambda: len(grpc_client.runtime.status().requests) == 4  # noqa: E731
        assert await asyncio.to_thread(eventually, everyone)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model=BASE, messages=QUESTION)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    assert await asyncio.to_thread(eventually, lambda: free(grpc_client), 10)


def test_what_no_client_sends(url: str) -> None:
    chat = f"{url}/v1/chat/completions"
    body = {"model": BASE, "messages": QUESTION}
    assert httpx.post(chat, content=b"{").status_code == 400
    assert httpx.post(chat, content=json.dumps(body), headers={"content-type": "text/plain"}).status_code == 400
    assert httpx.post(chat, json=[]).json()["error"]["param"] == "body"
    assert httpx.post(chat, json={**body, "x": "y" * 9_000_000}).status_code == 413
    assert httpx.get(chat).status_code == 405
    assert httpx.get(f"{url}/v2").json()["error"]["code"] == "not_served"
    rebound = httpx.get(f"{url}/v1/models", headers={"host": "evil.example:80"})
    assert rebound.status_code == 403 and rebound.json()["error"]["code"] == "host_not_allowed"


def test_a_port_in_use_is_named(gateway: Daemon, url: str, another_daemon: Callable[..., Daemon]) -> None:
    second = another_daemon("--port", url.rpartition(":")[2])
    second.start(wait=False).close()
    assert second.process is not None and second.process.wait(60) == 1
    assert "cannot listen on http://127.0.0.1:" in second.output()


def test_without_a_token_other_machines_are_refused(another_daemon: Callable[..., Daemon]) -> None:
    for options, words in (((), "needs TLS and tokens"), (("--tls", "generate"), "there is no token yet")):
        refused = another_daemon("--host", "0.0.0.0", "--port", str(free_port()), *options)
        refused.start(wait=False).close()
        assert refused.process is not None and refused.process.wait(60) == 1
        assert words in refused.output()


def test_keys_are_tenants_tokens(gateway: Daemon, url: str, grpc_client: Client) -> None:
    """From here on the daemon asks for keys."""
    grpc_client.tenants.create("acme")
    _, token = grpc_client.tenants.create_token("acme")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model=BASE, messages=QUESTION)
    with openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as acme:
        assert [model.id for model in acme.models.list()] == [BASE]
        for name in ("pirate", "tenants/default/adapters/pirate"):
            with pytest.raises(openai.NotFoundError):
                acme.chat.completions.create(model=name, messages=QUESTION)
        assert acme.chat.completions.create(model=BASE, messages=QUESTION).usage.completion_tokens == 6
    with anthropic.Anthropic(base_url=url, api_key=token, max_retries=0) as acme_too:
        assert acme_too.messages.create(model=BASE, max_tokens=2, messages=QUESTION).usage.output_tokens == 2
    assert httpx.get(f"{url}/metrics").status_code == 401
    assert httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {token}"}).status_code == 403
    assert httpx.get(f"{url}/healthz").status_code == 200
    (gateway.home / "token").write_text(token)


def test_other_machines_need_tls_and_a_token(gateway: Daemon, url: str) -> None:
    assert gateway.stop() == 0
    gateway.options = (*gateway.options, "--host", "0.0.0.0", "--tls", "generate")
    gateway.start().close()
    trusted = ssl.create_default_context(cafile=str(gateway.home / "tls" / "certificate.pem"))
    secure = url.replace("http:", "https:")
    with httpx.Client(verify=trusted) as client:
        assert client.get(f"{secure}/healthz").json()["status"] == "ok"
        assert client.get(f"{secure}/v1/models").status_code == 401
        token = (gateway.home / "token").read_text()
        models = client.get(f"{secure}/v1/models", headers={"authorization": f"Bearer {token}"})
        assert [model["id"] for model in models.json()["data"]] == [BASE]
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{url}/healthz")
