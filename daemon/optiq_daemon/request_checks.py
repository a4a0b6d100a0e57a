"""What a generation request must look like, whichever way it came in."""

from __future__ import annotations

import math

from optiq_daemon.errors import InvalidRequestError
from optiq_daemon.names import parse_adapter, parse_adapter_ref, parse_parent
from optiq_protos.v1 import generation_pb2

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
MAX_REQUEST_ID = 128
MAX_SCALE = 1000.0
ROLES = ("system", "user", "assistant", "tool")


def check_request(request: generation_pb2.GenerateRequest) -> tuple[str, str, str]:
    """Tenant, adapter and pinned digest (both may be empty); the adapter is an id, or a full name if that was given.

    Raises:
        InvalidRequestError: names every field that is wrong.
    """
    wrong: list[tuple[str, str]] = []
    tenant = adapter = digest = ""
    try:
        tenant = parse_parent(request.parent)
    except InvalidRequestError as error:
        wrong += error.violations
    try:
        if request.adapter:
            folder, slash, reference = request.adapter.rpartition("/")
            adapter, digest = parse_adapter_ref(reference)
            if slash:
                adapter = parse_adapter(f"{folder}/{adapter}", "adapter").name
    except InvalidRequestError as error:
        wrong += error.violations
    scale = request.adapter_scale
    if request.HasField("adapter_scale") and not (math.isfinite(scale) and abs(scale) <= MAX_SCALE):
        wrong.append(("adapter_scale", f"must be a number from -{MAX_SCALE:g} to {MAX_SCALE:g}, is {scale}"))
    wrong += _input_violations(request)
    wrong += _sampling_violations(request.sampling)
    if request.max_tokens < 0:
        wrong.append(("max_tokens", f"must be 0 (for the default) or more, is {request.max_tokens}"))
    if len(request.stop) > MAX_STOP_STRINGS:
        wrong.append(("stop", f"at most {MAX_STOP_STRINGS} stop strings, found {len(request.stop)}"))
    for index, text in enumerate(request.stop):
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            wrong.append((f"stop[{index}]", f"must have 1 to {MAX_STOP_CHARACTERS} characters, has {len(text)}"))
    if len(request.request_id) > MAX_REQUEST_ID or not request.request_id.isprintable():
        wrong.append(("request_id", f"must be at most {MAX_REQUEST_ID} printable characters"))
    if wrong:
        raise InvalidRequestError(wrong)
    return tenant, adapter, digest


def _input_violations(request: generation_pb2.GenerateRequest) -> list[tuple[str, str]]:
    kind = request.WhichOneof("input")
    if kind is None:
        return [("input", "one of prompt, messages, raw_text and token_ids is needed")]
    if kind in ("prompt", "raw_text"):
        return [] if getattr(request, kind) else [(kind, "must not be empty")]
    if kind == "token_ids":
        return [] if request.token_ids.ids else [("token_ids.ids", "must not be empty")]
    if not request.messages.messages:
        return [("messages.messages", "must not be empty")]
    return [
        (f"messages.messages[{index}].role", f"must be one of {', '.join(ROLES)}")
        for index, message in enumerate(request.messages.messages)
        if message.role not in ROLES
    ]


def _sampling_violations(sampling: generation_pb2.SamplingParams) -> list[tuple[str, str]]:
    wrong: list[tuple[str, str]] = []

    def check(field: str, ok: bool, rule: str) -> None:
        if sampling.HasField(field) and not ok:
            wrong.append((f"sampling.{field}", f"must be {rule}, is {getattr(sampling, field):g}"))

    temperature = sampling.temperature
    check("temperature", math.isfinite(temperature) and temperature >= 0, "0 or more")
    check("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1")
    check("top_k", sampling.top_k >= 0, "0 or more")
    check("min_p", 0 <= sampling.min_p <= 1, "from 0 to 1")
    return wrong
