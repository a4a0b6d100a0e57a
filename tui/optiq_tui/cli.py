"""``optiq tui``."""

from __future__ import annotations

import json
from collections.abc import Callable

import click


@click.command(
    epilog="\b\nExamples:\n  optiq tui\n  optiq tui --readonly --theme optiq-light\n"
    "  optiq tui --address 127.0.0.1:50051\n  optiq tui --keys"
)
@click.option("--address", metavar="ADDR", help="Daemon to watch: unix:/path or host:port.")
@click.option("--home", metavar="DIR", help="Folder of the daemon to watch.")
@click.option("--tenant", help="Whose adapters and jobs [the token's tenant, else 'default'].")
@click.option("--readonly", is_flag=True, help="Offer no action that changes anything.")
@click.option("--theme", metavar="NAME", help="optiq, optiq-light, or a theme of Textual [tui.toml's, else optiq].")
@click.option("--compact", is_flag=True, help="No frames, more rows.")
@click.option(
    "--keys", "list_keys", is_flag=True, help="List every key with the id that tui.toml remaps it by, and end."
)
@click.option("--json", "as_json", is_flag=True, help="With --keys: print JSON.")
@click.pass_context
def tui(
    ctx: click.Context,
    *,
    address: str | None,
    home: str | None,
    tenant: str | None,
    readonly: bool,
    theme: str | None,
    compact: bool,
    list_keys: bool,
    as_json: bool,
) -> None:
    """Watch and steer adapters, requests, jobs and routes in a dashboard.

    Needs a terminal of at least 80 x 24. It may be closed at any time; the daemon goes on. Keys, theme and density can
    be set in tui.toml beside the daemon's config.toml ($OPTIQ_TUI_CONFIG names another file). NO_COLOR is honoured.
    """
    from optiq_tui.keys import all_keys

    keys = all_keys()
    if list_keys:
        _print_keys(as_json)
        return

    import msgspec
    from textual.app import InvalidThemeError

    from optiq_client.credentials import Credentials
    from optiq_client.paths import resolve_address
    from optiq_tui.app import OptiqApp
    from optiq_tui.garbage import collect_rarely
    from optiq_tui.settings import SettingsError, read_settings, settings_path

    # The root command knows the daemon's configuration file; alone, flags and environment decide.
    resolve: Callable[[str | None, str | None], str] = ctx.obj if callable(ctx.obj) else resolve_address
    dialled = resolve(address, home)
    try:
        settings = read_settings(settings_path(), {key.id for key in keys})
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    settings = msgspec.structs.replace(settings, theme=theme or settings.theme, compact=compact or settings.compact)
    whose = tenant or Credentials.resolve(dialled, None, None).tenant
    try:
        app = OptiqApp(dialled, tenant=whose, readonly=readonly, settings=settings)
    except InvalidThemeError:
        raise click.ClickException(
            f"there is no theme {settings.theme!r}; optiq and optiq-light are ours, the command palette has them all"
        ) from None
    collect_rarely()
    app.run()


def _print_keys(as_json: bool) -> None:
    from dataclasses import asdict

    from optiq_tui.keys import all_keys

    keys = all_keys()
    if as_json:
        click.echo(json.dumps([asdict(key) for key in keys], indent=2))
        return
    width = max(len(key.id) for key in keys)
    for key in keys:
        click.echo(f"{key.id:<{width}}  {key.keys:<24}  {key.what}")
