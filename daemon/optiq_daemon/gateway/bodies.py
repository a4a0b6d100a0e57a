"""Reads and checks JSON bodies: every error names the field, and what cannot be honoured is refused, never ignored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from starlette.requests import Request

from optiq_daemon.errors import InvalidRequestError
from optiq_daemon.gateway.problems import BodyTooLargeError
from optiq_daemon.interceptor import MAX_REQUEST_BYTES

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
TopK = Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)]
MAX_CHOICES = 128

_AT = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")


async def read_body(request: Request, kind: type[T]) -> T:
    """The request's body as `kind`.

    Raises:
        InvalidRequestError: it is not JSON, or a field is wrong.
        BodyTooLargeError: it has more than 8 MiB.
    """
    sent = request.headers.get("content-type", "")
    # A web page can make a browser post anything else to a loopback address without asking first.
    if sent.partition(";")[0].strip().lower() != "application/json":
        raise InvalidRequestError.of("Content-Type", f"must be application/json, is {sent[:80]!r}")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_REQUEST_BYTES:
            raise BodyTooLargeError(f"the body has more than {MAX_REQUEST_BYTES} bytes")
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise _violation(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError.of("body", f"not JSON: {error}") from None


def refuse(body: msgspec.Struct, unsupported: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
    """Refuse fields that would change the answer and that this server cannot honour.

    Args:
        unsupported: field to the values that change nothing, and why any other is refused.

    Raises:
        InvalidRequestError: names every such field.
    """
    wrong = [
        (field, why)
        for field, (neutral, why) in unsupported.items()
        if (value := getattr(body, field)) is not None and value not in neutral
    ]
    if wrong:
        raise InvalidRequestError(wrong)


def _violation(text: str) -> InvalidRequestError:
    match = _AT.fullmatch(text)
    assert match is not None
    what, where = match[1], match[2] or ""
    unknown = _UNKNOWN.fullmatch(what)
    if unknown:
        return InvalidRequestError.of(f"{where}.{unknown[1]}".lstrip("."), "there is no such field")
    return InvalidRequestError.of(where or "body", what[:1].lower() + what[1:])
