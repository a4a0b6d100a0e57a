"""``optiq logs``: what the daemon and its processes wrote."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from optiq_daemon.cli import output
from optiq_daemon.cli.options import complete_job, json_option

if TYPE_CHECKING:
    from optiq_daemon.cli.log_files import LogFile, LogLine

_COLOURS = {"daemon": "cyan", "engine": "green", "trainer": "magenta"}


@click.command(
    epilog="\b\nExamples:\n  optiq logs -f\n  optiq logs engine -n 200\n  optiq logs trainer --job roman-1a2b3c4d -f\n"
    "  optiq logs daemon -n 1000 | grep request=\n  optiq logs -f --json | jq .text"
)
@click.argument("source", type=click.Choice(["all", "daemon", "engine", "trainer"]), default="all")
@click.option("--follow", "-f", "following", is_flag=True, help="Go on with what is added, until Ctrl-C.")
@click.option("--lines", "-n", type=click.IntRange(min=0), default=40, show_default=True, help="Lines to begin with.")
@click.option("--job", shell_complete=complete_job, help="Whose trainer; the latest job's if not given.")
@click.option("--home", metavar="DIR", help="Folder of the daemon.")
@json_option
def logs(*, source: str, following: bool, lines: int, job: str | None, home: str | None, as_json: bool) -> None:
    """Show the logs of daemon, engine and trainer, in order of time.

    SOURCE is daemon, engine, trainer, or all of them. The daemon need not run. Logs hold ids, never a prompt.
    With --json each line is an object with its name (whose log it is), stamp and text.
    """
    from optiq_daemon.cli.log_files import Added, last_lines
    from optiq_daemon.config import load_configuration

    found = _files(load_configuration({"home": home}).settings.home_path, source, job)
    # Made first, so that no line is lost between the two.
    added = Added(found)
    for line in chain(last_lines(found, lines), added if following else ()):
        if as_json:
            output.print_json(line, line=True)
        else:
            _print(line, named=len(found) > 1)


def _files(home: Path, source: str, job: str | None) -> list[LogFile]:
    """The logs that are meant.

    Raises:
        ClickException: none of them is there.
    """
    from optiq_client.paths import logs_path
    from optiq_daemon.cli.log_files import LogFile

    folder = logs_path(home)
    found = [LogFile(name, folder / f"{name}.log") for name in ("daemon", "engine") if source in ("all", name)]
    if source in ("all", "trainer") and (trainer := _trainer_log(home, job)) is not None:
        found.append(LogFile("trainer", trainer))
    if not any(log.path.exists() for log in found):
        what = f"job {job!r}" if job else f"{source} log" if source != "all" else "log"
        raise click.ClickException(f"no {what} in {home}; is that the daemon's home? ('optiq config show' tells it)")
    return found


def _trainer_log(home: Path, job: str | None) -> Path | None:
    """The log of a job's trainer, or of the one that wrote last."""
    from optiq_client.paths import jobs_path
    from optiq_daemon.names import is_id
    from optiq_daemon.trainer import LOG_NAME

    if job is not None:
        if not is_id(job):
            raise click.UsageError(f"--job {job}: not a job id; 'optiq jobs ls' lists them")
        return jobs_path(home) / job / LOG_NAME
    logs = sorted(jobs_path(home).glob(f"*/{LOG_NAME}"), key=lambda log: log.stat().st_mtime)
    return logs[-1] if logs else None


def _print(line: LogLine, *, named: bool) -> None:
    name = f"{line.name:<7} " if named else ""
    if name and sys.stdout.isatty():
        name = click.style(name, fg=_COLOURS[line.name])
    click.echo(name + line.text)
