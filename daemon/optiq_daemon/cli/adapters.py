"""``optiq adapters``: list, show, import, load, unload and remove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from optiq_daemon.cli import output
from optiq_daemon.cli.options import Connection, complete_adapter, connection_options, json_option

if TYPE_CHECKING:
    from optiq_client import Adapter


@click.group(
    epilog="\b\nExamples:\n  optiq adapters ls\n  optiq adapters import ./my-adapter --name roman\n"
    "  optiq adapters show roman --json"
)
def adapters() -> None:
    """List, import, load and remove adapters."""


@adapters.command("ls", epilog="\b\nExamples:\n  optiq adapters ls\n  optiq adapters ls --json | jq -r '.[].id'")
@connection_options
@json_option
def ls(connection: Connection, as_json: bool) -> None:
    """List the adapters of a tenant."""
    from optiq_client import humanize

    with connection.client() as client:
        found = client.adapters.list()
        place = "" if found or as_json else client.runtime.status().adapters_path
    if as_json:
        output.print_json(found)
        return
    if not found:
        output.note(
            f"no adapters yet: copy a folder to {place}/{connection.tenant}/NAME, or train one with: optiq jobs submit"
        )
        return
    output.print_table(
        ("NAME", "STATE", "DIGEST", "FORMAT", "KIND", "RANK", "PARAMETERS", "DISK", "REQUESTS", "CHANGED"),
        [
            (
                a.id,
                str(a.state),
                humanize.short_digest(a.digest),
                a.format,
                a.kind,
                humanize.ranks(a.min_rank, a.max_rank),
                humanize.count(a.parameter_count),
                humanize.size(a.disk_bytes),
                str(a.active_leases),
                humanize.since(a.update_time),
            )
            for a in found
        ],
        right=("RANK", "PARAMETERS", "DISK", "REQUESTS", "CHANGED"),
    )
    for a in found:
        if a.quarantine is not None:
            output.note(f"{a.id}: {quarantine_text(a)}")


def quarantine_text(adapter: Adapter) -> str:
    """Why an adapter is not served, in one line."""
    reason = adapter.quarantine
    if reason is None:
        return ""
    where = " ".join(p for p in (reason.file, reason.tensor) if p)
    sizes = f" (expected {reason.expected}, found {reason.found})" if reason.expected or reason.found else ""
    return f"{reason.code}: {where + ': ' if where else ''}{reason.message}{sizes}"


def _print_adapter(adapter: Adapter, as_json: bool) -> None:
    from optiq_client import humanize

    if as_json:
        output.print_json(adapter)
        return
    output.print_fields(
        {
            "name": adapter.name,
            "state": str(adapter.state),
            "why": quarantine_text(adapter),
            "digest": adapter.digest,
            "format": f"{adapter.format} {adapter.kind}".strip(),
            "base": adapter.base_model,
            "modules": f"{adapter.module_count}: {', '.join(adapter.targets)}" if adapter.module_count else "",
            "rank": humanize.ranks(adapter.min_rank, adapter.max_rank),
            "parameters": f"{adapter.parameter_count:,}" if adapter.parameter_count else "",
            "disk": humanize.size(adapter.disk_bytes),
            "memory": humanize.size(adapter.resident_bytes),
            "requests": str(adapter.active_leases),
            "changed": adapter.update_time.isoformat(timespec="seconds") if adapter.update_time else "",
            "folder": adapter.source_path,
            "drop to routable": f"{adapter.drop_to_routable_ms:.0f} ms" if adapter.drop_to_routable_ms else "",
        }
    )


@adapters.command(epilog="\b\nExamples:\n  optiq adapters show roman")
@click.argument("name", shell_complete=complete_adapter)
@connection_options
@json_option
def show(name: str, connection: Connection, as_json: bool) -> None:
    """Show one adapter, and why it is not served if it is not."""
    with connection.client() as client:
        _print_adapter(client.adapters.get(name), as_json)


@adapters.command(
    "import",
    epilog="\b\nExamples:\n  optiq adapters import ./out/roman\n  optiq adapters import /data/lora-7 --name legal",
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", help="Name to serve it under; the folder's own name if not given.")
@connection_options
@json_option
def import_(folder: Path, name: str | None, connection: Connection, as_json: bool) -> None:
    """Copy an adapter folder into the drop folder."""
    with connection.client() as client:
        _print_adapter(client.adapters.import_folder(folder, name or folder.absolute().name), as_json)


@adapters.command(epilog="\b\nExamples:\n  optiq adapters rm roman\n  optiq adapters rm old-one old-two --yes")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_adapter)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@connection_options
@json_option
def rm(names: tuple[str, ...], yes: bool, connection: Connection, as_json: bool) -> None:
    """Retire names and delete their folders. Requests in flight finish."""
    if not yes:
        click.confirm(f"Delete {', '.join(names)} and their folders?", abort=True, err=True)
    with connection.client() as client:
        for name in names:
            client.adapters.delete(name)
            if not as_json:
                output.note(f"deleted {name}")
    if as_json:
        output.print_json({"deleted": names})


@adapters.command(epilog="\b\nExamples:\n  optiq adapters load roman")
@click.argument("name", shell_complete=complete_adapter)
@connection_options
@json_option
def load(name: str, connection: Connection, as_json: bool) -> None:
    """Put an adapter into the engine now, ahead of its first request."""
    with connection.client() as client:
        _print_adapter(client.adapters.load(name), as_json)


@adapters.command(epilog="\b\nExamples:\n  optiq adapters unload roman")
@click.argument("name", shell_complete=complete_adapter)
@connection_options
@json_option
def unload(name: str, connection: Connection, as_json: bool) -> None:
    """Take an adapter out of the engine once its last request has ended."""
    with connection.client() as client:
        _print_adapter(client.adapters.unload(name), as_json)
