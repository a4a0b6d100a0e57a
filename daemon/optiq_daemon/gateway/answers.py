"""ASGI responses that end their generations as soon as the caller is gone, streamed or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from optiq_daemon.gateway.choices import Choice, Update, once_started
from optiq_daemon.gateway.problems import Problem, problem_of

encode = msgspec.json.encode


class Format(Protocol):
    """The shape of one API's answers."""

    def problem(self, problem: Problem) -> dict[str, Any]:
        """An error's body."""

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""

    def begin(self) -> bytes:
        """What a stream begins with."""

    def take(self, update: Update) -> bytes:
        """What one response of a generation adds to the stream; may be nothing."""

    def end(self) -> bytes:
        """What a stream ends with after the last response."""

    def broken(self, problem: Problem) -> bytes:
        """What a stream ends with when its generation failed."""


class Json(Response):
    """A JSON body, made by msgspec."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body's bytes."""
        return encode(content)


def refusal(problem: Problem, body: dict[str, Any]) -> Json:
    """An error's response."""
    return Json(body, problem.status, headers=problem.headers)


class Answer:
    """The ASGI response of a generation.

    Args:
        updates: runs the generations; closed when the caller is gone.
        count: how many choices there are.
        headers: further headers of the response.
    """

    def __init__(
        self,
        updates: AsyncGenerator[Update, None],
        shape: Format,
        *,
        count: int = 1,
        stream: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._updates = updates
        self._shape = shape
        self._count = count
        self._stream = stream
        self._headers = headers or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the caller goes away first."""
        work = self._streamed if self._stream else self._whole
        answering = asyncio.create_task(self._closing(work(scope, receive, send)), name="http answer")
        leaving = asyncio.create_task(_left(receive), name="http caller")
        try:
            await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            answering.cancel()
            await asyncio.wait([answering, leaving])
        if not answering.cancelled() and (error := answering.exception()) is not None:
            raise error

    async def _closing(self, work: Any) -> None:
        async with aclosing(self._updates):
            await work

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        choices = [Choice() for _ in range(self._count)]
        try:
            async for index, response in self._updates:
                choices[index].take(response)
            reply = Json(self._shape.whole(choices), headers=self._headers)
        except Exception as error:
            reply = self._refused(error, scope)
        await reply(scope, receive, send)

    async def _streamed(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            first = await once_started(self._updates)
        except Exception as error:
            await self._refused(error, scope)(scope, receive, send)
            return
        head = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", **self._headers}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        await _body(send, self._shape.begin() + b"".join(map(self._shape.take, first)))
        try:
            async for update in self._updates:
                if piece := self._shape.take(update):
                    await _body(send, piece)
            last = self._shape.end()
        except Exception as error:
            last = self._shape.broken(problem_of(error, scope["path"]))
        await send({"type": "http.response.body", "body": last, "more_body": False})

    def _refused(self, error: Exception, scope: Scope) -> Json:
        problem = problem_of(error, scope["path"])
        reply = refusal(problem, self._shape.problem(problem))
        reply.headers.update(self._headers)
        return reply


async def _body(send: Send, content: bytes) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": True})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def data(body: Any, event: str = "") -> bytes:
    """One server-sent event."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + encode(body) + b"\n\n"
