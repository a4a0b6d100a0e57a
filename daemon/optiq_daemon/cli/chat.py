"""``optiq chat``: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optiq_daemon.cli.options import Connection, complete_adapter, connection_options

if TYPE_CHECKING:
    from optiq_daemon.cli.conversation import Conversation

MAX_HISTORY = 2000


@click.command(
    epilog="\b\nExamples:\n  optiq chat\n  optiq chat --adapter pirate\n"
    '  optiq chat --adapter support --system "You answer in one sentence." --temperature 0.7\n'
    "  optiq chat --adapter pirate < questions.txt      # one question a line\n\n"
    "\b\nIn the chat: /adapter NAME switches, /help lists the rest."
)
@click.option("--adapter", "-a", default="", shell_complete=complete_adapter, help="Adapter; the base if not given.")
@click.option("--system", default="", help="System message.")
@click.option("--max-tokens", "-n", type=click.IntRange(min=1), help="Tokens of an answer at most.")
@click.option("--temperature", "-t", type=float, help="0 is greedy.")
@click.option("--top-p", type=float, help="Nucleus mass.")
@click.option("--top-k", type=int, help="Most likely tokens to keep.")
@click.option("--seed", type=int, help="Same seed and conversation: same answer.")
@connection_options
def chat(*, adapter: str, system: str, max_tokens: int | None, connection: Connection, **sampling: Any) -> None:
    """Talk with an adapter, and switch adapters on the way.

    Ctrl-C ends an answer, not the chat; Ctrl-D ends the chat. Answers go to stdout, everything else to stderr.
    """
    from optiq_daemon.cli.conversation import Conversation

    options = {"max_tokens": max_tokens or 0, **sampling}
    with connection.client() as client, _history():
        conversation = Conversation(client, system=system, options=options)
        # A name that is not there is said at once, not at the first answer.
        _say(conversation.use(adapter) + "; /help lists commands")
        for line in _lines(conversation):
            if not _answer(conversation, line):
                return


def _answer(conversation: Conversation, line: str) -> bool:
    """Do what a line says; false once it says to leave."""
    from optiq_client import OptiqClientError

    question = line
    try:
        if line.startswith("/"):
            command, _, rest = line.partition(" ")
            if command in ("/quit", "/exit"):
                return False
            if command != "/retry":
                _say(_command(conversation, command, rest.strip()))
                return True
            question = conversation.last_question()
        if question:
            _stream(conversation, question)
    except OptiqClientError as error:
        _say(f"Error: {error}")
    return True


def _stream(conversation: Conversation, question: str) -> None:
    with contextlib.closing(conversation.ask(question)) as pieces:
        try:
            for piece in pieces:
                click.echo(piece, nl=False)
            click.echo()
        except KeyboardInterrupt:
            click.echo()
            _say("(ended)")


def _command(conversation: Conversation, command: str, rest: str) -> str:
    """Do a command; what to tell the person."""
    from optiq_daemon.cli.conversation import HELP

    if command == "/adapter":
        return conversation.use(rest)
    if command == "/adapters":
        return conversation.models()
    if command == "/system":
        conversation.system = rest
        return "system message set" if rest else "no system message"
    if command == "/clear":
        conversation.turns.clear()
        return "forgotten"
    return HELP if command == "/help" else f"{command} is not a command\n{HELP}"


def _lines(conversation: Conversation) -> Iterator[str]:
    """What the person types, or what stdin holds, a line at a time."""
    typed = sys.stdin.isatty()
    while True:
        try:
            line = input(f"{conversation.name}> ") if typed else sys.stdin.readline()
        except KeyboardInterrupt:
            click.echo(err=True)
            continue
        except EOFError:
            click.echo(err=True)
            return
        if not typed and not line:
            return
        if line.strip():
            yield line.strip()


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Line editing with the history of earlier chats, where a person types."""
    if not sys.stdin.isatty():
        yield
        return
    import platformdirs

    try:
        import readline
    except ImportError:  # a Python without it still chats
        yield
        return
    file = Path(platformdirs.user_state_path("optiq")) / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(MAX_HISTORY)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
            file.chmod(0o600)


def _say(text: str) -> None:
    click.secho(text, err=True, dim=sys.stderr.isatty())
