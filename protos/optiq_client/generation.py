"""What a running generation has told so far. Shared by the sync and the async iterator."""

from __future__ import annotations

from optiq_client.chat import ToolCall
from optiq_client.generation_events import Chunk, Finished, GenerationEvent, Queued, Started


class GenerationState:
    """The parts of a generation, filled while its stream is read.

    Attributes:
        queue_position: last known position in the queue; None once started, or if it never waited.
        started: adapter, digest and prompt tokens; None until the request runs.
        finished: reason, usage, timings and batch; None until the end.
        text: everything generated so far.
        token_ids: everything that was drawn.
        tool_calls: what the model asked for.
    """

    def __init__(self) -> None:
        self.queue_position: int | None = None
        self.started: Started | None = None
        self.finished: Finished | None = None
        self.token_ids: list[int] = []
        self.tool_calls: list[ToolCall] = []
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """Everything generated so far."""
        return "".join(self._pieces)

    def take(self, event: GenerationEvent) -> None:
        """Record one event of the stream."""
        if isinstance(event, Chunk):
            self._pieces.append(event.text)
            self.token_ids.extend(event.token_ids)
            self.tool_calls.extend(event.tool_calls)
        elif isinstance(event, Queued):
            self.queue_position = event.position
        elif isinstance(event, Started):
            self.started, self.queue_position = event, None
        else:
            self.finished = event
