"""Resource names and ids: the only place that takes them apart or puts them together."""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

from optiq_daemon.errors import InvalidRequestError

ID_PATTERN = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
DEFAULT_TENANT = "default"

ID_RULE = "1 to 63 characters: a to z, 0 to 9 and '-', beginning with a letter, not ending with '-'"
_VERSION = re.compile(r"[0-9a-f]{6,64}|v[1-9][0-9]{0,8}")


class AdapterKey(NamedTuple):
    """Which adapter, whatever version."""

    tenant: str
    adapter: str

    @property
    def name(self) -> str:
        """`tenants/{tenant}/adapters/{adapter}`."""
        return f"tenants/{self.tenant}/adapters/{self.adapter}"


class JobKey(NamedTuple):
    """Which training job."""

    tenant: str
    job: str

    @property
    def name(self) -> str:
        """`tenants/{tenant}/jobs/{job}`."""
        return f"tenants/{self.tenant}/jobs/{self.job}"


class RouteKey(NamedTuple):
    """Which route."""

    tenant: str
    route: str

    @property
    def name(self) -> str:
        """`tenants/{tenant}/routes/{route}`."""
        return f"tenants/{self.tenant}/routes/{self.route}"


def is_id(text: str) -> bool:
    """Whether `text` can be the last component of a resource name."""
    return ID_PATTERN.fullmatch(text) is not None


def check_id(text: str, field: str) -> str:
    """Return `text`, or raise :class:`InvalidRequestError` naming `field`."""
    if not is_id(text):
        raise InvalidRequestError.of(field, f"{_shown(text)} is not an id; {ID_RULE}")
    return text


def parse_parent(text: str, field: str = "parent") -> str:
    """Tenant id of `tenants/{tenant}`; empty text means the default tenant."""
    if not text:
        return DEFAULT_TENANT
    parts = text.split("/")
    if len(parts) != 2 or parts[0] != "tenants" or not is_id(parts[1]):
        raise InvalidRequestError.of(field, f"{_shown(text)} is not of the form tenants/{{tenant}}")
    return parts[1]


def parse_adapter(text: str, field: str = "name") -> AdapterKey:
    """Key of `tenants/{tenant}/adapters/{adapter}`."""
    return AdapterKey(*_parse(text, field, "adapters", "adapter"))


def parse_job(text: str, field: str = "name") -> JobKey:
    """Key of `tenants/{tenant}/jobs/{job}`."""
    return JobKey(*_parse(text, field, "jobs", "job"))


def parse_route(text: str, field: str = "name") -> RouteKey:
    """Key of `tenants/{tenant}/routes/{route}`."""
    return RouteKey(*_parse(text, field, "routes", "route"))


def parse_token(text: str, field: str = "name") -> tuple[str, str]:
    """Tenant and token id of `tenants/{tenant}/tokens/{token}`."""
    parts = text.split("/")
    if len(parts) != 4 or (parts[0], parts[2]) != ("tenants", "tokens") or not is_id(parts[1]) or not parts[3]:
        raise InvalidRequestError.of(field, f"{_shown(text)} is not of the form tenants/{{tenant}}/tokens/{{token}}")
    return parts[1], parts[3]


def parse_adapter_ref(text: str, field: str = "adapter") -> tuple[str, str]:
    """Split `id` or `id@version` into id and version: a digest, its beginning, or `v3` (empty if not pinned)."""
    adapter, at, digest = text.partition("@")
    check_id(adapter, field)
    if at and not _VERSION.fullmatch(digest):
        raise InvalidRequestError.of(
            field, f"after '@' comes a version: 6 to 64 lowercase hex digits of its digest, or v3; not {_shown(digest)}"
        )
    return adapter, digest


def new_job_id(adapter: str) -> str:
    """A fresh job id that shows which adapter it trains."""
    return f"{adapter[:48].rstrip('-')}-{secrets.token_hex(4)}"


def _parse(text: str, field: str, collection: str, what: str) -> tuple[str, str]:
    parts = text.split("/")
    if len(parts) != 4 or (parts[0], parts[2]) != ("tenants", collection) or not (is_id(parts[1]) and is_id(parts[3])):
        form = f"tenants/{{tenant}}/{collection}/{{{what}}}"
        raise InvalidRequestError.of(field, f"{_shown(text)} is not of the form {form}")
    return parts[1], parts[3]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
