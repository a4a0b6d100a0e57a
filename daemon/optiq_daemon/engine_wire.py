"""Between the wire and the engine: requests, which are tokenized here, and events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optiq_daemon import errors
from optiq_daemon.tool_calls import (
    check_template,
    extra_stops,
    template_message,
    template_tools,
)
from optiq_protos.internal.v1 import engine_pb2 as pb
from optiq_protos.v1 import generation_pb2

if TYPE_CHECKING:
    from optiq_core.base import LoadedBase
    from optiq_core.engine.types import Event, Finished, TokenLogprob

_REASONS = {
    "stop": generation_pb2.FINISH_REASON_STOP,
    "stop_string": generation_pb2.FINISH_REASON_STOP_STRING,
    "length": generation_pb2.FINISH_REASON_LENGTH,
}


def engine_request(request: pb.GenerateRequest, base: LoadedBase) -> Any:
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


def engine_response(event: Event, base: LoadedBase) -> pb.GenerateResponse:
    """What a row is told, on the wire.

    Raises:
        UnavailableError: the row has failed.
    """
    from optiq_core.engine.types import Failed, Finished, Queued, Started, Tokens

    match event:
        case Failed(message):
            raise errors.UnavailableError(message, reason="ENGINE_STEP_FAILED")
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
