"""Options that commands share, and completion of names that the daemon knows."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from optiq_client import Client

F = TypeVar("F", bound=Callable[..., Any])

COMPLETION_TIMEOUT = 1.0


def default_address(address: str | None = None, home: str | None = None) -> str:
    """What to dial: flags, then ``$OPTIQ_ADDRESS``, then what the daemon's configuration says.

    Raises:
        ConfigError: the configuration file cannot be used.
        SocketPathError: the home's socket path is longer than a Unix socket allows.
    """
    from optiq_client.paths import resolve_address

    if address or home or os.environ.get("OPTIQ_ADDRESS"):
        return resolve_address(address, home)
    from msgspec.structs import replace

    from optiq_daemon.config import bind_address, load_configuration

    settings = load_configuration().settings
    # On the daemon's own machine its socket is simpler than TLS.
    return bind_address(replace(settings, address="") if settings.tls != "off" else settings)


@dataclass(frozen=True, slots=True)
class Connection:
    """Which daemon a command talks to, as which tenant."""

    address: str | None
    home: str | None
    tenant: str | None
    token_file: str | None = None

    def client(self) -> Client:
        """A client; close it, or use it as a context manager."""
        from optiq_client import Client
        from optiq_client.credentials import read_token_file

        token = read_token_file(Path(self.token_file)) if self.token_file else None
        return Client(default_address(self.address, self.home), tenant=self.tenant, token=token)


def connection_options(command: F) -> F:
    """Add --address, --home, --tenant and --token-file; the command gets ``connection``."""

    @click.option("--address", metavar="ADDR", help="Daemon to talk to: unix:/path or host:port.")
    @click.option("--home", metavar="DIR", help="Folder of the daemon to talk to.")
    @click.option("--tenant", help="Whose adapters and jobs [the token's tenant, else 'default'].")
    @click.option("--token-file", metavar="FILE", help="File with the token, where $OPTIQ_TOKEN is not set.")
    @functools.wraps(command)
    def wrapped(
        *args: Any, address: str | None, home: str | None, tenant: str | None, token_file: str | None, **kwargs: Any
    ) -> Any:
        return command(*args, connection=Connection(address, home, tenant, token_file), **kwargs)

    return wrapped  # type: ignore[return-value]


def json_option(command: F) -> F:
    """Add --json; the command gets ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def _complete(ctx: click.Context, names: Callable[[Client], list[tuple[str, str]]], start: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    try:
        found = Connection(ctx.params.get("address"), ctx.params.get("home"), ctx.params.get("tenant"))
        with found.client() as client:
            client.timeout = COMPLETION_TIMEOUT
            return [CompletionItem(name, help=text) for name, text in names(client) if name.startswith(start)]
    except Exception:  # a shell that completes nothing is better than one that prints an error
        return []


def complete_adapter(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Adapter ids of the running daemon."""
    return _complete(ctx, lambda c: [(a.id, str(a.state)) for a in c.adapters.list()], incomplete)


def complete_job(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Job ids of the running daemon."""
    return _complete(ctx, lambda c: [(j.id, str(j.state)) for j in c.training.list()], incomplete)
