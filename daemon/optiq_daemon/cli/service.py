"""``optiq service``: start the daemon at login, with launchd on macOS and systemd on Linux."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from optiq_daemon.cli import output
from optiq_daemon.cli.options import json_option


@click.group(
    epilog="\b\nExamples:\n  optiq service install --home ~/optiq -- --port 8080\n  optiq service status\n"
    "  optiq service uninstall"
)
def service() -> None:
    """Start the daemon at login."""


@service.command(
    epilog="\b\nExamples:\n  optiq service install\n  optiq service install -- --model ./my-base --port 8080\n"
    "  optiq service install --print        # only show the file"
)
@click.option("--home", metavar="DIR", help="Folder of the daemon.")
@click.option("--print", "only_print", is_flag=True, help="Print the file and change nothing.")
@click.option("--start/--no-start", default=True, show_default=True, help="Start it now as well.")
@click.argument("arguments", nargs=-1, metavar="[-- SERVE-OPTIONS]")
def install(home: str | None, only_print: bool, start: bool, arguments: tuple[str, ...]) -> None:
    """Write a launchd agent (macOS) or a systemd user unit (Linux) and start it.

    What follows -- goes to `optiq serve`. Settings of config.toml apply; OPTIQ_* variables of this terminal do not.
    """
    from optiq_daemon.config import load_configuration

    settings = load_configuration({"home": home}).settings
    command = [sys.executable, "-m", "optiq_daemon", "serve", "--home", settings.home, *_checked(arguments)]
    manager = _manager()
    content = manager.content(command, settings.home_path)
    if only_print:
        click.echo(content, nl=False)
        return
    manager.path.parent.mkdir(parents=True, exist_ok=True)
    manager.path.write_bytes(content)
    output.note(f"wrote {manager.path}")
    if start:
        for line in manager.start:
            _run(line)
        output.note("started; 'optiq service status' and 'optiq logs -f' show how it does")


@service.command(epilog="\b\nExamples:\n  optiq service uninstall")
def uninstall() -> None:
    """Stop the service and remove its file. The daemon's home stays."""
    manager = _manager()
    if not manager.path.exists():
        output.note(f"not installed: {manager.path} is not there")
        return
    _run(manager.stop, must=False)
    manager.path.unlink()
    for line in manager.forget:
        _run(line, must=False)
    output.note(f"removed {manager.path}")


@service.command(epilog="\b\nExamples:\n  optiq service status\n  optiq service status --json | jq .active")
@json_option
def status(as_json: bool) -> None:
    """Say whether the service is installed and runs; exit code 3 if it does not run."""
    manager = _manager()
    installed = manager.path.exists()
    active = installed and _run(manager.ask, must=False) == 0
    if as_json:
        output.print_json(
            {"installed": installed, "active": active, "path": str(manager.path), "manager": manager.name}
        )
    else:
        state = "running" if active else "installed, not running" if installed else "not installed"
        click.echo(f"{state}  {manager.path}")
    raise SystemExit(0 if active else 3)


class _Launchd:
    """macOS."""

    name = "launchd"

    def __init__(self) -> None:
        from optiq_daemon.cli.service_files import LABEL, launchd_path

        domain = f"gui/{os.getuid()}"
        self.path = launchd_path()
        self.start = [["launchctl", "bootstrap", domain, str(self.path)]]
        self.stop = ["launchctl", "bootout", f"{domain}/{LABEL}"]
        self.forget: list[list[str]] = []
        self.ask = ["launchctl", "print", f"{domain}/{LABEL}"]

    def content(self, command: Sequence[str], home: Path) -> bytes:
        """The agent's file."""
        from optiq_client.paths import logs_path
        from optiq_daemon.cli.service_files import launchd_plist

        return launchd_plist(command, logs_path(home) / "service.log")


class _Systemd:
    """Linux."""

    name = "systemd"

    def __init__(self) -> None:
        from optiq_daemon.cli.service_files import UNIT, systemd_path

        control = ["systemctl", "--user"]
        self.path = systemd_path()
        self.start = [[*control, "daemon-reload"], [*control, "enable", "--now", UNIT]]
        self.stop = [*control, "disable", "--now", UNIT]
        self.forget = [[*control, "daemon-reload"]]
        self.ask = [*control, "is-active", "--quiet", UNIT]

    def content(self, command: Sequence[str], home: Path) -> bytes:
        """The unit's file."""
        from optiq_daemon.cli.service_files import systemd_unit

        return systemd_unit(command).encode()


def _manager() -> _Launchd | _Systemd:
    return _Launchd() if sys.platform == "darwin" else _Systemd()


def _checked(arguments: Sequence[str]) -> list[str]:
    """Arguments of `optiq serve`, refused now if they are wrong, not at every login."""
    from optiq_daemon.cli.serve import serve

    serve.make_context("optiq serve", list(arguments))
    return list(arguments)


def _run(command: Sequence[str], *, must: bool = True) -> int:
    """Run a command of the system's service manager; its exit code.

    Raises:
        ClickException: it failed, and `must` says that it may not.
    """
    if shutil.which(command[0]) is None:
        if must:
            raise click.ClickException(f"{command[0]} is not there; 'optiq service install --print' shows the file")
        return 127
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if must and done.returncode:
        raise click.ClickException(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")
    return done.returncode
