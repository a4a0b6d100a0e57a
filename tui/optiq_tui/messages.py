"""Messages of the dashboard: the connection tells what changed, screens tell what a person wants."""

from __future__ import annotations

from dataclasses import dataclass, field

from textual.message import Message

from optiq_client import TrainingConfig
from optiq_tui.view import Part, View


@dataclass
class ViewChanged(Message):
    """There is a newer view; ``parts`` differ from the one before."""

    view: View
    parts: frozenset[Part]


class Retry(Message):
    """Connect, or read everything again, now."""


@dataclass
class Act(Message):
    """Do ``verb`` (see :mod:`optiq_tui.actions`) to the resource ``name``."""

    verb: str
    name: str
    argument: str = ""


@dataclass
class Look(Message):
    """What a screen looks at; the connection reads what that needs and nothing else.

    Attributes:
        routing: routes and tenants.
        route: name of the route whose decisions and shadow answers are shown.
        adapter: name of the adapter whose versions and ranks are shown.
        jobs: names of the jobs whose curves are drawn.
        log: name of the job whose log is shown.
    """

    routing: bool = False
    route: str = ""
    adapter: str = ""
    jobs: tuple[str, ...] = ()
    log: str = ""


@dataclass
class PlanWanted(Message):
    """Plan this job; None drops the plan."""

    config: TrainingConfig | None


@dataclass
class SubmitWanted(Message):
    """Queue this job."""

    adapter_id: str
    config: TrainingConfig


@dataclass(frozen=True)
class LaneWanted:
    """One answer to ask for; ``adapters`` maps adapters to weights, empty for the base."""

    title: str
    adapters: dict[str, float] = field(default_factory=dict)


@dataclass
class PlayWanted(Message):
    """Ask for these answers at once, so that they share forward passes; no lanes stops those that run."""

    prompt: str
    lanes: tuple[LaneWanted, ...]
    max_tokens: int = 0
    temperature: float | None = None
