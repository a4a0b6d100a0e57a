"""``optiq doctor``: what is wrong on this machine, and how to mend it."""

from __future__ import annotations

import sys

import click

from optiq_daemon.cli import output
from optiq_daemon.cli.options import json_option

_MARKS = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


@click.command(
    epilog="\b\nExamples:\n  optiq doctor\n  optiq doctor --json | jq '.checks[] | select(.verdict != \"ok\")'"
)
@click.option("--home", metavar="DIR", help="Folder of the daemon.")
@json_option
def doctor(home: str | None, as_json: bool) -> None:
    """Look at versions, settings, disk, socket, daemon, engine, device, BLAS and memory ceilings.

    Changes nothing. Exit code 1 if something is broken; warnings alone give 0.
    """
    from optiq_daemon.cli.checks import run_checks

    checks = []
    for check in run_checks(home):
        checks.append(check)
        if not as_json:
            mark, colour = _MARKS[check.verdict]
            mark = click.style(mark, fg=colour) if sys.stdout.isatty() else mark
            click.echo(f"{mark}  {check.name:<12} {check.found}")
            if check.mend:
                click.echo(f"{'':<19}mend: {check.mend}")
    broken = any(check.verdict == "fail" for check in checks)
    if as_json:
        output.print_json({"ok": not broken, "checks": checks})
    raise SystemExit(1 if broken else 0)
