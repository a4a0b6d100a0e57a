"""``optiq tenants``: who may use the daemon, and how much of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from optiq_daemon.cli import output
from optiq_daemon.cli.options import Connection, complete_adapter, connection_options, json_option

if TYPE_CHECKING:
    from optiq_client import Tenant

F = TypeVar("F", bound=Callable[..., Any])

_QUOTAS = (
    ("concurrent-requests", "N", "Requests that are served or wait at one time; 0 means no limit."),
    ("queued-requests", "N", "Requests that wait at one time; 0 means the daemon's own bound."),
    ("tokens-per-minute", "N", "Prompt and generated tokens; 0 means no limit."),
    ("resident-bytes", "BYTES", "Adapter bytes in the engine; 0 means no limit."),
    ("queued-jobs", "N", "Training jobs that have not ended; 0 means no limit."),
    ("disk-bytes", "BYTES", "Adapter bytes on disk; 0 means no limit."),
)


def _settings(command: F) -> F:
    for name, metavar, text in reversed(_QUOTAS):
        command = click.option(f"--{name}", metavar=metavar, type=click.IntRange(min=0), help=text)(command)
    command = click.option(
        "--allow-path",
        "allow_paths",
        metavar="DIR",
        multiple=True,
        help="Folder that its requests may name; repeatable.",
    )(command)
    command = click.option("--weight", type=float, help="Share under load, relative to the others [1].")(command)
    return click.option("--role", type=click.Choice(["tenant", "admin"]), help="An admin may act for every tenant.")(
        command
    )


def _given(options: dict[str, Any]) -> dict[str, Any]:
    from optiq_client import TenantRole

    given = {name: value for name, value in options.items() if value is not None}
    if role := given.pop("role", None):
        given["role"] = TenantRole[role.upper()]
    paths = given.pop("allow_paths", ())
    if paths:
        given["allowed_paths"] = [] if paths == ("",) else paths
    return given


@click.group(
    epilog="\b\nExamples:\n  optiq tenants create acme --weight 2 --tokens-per-minute 60000\n"
    "  optiq tenants token acme > acme.token      # shown once\n"
    "  OPTIQ_TOKEN_FILE=acme.token optiq generate --adapter support 'Hello'\n  optiq tenants usage"
)
def tenants() -> None:
    """Make tenants and tokens, set weights and quotas, read usage."""


@tenants.command(epilog="\b\nExamples:\n  optiq tenants create acme\n  optiq tenants create ops --role admin")
@click.argument("tenant_id", metavar="ID")
@_settings
@connection_options
@json_option
def create(tenant_id: str, connection: Connection, as_json: bool, **options: Any) -> None:
    """Add a tenant. It gets a token with `optiq tenants token`."""
    with connection.client() as client:
        _print(client.tenants.create(tenant_id, **_given(options)), as_json)


@tenants.command(epilog="\b\nExamples:\n  optiq tenants ls\n  optiq tenants ls --json | jq -r '.[].name'")
@connection_options
@json_option
def ls(connection: Connection, as_json: bool) -> None:
    """List tenants with what they have and do now."""
    from optiq_client import humanize

    with connection.client() as client:
        found = client.tenants.list()
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ("TENANT", "ROLE", "WEIGHT", "TOKENS", "RUNNING", "QUEUED", "ADAPTERS", "RESIDENT", "DISK", "JOBS"),
        [
            (
                t.id,
                t.role.lower(),
                f"{t.weight:g}",
                str(t.token_count),
                str(t.load.running_requests),
                str(t.load.queued_requests),
                str(t.load.adapter_count),
                humanize.size(t.load.resident_bytes),
                humanize.size(t.load.disk_bytes),
                str(t.load.open_jobs),
            )
            for t in found
        ],
        right=("WEIGHT", "TOKENS", "RUNNING", "QUEUED", "ADAPTERS", "RESIDENT", "DISK", "JOBS"),
    )


@tenants.command(epilog="\b\nExamples:\n  optiq tenants show acme")
@click.argument("tenant_id", metavar="ID", default="")
@connection_options
@json_option
def show(tenant_id: str, connection: Connection, as_json: bool) -> None:
    """Show one tenant; the caller's own if none is named."""
    with connection.client() as client:
        _print(client.tenants.get(tenant_id), as_json)


@tenants.command(
    epilog="\b\nExamples:\n  optiq tenants update acme --weight 3 --concurrent-requests 8\n"
    "  optiq tenants update acme --tokens-per-minute 0       # no limit"
)
@click.argument("tenant_id", metavar="ID")
@_settings
@connection_options
@json_option
def update(tenant_id: str, connection: Connection, as_json: bool, **options: Any) -> None:
    """Change a tenant's role, weight, quotas or folders (--allow-path '' allows none)."""
    given = _given(options)
    if not given:
        raise click.UsageError("give at least one option to change")
    with connection.client() as client:
        _print(client.tenants.update(tenant_id, **given), as_json)


@tenants.command(epilog="\b\nExamples:\n  optiq tenants delete acme\n  optiq tenants delete acme --force --yes")
@click.argument("tenant_id", metavar="ID")
@click.option("--force", is_flag=True, help="Also delete its adapters with their folders, and its jobs.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@connection_options
@json_option
def delete(tenant_id: str, force: bool, yes: bool, connection: Connection, as_json: bool) -> None:
    """Remove a tenant with its tokens and usage."""
    if not yes:
        what = " with all adapters and jobs" if force else ""
        click.confirm(f"Delete tenant {tenant_id}{what}?", abort=True, err=True)
    with connection.client() as client:
        client.tenants.delete(tenant_id, force=force, timeout=120)
    if as_json:
        output.print_json({"deleted": tenant_id})
    else:
        output.note(f"deleted {tenant_id}")


@tenants.command(
    epilog="\b\nExamples:\n  optiq tenants token acme > acme.token\n  optiq tenants token acme --rotate --json\n"
    "  optiq tenants token acme --list\n  optiq tenants token acme --revoke 3f9c02a1b7de"
)
@click.argument("tenant_id", metavar="ID", default="")
@click.option("--rotate", is_flag=True, help="Revoke the tenant's other tokens.")
@click.option("--list", "list_", is_flag=True, help="List its tokens in place of making one.")
@click.option("--revoke", metavar="TOKEN-ID", help="Refuse this token from now on.")
@connection_options
@json_option
def token(
    *, tenant_id: str, rotate: bool, list_: bool, revoke: str | None, connection: Connection, as_json: bool
) -> None:
    """Make a token and print it, once; the daemon keeps only its hash."""
    if sum((rotate, list_, bool(revoke))) > 1:
        raise click.UsageError("--rotate, --list and --revoke do not go together")
    with connection.client() as client:
        if revoke:
            client.tenants.revoke_token(tenant_id or client.tenant, revoke)
            if as_json:
                output.print_json({"revoked": revoke})
            else:
                output.note(f"revoked {revoke}")
        elif list_:
            _print_tokens(client.tenants.tokens(tenant_id), as_json)
        else:
            made, secret = client.tenants.create_token(tenant_id, rotate=rotate)
            if as_json:
                output.print_json({"name": made.name, "token": secret})
            else:
                click.echo(secret)
                output.note("this is the only time that the token is shown")


def _print_tokens(found: Any, as_json: bool) -> None:
    from optiq_client import humanize

    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ("TOKEN", "CREATED", "USED"), [(t.id, humanize.since(t.create_time), humanize.since(t.use_time)) for t in found]
    )


@tenants.command(
    epilog="\b\nExamples:\n  optiq tenants usage                   # the caller's own\n"
    "  optiq tenants usage --all --from 2026-11-01 --json"
)
@click.argument("tenant_id", metavar="ID", default="")
@click.option("--all", "everybody", is_flag=True, help="Every tenant; for admins.")
@click.option("--from", "first_day", metavar="DAY", default="", help="First day, YYYY-MM-DD, UTC.")
@click.option("--to", "last_day", metavar="DAY", default="", help="Last day, included.")
@connection_options
@json_option
def usage(
    *, tenant_id: str, everybody: bool, first_day: str, last_day: str, connection: Connection, as_json: bool
) -> None:
    """Show requests, tokens and training time by day and adapter."""
    if everybody and tenant_id:
        raise click.UsageError("give a tenant or --all, not both")
    with connection.client() as client:
        rows = client.tenants.usage("-" if everybody else tenant_id, first_day=first_day, last_day=last_day)
    if as_json:
        output.print_json(rows)
        return
    output.print_table(
        ("DAY", "TENANT", "ADAPTER", "REQUESTS", "PROMPT", "CACHED", "GENERATED", "TRAINING"),
        [
            (
                r.day,
                r.tenant.rpartition("/")[2],
                r.adapter.rpartition("/")[2] or "(base)",
                str(r.requests),
                str(r.prompt_tokens),
                str(r.cached_tokens),
                str(r.completion_tokens),
                f"{r.training_seconds:.0f}s",
            )
            for r in rows
        ],
        right=("REQUESTS", "PROMPT", "CACHED", "GENERATED", "TRAINING"),
    )


@tenants.command(epilog="\b\nExamples:\n  optiq tenants share support --tenant acme\n  optiq tenants share --list")
@click.argument("adapter", default="", shell_complete=complete_adapter)
@click.option("--remove", is_flag=True, help="Make it private again.")
@click.option("--list", "list_", is_flag=True, help="List what every tenant may use.")
@connection_options
@json_option
def share(adapter: str, remove: bool, list_: bool, connection: Connection, as_json: bool) -> None:
    """Let every tenant use an adapter by its id."""
    if list_ == bool(adapter) or (list_ and remove):
        raise click.UsageError("give an adapter, or --list")
    with connection.client() as client:
        if list_:
            names = client.tenants.shared()
            if as_json:
                output.print_json(names)
            else:
                for name in names:
                    click.echo(name)
            return
        if remove:
            client.tenants.unshare(adapter)
        else:
            adapter = client.tenants.share(adapter)
    if as_json:
        output.print_json({"adapter": adapter, "shared": not remove})
    else:
        output.note(f"{adapter} is {'private' if remove else 'shared'} now")


def _print(tenant: Tenant, as_json: bool) -> None:
    from dataclasses import asdict

    from optiq_client import humanize

    if as_json:
        output.print_json(tenant)
        return
    load = tenant.load
    quotas = (f"{name.replace('_', ' ')} {value}" for name, value in asdict(tenant.quotas).items() if value)
    output.print_fields(
        {
            "name": tenant.name,
            "role": tenant.role.lower(),
            "weight": f"{tenant.weight:g}",
            "quotas": ", ".join(quotas) or "none",
            "folders": ", ".join(tenant.allowed_paths),
            "tokens": str(tenant.token_count),
            "requests": f"{load.running_requests} running, {load.queued_requests} queued",
            "adapters": f"{load.adapter_count}, {humanize.size(load.resident_bytes)} resident, "
            f"{humanize.size(load.disk_bytes)} on disk",
            "jobs": f"{load.open_jobs} open",
        }
    )
