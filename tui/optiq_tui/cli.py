"""``optiq tui``."""

from __future__ import annotations

from collections.abc import Callable

import click


@click.command(
    epilog="\b\nExamples:\n  optiq tui\n  optiq tui --readonly\n  optiq tui --address 127.0.0.1:50051\n"
    "  optiq tui --home ~/other-daemon"
)
@click.option("--address", metavar="ADDR", help="Daemon to watch: unix:/path or host:port.")
@click.option("--home", metavar="DIR", help="Folder of the daemon to watch.")
@click.option("--tenant", help="Whose adapters and jobs [the token's tenant, else 'default'].")
@click.option("--readonly", is_flag=True, help="Offer no action that changes anything.")
@click.pass_context
def tui(ctx: click.Context, address: str | None, home: str | None, tenant: str | None, readonly: bool) -> None:
    """Watch adapters, jobs and requests in a dashboard.

    Needs a terminal of at least 80 x 24. It may be closed at any time; the daemon goes on.
    """
    from optiq_client.credentials import Credentials
    from optiq_client.paths import resolve_address
    from optiq_tui.app import OptiqApp

    # The root command knows the daemon's configuration file; alone, flags and environment decide.
    resolve: Callable[[str | None, str | None], str] = ctx.obj if callable(ctx.obj) else resolve_address
    dialled = resolve(address, home)
    OptiqApp(dialled, tenant=tenant or Credentials.resolve(dialled, None, None).tenant, readonly=readonly).run()
