"""The stream of requests and tokens: frames, errors, cancelled and lost requests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiq_daemon.engine_link import EngineLink
from optiq_daemon.engine_stream import StepWriter
from optiq_daemon.errors import InvalidRequestError, RefusedError, UnavailableError
from optiq_daemon.frames import FrameReader, frame
from optiq_protos.internal.v1 import engine_pb2 as pb
from optiq_protos.v1 import generation_pb2


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 90), min_size=1, max_size=20))
def test_frames_survive_any_cutting(messages: list[bytes], cuts: list[int]) -> None:
    stream, reader, read, at = b"".join(map(frame, messages)), FrameReader(), list[bytes](), 0
    while at < len(stream):
        size = cuts[at % len(cuts)]
        read += reader.push(stream[at : at + size])
        at += size
    assert read == messages


class Engine:
    """The other end: what the daemon asked for, and the writer that the engine uses."""

    def __init__(self, connected: socket.socket) -> None:
        self.writer = StepWriter(connected)
        self._socket, self._frames = connected, FrameReader()
        self._asked: list[bytes] = []

    async def asked(self) -> pb.StreamRequest:
        while not self._asked:
            data = await asyncio.wait_for(asyncio.to_thread(self._socket.recv, 65536), 10)
            self._asked += self._frames.push(data)
        return pb.StreamRequest.FromString(self._asked.pop(0))

    def tell(self, **texts: str) -> None:
        for request_id, text in texts.items():
            self.writer.add(
                request_id, pb.GenerateResponse(chunk=generation_pb2.Chunk(text=text, token_ids=[len(text)]))
            )
        self.writer.flush()

    def finish(self, request_id: str) -> None:
        self.writer.add(request_id, pb.GenerateResponse(finished=generation_pb2.Finished()))
        self.writer.flush()


Pair = tuple[EngineLink, Engine]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    ours, theirs = socket.socketpair()
    link = await EngineLink.open(ours)
    with theirs:
        yield link, Engine(theirs)
        link.close()


def ask(request_id: str) -> pb.GenerateRequest:
    return pb.GenerateRequest(request_id=request_id, raw_text="a")


async def test_every_row_gets_its_own_part_of_a_step(pair: Pair) -> None:
    link, engine = pair
    got: dict[str, str] = {"a": "", "b": ""}

    async def read(request_id: str) -> None:
        async for response in link.generate(ask(request_id)):
            got[request_id] += response.chunk.text

    readers = [asyncio.create_task(read(request_id)) for request_id in got]
    assert {(await engine.asked()).generate.request_id for _ in got} == {"a", "b"}
    engine.tell(a="1", b="x", gone="?")
    engine.tell(b="y")
    engine.finish("a")
    engine.finish("b")
    await asyncio.wait_for(asyncio.gather(*readers), 10)
    assert got == {"a": "1", "b": "xy"}


async def test_chunks_that_waited_come_as_one(pair: Pair) -> None:
    link, engine = pair
    async with aclosing(link.generate(ask("a"))) as responses:
        first = asyncio.ensure_future(anext(responses))
        await engine.asked()
        for text in ("one", "two", "three"):
            engine.tell(a=text)
        engine.finish("a")
        texts = [(await asyncio.wait_for(first, 10)).chunk]
        await asyncio.sleep(0.1)
        async for response in responses:
            if response.HasField("chunk"):
                texts.append(response.chunk)
    assert "".join(chunk.text for chunk in texts) == "onetwothree" and len(texts) < 3
    assert [token for chunk in texts for token in chunk.token_ids] == [3, 3, 5]


async def test_a_request_that_is_left_is_cancelled_and_a_finished_one_is_not(pair: Pair) -> None:
    link, engine = pair
    for request_id, is_left in (("done", False), ("left", True)):
        async with aclosing(link.generate(ask(request_id))) as responses:
            first = asyncio.ensure_future(anext(responses))
            assert (await engine.asked()).generate.request_id == request_id
            engine.tell(**{request_id: "x"})
            await asyncio.wait_for(first, 10)
            if not is_left:
                engine.finish(request_id)
                assert [response async for response in responses]
    assert (await engine.asked()).cancel == "left"


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError.of("messages", "the template refused them"),
        RefusedError("it is not loaded", reason="ADAPTER_NOT_LOADED"),
        UnavailableError("a step failed", reason="ENGINE_STEP_FAILED"),
    ],
)
async def test_an_error_ends_its_own_request_alone(pair: Pair, error: Exception) -> None:
    link, engine = pair
    async with aclosing(link.generate(ask("other"))) as other, aclosing(link.generate(ask("a"))) as failing:
        waiting = asyncio.ensure_future(anext(other))
        doomed = asyncio.ensure_future(anext(failing))
        await engine.asked()
        await engine.asked()
        engine.writer.fail("a", error)
        with pytest.raises(type(error)) as caught:
            await asyncio.wait_for(doomed, 10)
        assert str(caught.value) == str(error) and vars(caught.value) == vars(error)
        engine.tell(other="x")
        assert (await asyncio.wait_for(waiting, 10)).chunk.text == "x"
        engine.finish("other")
        assert [response async for response in other]


@pytest.mark.parametrize("ours", [True, False])
async def test_a_lost_connection_is_a_lost_engine(pair: Pair, ours: bool) -> None:
    link, engine = pair
    async with aclosing(link.generate(ask("a"))) as responses:
        waiting = asyncio.ensure_future(anext(responses))
        await engine.asked()
        if ours:
            link.close()
        else:
            engine._socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(UnavailableError) as caught:
            await asyncio.wait_for(waiting, 10)
    assert caught.value.reason == "ENGINE_LOST"
    with pytest.raises(UnavailableError):
        await anext(link.generate(ask("b")))


async def test_a_daemon_that_went_away_does_not_stop_the_engine(pair: Pair) -> None:
    link, engine = pair
    link.close()
    await asyncio.sleep(0)
    for _ in range(3):
        engine.tell(a="x")
