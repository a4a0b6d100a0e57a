"""``optiq config``: the settings, and where they come from."""

from __future__ import annotations

import click

from optiq_daemon.cli import output
from optiq_daemon.cli.options import json_option


@click.group(epilog='\b\nExamples:\n  optiq config show --origin\n  $EDITOR "$(optiq config path)"')
def config() -> None:
    """Show the settings and where they come from."""


@config.command(epilog="\b\nExamples:\n  optiq config show\n  OPTIQ_MAX_BATCH=32 optiq config show --origin")
@click.option("--origin", is_flag=True, help="Say for each value where it came from.")
@json_option
def show(origin: bool, as_json: bool) -> None:
    """Show the settings that a daemon would start with: environment, then config.toml, then defaults."""
    import msgspec

    from optiq_daemon.config import DESCRIPTIONS, load_configuration

    loaded = load_configuration()
    values = msgspec.to_builtins(loaded.settings)
    if as_json:
        output.print_json(
            {k: {"value": v, "origin": loaded.origins[k]} for k, v in values.items()} if origin else values
        )
        return
    rows = [
        (key, str(value) if value != "" else '""', loaded.origins[key] if origin else DESCRIPTIONS[key])
        for key, value in values.items()
    ]
    output.print_table(("KEY", "VALUE", "ORIGIN" if origin else "MEANING"), rows)


@config.command(epilog="\b\nExamples:\n  optiq config path")
@json_option
def path(as_json: bool) -> None:
    """Print where config.toml is read from."""
    from optiq_client.paths import config_path

    if as_json:
        output.print_json({"path": str(config_path()), "exists": config_path().is_file()})
    else:
        click.echo(str(config_path()))
