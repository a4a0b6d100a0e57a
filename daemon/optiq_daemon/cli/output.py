"""Tables and JSON on stdout, narration on stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import click


def plain(value: Any) -> Any:
    """Dataclasses, times and tuples as JSON has them; adapters and jobs gain their short ``id``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        identity = getattr(value, "id", None)
        return {"id": identity, **fields} if isinstance(identity, str) else fields
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def print_json(value: Any, *, line: bool = False) -> None:
    """One JSON document; on one line where many follow each other."""
    click.echo(json.dumps(plain(value), indent=None if line else 2, ensure_ascii=False))


def note(text: str) -> None:
    """A line of narration, on stderr."""
    click.echo(text, err=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table. On a terminal it is fitted to its width; otherwise columns are aligned and nothing is cut.

    Args:
        columns: headings.
        rows: one text per column.
        right: headings of the columns to align to the right.
    """
    if sys.stdout.isatty():
        _print_rich(columns, rows, right)
        return
    widths = [max(len(r[i]) for r in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        cells = [
            text.rjust(width) if columns[i] in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def print_fields(fields: Mapping[str, str]) -> None:
    """Names and values, one a line; empty values are left out."""
    shown = {name: text for name, text in fields.items() if text}
    width = max((len(name) for name in shown), default=0)
    for name, text in shown.items():
        label = click.style(name.ljust(width), dim=True) if sys.stdout.isatty() else name.ljust(width)
        click.echo(f"{label}  {text}")


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)
