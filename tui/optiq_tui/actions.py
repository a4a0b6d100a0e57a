"""What a person can have done to adapters, jobs and routes: one call of the client each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from optiq_client import AsyncClient
from optiq_tui.messages import Act

Call = Callable[[AsyncClient, Act], Awaitable[object]]

VERBS: Mapping[str, Call] = {
    "load": lambda client, act: client.adapters.load(act.name),
    "unload": lambda client, act: client.adapters.unload(act.name),
    "pin": lambda client, act: client.adapters.pin(act.name),
    "unpin": lambda client, act: client.adapters.unpin(act.name),
    "roll back": lambda client, act: client.adapters.rollback(act.name, act.argument),
    "cancel": lambda client, act: client.training.cancel(act.name),
    "pause": lambda client, act: client.training.pause(act.name),
    "resume": lambda client, act: client.training.resume(act.name),
    "promote": lambda client, act: client.routes.promote(act.name, act.argument),
    "roll back route": lambda client, act: client.routes.roll_back(act.name),
}
"""Verb of an :class:`Act` to the call that does it."""
