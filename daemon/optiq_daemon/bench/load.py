"""The same load over three ways: the engine alone, gRPC, and HTTP. All count tokens and first-token times alike."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from optiq_protos.v1 import generation_pb2 as pb

_METHOD = "/optiq.v1.GenerationService/Generate"


@dataclass
class Lane:
    """One stream of a run: when each of its texts came, and how many tokens it had."""

    texts: list[float] = field(default_factory=list)
    tokens: int = 0


class Run:
    """What one load measured; times in seconds of one clock.

    Text is what is timed, on every way: a token whose text waits for the next one is not seen by a reader.

    Args:
        streams: how many run at once.
    """

    def __init__(self, streams: int) -> None:
        self.lanes = [Lane() for _ in range(streams)]
        self.began = 0.0

    def figures(self) -> dict[str, float]:
        """Texts a second while every stream runs, tokens a second of the whole run, milliseconds to the first text.

        The first is from the last stream's first text to the first stream's last: without prompts, whose processing
        depends on how they arrive, and without the end, when there are fewer rows. The second is from the first request
        to the last text.
        """
        lanes = [lane.texts for lane in self.lanes if lane.texts]
        since, until = max(texts[0] for texts in lanes), min(texts[-1] for texts in lanes)
        seen = sum(since < at <= until for texts in lanes for at in texts)
        tokens = sum(lane.tokens for lane in self.lanes)
        return {
            "tokens_per_second": seen / (until - since) if until > since else 0.0,
            "whole_tokens_per_second": tokens / (max(texts[-1] for texts in lanes) - self.began),
            "first_text_ms": (min(texts[0] for texts in lanes) - self.began) * 1000,
            "tokens": float(tokens),
        }


class EngineAlone:
    """A process with the engine and nothing else."""

    def __init__(self, model: str, max_batch: int) -> None:
        command = [sys.executable, "-m", "optiq_daemon.bench.engine_alone", "--model", model]
        self._process = subprocess.Popen(
            [*command, "--max-batch", str(max_batch)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self.described: dict[str, Any] = self._read()

    def run(self, prompts: list[str], tokens: int) -> dict[str, float]:
        """Run the prompts at once."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine's process ended with {self._process.wait()}")
        return json.loads(line)


async def over_grpc(socket: Path, prompts: list[str], tokens: int) -> dict[str, float]:
    """Run the prompts at once over the daemon's socket."""
    run = Run(len(prompts))
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        await channel.channel_ready()
        call = channel.unary_stream(
            _METHOD,
            request_serializer=pb.GenerateRequest.SerializeToString,
            response_deserializer=pb.GenerateResponse.FromString,
        )

        async def one(prompt: str, lane: Lane) -> None:
            async for response in call(pb.GenerateRequest(raw_text=prompt, max_tokens=tokens)):
                if response.chunk.text:
                    lane.texts.append(time.perf_counter())
                lane.tokens += response.finished.usage.completion_tokens

        run.began = time.perf_counter()
        await asyncio.gather(*map(one, prompts, run.lanes))
    return run.figures()


async def over_http(port: int, model: str, prompts: list[str], tokens: int) -> dict[str, float]:
    """Run the prompts at once over the gateway, each on a connection of its own that is open already."""
    run = Run(len(prompts))
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in prompts]

    async def one(prompt: str, lane: Lane, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        options = {"max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
        body = json.dumps({"model": model, "prompt": prompt, **options}).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        async for line in reader:
            if b'"text":"' in line and b'"text":""' not in line:
                lane.texts.append(time.perf_counter())
            elif b'"completion_tokens":' in line:
                lane.tokens += json.loads(line.removeprefix(b"data: "))["usage"]["completion_tokens"]
            elif b"[DONE]" in line:
                break
        writer.close()

    run.began = time.perf_counter()
    lanes = zip(prompts, run.lanes, connections, strict=True)
    await asyncio.gather(*(one(prompt, lane, *connection) for prompt, lane, connection in lanes))
    return run.figures()
