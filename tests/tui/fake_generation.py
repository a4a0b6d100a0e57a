"""Answers of the fake daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.rpc import code_pb2

from optiq_protos.v1 import generation_pb2, generation_pb2_grpc
from tests.tui.fake_adapters import FakeAdapters
from tests.tui.fake_parts import fail


class FakeGeneration(FakeAdapters, generation_pb2_grpc.GenerationServiceServicer):
    """The replies that a test sets, in pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.reply = ["X", "I", "I"]
        self.replies: dict[str, list[str]] = {}
        self.piece_delay = 0.0
        self.cancelled_generations = 0

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.calls.append(request)
        asked = request.adapter or "+".join(part.name for part in request.adapters) or "base"
        reply = self.replies.get(asked, self.reply)
        name = f"{request.parent}/adapters/{request.adapter}" if request.adapter else ""
        if name and name not in self.adapters:
            await fail(context, code_pb2.NOT_FOUND, f"no adapter {name}", "ADAPTER_NOT_FOUND")
        event = generation_pb2.GenerateResponse
        yield event(queued=generation_pb2.Queued(position=1))
        digest = self.adapters[name].digest if name else ""
        yield event(
            started=generation_pb2.Started(
                request_id=request.request_id or "generated-id",
                adapter=name,
                adapter_digest=digest,
                prompt_tokens=12,
                cached_tokens=4,
                adapters=[generation_pb2.ServedAdapter(name=name, digest=digest, weight=1)] if name else [],
            )
        )
        left = True
        try:
            for index, piece in enumerate(reply):
                yield event(chunk=generation_pb2.Chunk(text=piece, token_ids=[index]))
                await asyncio.sleep(self.piece_delay)
            left = False
        finally:
            # In the sleep it is cancelled; while a piece is written it is closed.
            self.cancelled_generations += left
        yield event(
            finished=generation_pb2.Finished(
                reason=generation_pb2.FINISH_REASON_STOP,
                usage=generation_pb2.Usage(prompt_tokens=12, completion_tokens=len(reply), cached_tokens=4),
                timings=generation_pb2.Timings(time_to_first_token_ms=41.5, tokens_per_second=33.25),
                batch=generation_pb2.BatchStats(max_rows=4, max_adapters=3, steps=3),
            )
        )
