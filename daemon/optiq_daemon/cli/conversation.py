"""A conversation with one model at a time: what `optiq chat` keeps, and what its commands do to it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from optiq_client import Client, Generation, Message

HELP = """\
/adapter NAME   go on with another adapter; /adapter alone goes on with the base
/adapters       list what can be asked
/system TEXT    set the system message; /system alone removes it
/retry          ask the last question again
/clear          forget the conversation
/help           this list
/quit           leave, as Ctrl-D does"""


@dataclass
class Conversation:
    """Turns so far, and who answers the next.

    Attributes:
        options: arguments of every generation, such as `temperature`.
    """

    client: Client
    adapter: str = ""
    system: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    turns: list[Message] = field(default_factory=list)
    generation: Generation | None = None

    @property
    def name(self) -> str:
        """Who answers."""
        return self.adapter or "base"

    def ask(self, question: str) -> Generator[str]:
        """Answer in pieces. What was said before an error or an interruption is kept as the answer."""
        self.turns.append(Message("user", question))
        messages = [Message("system", self.system), *self.turns] if self.system else list(self.turns)
        said = ""
        try:
            with self.client.generate(messages, adapter=self.adapter, **self.options) as generation:
                self.generation = generation
                for piece in generation:
                    said += piece
                    yield piece
        finally:
            if said:
                self.turns.append(Message("assistant", said))
            else:
                self.turns.pop()

    def last_question(self) -> str:
        """Take back the last question and its answer; empty if there is none."""
        while self.turns:
            turn = self.turns.pop()
            if turn.role == "user":
                return turn.content
        return ""

    def use(self, adapter: str) -> str:
        """Go on with another adapter; what to tell the person.

        Raises:
            NotFound: there is no such adapter.
        """
        if adapter:
            self.client.adapters.get(adapter.partition("@")[0])
        self.adapter = adapter
        return f"{self.name} answers from here on"

    def models(self) -> str:
        """What can be asked, one a line."""
        lines = ["base"] + [f"{a.id}  {str(a.state).lower()}" for a in self.client.adapters.list()]
        return "\n".join(("* " if line.split()[0] == self.name else "  ") + line for line in lines)
