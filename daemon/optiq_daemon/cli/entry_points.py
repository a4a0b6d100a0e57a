"""Groups of commands that other modules register as entry points; only the one that is called is imported."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import click


class EntryPointGroup(click.Group):
    """A group whose members are entry points.

    Args:
        entry_points: group name of the entry points, such as ``optiq.commands``.
        summaries: what the help says of each, in this order, so that it needs no command's module.
    """

    def __init__(self, *, entry_points: str, summaries: Mapping[str, str], **settings: Any) -> None:
        super().__init__(**settings)
        self.entry_points = entry_points
        self.summaries = summaries

    def entries(self) -> dict[str, metadata.EntryPoint]:
        """The members by name, not yet imported."""
        return {entry.name: entry for entry in metadata.entry_points(group=self.entry_points)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Ours in the order of the summaries, then those of other packages."""
        names = self.entries()
        return [n for n in self.summaries if n in names] + sorted(n for n in names if n not in self.summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; None if there is no such name."""
        entry = self.entries().get(cmd_name)
        if entry is None:
            return None
        try:
            command = entry.load()
        except (ImportError, AttributeError) as error:
            raise click.ClickException(f"command {cmd_name} ({entry.value}) cannot be loaded: {error}") from error
        if not isinstance(command, click.Command):
            raise click.ClickException(f"command {cmd_name} ({entry.value}) is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list, without importing anything of it."""
        rows = [(name, self.summaries.get(name, "")) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a name that is nearly right."""
        name = args[0]
        if not name.startswith("-") and name not in self.entries():
            import difflib

            close = difflib.get_close_matches(name, self.list_commands(ctx), n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else f" See `{ctx.command_path} --help`."
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)
