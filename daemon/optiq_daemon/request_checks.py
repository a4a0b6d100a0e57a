"""What a generation request must look like, whichever way it came in."""

from __future__ import annotations

import math
from typing import NamedTuple

from optiq_daemon.errors import InvalidRequestError
from optiq_daemon.names import ID_RULE, is_id, parse_adapter, parse_adapter_ref, parse_parent
from optiq_daemon.tool_checks import form_violations
from optiq_protos.v1 import generation_pb2

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
MAX_REQUEST_ID = 128
MAX_STICKY_KEY = 256
MAX_SCALE = 1000.0
MAX_TOP_LOGPROBS = 20
MAX_BLEND = 16
ROLES = ("system", "user", "assistant", "tool")


class AskedAdapter(NamedTuple):
    """An adapter that a request names.

    ``adapter`` is an id, or a full name if that was given; ``digest`` is empty unless it pins a version.
    """

    adapter: str
    digest: str
    weight: float


class CheckedRequest(NamedTuple):
    """Who asks, and for which adapters: none for the bare base, several for a blend."""

    tenant: str
    adapters: tuple[AskedAdapter, ...]


def check_request(request: generation_pb2.GenerateRequest) -> CheckedRequest:
    """Check everything that can be checked without looking anything up.

    Raises:
        InvalidRequestError: names every field that is wrong.
    """
    wrong: list[tuple[str, str]] = []
    tenant = ""
    try:
        tenant = parse_parent(request.parent)
    except InvalidRequestError as error:
        wrong += error.violations
    adapters = _asked_adapters(request, wrong)
    if request.HasField("adapter_scale"):
        _check_factor("adapter_scale", request.adapter_scale, wrong)
    wrong += _input_violations(request)
    wrong += _sampling_violations(request.sampling)
    if not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
        wrong.append(("top_logprobs", f"must be 0 to {MAX_TOP_LOGPROBS}, is {request.top_logprobs}"))
    if request.max_tokens < 0:
        wrong.append(("max_tokens", f"must be 0 (for the default) or more, is {request.max_tokens}"))
    if len(request.stop) > MAX_STOP_STRINGS:
        wrong.append(("stop", f"at most {MAX_STOP_STRINGS} stop strings, found {len(request.stop)}"))
    for index, text in enumerate(request.stop):
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            wrong.append((f"stop[{index}]", f"must have 1 to {MAX_STOP_CHARACTERS} characters, has {len(text)}"))
    if len(request.request_id) > MAX_REQUEST_ID or not request.request_id.isprintable():
        wrong.append(("request_id", f"must be at most {MAX_REQUEST_ID} printable characters"))
    wrong += _route_violations(request)
    wrong += form_violations(request)
    if wrong:
        raise InvalidRequestError(wrong)
    return CheckedRequest(tenant, adapters)


def _asked_adapters(request: generation_pb2.GenerateRequest, wrong: list[tuple[str, str]]) -> tuple[AskedAdapter, ...]:
    """The adapters that a request names; what is wrong with them is added to ``wrong``."""
    if request.adapter and request.adapters:
        wrong.append(("adapters", "must be empty where adapter is set; name one adapter, or a blend"))
    if len(request.adapters) > MAX_BLEND:
        wrong.append(("adapters", f"at most {MAX_BLEND} adapters in a blend, found {len(request.adapters)}"))
        return ()
    asked = [("adapter", request.adapter, 1.0)] if request.adapter else []
    for index, part in enumerate(request.adapters):
        weight = part.weight if part.HasField("weight") else 1.0
        _check_factor(f"adapters[{index}].weight", weight, wrong)
        asked.append((f"adapters[{index}].name", part.name, weight))
    found: dict[str, AskedAdapter] = {}
    for field, name, weight in asked:
        try:
            folder, slash, reference = name.rpartition("/")
            adapter, digest = parse_adapter_ref(reference, field)
            if slash:
                adapter = parse_adapter(f"{folder}/{adapter}", field).name
        except InvalidRequestError as error:
            wrong += error.violations
            continue
        if adapter in found:
            wrong.append((field, f"{adapter} is in the blend already; add the weights"))
        found[adapter] = AskedAdapter(adapter, digest, weight)
    return tuple(found.values())


def _check_factor(field: str, value: float, wrong: list[tuple[str, str]]) -> None:
    if not (math.isfinite(value) and abs(value) <= MAX_SCALE):
        wrong.append((field, f"must be a number from -{MAX_SCALE:g} to {MAX_SCALE:g}, is {value}"))


def _route_violations(request: generation_pb2.GenerateRequest) -> list[tuple[str, str]]:
    wrong = []
    if request.route and (request.adapter or request.adapters):
        wrong.append(("route", "give a route or adapters, not both"))
    if request.route and not is_id(request.route):
        wrong.append(("route", f"{request.route[:80]!r} is not an id; {ID_RULE}"))
    if len(request.sticky_key) > MAX_STICKY_KEY:
        found = len(request.sticky_key)
        wrong.append(("sticky_key", f"must be at most {MAX_STICKY_KEY} characters, has {found}"))
    return wrong


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
