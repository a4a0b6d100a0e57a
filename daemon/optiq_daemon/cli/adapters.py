"""``optiq adapters``: list, show, import, load, unload, pin, roll back and remove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from optiq_daemon.cli import adapter_files, output
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
        tenant = client.tenant
        place = "" if found or as_json else client.runtime.status().adapters_path
    if as_json:
        output.print_json(found)
        return
    if not found:
        output.note(f"no adapters yet: copy a folder to {place}/{tenant}/NAME, or train one with: optiq jobs submit")
        return
    output.print_table(
        ("NAME", "STATE", "DIGEST", "FORMAT", "KIND", "RANK", "PARAMETERS", "DISK", "REQUESTS", "CHANGED"),
        [
            (
                a.id if a.tenant == tenant else f"{a.name} (shared)",
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
        if a.warning:
            output.note(f"{a.id}: warning: {a.warning}")


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
            "warning": adapter.warning,
            "digest": adapter.digest,
            "version": f"v{adapter.version}" if adapter.version else "",
            "held back": f"{adapter.held_back_digest} (the folder's content, set aside by a rollback)"
            if adapter.held_back_digest
            else "",
            "format": f"{adapter.format} {adapter.kind}".strip(),
            "shared": "with every tenant" if adapter.shared else "",
            "base": adapter.base_model,
            "modules": f"{adapter.module_count}: {', '.join(adapter.targets)}" if adapter.module_count else "",
            "rank": humanize.ranks(adapter.min_rank, adapter.max_rank),
            "parameters": f"{adapter.parameter_count:,}" if adapter.parameter_count else "",
            "disk": humanize.size(adapter.disk_bytes),
            "memory": humanize.size(adapter.resident_bytes),
            "requests": str(adapter.active_leases),
            "stays": _stay(adapter),
            "changed": adapter.update_time.isoformat(timespec="seconds") if adapter.update_time else "",
            "folder": adapter.source_path,
            "drop to routable": f"{adapter.drop_to_routable_ms:.0f} ms" if adapter.drop_to_routable_ms else "",
        }
    )


def _stay(adapter: Adapter) -> str:
    """How long it stays in the engine unused."""
    if adapter.pinned:
        return "pinned in the engine"
    seconds = adapter.keep_alive_seconds
    if seconds is None:
        return ""
    return f"in the engine for {seconds:g} s unused" if seconds else "in the engine until others need the room"


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


@adapters.command(epilog="\b\nExamples:\n  optiq adapters pin roman")
@click.argument("name", shell_complete=complete_adapter)
@connection_options
@json_option
def pin(name: str, connection: Connection, as_json: bool) -> None:
    """Load an adapter and keep it in the engine whatever others ask for."""
    with connection.client() as client:
        _print_adapter(client.adapters.pin(name), as_json)


@adapters.command(epilog="\b\nExamples:\n  optiq adapters unpin roman")
@click.argument("name", shell_complete=complete_adapter)
@connection_options
@json_option
def unpin(name: str, connection: Connection, as_json: bool) -> None:
    """Let an adapter make room for others again."""
    with connection.client() as client:
        _print_adapter(client.adapters.unpin(name), as_json)


@adapters.command(
    epilog="\b\nExamples:\n  optiq adapters keep roman 600      leave the engine after ten unused minutes\n"
    "  optiq adapters keep roman 0        stay until others need the room\n"
    "  optiq adapters keep roman default  what the setting keep_alive_s says"
)
@click.argument("name", shell_complete=complete_adapter)
@click.argument("seconds", metavar="SECONDS|default")
@connection_options
@json_option
def keep(name: str, seconds: str, connection: Connection, as_json: bool) -> None:
    """Set how long an adapter stays in the engine without a request."""
    try:
        value = None if seconds == "default" else float(seconds)
    except ValueError:
        raise click.BadParameter(f"{seconds!r} is neither a number nor 'default'", param_hint="SECONDS") from None
    with connection.client() as client:
        _print_adapter(client.adapters.keep_alive(name, value), as_json)


@adapters.command(epilog="\b\nExamples:\n  optiq adapters history roman\n  optiq adapters history roman --json")
@click.argument("name", shell_complete=complete_adapter)
@connection_options
@json_option
def history(name: str, connection: Connection, as_json: bool) -> None:
    """List the versions that a name keeps, the one that it pointed to last first."""
    from optiq_client import humanize

    with connection.client() as client:
        found = client.adapters.history(name)
    if as_json:
        output.print_json(found)
        return
    others = [v.number for v in found if not v.current]
    output.print_table(
        ("VERSION", "BACK", "DIGEST", "FROM", "FORMAT", "RANK", "DISK", "MEMORY", "REQUESTS", "SERVED"),
        [
            (
                f"v{v.number}",
                "now" if v.current else f"-{others.index(v.number) + 1}",
                humanize.short_digest(v.digest),
                v.origin,
                f"{v.format} {v.kind}".strip(),
                humanize.ranks(v.min_rank, v.max_rank),
                humanize.size(v.disk_bytes),
                humanize.size(v.resident_bytes),
                str(v.active_leases),
                humanize.since(v.publish_time),
            )
            for v in found
        ],
        right=("BACK", "RANK", "DISK", "MEMORY", "REQUESTS", "SERVED"),
    )


# `-1` is a version here, not an option.
@adapters.command(
    context_settings={"ignore_unknown_options": True},
    epilog="\b\nExamples:\n  optiq adapters rollback roman         the version that was served before\n"
    "  optiq adapters rollback roman -2      the one before that\n"
    "  optiq adapters rollback roman v3\n  optiq adapters rollback roman 9f86d081",
)
@click.argument("name", shell_complete=complete_adapter)
@click.argument("version", default="-1")
@connection_options
@json_option
def rollback(name: str, version: str, connection: Connection, as_json: bool) -> None:
    """Serve a kept version again: VERSION is -1, v3, or the beginning of a digest.

    The folder stays as it is. What it holds is published again when its content changes, or by importing it.
    """
    with connection.client() as client:
        _print_adapter(client.adapters.rollback(name, version), as_json)


for _command in adapter_files.COMMANDS:
    adapters.add_command(_command)
