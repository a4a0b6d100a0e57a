"""Keeps callers inside what they may name, for every method at once, before its handler runs.

A handler that somebody adds later is covered without knowing of it: every resource name in a request is looked at by
its form, and every path by its field's name. What a caller may not see is answered as what is not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from optiq_daemon.errors import ForbiddenError
from optiq_daemon.identity import Caller
from optiq_daemon.tenants import Tenants, unknown_tenant

# Text of the caller's own, which may look like a name and is none.
_FREE_TEXT = frozenset({"prompt", "raw_text", "messages", "stop", "request_id", "sticky_key", "page_token", "etag"})
# An adapter here may be another tenant's that is shared; the handler decides.
_SHARED_OK = frozenset({("GenerateRequest", "adapter"), ("GetAdapterRequest", "name")})


class Scope:
    """Checks requests against their caller.

    Args:
        drop: the drop folder; a tenant may always name its own folder in it.
    """

    def __init__(self, tenants: Tenants, drop: Path) -> None:
        self._tenants = tenants
        self._drop = drop

    def check(self, caller: Caller, request: Message) -> None:
        """Fill in the caller's tenant where a request leaves it out, and refuse what is not the caller's.

        Raises:
            NotFoundError: a name of another tenant.
            ForbiddenError: a path outside the caller's folders.
        """
        if not caller.admin and "parent" in request.DESCRIPTOR.fields_by_name and not request.parent:  # type: ignore[attr-defined]
            request.parent = f"tenants/{caller.tenant}"  # type: ignore[attr-defined]
        if caller.admin and caller.trusted:
            return
        for owner, field, text in _strings(request):
            if not caller.admin and text.startswith("tenants/") and (owner, field) not in _SHARED_OK:
                tenant = text.split("/", 2)[1]
                if not caller.sees(tenant):
                    raise unknown_tenant(tenant)
            if not caller.trusted and field.endswith("_path") and text:
                self._check_path(caller, field, text)

    def _check_path(self, caller: Caller, field: str, text: str) -> None:
        roots = (str(self._drop / caller.tenant), *self._tenants.find(caller.tenant).allowed_paths)
        # Links are followed first: a folder that is allowed must not lead out of itself.
        if "\0" in text or not any(
            Path(os.path.realpath(text)).is_relative_to(os.path.realpath(root)) for root in roots
        ):
            raise ForbiddenError(
                f"{field}: {caller.tenant!r} may name paths in its drop folder and in the folders that an admin allows"
                " (optiq tenants update TENANT --allow-path DIR)",
                reason="PATH_NOT_ALLOWED",
            )


def _strings(message: Message) -> Iterator[tuple[str, str, str]]:
    """Message type, field and text of every string in a message that is set, except free text."""
    for field, value in message.ListFields():
        if field.name in _FREE_TEXT:
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            for text in [value] if isinstance(value, str) else value:
                yield message.DESCRIPTOR.name, field.name, text
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in [value] if isinstance(value, Message) else value:
                if isinstance(inner, Message):  # a map's keys are free text
                    yield from _strings(inner)
