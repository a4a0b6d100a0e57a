"""The engine process: one base, its adapters and its batches, behind a private Unix socket.

``python -m optiq_daemon.engine_process --model M --socket PATH``

Serves ``optiq.internal.v1.EngineService``. The base is found and loaded after the socket is up: ``GetBase`` answers
once it is there, or with FAILED_PRECONDITION and the reason, and the process ends with 1. The process ends when its
stdin does, which is when the daemon has died. Its log goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from optiq_core.base.load_in import LOAD_IN
from optiq_core.errors import OptiqError
from optiq_daemon import errors
from optiq_daemon.interceptor import MAX_REQUEST_BYTES, ErrorInterceptor
from optiq_daemon.tool_calls import (
    ToolCallReader,
    check_template,
    constraint_of,
    extra_stops,
    template_message,
    template_tools,
    with_calls,
)
from optiq_protos.internal.v1 import engine_pb2 as pb
from optiq_protos.internal.v1 import engine_pb2_grpc
from optiq_protos.v1 import generation_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from optiq_core.base import LoadedBase
    from optiq_core.engine.constraint import ConstraintCompiler
    from optiq_core.engine.engine import Engine
    from optiq_core.engine.types import Event, Finished, TokenLogprob
    from optiq_core.kv.factory import CachePlan

log = logging.getLogger("optiq.engine")

MB = 1_000_000
# A probe is a step that running streams would have to wait for.
PROBE_LOOKS = 100
PROBE_LOOK_S = 0.05
PROBE_PAUSE_S = 0.2

_REASONS = {
    "stop": generation_pb2.FINISH_REASON_STOP,
    "stop_string": generation_pb2.FINISH_REASON_STOP_STRING,
    "length": generation_pb2.FINISH_REASON_LENGTH,
}


class EngineServicer(engine_pb2_grpc.EngineServiceServicer):
    """Translates between the wire and the engine.

    Args:
        settings: the process's flags.
    """

    def __init__(self, settings: argparse.Namespace) -> None:
        self._settings = settings
        self._caches: CachePlan
        self._constraints: ConstraintCompiler | None = None
        self._loaded: asyncio.Future[tuple[LoadedBase, Engine]] = asyncio.get_running_loop().create_future()
        # One thread reads adapters: MLX streams belong to threads, and reading in turn keeps decoding undisturbed.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")

    async def load_base(self) -> None:
        """Find and load the base, then start the engine.

        Raises:
            OptiqError: it cannot be loaded; callers of ``GetBase`` were told.
        """
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(self._loader, self._load)
        except Exception as error:
            self._loaded.set_exception(errors.RefusedError(str(error), reason="BASE_NOT_LOADABLE"))
            raise
        self._loaded.set_result(loaded)

    def _compiler(self, base: LoadedBase) -> ConstraintCompiler:
        if self._constraints is None:
            from optiq_core.engine.constraint import ConstraintCompiler

            self._constraints = ConstraintCompiler(base.tokenizer)
        return self._constraints

    def _load(self) -> tuple[LoadedBase, Engine]:
        from optiq_core.base import load_base, resolve_base, setup_device

        profile = setup_device()
        log.info("device %s (%s), compute %s", profile.kind, profile.name, profile.compute)
        for note in profile.notes:
            log.info("%s", note)
        from optiq_core.engine.engine import Engine

        folder = resolve_base(self._settings.model, progress=lambda text: log.info("%s", text))
        base = load_base(folder, profile=profile, load_in=self._settings.load_in)
        for note in base.profile.notes[len(profile.notes) :]:
            log.warning("%s", note)
        log.info("base %s: %.0f MB, %.2f bits per weight", base.path, base.memory_bytes / 1e6, base.bits_per_weight)
        plan = self._plan_caches(base)
        engine = Engine(
            base,
            max_batch=self._settings.max_batch,
            max_queue=self._settings.max_queue,
            prefill_chunk=self._settings.prefill_chunk,
            new_cache=plan,
            kv_cache_bytes=self._settings.kv_cache_mb * MB or None,
            prefix_cache_bytes=self._settings.prefix_cache_mb * MB,
        )
        engine.start()
        return base, engine

    def _plan_caches(self, base: LoadedBase) -> CachePlan:
        from optiq_core.kv.centers import centers_for
        from optiq_core.kv.config import parse_uniform, read_kv_config
        from optiq_core.kv.factory import plan_caches

        file = self._settings.kv_config
        wanted = read_kv_config(file) if file else parse_uniform(self._settings.kv)
        self._caches = plan_caches(base.model, wanted, centers_for(wanted, base.model, base.tokenizer))
        for note in self._caches.notes:
            log.warning("KV cache: %s", note)
        log.info(
            "KV cache %s: %.0f bytes per token and %.0f per row, float %.0f per token",
            self._caches.name,
            self._caches.bytes_per_token,
            self._caches.window_bytes,
            self._caches.float_bytes_per_token,
        )
        return self._caches

    async def close(self) -> None:
        """End the engine; running requests fail."""
        if self._loaded.done() and not self._loaded.exception():
            _, engine = self._loaded.result()
            await asyncio.to_thread(engine.close)
        await asyncio.get_running_loop().run_in_executor(self._loader, _end_streams)
        self._loader.shutdown()

    async def _ready(self) -> tuple[LoadedBase, Engine]:
        return await asyncio.shield(self._loaded)

    async def GetBase(self, request: pb.GetBaseRequest, context: Any) -> pb.GetBaseResponse:  # noqa: N802
        base, engine = await self._ready()
        return pb.GetBaseResponse(
            path=str(base.path),
            digest=base.digest,
            memory_bytes=base.memory_bytes,
            bits_per_weight=base.bits_per_weight,
            layer_count=len(base.model.layers),
            max_context=base.max_context,
            modules=[
                pb.TargetModule(
                    path=path,
                    input_dims=shape.input_dims,
                    output_dims=shape.output_dims,
                    kind=shape.kind,
                    experts=shape.experts,
                )
                for path, shape in engine.modules.items()
            ],
            device_kind=base.profile.kind,
            device_name=base.profile.name,
            compute=base.profile.compute,
            notes=base.profile.notes,
        )

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Any) -> pb.LoadAdapterResponse:  # noqa: N802
        _, engine = await self._ready()
        nbytes = await asyncio.get_running_loop().run_in_executor(
            self._loader, engine.load_adapter, request.digest, Path(request.path)
        )
        log.info("adapter %s loaded, %.2f MB", request.digest[:12], nbytes / 1e6)
        return pb.LoadAdapterResponse(resident_bytes=nbytes)

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: Any) -> pb.UnloadAdapterResponse:  # noqa: N802
        from optiq_core.engine.types import InUseError

        _, engine = await self._ready()
        try:
            await asyncio.to_thread(engine.unload_adapter, request.digest)
        except InUseError as error:
            raise errors.RefusedError(str(error), reason="ADAPTER_IN_USE") from None
        return pb.UnloadAdapterResponse()

    async def MergeAdapters(  # noqa: N802
        self, request: pb.MergeAdaptersRequest, context: Any
    ) -> pb.MergeAdaptersResponse:
        _, engine = await self._ready()
        parts = [(Path(part.path), part.weight) for part in request.parts]
        await asyncio.get_running_loop().run_in_executor(
            self._loader, engine.merge_dora, parts, Path(request.target_path)
        )
        return pb.MergeAdaptersResponse()

    async def ProbeAdapters(  # noqa: N802
        self, request: pb.ProbeAdaptersRequest, context: Any
    ) -> pb.ProbeAdaptersResponse:
        _, engine = await self._ready()
        for _ in range(PROBE_LOOKS):
            if not engine.status().active_rows:
                break
            await asyncio.sleep(PROBE_LOOK_S)
        digests, differences = list(request.digests), dict[str, float]()
        while digests:
            # Streams that run get a step between two small probes; nobody is held up by a large one.
            several = 1 if engine.status().active_rows else len(digests)
            differences |= await asyncio.to_thread(engine.probe_adapters, digests[:several])
            digests = digests[several:]
            if digests:
                await asyncio.sleep(PROBE_PAUSE_S)
        return pb.ProbeAdaptersResponse(differences=differences)

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:  # noqa: N802
        from optiq_core.engine.types import Failed, Finished, NotLoadedError, QueueFullError, TooLargeError

        base, engine = await self._ready()
        wanted = _engine_request(request, base)
        if request.json_schema or request.tool_choice == generation_pb2.TOOL_CHOICE_REQUIRED:
            # Schemas take milliseconds, but the first one of a base takes a second.
            constraint = await asyncio.to_thread(constraint_of, request, base.tokenizer, self._compiler(base))
            wanted = dataclasses.replace(wanted, constraint=constraint)
        calls = request.tools and request.tool_choice != generation_pb2.TOOL_CHOICE_NONE
        reader = ToolCallReader(base.tokenizer, request.tools) if calls else None
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def sink(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        try:
            await asyncio.wrap_future(engine.submit(wanted, sink))
            while True:
                event = await events.get()
                if isinstance(event, Failed):
                    raise errors.UnavailableError(event.message, reason="ENGINE_STEP_FAILED")
                response = _response(event, base)
                for made in with_calls(response, reader) if reader is not None else [response]:
                    yield made
                if isinstance(event, Finished):
                    return
        except NotLoadedError as error:
            raise errors.RefusedError(str(error), reason="ADAPTER_NOT_LOADED") from None
        except TooLargeError as error:
            raise errors.RefusedError(str(error), reason="KV_CACHE_TOO_SMALL") from None
        except QueueFullError as error:
            raise errors.QueueFullError("engine", str(error)) from None
        finally:
            # Also when the caller went away before the request was in the queue.
            engine.cancel(wanted.request_id)

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:  # noqa: N802
        _, engine = await self._ready()
        status = engine.status()
        return pb.GetStatusResponse(
            active_rows=status.active_rows,
            queued_requests=status.queued_requests,
            resident_adapters=status.resident_adapters,
            adapter_bytes=status.adapter_bytes,
            kv_cache_bytes=status.kv_cache_bytes,
            active_memory_bytes=status.active_memory_bytes,
            peak_memory_bytes=status.peak_memory_bytes,
            tokens_per_second=status.tokens_per_second,
            generated_tokens=status.generated_tokens,
            max_adapters_in_one_step=status.max_adapters_in_one_step,
            kv_cache=self._caches.name,
            kv_bytes_per_token=self._caches.bytes_per_token,
            kv_budget_bytes=status.kv_budget_bytes,
            prefix_cache_bytes=status.prefix_cache_bytes,
            prefix_cache_entries=status.prefix_cache_entries,
            prefix_hits=status.prefix_hits,
            prefix_hit_tokens=status.prefix_hit_tokens,
        )


def _end_streams() -> None:
    """End this thread's MLX streams; a thread that ends before its streams aborts the process."""
    if "mlx.core" in sys.modules:
        import mlx.core as mx

        mx.synchronize()
        mx.clear_streams()


def _engine_request(request: pb.GenerateRequest, base: LoadedBase) -> Any:
    """Tokenize a request and fit it into the model's context.

    Raises:
        InvalidRequestError: an input that cannot be tokenized or leaves no room for an answer.
    """
    from optiq_core.engine.types import EngineRequest, Sampling

    prompt = _tokens(request, base)
    vocabulary = int(base.config.get("vocab_size") or 0)
    if vocabulary and any(token >= vocabulary for token in prompt):
        raise errors.InvalidRequestError.of("token_ids", f"ids must be below the vocabulary's size, {vocabulary}")
    room = base.max_context - len(prompt) if base.max_context else request.max_tokens
    if not prompt or room < 1:
        raise errors.InvalidRequestError.of(
            request.WhichOneof("input") or "input",
            f"the prompt has {len(prompt)} tokens; 1 to {base.max_context - 1} leave room for an answer",
        )
    sampling = request.sampling
    return EngineRequest(
        request_id=request.request_id,
        prompt=tuple(prompt),
        blend=tuple((part.digest, part.weight) for part in request.adapters),
        factor=request.adapter_scale,
        namespace=request.cache_namespace,
        max_tokens=min(request.max_tokens, room),
        stop=(*request.stop, *extra_stops(request, base.tokenizer)),
        top_logprobs=request.top_logprobs if request.HasField("top_logprobs") else None,
        urgent=request.urgent,
        sampling=Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.HasField("top_p") else 1.0,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=sampling.seed if sampling.HasField("seed") else None,
        ),
    )


def _tokens(request: pb.GenerateRequest, base: LoadedBase) -> list[int]:
    kind = request.WhichOneof("input")
    if kind == "token_ids":
        return list(request.token_ids.ids)
    if kind == "raw_text":
        return list(base.tokenizer.encode(request.raw_text))
    messages = [template_message(message) for message in request.messages.messages]
    if not base.tokenizer.has_chat_template:
        raise errors.InvalidRequestError.of("input", "the base has no chat template; send raw_text or token_ids")
    check_template(request, base.tokenizer)
    tools = template_tools(request.tools) or None
    try:
        return list(base.tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True))
    except Exception as error:  # templates raise their own errors, for example on an order of roles
        raise errors.InvalidRequestError.of("messages", f"the chat template refused them: {error}") from None


def _response(event: Event, base: LoadedBase) -> pb.GenerateResponse:
    from optiq_core.engine.types import Finished, Queued, Started, Tokens

    match event:
        case Queued(position):
            return pb.GenerateResponse(queued=generation_pb2.Queued(position=position))
        case Started(prompt_tokens, cached_tokens):
            return pb.GenerateResponse(
                started=generation_pb2.Started(prompt_tokens=prompt_tokens, cached_tokens=cached_tokens)
            )
        case Tokens(ids, text, logprobs):
            told = [_logprob(one, base) for one in logprobs]
            return pb.GenerateResponse(chunk=generation_pb2.Chunk(text=text, token_ids=ids, logprobs=told))
        case Finished():
            return pb.GenerateResponse(finished=_finished(event))
        case _:
            raise TypeError(f"unknown event {type(event).__name__}")


def _logprob(told: TokenLogprob, base: LoadedBase) -> generation_pb2.TokenLogprob:
    decode = base.tokenizer.decode
    return generation_pb2.TokenLogprob(
        id=told.token,
        text=decode([told.token]),
        logprob=told.logprob,
        top=[generation_pb2.TopLogprob(id=id, text=decode([id]), logprob=logprob) for id, logprob in told.top],
    )


def _finished(event: Finished) -> generation_pb2.Finished:
    return generation_pb2.Finished(
        reason=_REASONS.get(event.reason.value, generation_pb2.FINISH_REASON_UNSPECIFIED),
        usage=generation_pb2.Usage(
            prompt_tokens=event.prompt_tokens,
            completion_tokens=event.completion_tokens,
            cached_tokens=event.cached_tokens,
        ),
        timings=generation_pb2.Timings(
            queue_ms=event.queue_ms,
            prefill_ms=event.prefill_ms,
            time_to_first_token_ms=event.first_token_ms,
            decode_ms=event.decode_ms,
            tokens_per_second=event.tokens_per_second,
        ),
        batch=generation_pb2.BatchStats(max_rows=event.max_rows, max_adapters=event.max_adapters, steps=event.steps),
    )


async def serve(settings: argparse.Namespace) -> int:
    """Serve until stdin ends; returns the exit code."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def watch_lifeline() -> None:
        with contextlib.suppress(OSError, ValueError):
            while sys.stdin.buffer.read(4096):
                pass
        with contextlib.suppress(RuntimeError):  # the loop ended first
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch_lifeline, name="lifeline", daemon=True).start()
    limits = [
        ("grpc.max_receive_message_length", 8 * MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", 8 * MAX_REQUEST_BYTES),
    ]
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=limits)
    servicer = EngineServicer(settings)
    engine_pb2_grpc.add_EngineServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    # What a process that was killed left behind; the daemon's lock keeps a second owner away.
    settings.socket.unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{settings.socket}")
    await server.start()
    loading = asyncio.create_task(servicer.load_base())
    ending = asyncio.create_task(ended.wait())
    await asyncio.wait({loading, ending}, return_when=asyncio.FIRST_COMPLETED)
    failed = loading.done() and loading.exception() is not None
    if failed:
        error = loading.exception()
        log.error("the base cannot be loaded: %s", error, exc_info=None if isinstance(error, OptiqError) else error)
        # Callers that wait in GetBase get their answer before the server goes.
        await server.stop(grace=1.0)
        await servicer.close()
        return 1
    await ending
    await server.stop(grace=None)
    await servicer.close()
    return 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the process's flags."""
    parser = argparse.ArgumentParser(prog="optiq_daemon.engine_process", description="Serve one base on a socket.")
    parser.add_argument("--model", required=True, help="folder, .gguf file, hub id, or 'embedded'")
    parser.add_argument("--socket", required=True, type=Path, help="private Unix socket to serve on")
    parser.add_argument("--load-in", choices=LOAD_IN, help="quantize an unquantized base while it is loaded")
    parser.add_argument("--max-batch", type=int, default=16, help="rows that decode together at most")
    parser.add_argument("--max-queue", type=int, default=256, help="requests that may wait")
    parser.add_argument("--kv", default="float", help="KV cache of every layer: float, or METHOD:BITS")
    parser.add_argument("--kv-config", type=Path, help="KV cache of each layer: a kv_config.json")
    parser.add_argument("--prefill-chunk", type=int, default=512, help="prompt tokens processed at once at most")
    parser.add_argument("--kv-cache-mb", type=int, default=0, help="KV caches of all rows; 0: half of what is left")
    parser.add_argument("--prefix-cache-mb", type=int, default=0, help="KV caches of earlier prompts; 0: none")
    return parser.parse_args(arguments)


def main() -> None:
    """Entry point of the process."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    sys.exit(asyncio.run(serve(parse())))


if __name__ == "__main__":
    main()
