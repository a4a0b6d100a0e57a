"""Model names over HTTP: an adapter's id, `id@digest`, or the base's name, which no adapter can have."""

from __future__ import annotations

from optiq_daemon.names import is_id

PREFIX = "optiq/"


def base_name(model: str) -> str:
    """What the bare base is called.

    A hub id or a path stays as it is. A word such as `embedded` could be an adapter's id too, so it gets a prefix:
    a request for an adapter must never be answered by the base, nor the other way round.
    """
    return f"{PREFIX}{model}" if is_id(model) else model


def adapter_of(model: str, base: str) -> str:
    """The adapter field of a request for `model`; empty for the base."""
    return "" if model == base else model
