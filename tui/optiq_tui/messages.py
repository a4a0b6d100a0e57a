"""What the connection tells the screen. Every message carries a whole picture, so the newest one is enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from textual.message import Message

from optiq_client import Adapter, Event, Job, Progress, Status


class Link(Enum):
    """State of the connection to the daemon."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    LOST = "lost"


@dataclass
class LinkChanged(Message):
    """The connection came up, or went away.

    Attributes:
        link: its state.
        address: what is dialled.
        detail: what went wrong, one line; empty if nothing.
        retry_in: seconds until the next try, for LOST.
    """

    link: Link
    address: str
    detail: str = ""
    retry_in: float = 0.0


@dataclass
class StatusArrived(Message):
    """The daemon's status."""

    status: Status


@dataclass
class AdaptersArrived(Message):
    """All adapters of the tenant, by name."""

    adapters: tuple[Adapter, ...]


@dataclass
class JobsArrived(Message):
    """All jobs of the tenant, newest first, and the progress of those that are watched."""

    jobs: tuple[Job, ...]
    curves: Mapping[str, tuple[Progress, ...]]


@dataclass
class EventsArrived(Message):
    """The last events, oldest first."""

    events: tuple[Event, ...]
